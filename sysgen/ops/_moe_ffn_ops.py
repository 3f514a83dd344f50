"""Registered operations of ``moe_ffn``: allocation, and one core call where it has one. Arguments as in
csrc/moe_ffn/moe_ffn.h, those of the route and dtypes as in :mod:`._cvmm_ops`.

x [T, d], dy [T, d_out]; gate [T, k] and b_up [E, G] have the accumulator's dtype; ``kept`` [T, k, G] is what
:mod:`._activations` calls saved. A result that is not wanted is an empty tensor.
"""

import torch

from .._alloc import empty
from .._library import define_op, raw_stream
from .._load import core
from . import _cvmm_ops as cvmm
from ._activations import ACTIVATIONS


def _on_cpu(x):
    return not (x.is_cuda or core.emulated)


def _core_call(name, tensors, activation, *stream):
    options = (ACTIVATIONS[activation].code, torch.get_num_threads())
    bytes_needed = getattr(core, f"{name}_scratch_bytes")(*tensors, *options)
    scratch = empty(tensors[0], bytes_needed, torch.uint8) if bytes_needed else None
    getattr(core, name)(*tensors, scratch, *options, *stream)


def _dense(t):
    return None if t is None else t.contiguous()


def _fwd_outputs(new, x, w_up, w_down, inverse, keep):
    y = new(x, (x.shape[0], w_down.shape[2]))
    return y, new(x, (*inverse.shape, w_up.shape[2]) if keep else (0,))


def _fwd(x, w_up, w_down, order, inverse, offsets, gate, b_up, activation, keep, precision):
    tensors = (cvmm.rows(x), w_up, w_down, order, inverse, offsets, _dense(gate), _dense(b_up))
    if _fused(tensors, activation):
        y, kept = outputs = _fwd_outputs(empty, x, w_up, w_down, inverse, keep)
        _core_call("moe_ffn_fwd", (*tensors, y, kept if keep else None), activation, raw_stream(x))
        return outputs
    kept, h = _two_steps(x, w_up, order, inverse, offsets, b_up, activation, precision)
    y = cvmm.cvmm_fwd(h, w_down, order, inverse, offsets, gate, None, True, 0, precision)
    return y, kept if keep else empty(x, (0,))


def _fused(tensors, activation):
    """Whether the core has one call for these arguments: else they take two products, with the activation between."""
    return _on_cpu(tensors[0]) or core.moe_ffn_fwd_cuda_serves(*tensors, None, None, ACTIVATIONS[activation].code)


def _two_steps(x, w_up, order, inverse, offsets, b_up, activation, precision):
    act = ACTIVATIONS[activation]
    z = cvmm.cvmm_fwd(x, w_up, order, inverse, offsets, None, b_up, False, act.fused, precision)
    h = z if act.fused else act.forward(z)
    return (h if act.from_output else z), h


def _recompute(x, w_up, w_down, order, inverse, offsets, gate, b_up, activation, precision):
    """On CUDA: (what the derivative is a function of, the activated rows), to the bit as the forward has them."""
    tensors = (cvmm.rows(x), w_up, w_down, order, inverse, offsets, _dense(gate), _dense(b_up))
    if not _fused(tensors, activation):
        return _two_steps(x, w_up, order, inverse, offsets, b_up, activation, precision)
    kept = empty(x, (*inverse.shape, w_up.shape[2]))
    _core_call("moe_ffn_fwd", (*tensors, None, kept), activation, raw_stream(x))
    act = ACTIVATIONS[activation]
    return kept, kept if act.from_output else act.forward(kept)


def _fwd_fake(x, w_up, w_down, order, inverse, offsets, gate, b_up, activation, keep, precision):
    return _fwd_outputs(torch.Tensor.new_empty, x, w_up, w_down, inverse, keep)


