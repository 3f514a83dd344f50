"""What all tests share: poisoned allocations, the backends, and the marker of tests that need a GPU."""

import os

# Waiting OpenMP threads must not spin: on a machine with more processes than cores each wait would cost a time slice.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Callable, NamedTuple

import pytest
import torch
from emulated_core import emulated

import sysgen
from sysgen import _alloc
from sysgen._load import core

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # a machine without network may lack it; test_properties.py is then skipped
    pass
else:
    settings.register_profile(
        "sysgen", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    settings.load_profile("sysgen")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """The whole suite runs on all cores if pytest-xdist is there and no GPU is: several processes would share it.

    Selected files run in this process, and so does everything with ``-n 0``, ``-s`` or ``--pdb``.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:  # a worker passes here too, and must not start workers of its own
        return
    option, cores = config.option, len(os.sched_getaffinity(0))
    if getattr(option, "numprocesses", 0) is None:
        whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
        alone = option.usepdb or option.capture == "no" or option.collectonly
        if whole and not alone and cores > 1 and not torch.cuda.is_available():
            option.numprocesses = min(cores, 8)


# What these files build, compile or start serves all their tests.
ONE_PROCESS_EACH = ("test_distributed.py", "test_emulator.py", "test_kernels.py", "test_nvrtc.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Single tests go to whichever process is free. By name: processes do not send each other marks."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            return file if file.rsplit("/")[-1] in ONE_PROCESS_EACH else nodeid

    return Scheduling(config, log)


if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # at least two: what runs in parallel is tested as such
    torch.set_num_threads(max(2, torch.get_num_threads() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def poisoned_allocations():
    previous = _alloc.set_poison(True)
    yield
    _alloc.set_poison(previous)


class Backend(NamedTuple):
    """One implementation of the operations. ``active()`` is entered while a test uses it. On a ``slow`` one tests cover
    the same code with fewer combinations, routes and repeats.
    """

    name: str
    ops: ModuleType = sysgen.ops
    device: str = "cpu"
    active: Callable = nullcontext
    dtypes: tuple = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    slow: bool = False


@contextmanager
def _cpu_isa(name):
    previous = core.cpu_isa()
    core.set_cpu_isa(name)
    yield
    core.set_cpu_isa(previous)


# The reference states the meaning in its inputs' own precision: rounding each step to a half type is not its job.
BACKENDS = [
    pytest.param(Backend("reference", sysgen.reference, dtypes=(torch.float64, torch.float32)), id="reference"),
    *(pytest.param(Backend("cpu", active=lambda isa=isa: _cpu_isa(isa)), id=f"cpu-{isa}") for isa in core.cpu_isas()),
    pytest.param(Backend("emulated", active=emulated, slow=True), id="emulated"),
    pytest.param(Backend("cuda", device="cuda"), id="cuda", marks=pytest.mark.cuda),
]


@pytest.fixture(params=BACKENDS)
def backend(request):
    with request.param.active():
        yield request.param


@pytest.fixture(params=core.cpu_isas())
def isa(request):
    """Every instruction-set level of the CPU kernels."""
    with _cpu_isa(request.param):
        yield request.param


@pytest.fixture(params=[b for b in BACKENDS if b.id != "reference"])
def compiled(request):
    """The backends that run the compiled core."""
    with request.param.active():
        yield request.param


@pytest.fixture(params=[b for b in BACKENDS if b.id in ("emulated", "cuda")])
def cuda_kernels(request):
    """The backends that run the CUDA kernels."""
    with request.param.active():
        yield request.param


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    return request.param
