"""Log of a run: one JSON object a line, and the final result."""

import json
import math
import os
import platform
import time
from pathlib import Path

import torch


class Log:
    """Appends events to a file of JSON lines.

    ``continued``: the checkpoint that the run goes on from. What was logged after it happens again and is dropped.
    """

    def __init__(self, path, *, continued=None):
        self.path = Path(path)
        kept = []
        if continued is not None and self.path.exists():
            until = {"evaluation": continued["evaluated"], "finished": -1}
            for event in read(self.path):
                if event.get("step", 0) <= until.get(event["event"], continued["step"]):
                    kept.append(event)
        replace_text(self.path, "".join(_line(e) for e in kept))

    def write(self, event, **fields):
        with self.path.open("a") as file:
            file.write(_line({"event": event, **fields}))


def read(path):
    """All events of a log. A last line that a crash cut off is left out."""
    events = []
    for line in Path(path).read_text().splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return events


def _line(event):
    return json.dumps(finite(event), allow_nan=False) + "\n"


def finite(value):
    """``value`` with None in place of infinite and NaN numbers, for which JSON has no words."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def replace_text(path, text):
    """Writes a whole file under a temporary name and renames it, so that no reader sees half of it."""
    temporary = Path(f"{path}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def environment(device):
    """Where a run takes place: versions, device, threads and date (UTC)."""
    import sysgen

    on_gpu = torch.device(device).type == "cuda"
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sysgen": getattr(sysgen, "__version__", None),
    }


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
