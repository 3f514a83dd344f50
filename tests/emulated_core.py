"""Cores whose CUDA launchers take CPU tensors: built here, and put in place of the installed one."""

import functools
import importlib.util
import shutil
import sys
import sysconfig
from contextlib import contextmanager
from pathlib import Path

import pytest
from cmake_build import cmake_build

from sysgen.ops import _core_call, _cvmm_ops, _dnc_ops, _moe_ffn_ops, _ntm_ops, routing

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / f"emulated-{sysconfig.get_config_var('SOABI')}"


@functools.cache
def _load(target):
    missing = [tool for tool in ("cmake", "ninja") if shutil.which(tool) is None]
    if missing or importlib.util.find_spec("pybind11") is None:
        return None, f"building the emulated core needs {', '.join(missing) or 'pybind11'}"
    import pybind11

    cmake_build(
        ROOT,
        BUILD,
        target,
        "-GNinja",
        "-DSYSGEN_EMULATOR=ON",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    )
    (path,) = BUILD.glob(f"{target}*.so")
    spec = importlib.util.spec_from_file_location(f"sysgen.{target}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, None


@contextmanager
def _in_place(target):
    module, reason = _load(target)
    if module is None:
        pytest.skip(reason)
    places = (_core_call, _cvmm_ops, _dnc_ops, _moe_ffn_ops, _ntm_ops, routing)
    previous = [place.core for place in places]
    for place in places:
        place.core = module
    try:
        yield module
    finally:
        for place, core in zip(places, previous):
            place.core = core


def emulated():
    """While entered, the operations launch their CUDA kernels on the emulator."""
    return _in_place("_core_emulated")


def launching_by_name():
    """While entered, the operations launch their CUDA kernels by name, as a core does that was built without nvcc."""
    return _in_place("_core_by_name")
