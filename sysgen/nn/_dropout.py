"""Dropout whose random numbers cost little on the CPU, where ``F.dropout`` draws one of 64 bits for each element."""

import torch
from torch.nn import functional as F

from ..ops import _dropout as ops


def dropout(t, p, training):
    """As ``F.dropout``. On the CPU the rate is p rounded to a multiple of 2⁻¹⁶, and no factors are stored."""
    if not training or p == 0:
        return t
    if t.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(t, p)
    if t.dtype in (torch.float32, torch.float64):
        return ops.dropout(t, p)
    return t * ops.dropout(torch.ones_like(t, dtype=torch.float32), p).to(t.dtype)
