"""The definition of every operation in plain torch.

Slow and obvious: any device, any floating dtype (computed in the dtype of the first argument), any order of
derivative. Signatures and results are those of :mod:`sysgen.ops`; arguments that only choose how to compute are
accepted and ignored.
"""

from .cvmm import cvmm, moe_ffn
from .dnc import (
    allocation,
    content_address,
    dnc_sequence,
    link_read,
    link_update,
    memory_read,
    memory_write,
    ntm_address,
    retention,
    usage_update,
)
from .geometric_attention import geometric_attention, geometric_attention_scores, geometric_attention_weights
from .ntm import ntm_sequence
from .router import select_experts
from .routing import route

__all__ = [
    "allocation",
    "content_address",
    "cvmm",
    "dnc_sequence",
    "geometric_attention",
    "geometric_attention_scores",
    "geometric_attention_weights",
    "link_read",
    "link_update",
    "memory_read",
    "memory_write",
    "moe_ffn",
    "ntm_address",
    "ntm_sequence",
    "retention",
    "route",
    "select_experts",
    "usage_update",
]
