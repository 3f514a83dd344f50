"""The only place that allocates outputs and scratch, so that tests can poison every allocation."""

import torch

_poison = False


def set_poison(enabled):
    """Fill every new tensor with NaN (integers: a large negative number). Returns the previous setting."""
    global _poison
    previous, _poison = _poison, enabled
    return previous


def empty(shape, dtype, device):
    """An uninitialised contiguous tensor; its kernel must write every element."""
    out = torch.empty(shape, dtype=dtype, device=device)
    if _poison:
        out.fill_(float("nan") if dtype.is_floating_point else -0x5A5A5A5A if dtype == torch.int32 else 0x5A)
    return out
