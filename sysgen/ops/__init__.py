"""Public operations. Each takes and returns ``torch.Tensor`` on the CPU or on CUDA and has exact derivatives."""

from ._states import DNCState, NTMState
from .content import content_address, memory_read, memory_write, ntm_address
from .cvmm import cvmm
from .dnc_sequence import dnc_sequence
from .geometric_attention import geometric_attention, geometric_attention_scores, geometric_attention_weights
from .links import allocation, link_read, link_update, retention, usage_update
from .moe_ffn import moe_ffn
from .ntm_sequence import ntm_sequence
from .router import select_experts
from .routing import Route, route

__all__ = [
    "DNCState",
    "NTMState",
    "Route",
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
