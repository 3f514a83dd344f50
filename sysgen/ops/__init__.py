"""Public operations. Each takes and returns ``torch.Tensor`` on the CPU or on CUDA and has exact derivatives."""

from .cvmm import cvmm
from .moe_ffn import moe_ffn
from .routing import Route, route

__all__ = ["Route", "cvmm", "moe_ffn", "route"]
