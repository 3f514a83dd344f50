"""The only place that allocates outputs and scratch, so that tests can poison every allocation."""

import torch

from ._load import core

_poison = False
FRESH = 32 << 20  # bytes from which on the C library always takes memory from the system, and gives it back


def set_poison(enabled):
    """Fill every new tensor with NaN (integers: a large negative number). Returns the previous setting."""
    global _poison
    previous, _poison = _poison, enabled
    return previous


def empty(like, shape, dtype=None, strides=None):
    """An uninitialised tensor on the device of ``like``, contiguous if without ``strides``, that is no view of another;
    its kernel must write every element."""
    if strides is not None:
        out = like.new_empty_strided(shape, strides, dtype=dtype)
    else:
        out = like.new_empty(shape, dtype=dtype) if dtype is not None else like.new_empty(shape)
    if out.nbytes >= FRESH and out.device.type == "cpu":
        core.use_huge_pages(out.data_ptr(), out.nbytes)
    if _poison:
        fill = float("nan") if out.is_floating_point() else -0x5A5A5A5A if out.dtype == torch.int32 else 0x5A
        out.fill_(fill)
    return out
