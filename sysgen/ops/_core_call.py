"""What the Python kernels of several families need to call the core."""

import torch

from .._alloc import empty
from .._library import raw_stream
from .._load import core


def run(name, tensors, like, options=()):
    """``core.<name>`` where ``like`` is; on CUDA with the scratch that ``core.<name>_scratch_bytes`` asks for."""
    scratch, stream = None, 0
    if like.is_cuda or core.emulated:
        size = getattr(core, f"{name}_scratch_bytes")(*tensors, *options)
        scratch, stream = empty(like, size, torch.uint8), raw_stream(like)
    getattr(core, name)(*tensors, scratch, *options, torch.get_num_threads(), stream)


def dense(t):
    return None if t is None else t.contiguous()


def new_fake(like, shape, dtype=None, strides=None):
    """:func:`._alloc.empty` for fake tensors."""
    dtype = like.dtype if dtype is None else dtype
    return (
        like.new_empty(shape, dtype=dtype) if strides is None else like.new_empty_strided(shape, strides, dtype=dtype)
    )
