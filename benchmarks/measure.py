"""Time, and a description of the machine."""

import os
import platform
import time

import torch

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


def saved_for_backward(run, inputs):
    """Bytes that the graph of ``run()`` holds for its backward, beyond ``inputs``: each storage once."""
    own = {t.untyped_storage().data_ptr() for t in inputs}
    saved = {}

    def pack(t):
        storage = t.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        kept.append(t)  # so that no address is used twice
        return t

    kept = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = run()
    del result
    return sum(n for at, n in saved.items() if at not in own)


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
