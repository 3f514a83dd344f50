"""Layers: modules that hold parameters and call :mod:`sysgen.ops`."""

from .released import load_released_state_dict
from .sigma_moe import SigmaMoE

__all__ = ["SigmaMoE", "load_released_state_dict"]
