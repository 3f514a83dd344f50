"""The definition of every operation in plain torch.

Slow and obvious: any device, any floating dtype (computed in the dtype of ``x``), any order of derivative. Signatures
and results are those of :mod:`sysgen.ops`; arguments that only choose how to compute are accepted and ignored.
"""

from .cvmm import cvmm, moe_ffn
from .routing import route

__all__ = ["cvmm", "moe_ffn", "route"]
