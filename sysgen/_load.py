"""Imports the compiled core, or says what to do when it is not there."""

import os
from importlib import import_module
from pathlib import Path

from ._nvrtc import compile_kernel

_HERE = Path(__file__).resolve().parent


def _load():
    try:
        return import_module("sysgen._core")
    except ModuleNotFoundError as error:
        if error.name != "sysgen._core":
            raise
        if (_HERE.parent / "CMakeLists.txt").exists():
            hint = (
                f"Python imported the source folder {_HERE}, which holds no compiled core for this Python. "
                "Run 'pip install -e .' there for an editable install, or leave that folder to use an "
                "installed sysgen."
            )
        else:
            hint = f"The installation in {_HERE} is incomplete for this Python. Reinstall it with 'pip install .'."
        raise ImportError(f"sysgen._core is missing: {hint}") from None
    except ImportError as error:
        raise ImportError(f"sysgen._core cannot be loaded: {error}. Rebuild it with 'pip install .'.") from error


def _check_isa(wanted):
    """The core itself falls back to the best level when it does not know the wanted one."""
    if wanted and wanted not in core.cpu_isas():
        raise ValueError(f"SYSGEN_CPU_ISA must be one of {', '.join(core.cpu_isas())} on this machine, got {wanted!r}")


core = _load()
if core.cuda_route == "nvrtc":
    core.set_kernel_compiler(compile_kernel)
_check_isa(os.environ.get("SYSGEN_CPU_ISA"))
