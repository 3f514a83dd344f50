"""The logits by which experts are selected."""

import torch
import torch.nn.functional as F

from .._library import autocast_dtype


def selection_logits(x, weight):
    """x [..., d] · weight [E, d]ᵀ -> [..., E], float32 (float64 for float64), also under autocast.

    Which experts serve a token hangs on differences between logits, and bfloat16 keeps 8 bits of each: many would tie.
    """
    dtype = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    if autocast_dtype(x) is None:
        return F.linear(x.to(dtype), weight.to(dtype))
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(dtype), weight.to(dtype))
