"""Time, peak memory, and a description of the machine."""

import os
import platform
import time

import torch
from torch.profiler import ProfilerActivity, profile

import sysgen
from sysgen._load import core


def sync_timer():
    """Seconds, after all work on the GPU has finished."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(fn):
    start = sync_timer()
    result = fn()
    return sync_timer() - start, result


def peak_memory(fn, device):
    """The result of ``fn()`` and the largest number of bytes of tensors it held at once, beyond those before the call.

    Exact and repeatable: from the CUDA allocator's own counters, or on the CPU from every allocation and release that
    the profiler saw. Scratch that a CPU kernel takes from malloc without telling torch is not seen; nor are NumPy's
    arrays.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = fn()
        torch.cuda.synchronize()
        return result, torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
        result = fn()
    events = [e for e in p.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return result, peak


def load_average():
    return [round(v, 2) for v in os.getloadavg()]


def environment(device):
    """What a reader needs to know to judge a figure or to repeat it."""
    described = {
        "date": time.strftime("%Y-%m-%d"),
        "device": device.type,
        "cpu": _cpu_model(),
        "isa": core.cpu_isa(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sysgen": sysgen.__version__,
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
        described["cuda"] = torch.version.cuda
    return described


def _cpu_model():
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
