"""The CUDA kernels on the emulator: results, races and memory, in several thread orders; and how much of them ran.

A program is a file ``tests/kernels/<name>_emulated.cpp``. It takes the number of random cases and their seed, and ends
with ``<name>: <n> cases, 0 failed`` and exit status 0; a program that is asked for fewer than 20 cases runs under a
sanitizer and leaves out what is large.
"""

import functools
import gzip
import json
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from emulator_programs import BUILD, ROOT, build, run

PROGRAMS = sorted(f.stem for f in (ROOT / "tests/kernels").glob("*_emulated.cpp"))
KERNEL_FILES = sorted(
    f.name
    for f in (ROOT / "csrc").glob("*/*.cuh")
    if f.parent.name != "device" and re.search("__(device|global)__", f.read_text())
)

# kind, order, number of random cases and their seed. A sanitizer needs fewer cases: it looks at every access of each.
RUNS = [
    ("plain", "forward", 100, 1),
    ("plain", "reverse", 30, 2),
    ("plain", "random:1", 30, 3),
    ("plain", "random:2", 30, 4),
    ("asan", "forward", 20, 5),
    ("asan", "random:3", 8, 6),
    ("tsan", "forward", 8, 7),
    ("tsan", "random:4", 5, 8),
]
COUNTED = RUNS[0]  # the run whose lines are counted


@pytest.fixture(scope="module")
def results(request, tmp_path_factory):
    """What gives exit status and output of (program, configuration).

    One process a core runs at a time; what the selected tests ask for is started at once.
    """
    build("kernel_programs")
    for counts in BUILD.rglob("*_emulated_plain.dir/**/*.gcda"):
        counts.unlink()
    pool = ThreadPoolExecutor(os.cpu_count())
    uncounted = {"GCOV_PREFIX": str(tmp_path_factory.mktemp("uncounted"))}

    @functools.cache
    def start(program, configuration):
        kind, order, cases, seed = configuration
        options = {} if configuration == COUNTED else uncounted
        return pool.submit(run, f"{program}_{kind}", cases, seed, order=order, **options)

    for item in request.session.items:
        if getattr(item, "function", None) is test_kernels:
            start(*(item.callspec.params[name] for name in ("program", "configuration")))
    yield lambda *which: start(*which).result()
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("configuration", RUNS, ids=lambda c: f"{c[0]}-{c[1]}")
@pytest.mark.parametrize("program", PROGRAMS)
def test_kernels(program, configuration, results):
    status, output = results(program, configuration)
    assert status == 0, output[-8000:]
    assert re.search(r"^\w+: [1-9]\d* cases, 0 failed$", output, re.M), output[-8000:]


def lines_run(program):
    """(file, line) -> number of times it ran, for the kernel files, from gcov."""
    objects = BUILD / "CMakeFiles" / f"{program}_plain.dir"
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


@pytest.fixture(scope="module")
def all_lines_run(results):
    for program in PROGRAMS:
        status, output = results(program, COUNTED)
        assert status == 0, output[-8000:]
    total = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for counts in pool.map(lines_run, PROGRAMS):
            for key, count in counts.items():
                total[key] = total.get(key, 0) + count
    return total


@pytest.mark.skipif(shutil.which("gcov") is None, reason="gcov is not installed")
@pytest.mark.parametrize("file", KERNEL_FILES)
def test_kernel_lines_are_covered(file, all_lines_run):
    """At least 95 %. A line of a template counts if any instance ran it."""
    lines = {line: count for (name, line), count in all_lines_run.items() if name == file}
    assert lines, f"no program in tests/kernels calls what {file} defines"
    missed = sorted(line for line, count in lines.items() if count == 0)
    assert len(missed) <= 0.05 * len(lines), f"{file}: lines {missed} of {len(lines)} never ran"
