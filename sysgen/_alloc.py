"""The only place that allocates outputs and scratch, so that tests can poison every allocation."""

import torch

from ._load import core

_poison = False
_keep = True
# Bytes from which on the C library may take memory from the system for every result, and give it back: always from 32
# MiB on, below that depending on what else was freed.
FRESH = 4 << 20
_DLPACK = {
    torch.float64: (2, 64),
    torch.float32: (2, 32),
    torch.float16: (2, 16),
    torch.bfloat16: (4, 16),
    torch.int64: (0, 64),
    torch.int32: (0, 32),
    torch.uint8: (1, 8),
}


def set_poison(enabled):
    """Fill every new tensor with NaN (integers: a large negative number). Returns the previous setting."""
    global _poison
    previous, _poison = _poison, enabled
    return previous


def set_keep(enabled):
    """Keep the memory of large results on the CPU (csrc/common/kept_blocks.h). Returns the previous setting. Without,
    torch's allocator, and so its profiler, knows of every tensor."""
    global _keep
    previous, _keep = _keep, enabled
    return previous


def empty_cache():
    """Gives memory that was kept from freed large results on the CPU, at most 256 MiB, back to the system."""
    core.release_kept_blocks()


def empty(like, shape, dtype=None, strides=None):
    """An uninitialised tensor on the device of ``like``, contiguous if without ``strides``, that is no view of another;
    its kernel must write every element."""
    if strides is not None:
        out = like.new_empty_strided(shape, strides, dtype=dtype)
    else:
        out = like.new_empty(shape, dtype=dtype) if dtype is not None else like.new_empty(shape)
    # torch works out shape and strides, at no cost to small calls; memory that is not written to is none yet.
    if _keep and out.nbytes >= FRESH and out.device.type == "cpu" and out.dtype in _DLPACK:
        span = out.untyped_storage().nbytes()
        out = torch.from_dlpack(core.block_tensor(out.shape, out.stride(), span, *_DLPACK[out.dtype]))
    if _poison:
        fill = float("nan") if out.is_floating_point() else -0x5A5A5A5A if out.dtype == torch.int32 else 0x5A
        out.fill_(fill)
    return out
