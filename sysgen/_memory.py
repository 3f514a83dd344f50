"""Exact peak memory of a call."""

import os

import torch
from torch.profiler import ProfilerActivity, profile

from . import _alloc


def peak_memory(fn, device):
    """The result of ``fn()`` and the largest number of bytes of tensors that it held at once, beyond those before it.

    Repeatable: from the CUDA allocator's own counters, or on the CPU from every allocation and release that torch's
    profiler saw; no memory is kept from call to call meanwhile. Not seen on the CPU: what a kernel takes from malloc
    without torch, and NumPy's arrays.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = fn()
        torch.cuda.synchronize(device)
        return result, torch.cuda.max_memory_allocated(device) - before
    p = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    keep = _alloc.set_keep(False)
    _without_stderr(p.start)
    try:
        result = fn()
    finally:
        _without_stderr(p.stop)
        _alloc.set_keep(keep)
    events = [e for e in p.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return result, peak


def _without_stderr(call):
    """The profiler announces itself on the file descriptor, past Python."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        call()
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
