"""The definition of every operation in plain torch.

Slow and obvious: any device, any floating dtype (computed in the dtype of the first argument), any order of
derivative. Signatures and results are those of :mod:`sysgen.ops`; arguments that only choose how to compute are
accepted and ignored.
"""

from .cvmm import cvmm, moe_ffn
from .dnc import dnc_sequence
from .geometric_attention import geometric_attention, geometric_attention_scores, geometric_attention_weights
from .ntm import ntm_sequence
from .routing import route

__all__ = [
    "cvmm",
    "dnc_sequence",
    "geometric_attention",
    "geometric_attention_scores",
    "geometric_attention_weights",
    "moe_ffn",
    "ntm_sequence",
    "route",
]
