"""Registered operations of ``moe_ffn``: allocation and one core call each. Arguments as in csrc/moe_ffn/moe_ffn.h,
those of the route and dtypes as in :mod:`._cvmm_ops`.

x [T, d], dy [T, d_out]; gate [T, k] and b_up [E, G] have the accumulator's dtype; ``kept`` [T, k, G] is what
:mod:`._activations` calls saved. A result that is not wanted is an empty tensor.
"""

import torch

from .._alloc import empty
from .._library import define_op, raw_stream
from .._load import core
from . import _cvmm_ops as cvmm
from ._activations import ACTIVATIONS


def _core_call(name, tensors, activation, precision):
    options = (ACTIVATIONS[activation].code, precision, torch.get_num_threads())
    bytes_needed = getattr(core, f"{name}_scratch_bytes")(*tensors, *options)
    first = tensors[0]
    scratch = empty(first, bytes_needed, torch.uint8) if bytes_needed else None
    stream = raw_stream(first) if first.is_cuda or core.emulated else 0
    getattr(core, name)(*tensors, scratch, *options, stream)


def _dense(t):
    return None if t is None else t.contiguous()


def _operands(x, w_up, w_down, order, inverse, offsets, gate, b_up):
    """As the core takes them."""
    weights = cvmm.weight(w_up), cvmm.weight(w_down)
    return cvmm.rows(x), *weights, order, inverse, offsets, _dense(gate), _dense(b_up)


def _fwd_outputs(new, x, w_up, w_down, inverse, keep):
    y = new(x, (x.shape[0], w_down.shape[2]))
    return y, new(x, (*inverse.shape, w_up.shape[2]) if keep else (0,))


def _fwd(x, w_up, w_down, order, inverse, offsets, gate, b_up, activation, keep, precision):
    y, kept = outputs = _fwd_outputs(empty, x, w_up, w_down, inverse, keep)
    operands = _operands(x, w_up, w_down, order, inverse, offsets, gate, b_up)
    _core_call("moe_ffn_fwd", (*operands, y, kept if keep else None), activation, precision)
    return outputs


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
    dz, h, dx, dgate = outputs = _bwd_outputs(empty, x, w_up, inverse, kept, activation, *needs)
    need_hidden, need_x, need_gate, need_h = needs
    results = (
        h if _makes_h(kept, activation, need_gate, need_h) else None,
        dz if need_hidden else None,
        dx if need_hidden and need_x else None,
        dgate if need_gate else None,
    )
    operands = _operands(x, w_up, w_down, order, inverse, offsets, gate, b_up)
    _core_call("moe_ffn_bwd", (cvmm.rows(dy), *operands, _dense(kept), *results), activation, precision)
    return outputs


def _bwd_fake(dy, x, w_up, w_down, order, inverse, offsets, gate, b_up, kept, activation, *rest):
    return _bwd_outputs(torch.Tensor.new_empty, x, w_up, inverse, kept, activation, *rest[:-1])


moe_ffn_bwd = define_op(
    "moe_ffn_bwd(Tensor dy, Tensor x, Tensor w_up, Tensor w_down, Tensor order, Tensor inverse, Tensor offsets, "
    "Tensor gate, Tensor? b_up, Tensor? kept, str activation, bool need_hidden, bool need_x, bool need_gate, "
    "bool need_h, int precision) -> (Tensor dz, Tensor h, Tensor dx, Tensor dgate)",
    _bwd,
    _bwd_fake,
)
