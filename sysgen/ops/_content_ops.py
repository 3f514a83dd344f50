"""Registered operations of the content-based family: allocation of memory and one core call each. Arguments as in
csrc/content/content.h.

All tensors of a call have one dtype, float32 or float64; of a tensor that is None the gradient has shape [0].
"""

from ._core_call import define_core_op


def _shape(t):
    return None if t is None else t.shape


_ADDRESSING = ("memory", "key", "strength", "mask?")

content_address_fwd = define_core_op(
    "content_address_fwd",
    _ADDRESSING,
    ("float eps",),
    ("weights",),
    lambda memory, key, *_: [(*key.shape[:2], memory.shape[1])],
)
content_address_bwd = define_core_op(
    "content_address_bwd",
    (*_ADDRESSING, "dweights"),
    ("float eps",),
    ("dmemory", "dkey", "dstrength", "dmask"),
    lambda *tensors: [_shape(t) for t in tensors[:-1]],
)

_NTM_ADDRESSING = ("memory", "key", "strength", "gate", "shift", "sharpness", "previous")

ntm_address_fwd = define_core_op(
    "ntm_address_fwd", _NTM_ADDRESSING, ("float eps",), ("weights",), lambda *tensors: [tensors[-1].shape]
)
ntm_address_bwd = define_core_op(
    "ntm_address_bwd",
    (*_NTM_ADDRESSING, "dweights"),
    ("float eps",),
    tuple(f"d{name}" for name in _NTM_ADDRESSING),
    lambda *tensors: [t.shape for t in tensors[:-1]],
)

_WRITING = ("memory", "write_weights", "erase", "value", "retention?")

memory_write_fwd = define_core_op("memory_write_fwd", _WRITING, (), ("written",), lambda memory, *_: [memory.shape])
memory_write_bwd = define_core_op(
    "memory_write_bwd",
    (*_WRITING, "dwritten"),
    (),
    ("dmemory", "dwrite_weights", "derase", "dvalue", "dretention"),
    lambda *tensors: [_shape(t) for t in tensors[:-1]],
)

memory_read_fwd = define_core_op(
    "memory_read_fwd",
    ("memory", "read_weights"),
    (),
    ("reads",),
    lambda memory, weights: [(*weights.shape[:2], memory.shape[2])],
)
memory_read_bwd = define_core_op(
    "memory_read_bwd",
    ("memory", "read_weights", "dreads"),
    (),
    ("dmemory", "dread_weights"),
    lambda memory, weights, dreads: [memory.shape, weights.shape],
)