moe_ffn_fwd = define_op(
    "moe_ffn_fwd(Tensor x, Tensor w_up, Tensor w_down, Tensor order, Tensor inverse, Tensor offsets, Tensor gate, "
    "Tensor? b_up, str activation, bool keep, int precision) -> (Tensor y, Tensor kept)",
    _fwd,
    _fwd_fake,
)


def _makes_h(kept, activation, need_gate, need_h):
    """Whether the backward has activated rows to return, besides what was kept."""
    if ACTIVATIONS[activation].from_output:
        return kept is None
    return need_gate or need_h


def _bwd_outputs(new, x, w_up, inverse, kept, activation, need_hidden, need_x, need_gate, need_h):
    hidden = (*inverse.shape, w_up.shape[2])
    return (
        new(x, hidden if need_hidden else (0,)),
        new(x, hidden if _makes_h(kept, activation, need_gate, need_h) else (0,)),
        new(x, x.shape if need_hidden and need_x else (0,)),
        new(x, inverse.shape if need_gate else (0,), dtype=cvmm.accumulator_dtype(x.dtype)),
    )


def _bwd(dy, x, w_up, w_down, order, inverse, offsets, gate, b_up, kept, activation, *rest):
    *needs, precision = rest
    if not _on_cpu(x):
        arguments = (dy, x, w_up, w_down, (order, inverse, offsets), gate, b_up, kept, activation)
        return _bwd_products(*arguments, *needs, precision)
    dz, h, dx, dgate = outputs = _bwd_outputs(empty, x, w_up, inverse, kept, activation, *needs)
    need_hidden, need_x, need_gate, need_h = needs
    tensors = (cvmm.rows(dy), cvmm.rows(x), w_up, w_down, order, inverse, offsets, _dense(gate), _dense(b_up))
    results = (
        h if _makes_h(kept, activation, need_gate, need_h) else None,
        dz if need_hidden else None,
        dx if need_hidden and need_x else None,
        dgate if need_gate else None,
    )
    _core_call("moe_ffn_bwd", (*tensors, _dense(kept), *results), activation)
    return outputs


def _bwd_products(
    dy, x, w_up, w_down, route, gate, b_up, kept, activation, need_hidden, need_x, need_gate, need_h, precision
):
    act, makes_h = ACTIVATIONS[activation], _makes_h(kept, activation, need_gate, need_h)
    dz, dx = empty(x, (0,)), empty(x, (0,))
    dgate = empty(x, (0,), cvmm.accumulator_dtype(x.dtype))
    if kept is None:
        kept, h = _recompute(x, w_up, w_down, *route, gate, b_up, activation, precision)
    else:
        h = act.forward(kept) if makes_h else kept
    if need_hidden and need_gate:
        dz, dgate = cvmm.cvmm_bwd_x(dy, w_down, *route, gate, h, False, precision)
    elif need_hidden:
        dz = cvmm.cvmm_fwd(dy, w_down.transpose(1, 2), *route, gate, None, False, 0, precision)
    elif need_gate:
        dgate = cvmm.cvmm_dot(h, w_down, None, dy, *route, precision)
    if need_hidden:
        dz = act.backward(dz, kept)
        if need_x:
            dx = cvmm.cvmm_fwd(dz, w_up.transpose(1, 2), *route, None, None, True, 0, precision)
    return dz, h if makes_h else empty(x, (0,)), dx, dgate


def _bwd_fake(dy, x, w_up, w_down, order, inverse, offsets, gate, b_up, kept, activation, *rest):
    return _bwd_outputs(torch.Tensor.new_empty, x, w_up, inverse, kept, activation, *rest[:-1])


moe_ffn_bwd = define_op(
    "moe_ffn_bwd(Tensor dy, Tensor x, Tensor w_up, Tensor w_down, Tensor order, Tensor inverse, Tensor offsets, "
    "Tensor gate, Tensor? b_up, Tensor? kept, str activation, bool need_hidden, bool need_x, bool need_gate, "
    "bool need_h, int precision) -> (Tensor dz, Tensor h, Tensor dx, Tensor dgate)",
    _bwd,
    _bwd_fake,
)
