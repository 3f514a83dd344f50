"""tools/gpu_check.sh without a GPU: the tools that it calls are stand-ins."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = (ROOT / "tools/gpu_check.sh").read_text()
PARTS = re.findall(r"^part (\w+) (\d+) (\w+)$", SCRIPT, re.M)

PYTHON = """#!/bin/bash
case "$1 $2" in
  "-c "*) echo "$0" ;;
  "- ") echo "torch 2.11"; [ "$BROKEN" != environment ] || exit 1 ;;
  "-m pip") echo built ;;
  "-m sysgen.info") echo "a warning"; echo '{"gpus": 1}' ;;
  "-m pytest")
    printf '%s ' "$@" >>"$CALLS"; echo >>"$CALLS"
    case "$*" in
      *benchmark-only*)
        figures='{"name": "b", "group": "g", "stats": {"median": 1e-3, "min": 1e-3}, "extra_info": {}}'
        echo "{\\"benchmarks\\": [$figures]}" >"$(printf '%s\\n' "$@" | sed -n 's/--benchmark-json=//p')" ;;
      *"-k small"*) [ "$BROKEN" != race ] || exit 9 ;;
      *"-k graph"*) [ "$BROKEN" != graphs ] || { echo "5 skipped in 1 s"; exit 0; } ;;
      *--ignore*) [ "$BROKEN" != tests ] || { trap 'echo "1 failed, 2 passed (interrupted)"; exit 2' INT; sleep 30; } ;;
    esac
    echo "3 passed in 1 s" ;;
  *) exec REAL "$@" ;;
esac
"""
TOOLS = {
    "python3": PYTHON.replace("REAL", sys.executable),
    "nvidia-smi": '#!/bin/bash\ncase "$*" in *compute_cap*) echo "${CAPABILITY:-9.0}"; exit ;; esac\n'
    'echo "name, driver_version"\necho "NVIDIA H200, 580.1"\n',
    "nvcc": '#!/bin/bash\nwhile [ $# -gt 0 ]; do [ "$1" != -o ] || cp "$GOLDEN" "$2"; shift; done\n',
    "compute-sanitizer": '#!/bin/bash\nshift 4\nexec "$@"\n',
}


@pytest.fixture
def check(tmp_path):
    """Runs the script with stand-ins in which one part is broken; gives its exit status, output and record."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "tools").mkdir()
    (tmp_path / "tests/emulator").mkdir(parents=True)
    golden = {part: tmp_path / f"tests/emulator/{part}.golden" for part in ("conformance", "conformance_hopper")}
    for file in golden.values():
        file.write_text("a row\n")
    (tmp_path / "printer").write_text("#!/bin/bash\necho a row\n")
    for name in ("csrc", "sysgen"):
        (tmp_path / name).mkdir()
    for name in ("CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).touch()
    for name, text in TOOLS.items():
        (tmp_path / "bin" / name).write_text(text)
    shutil.copy(ROOT / "tools/gpu_report.py", tmp_path / "tools")
    (tmp_path / "tools/gpu_check.sh").write_text(SCRIPT.replace("part tests 90", "part tests 1"))
    for file in [*(tmp_path / "bin").iterdir(), tmp_path / "printer"]:
        file.chmod(0o755)

    def run(broken="", **options):
        if broken in golden:
            golden[broken].write_text("another row\n")
        if broken == "sanitizer":
            (tmp_path / "bin/compute-sanitizer").unlink()
        environment = {
            **{k: v for k, v in os.environ.items() if k != "PYTHON"},
            "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
            "BROKEN": broken,
            "GOLDEN": str(tmp_path / "printer"),
            "CALLS": str(tmp_path / "calls"),
            "CUDA_HOME": str(tmp_path),
            **options,
        }
        command = ["bash", tmp_path / "tools/gpu_check.sh", tmp_path / "out"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        (file,) = (tmp_path / "out").glob("check-*.json")
        return result, json.loads(file.read_text()), (tmp_path / "calls").read_text()

    return run


def states(record):
    return {name: part["state"] for name, part in record["parts"].items()}


def test_every_part_runs_and_leaves_its_figures(check):
    result, record, calls = check()
    assert result.returncode == 0, result.stdout + result.stderr
    assert states(record) == {name: "ok" for name, _, _ in PARTS} and len(PARTS) == 10
    assert record["device"] == "NVIDIA H200" and record["info"] == {"gpus": 1}
    assert record["benchmarks"][0]["median_s"] == 1e-3
    assert [len(re.findall(part, calls)) for part in ("-k small", "-k graph", "--benchmark-only")] == [2, 1, 3]
    assert [b["name"] for b in record["benchmarks"]] == ["b", "b, SYSGEN_HOPPER=0", "b, SYSGEN_HOPPER=1"]
    assert "3 passed" in result.stdout and len(result.stdout.split("check-")[1].splitlines()) <= 101


@pytest.mark.parametrize(
    ("broken", "part", "state"),
    [
        ("environment", "environment", "failed (1)"),
        ("conformance", "conformance", "failed (1)"),
        ("conformance_hopper", "hopper", "failed (1)"),
        ("tests", "tests", "out of time"),
        ("graphs", "graphs", "nothing ran"),
        ("race", "sanitizer", "failed (9)"),
        ("sanitizer", "sanitizer", "not installed"),
    ],
)
def test_a_broken_part_hides_no_other(check, broken, part, state):
    result, record, _ = check(broken)
    assert result.returncode == 1
    assert states(record) == {**{name: "ok" for name, _, _ in PARTS}, part: state}
    if broken == "tests":
        assert record["parts"]["tests"]["log"][-1] == "1 failed, 2 passed (interrupted)"


def test_another_gpu_skips_what_only_9_0_has(check):
    result, record, calls = check(CAPABILITY="8.0")
    assert result.returncode == 0 and states(record)["hopper"] == "ok" and calls.count("--benchmark-only") == 1
    assert record["parts"]["hopper"]["log"] == ["skipped: this GPU is not of compute capability 9.0"]


def test_the_budgets_fit_into_nine_minutes():
    assert sum(int(seconds) for _, seconds, _ in PARTS) <= 9 * 60 - 10  # the report takes a second


def test_a_long_table_is_cut():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from gpu_report import table
    finally:
        sys.path.pop(0)
    figures = [{"name": f"b{i}", "median_s": 1.0} for i in range(300)]
    lines = table({"device": "d", "date": "now", "parts": {}, "benchmarks": figures})
    assert len(lines) == 100 and lines[-1] == "and 202 more in the file"
