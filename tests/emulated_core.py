"""A core whose CUDA kernels run on the host, over CPU tensors: built here, and put in place of the installed one."""

import functools
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from contextlib import contextmanager
from pathlib import Path

import pytest

from sysgen.ops import _cvmm_ops, routing

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / f"emulated-{sysconfig.get_config_var('SOABI')}"


def _run(*command):
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(result.stdout + result.stderr)[-4000:]}")


@functools.cache
def _load():
    missing = [tool for tool in ("cmake", "ninja") if shutil.which(tool) is None]
    if missing or importlib.util.find_spec("pybind11") is None:
        return None, f"building the emulated core needs {', '.join(missing) or 'pybind11'}"
    import pybind11

    _run(
        "cmake",
        f"-S{ROOT}",
        f"-B{BUILD}",
        "-GNinja",
        "-DSYSGEN_EMULATOR=ON",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    )
    _run("cmake", "--build", str(BUILD), "--target", "_core_emulated")
    (path,) = BUILD.glob("_core_emulated*.so")
    spec = importlib.util.spec_from_file_location("sysgen._core_emulated", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, None


@contextmanager
def emulated():
    """While entered, the operations launch their CUDA kernels on the emulator."""
    module, reason = _load()
    if module is None:
        pytest.skip(reason)
    places = (_cvmm_ops, routing)
    previous = [place.core for place in places]
    for place in places:
        place.core = module
    try:
        yield
    finally:
        for place, core in zip(places, previous):
            place.core = core
