"""Registered operations of geometric attention: allocation and one core call each. Arguments as in
csrc/geometric_attention/geometric_attention.h.

query [B, H, L, D], key and value [B, H, S, D] with any strides; direction_bias [B, H, L, 2] and an additive mask
[B, H, L, S] in the accumulator's dtype, or a bool mask; key_mask [B, S] bool, True: the key takes no part. Results
that nobody asked for have shape [0].
"""

from typing import NamedTuple

from .._alloc import empty
from .._library import define_op
from ._core_call import dense, new_fake, run
from ._cvmm_ops import accumulator_dtype


class Options(NamedTuple):
    """What determines the weights besides tensors, in the order of the operations' arguments."""

    scale: float
    normalize: bool
    eps: float
    include_self: bool
    is_causal: bool
    q_offset: int
    early_stop: bool = True


_INPUTS = "Tensor query, Tensor key, Tensor value, Tensor? direction_bias, Tensor? key_mask, Tensor? mask, "
_OPTIONS = (
    "float scale, bool normalize, float eps, bool include_self, bool is_causal, SymInt q_offset, bool early_stop, "
)


def _inner_dense(t):
    return t if t is None or t.shape[-1] <= 1 or t.stride(-1) == 1 else t.contiguous()


def _sequence_major(new, like, shape):
    """[B, H, N, D] in [B, N, H, D] order: merging or splitting heads is a view. It is none itself, of which autograd
    would not let the user change one in place."""
    _, h, n, d = shape
    return new(like, shape, strides=(n * h * d, d, h * d, 1))


def _in_order_of(new, t):
    """A dense tensor of t's shape, with heads and sequence in t's order of memory."""
    return _sequence_major(new, t, t.shape) if t.stride(1) < t.stride(2) else new(t, t.shape)


def _fwd_outputs(new, query, return_remainder):
    out = _sequence_major(new, query, query.shape)
    remainder = new(query, query.shape[:3] if return_remainder else (0,), dtype=accumulator_dtype(query.dtype))
    return out, remainder


def _fwd(query, key, value, direction_bias, key_mask, mask, *options):
    *options, return_remainder = options
    out, remainder = _fwd_outputs(empty, query, return_remainder)
    inputs = (*map(_inner_dense, (query, key, value, direction_bias, key_mask)), mask)
    run("geometric_attention_fwd", (*inputs, out, remainder if return_remainder else None), query, options)
    return out, remainder


def _fwd_fake(query, key, value, direction_bias, key_mask, mask, *options):
    return _fwd_outputs(new_fake, query, options[-1])


geometric_attention_fwd = define_op(
    f"geometric_attention_fwd({_INPUTS}{_OPTIONS}bool return_remainder) -> (Tensor out, Tensor remainder)",
    _fwd,
    _fwd_fake,
)


def _bwd_outputs(new, query, key, value, need_bias, need_mask):
    b, h, n, _ = query.shape
    accumulator = accumulator_dtype(query.dtype)
    return (
        *(_in_order_of(new, t) for t in (query, key, value)),
        new(query, (b, h, n, 2) if need_bias else (0,), dtype=accumulator),
        new(query, (b, h, n, key.shape[2]) if need_mask else (0,), dtype=accumulator),
    )


def _bwd(query, key, value, direction_bias, key_mask, mask, dout, dremainder, *options):
    *options, need_bias, need_mask = options
    *heads, dbias, dmask = outputs = _bwd_outputs(empty, query, key, value, need_bias, need_mask)
    inputs = (*map(_inner_dense, (query, key, value, direction_bias, key_mask)), mask)
    incoming = (_inner_dense(dout), dense(dremainder))
    wanted = (*heads, dbias if need_bias else None, dmask if need_mask else None)
    run("geometric_attention_bwd", (*inputs, *incoming, *wanted), query, options)
    return outputs


def _bwd_fake(query, key, value, direction_bias, key_mask, mask, dout, dremainder, *options):
    return _bwd_outputs(new_fake, query, key, value, *options[-2:])


geometric_attention_bwd = define_op(
    f"geometric_attention_bwd({_INPUTS}Tensor dout, Tensor? dremainder, {_OPTIONS}bool need_bias, bool need_mask) "
    "-> (Tensor dquery, Tensor dkey, Tensor dvalue, Tensor dbias, Tensor dmask)",
    _bwd,
    _bwd_fake,
)
