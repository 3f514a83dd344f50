"""Dropout whose random numbers cost little on the CPU, where ``F.dropout`` draws one of 64 bits for each element."""

import torch
from torch.nn import functional as F


def dropout_noise(t, p):
    """Factors 0 or 1 / (1 − p) for each element of ``t``, for 0 < p ≤ 1; four from each 64 random bits.

    The rate, and with it the factor, is p rounded to a multiple of 2⁻¹⁶. The default generator of the CPU is used.
    """
    dropped = round(p * 2**16)
    if dropped == 2**16:
        return torch.zeros_like(t, memory_format=torch.contiguous_format)
    bits = torch.empty((t.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    keep = bits.view(torch.int16)[: t.numel()] >= dropped - 2**15
    return keep.to(t.dtype).mul_(1 / (1 - dropped / 2**16)).view(t.shape)


def _few_bits(t):
    return t.device.type == "cpu" and not torch.compiler.is_compiling()


def dropout(t, p, training):
    """As ``F.dropout``."""
    if not training or p == 0:
        return t
    return t * dropout_noise(t, p) if _few_bits(t) else F.dropout(t, p)


def dropout_(t, p, training):
    """The same in place where that is possible; ``t`` must be the output of an operation that does not need it."""
    if not training or p == 0:
        return t
    return t.mul_(dropout_noise(t, p)) if _few_bits(t) else F.dropout(t, p)


def add_dropped(x, t, p, training):
    """``x + dropout(t)``."""
    if training and p > 0 and _few_bits(t) and x.dtype == t.dtype:
        return torch.addcmul(x, t, dropout_noise(t, p))
    return x + dropout(t, p, training)
