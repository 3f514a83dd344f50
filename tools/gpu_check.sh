#!/usr/bin/env bash
# Everything that only a GPU can tell, in under 9 minutes: builds and installs offline, then runs the conformance rows
# of the emulator, the GPU tests, compute-sanitizer over a small selection, and the GPU benchmarks. Each part has its
# own time budget; the failure of one does not hide the others.
#
#   tools/gpu_check.sh [OUTPUT_FOLDER]       default: benchmarks/results/gpu
#
# Needs nvcc, pybind11, cmake, ninja and a torch with CUDA in the current Python environment; no network.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results/gpu}
mkdir -p "$out"
logs=$(mktemp -d)
export OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1
parts=()

# part NAME SECONDS COMMAND...: runs a command within its budget, keeps its log, remembers how it went.
part() {
  local name=$1 budget=$2 start=$SECONDS rc
  shift 2
  printf '== %s (at most %s s)\n' "$name" "$budget"
  timeout --kill-after=10 "$budget" "$@" >"$logs/$name.log" 2>&1
  rc=$?
  parts+=("$name:$rc:$((SECONDS - start))")
  if [ $rc -ne 0 ]; then tail -n 12 "$logs/$name.log" | cut -c 1-200; fi
}

conformance() {
  nvcc -std=c++17 -O2 -Icsrc --expt-relaxed-constexpr -arch=native -o "$logs/conformance" \
    -x cu tests/emulator/conformance.cpp &&
    "$logs/conformance" >"$logs/conformance.txt" &&
    diff tests/emulator/conformance.golden "$logs/conformance.txt"
}
sanitizer() {  # small shapes that together launch every kernel
  local tool tests=()
  for types in float64 float32 bfloat16 float16-float32; do
    tests+=("tests/test_cvmm.py::test_values_and_gradients[cuda-((13,), 2, 5, 7, 3)-$types]")
  done
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 9 python -m pytest -q -x "${tests[@]}" || return
  done
}
export -f conformance sanitizer
export logs

part environment 20 bash -c 'nvidia-smi; nvcc --version; python -c "import torch; print(torch.__version__, torch.version.cuda)"'
part build 200 python -m pip install --no-build-isolation --no-deps --force-reinstall .
part info 20 bash -c 'cd / && python -m sysgen.info --json'
part conformance 60 bash -c conformance
part tests 120 python -m pytest -q -m cuda tests
part sanitizer 80 bash -c sanitizer
part benchmarks 150 python -m pytest -q benchmarks --benchmark-only --full --device cuda \
  --benchmark-json="$logs/benchmarks.json"

python - "$out" "$logs" "${parts[@]}" <<'PY'
import datetime, json, pathlib, re, sys

out, logs, parts = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3:]
text = lambda name: (logs / f"{name}.log").read_text(errors="replace") if (logs / f"{name}.log").exists() else ""
device = re.search(r"NVIDIA [A-Za-z0-9 ]+?(?=  |\s+On|\s+Off)", text("environment"))
record = {
    "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    "device": device.group(0) if device else None,
    "environment": text("environment"),
    "parts": {},
    "benchmarks": [],
}
try:
    record["info"] = json.loads(text("info"))
except ValueError:
    record["info"] = text("info")
for part in parts:
    name, rc, seconds = part.split(":")
    lines = text(name).splitlines()
    state = "ok" if rc == "0" else "out of time" if rc in ("124", "137") else f"failed ({rc})"
    record["parts"][name] = {"state": state, "seconds": int(seconds), "last line": lines[-1] if lines else ""}
if (logs / "benchmarks.json").exists():
    for b in json.loads((logs / "benchmarks.json").read_text())["benchmarks"]:
        figures = {"name": b["name"], "group": b["group"], "median_s": b["stats"]["median"], "min_s": b["stats"]["min"]}
        record["benchmarks"].append({**figures, **b["extra_info"]})
path = out / f"check-{record['date'][:10]}.json"
path.write_text(json.dumps(record, indent=1))

print(f"\n{record['device']}  {record['date']}  -> {path}")
for name, p in record["parts"].items():
    print(f"{name:14}{p['state']:16}{p['seconds']:4} s  {p['last line'][:70]}")
for b in record["benchmarks"][:80]:
    print(f"{b['name'][:70]:72}{1e6 * b['median_s']:12.1f} us")
sys.exit(any(p["state"] != "ok" for p in record["parts"].values()))
PY
