#!/usr/bin/env bash
# Everything that only a GPU can tell, in under 9 minutes: builds and installs offline, then runs the conformance rows
# of the emulator, the GPU tests, CUDA graphs and compute-sanitizer over every op (tests/test_gpu.py; a new op needs
# nothing here), the same ops through NVRTC as on a machine without nvcc, CVMM with and without its path for compute
# capability 9.0 (skipped on other GPUs), and the GPU benchmarks. Each part has its own
# time budget (540 s together); the failure of one does not hide the others.
#
#   tools/gpu_check.sh [OUTPUT_FOLDER]       default: benchmarks/results/gpu
#
# Needs nvcc, cmake and ninja, and in the Python environment (PYTHON, default python3) a torch with CUDA, setuptools,
# pybind11, pytest and pytest-benchmark; no network.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results/gpu}
mkdir -p "$out" || exit
logs=$(mktemp -d)
repository=$PWD
python=$("${PYTHON:-python3}" -c 'import sys; print(sys.executable)') || exit
export python logs repository
export OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1 PIP_NO_INDEX=1 PIP_DISABLE_PIP_VERSION_CHECK=1
export PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
parts=()

# part NAME SECONDS COMMAND...: runs a command within its budget, keeps its log, remembers how it went. An interrupt
# lets pytest still say what it has found.
part() {
  local name=$1 budget=$2 start=$SECONDS rc
  shift 2
  printf '== %s (at most %s s)\n' "$name" "$budget"
  timeout --signal=INT --kill-after=5 "$budget" bash -c '"$@"' part "$@" </dev/null >"$logs/$name.log" 2>&1
  rc=$?
  parts+=("$name:$rc:$((SECONDS - start))")
  if [ $rc -ne 0 ]; then tail -n 12 "$logs/$name.log" | cut -c 1-200; fi
}

# From another folder: the source folder would hide the installed package.
run_pytest() { cd "$logs" && "${under[@]}" "$python" -m pytest -q -ra --tb=short -c "$repository/pyproject.toml" \
  --rootdir="$repository" -p no:cacheprovider "$@"; }
environment() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm --format=csv
  nvcc --version
  "$python" - <<'PY'
import importlib.metadata, platform, sys, torch

for name in ("setuptools", "pybind11", "pytest", "pytest-benchmark", "hypothesis", "numba"):
    try:
        print(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        print(name, "is missing")
print("python", platform.python_version(), platform.platform())
print("torch", torch.__version__, "CUDA", torch.version.cuda)
sys.exit(0 if torch.cuda.is_available() else "torch sees no GPU")
PY
}
build() { "$python" -m pip install --no-build-isolation --no-deps --force-reinstall .; }
info() { cd "$logs" && "$python" -m sysgen.info --json; }
conformance() {
  nvcc -std=c++17 -O2 -Icsrc --expt-relaxed-constexpr -arch=native -o "$logs/conformance" \
    -x cu tests/emulator/conformance.cpp &&
    "$logs/conformance" >"$logs/conformance.txt" &&
    diff tests/emulator/conformance.golden "$logs/conformance.txt" && wc -l "$logs/conformance.txt"
}
# The path for compute capability 9.0, which SYSGEN_HOPPER=1 takes: its instructions, its results, and CVMM's times
# both ways, for people to compare.
hopper() {
  case $(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1) in
    9.0) ;;
    *) echo "skipped: this GPU is not of compute capability 9.0"; return ;;
  esac
  nvcc -std=c++17 -O2 -Icsrc --expt-relaxed-constexpr -gencode=arch=compute_90a,code=sm_90a \
    -o "$logs/conformance_hopper" -x cu tests/emulator/conformance_hopper.cpp &&
    "$logs/conformance_hopper" >"$logs/conformance_hopper.txt" &&
    diff tests/emulator/conformance_hopper.golden "$logs/conformance_hopper.txt" || return
  export SYSGEN_HOPPER=1
  run_pytest -m cuda "$repository/tests/test_hopper.py" "$repository/tests/test_cvmm.py" || return
  for SYSGEN_HOPPER in 0 1; do
    echo "SYSGEN_HOPPER=$SYSGEN_HOPPER"
    run_pytest "$repository/benchmarks/bench_moe_shapes.py" -k "projection and forward" --benchmark-only --full \
      --device cuda --results "$logs/results_hopper" --benchmark-json="$logs/hopper_$SYSGEN_HOPPER.json" || return
  done
}
gpu_tests() { run_pytest -m cuda "$repository/tests" --ignore "$repository/tests/test_gpu.py"; }
graphs() { run_pytest -m cuda -k graph "$repository/tests/test_gpu.py"; }
sanitizer() {  # without torch's pools, so that every allocation has its own bounds
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  local tool
  for tool in memcheck racecheck; do
    under=(compute-sanitizer --tool "$tool" --error-exitcode 9)
    run_pytest -m cuda -k small "$repository/tests/test_gpu.py" || return
  done
}
nvrtc() {
  mkdir "$logs/source" && cp -r CMakeLists.txt setup.py pyproject.toml README.md LICENSE csrc sysgen "$logs/source" &&
    SYSGEN_CUDA=off "$python" -m pip install --no-build-isolation --no-deps --target "$logs/nvrtc" "$logs/source" &&
    export PYTHONPATH=$logs/nvrtc SYSGEN_CACHE=$logs/cache && run_pytest -m cuda "$repository/tests/test_gpu.py"
}
benchmarks() {
  run_pytest "$repository/benchmarks" --benchmark-only --full --device cuda --results "$logs/results" \
    --benchmark-json="$logs/benchmarks.json"
}
export -f run_pytest environment build info conformance hopper gpu_tests graphs sanitizer nvrtc benchmarks

part environment 20 environment
part build 135 build
part info 15 info
part conformance 30 conformance
part tests 90 gpu_tests
part graphs 20 graphs
part hopper 45 hopper
part sanitizer 50 sanitizer
part nvrtc 65 nvrtc
part benchmarks 60 benchmarks
"$python" tools/gpu_report.py "$out" "$logs" "${parts[@]}"
