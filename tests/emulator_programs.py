"""Builds and runs the C++ programs whose kernels run on the CUDA emulator, plain and with sanitizers."""

import functools
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cmake_build import cmake_build

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "emulator"
KINDS = ("plain", "asan", "tsan")

# A program of one group of CMake targets takes seconds to build; ninja or make keep what is up to date.
OPTIONS = {
    # Leaks are not the kernels' business, and fibres that an error has ended leave some behind.
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


def missing():
    """Why this machine cannot build the emulator, or None."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return "the CUDA emulator runs on x86-64 Linux"
    compiler = os.environ.get("CXX", "g++")
    if shutil.which("cmake") is None or shutil.which(compiler) is None:
        return f"the CUDA emulator needs cmake and {compiler}"
    text = subprocess.run([compiler, "-dM", "-E", "-x", "c++", "/dev/null"], capture_output=True, text=True).stdout
    macros = dict(re.findall(r"#define (__\w+__) (\d+)$", text, re.M))
    if "__clang__" in macros or int(macros.get("__GNUC__", 0)) < 12:
        return f"the CUDA emulator needs GCC 12 or later, {compiler} is another compiler"
    return None


@functools.cache
def build(group):
    """Builds all programs of a CMake target; skips the test where that is impossible."""
    if reason := missing():
        pytest.skip(reason)
    generator = ["-GNinja"] if shutil.which("ninja") and not (BUILD / "Makefile").exists() else []
    compiler = os.environ.get("CXX", "g++")
    cmake_build(ROOT / "tests/emulator", BUILD, group, f"-DCMAKE_CXX_COMPILER={compiler}", *generator)


def run(program, *arguments, order="forward", timeout=300, **options):
    """Runs ``<name>_<kind>``; gives its exit status and everything that it printed. ``options`` replace the defaults
    of the sanitizers, for instance ``TSAN_OPTIONS=""``."""
    environment = {**os.environ, **OPTIONS, "SYSGEN_EMULATOR_ORDER": order, **options}

    def start(*prefix):
        return subprocess.run(
            [*prefix, BUILD / program, *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )

    result = start()
    if "unexpected memory mapping" in result.stdout:  # libtsan and a kernel that randomises more address bits
        result = start("setarch", "-R")
    return result.returncode, result.stdout
