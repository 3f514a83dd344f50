"""The CUDA kernels on the emulator: results, races and memory, in several thread orders; and how much of them ran."""

import gzip
import json
import shutil
import subprocess

import pytest
from emulator_programs import BUILD, ROOT, build, run

PROGRAMS = sorted(f.stem for f in (ROOT / "tests/kernels").glob("*_emulated.cpp"))

# kind, order, number of random cases and their seed. A sanitizer needs fewer cases: it looks at every access of each.
RUNS = [
    ("plain", "forward", 120, 1),
    ("plain", "reverse", 60, 2),
    ("plain", "random:1", 60, 3),
    ("plain", "random:2", 60, 4),
    ("asan", "forward", 30, 5),
    ("asan", "random:3", 30, 6),
    ("tsan", "forward", 12, 7),
    ("tsan", "random:4", 12, 8),
]


@pytest.mark.parametrize(("kind", "order", "cases", "seed"), RUNS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_kernels(program, kind, order, cases, seed):
    build("kernel_programs")
    status, output = run(f"{program}_{kind}", cases, seed, order=order)
    assert status == 0, output[-8000:]


def lines_run(program):
    """(file, line) -> number of times it ran, for the kernel files, from gcov."""
    objects = BUILD / "CMakeFiles" / f"{program}_coverage.dir"
    for old in objects.rglob("*.gcda"):
        old.unlink()
    status, output = run(f"{program}_coverage", 60, 9)
    assert status == 0, output[-8000:]
    (data,) = objects.rglob("*.gcda")
    report = subprocess.run(["gcov", "--json-format", "--stdout", data], capture_output=True, check=True, cwd=objects)
    text = gzip.decompress(report.stdout) if report.stdout[:2] == b"\x1f\x8b" else report.stdout
    counts = {}
    for file in json.loads(text)["files"]:
        path = (objects / file["file"]).resolve()
        if path.suffix == ".cuh" and path.parent.name != "device":
            for line in file["lines"]:
                key = (path.name, line["line_number"])
                counts[key] = counts.get(key, 0) + line["count"]
    return counts


@pytest.mark.skipif(shutil.which("gcov") is None, reason="gcov is not installed")
def test_kernel_lines_are_covered():
    """At least 95 % of each file. Lines of a template count if any instance ran them."""
    build("kernel_programs")
    total = {}
    for program in PROGRAMS:
        for key, count in lines_run(program).items():
            total[key] = total.get(key, 0) + count
    files = sorted({name for name, _ in total})
    assert set(files) == {f.name for f in (ROOT / "csrc").glob("*/*.cuh") if f.parent.name != "device"}
    for name in files:
        lines = {line: count for (file, line), count in total.items() if file == name}
        missed = sorted(line for line, count in lines.items() if count == 0)
        assert len(missed) <= 0.05 * len(lines), f"{name}: lines {missed} of {len(lines)} never ran"
