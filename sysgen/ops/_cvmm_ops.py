"""Registered operations of the CVMM family: allocation and one core call each. Arguments as in csrc/cvmm/cvmm.h.

``route`` operands are the order, inverse and offsets of a :class:`~sysgen.ops.Route`; rows are [tokens, width]
("shared") or [tokens · k, width] ("routed"); gate [tokens · k] and bias [E, h] have the accumulator's dtype.
"""

import torch

from .._alloc import empty
from .._library import define_op, raw_stream
from .._load import core

PRECISIONS = {"ieee": 0, "tf32": 1, "tf32x3": 2}


def accumulator_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def _rows(t):
    return t if t.stride(1) == 1 or t.shape[1] <= 1 else t.contiguous()


def _weight(w):
    if w.is_cuda and w.stride(2) != 1 and w.stride(1) != 1:
        return w.contiguous()
    return w


def _dense(t):
    return None if t is None else t.contiguous()


def _run_fwd(x, w, route, gate, bias, out, other, dot, num_tokens, k, routed, reduce, other_routed, act, precision):
    x, w, gate, bias = _rows(x), _weight(w), _dense(gate), _dense(bias)
    order, inverse, offsets = route
    tensors = (x, w, order, inverse, offsets, gate, bias, out, None if other is None else _rows(other), dot)
    numbers = (num_tokens, k, routed, reduce, other_routed, act, precision)
    scratch = None
    if x.is_cuda:
        scratch = empty(x, core.cvmm_fwd_scratch_bytes(*tensors, *numbers), torch.uint8)
    core.cvmm_fwd(*tensors, scratch, *numbers, torch.get_num_threads(), raw_stream(x))


def _cvmm_fwd(x, w, order, inverse, offsets, gate, bias, num_tokens, k, routed, reduce, activation, precision):
    out = empty(x, (num_tokens if reduce else num_tokens * k, w.shape[2]))
    route = (order, inverse, offsets)
    _run_fwd(x, w, route, gate, bias, out, None, None, num_tokens, k, routed, reduce, False, activation, precision)
    return out


def _cvmm_fwd_fake(x, w, order, inverse, offsets, gate, bias, num_tokens, k, routed, reduce, activation, precision):
    return x.new_empty((num_tokens if reduce else num_tokens * k, w.shape[2]))


cvmm_fwd = define_op(
    "cvmm_fwd(Tensor x, Tensor w, Tensor order, Tensor inverse, Tensor offsets, Tensor? gate, Tensor? bias, "
    "SymInt num_tokens, SymInt k, bool routed, bool reduce, int activation, int precision) -> Tensor",
    _cvmm_fwd,
    _cvmm_fwd_fake,
)


def _cvmm_bwd_x(dy, w, order, inverse, offsets, gate, x, num_tokens, k, dy_routed, x_routed, precision):
    dx = empty(dy, (num_tokens * k if x_routed else num_tokens, w.shape[1]))
    dgate = empty(dy, num_tokens * k, accumulator_dtype(dy.dtype))
    _run_fwd(
        dy, w.transpose(1, 2), (order, inverse, offsets), gate, None, dx, x, dgate,
        num_tokens, k, dy_routed, not x_routed, x_routed, 0, precision,
    )  # fmt: skip
    return dx, dgate


def _cvmm_bwd_x_fake(dy, w, order, inverse, offsets, gate, x, num_tokens, k, dy_routed, x_routed, precision):
    return (
        dy.new_empty((num_tokens * k if x_routed else num_tokens, w.shape[1])),
        dy.new_empty((num_tokens * k,), dtype=accumulator_dtype(dy.dtype)),
    )


cvmm_bwd_x = define_op(
    "cvmm_bwd_x(Tensor dy, Tensor w, Tensor order, Tensor inverse, Tensor offsets, Tensor? gate, Tensor x, "
    "SymInt num_tokens, SymInt k, bool dy_routed, bool x_routed, int precision) -> (Tensor dx, Tensor dgate)",
    _cvmm_bwd_x,
    _cvmm_bwd_x_fake,
)


def _cvmm_dot(x, w, bias, y, order, inverse, offsets, num_tokens, k, x_routed, y_routed, precision):
    dot = empty(x, num_tokens * k, accumulator_dtype(x.dtype))
    route = (order, inverse, offsets)
    _run_fwd(x, w, route, None, bias, None, y, dot, num_tokens, k, x_routed, False, y_routed, 0, precision)
    return dot


def _cvmm_dot_fake(x, w, bias, y, order, inverse, offsets, num_tokens, k, x_routed, y_routed, precision):
    return x.new_empty((num_tokens * k,), dtype=accumulator_dtype(x.dtype))


cvmm_dot = define_op(
    "cvmm_dot(Tensor x, Tensor w, Tensor? bias, Tensor y, Tensor order, Tensor inverse, Tensor offsets, "
    "SymInt num_tokens, SymInt k, bool x_routed, bool y_routed, int precision) -> Tensor",
    _cvmm_dot,
    _cvmm_dot_fake,
)


def _cvmm_bwd_w(x, dy, order, inverse, offsets, gate, num_tokens, k, x_routed, dy_routed, dtype, precision):
    x, dy, gate = _rows(x), _rows(dy), _dense(gate)
    dw = empty(x, (offsets.shape[0] - 1, x.shape[1], dy.shape[1]), dtype)
    tensors = (x, dy, order, inverse, offsets, gate, dw)
    numbers = (num_tokens, k, x_routed, dy_routed, precision)
    scratch = None
    if x.is_cuda:
        scratch = empty(x, core.cvmm_bwd_w_scratch_bytes(*tensors, *numbers), torch.uint8)
    core.cvmm_bwd_w(*tensors, scratch, *numbers, torch.get_num_threads(), raw_stream(x))
    return dw


def _cvmm_bwd_w_fake(x, dy, order, inverse, offsets, gate, num_tokens, k, x_routed, dy_routed, dtype, precision):
    return x.new_empty((offsets.shape[0] - 1, x.shape[1], dy.shape[1]), dtype=dtype)


cvmm_bwd_w = define_op(
    "cvmm_bwd_w(Tensor x, Tensor dy, Tensor order, Tensor inverse, Tensor offsets, Tensor? gate, "
    "SymInt num_tokens, SymInt k, bool x_routed, bool dy_routed, ScalarType dtype, int precision) -> Tensor",
    _cvmm_bwd_w,
    _cvmm_bwd_w_fake,
)
