"""Registered operations of the CVMM family: allocation and one core call each. Arguments as in csrc/cvmm/cvmm.h.

With T tokens and k routes each: order [T · k], inverse [T, k] and offsets [E + 1] are a
:class:`~sysgen.ops.Route`'s; row operands are [T, width] (shared by the routes of a token) or [T, k, width] (routed);
gate [T, k] and bias [E, h] have the accumulator's dtype.
"""

import torch

from .._alloc import empty
from .._library import define_op, raw_stream
from .._load import core

PRECISIONS = {"ieee": 0, "tf32": 1, "tf32x3": 2}


def accumulator_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def rows(t):
    """The rows as the core takes them: inner stride 1, evenly spaced."""
    if t.is_contiguous():
        return t
    inner = t.shape[-1] <= 1 or t.stride(-1) == 1
    even = t.dim() == 2 or t.stride(0) == t.shape[1] * t.stride(1)
    return t if inner and even else t.contiguous()


def weight(w):
    """The weight as the core takes it: on CUDA, contiguous along one of the matrix dimensions."""
    if (w.is_cuda or core.emulated) and w.stride(2) != 1 and w.stride(1) != 1:
        return w.contiguous()
    return w


def _run_fwd(x, w, route, gate, bias, out, other, dot, reduce, activation, precision):
    if gate is not None:
        gate = gate.contiguous()
    if bias is not None:
        bias = bias.contiguous()
    if other is not None:
        other = rows(other)
    tensors = (rows(x), weight(w), *route, gate, bias, out, other, dot)
    scratch, stream = None, 0
    if x.is_cuda or core.emulated:
        scratch = empty(x, core.cvmm_fwd_scratch_bytes(*tensors, reduce, activation, precision), torch.uint8)
        stream = raw_stream(x)
    core.cvmm_fwd(*tensors, scratch, reduce, activation, precision, torch.get_num_threads(), stream)


def _fwd_shape(w, inverse, reduce):
    tokens, k = inverse.shape
    return (tokens, w.shape[2]) if reduce else (tokens, k, w.shape[2])


def _cvmm_fwd(x, w, order, inverse, offsets, gate, bias, reduce, activation, precision):
    out = empty(x, _fwd_shape(w, inverse, reduce))
    _run_fwd(x, w, (order, inverse, offsets), gate, bias, out, None, None, reduce, activation, precision)
    return out


def _cvmm_fwd_fake(x, w, order, inverse, offsets, gate, bias, reduce, activation, precision):
    return x.new_empty(_fwd_shape(w, inverse, reduce))


cvmm_fwd = define_op(
    "cvmm_fwd(Tensor x, Tensor w, Tensor order, Tensor inverse, Tensor offsets, Tensor? gate, Tensor? bias, "
    "bool reduce, int activation, int precision) -> Tensor",
    _cvmm_fwd,
    _cvmm_fwd_fake,
)


def _cvmm_bwd_x(dy, w, order, inverse, offsets, gate, x, reduce, precision):
    dx, dgate = _cvmm_bwd_x_outputs(empty, dy, inverse, x)
    _run_fwd(dy, w.transpose(1, 2), (order, inverse, offsets), gate, None, dx, x, dgate, reduce, 0, precision)
    return dx, dgate


def _cvmm_bwd_x_outputs(new, dy, inverse, x):
    return new(dy, x.shape), new(dy, inverse.shape, dtype=accumulator_dtype(dy.dtype))


def _cvmm_bwd_x_fake(dy, w, order, inverse, offsets, gate, x, reduce, precision):
    return _cvmm_bwd_x_outputs(torch.Tensor.new_empty, dy, inverse, x)


cvmm_bwd_x = define_op(
    "cvmm_bwd_x(Tensor dy, Tensor w, Tensor order, Tensor inverse, Tensor offsets, Tensor? gate, Tensor x, "
    "bool reduce, int precision) -> (Tensor dx, Tensor dgate)",
    _cvmm_bwd_x,
    _cvmm_bwd_x_fake,
)


def _cvmm_dot(x, w, bias, y, order, inverse, offsets, precision):
    dot = empty(x, inverse.shape, accumulator_dtype(x.dtype))
    _run_fwd(x, w, (order, inverse, offsets), None, bias, None, y, dot, False, 0, precision)
    return dot


def _cvmm_dot_fake(x, w, bias, y, order, inverse, offsets, precision):
    return x.new_empty(inverse.shape, dtype=accumulator_dtype(x.dtype))


cvmm_dot = define_op(
    "cvmm_dot(Tensor x, Tensor w, Tensor? bias, Tensor y, Tensor order, Tensor inverse, Tensor offsets, "
    "int precision) -> Tensor",
    _cvmm_dot,
    _cvmm_dot_fake,
)


def _cvmm_bwd_w(x, dy, order, inverse, offsets, gate, dtype, precision):
    dw = empty(x, (offsets.shape[0] - 1, x.shape[-1], dy.shape[-1]), dtype)
    gate = None if gate is None else gate.contiguous()
    tensors = (rows(x), rows(dy), order, inverse, offsets, gate, dw)
    scratch, stream = None, 0
    if x.is_cuda or core.emulated:
        scratch = empty(x, core.cvmm_bwd_w_scratch_bytes(*tensors, precision), torch.uint8)
        stream = raw_stream(x)
    core.cvmm_bwd_w(*tensors, scratch, precision, torch.get_num_threads(), stream)
    return dw


def _cvmm_bwd_w_fake(x, dy, order, inverse, offsets, gate, dtype, precision):
    return x.new_empty((offsets.shape[0] - 1, x.shape[-1], dy.shape[-1]), dtype=dtype)


cvmm_bwd_w = define_op(
    "cvmm_bwd_w(Tensor x, Tensor dy, Tensor order, Tensor inverse, Tensor offsets, Tensor? gate, "
    "ScalarType dtype, int precision) -> Tensor",
    _cvmm_bwd_w,
    _cvmm_bwd_w_fake,
)
