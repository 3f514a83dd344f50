"""The end of tools/gpu_check.sh: python gpu_report.py OUTPUT LOGS NAME:EXIT_STATUS:SECONDS...

Writes one JSON of what the parts left in the folder of logs, and prints it as a table of at most 100 lines.
"""

import datetime
import json
import re
import sys
from pathlib import Path

PYTEST = ("tests", "graphs", "sanitizer", "nvrtc", "benchmarks")
BENCHMARKS = {  # file of the logs -> what its figures' names end in
    "benchmarks.json": "",
    "hopper_0.json": ", SYSGEN_HOPPER=0",
    "hopper_1.json": ", SYSGEN_HOPPER=1",
}


def state(name, status, log):
    if status in (124, 130, 137):
        return "out of time"
    if status == 127:
        return "not installed"
    if status:
        return f"failed ({status})"
    if name in PYTEST and not re.search(r"\b[1-9]\d* passed", log):
        return "nothing ran"
    return "ok"


def collect(logs, parts):
    """The record: date, device, environment, parts and figures."""
    record = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "parts": {}}
    texts = {}
    for part in parts:
        name, status, seconds = part.split(":")
        file = logs / f"{name}.log"
        texts[name] = file.read_text(errors="replace") if file.exists() else ""
        lines = texts[name].splitlines()
        how = state(name, int(status), texts[name])
        said = lines[-1:] if how == "ok" else lines[-60:]
        record["parts"][name] = {"state": how, "seconds": int(seconds), "log": said}
    record["environment"] = texts.get("environment", "").splitlines()
    device = re.search(r"^name, .*\n(.+?),", texts.get("environment", ""), re.M)
    record["device"] = device.group(1) if device else None
    info = texts.get("info", "")
    try:
        record["info"] = json.loads(info[info.index("{") :])
    except ValueError:
        record["info"] = info.splitlines()
    record["benchmarks"] = []
    for file, suffix in BENCHMARKS.items():
        try:
            measured = json.loads((logs / file).read_text())["benchmarks"]
        except (OSError, ValueError):
            measured = []
        for b in measured:
            times = {"median_s": b["stats"]["median"], "min_s": b["stats"]["min"]}
            record["benchmarks"].append({"name": b["name"] + suffix, "group": b["group"], **times, **b["extra_info"]})
    return record


def table(record, most=100):
    lines = [f"{record['device']}  {record['date']}"]
    for name, p in record["parts"].items():
        lines.append(f"{name:14}{p['state']:16}{p['seconds']:4} s  {''.join(p['log'][-1:])[:70]}")
    for b in record["benchmarks"]:
        lines.append(f"{b['name'][:70]:72}{1e6 * b['median_s']:12.1f} us")
    if len(lines) > most:
        lines[most - 1 :] = [f"and {len(lines) - most + 1} more in the file"]
    return lines


def main():
    out, logs, parts = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    record = collect(logs, parts)
    path = out / f"check-{record['date'].replace(':', '')[:15]}.json"
    path.write_text(json.dumps(record, indent=1))
    print(f"\n{path}")
    print("\n".join(table(record)))
    sys.exit(any(p["state"] != "ok" for p in record["parts"].values()))


if __name__ == "__main__":
    main()
