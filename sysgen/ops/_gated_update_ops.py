"""Registered operations of the gated update: allocation, matrix products, and the core's passes between them.
Arguments as in csrc/gated_update/gated_update.h. CPU only.

x and attended [R, d]; ``parameters`` in the order of :class:`Parameters`; ``seed`` int64 [1], from which all random
factors follow.
"""

from typing import NamedTuple

import torch

from .._alloc import empty
from .._library import define_op
from .._load import core

STREAMS = {"attended": 1, "hidden": 2, "gate": 3}


class Parameters(NamedTuple):
    norm1_weight: torch.Tensor
    norm1_bias: torch.Tensor
    linear1_weight: torch.Tensor
    linear1_bias: torch.Tensor
    gate1_weight: torch.Tensor
    gate1_bias: torch.Tensor
    linear2_weight: torch.Tensor
    linear2_bias: torch.Tensor
    gate2_weight: torch.Tensor
    gate2_bias: torch.Tensor
    norm2_weight: torch.Tensor
    norm2_bias: torch.Tensor


class Options(NamedTuple):
    """Rates of dropout of what was attended, of the hidden layers and of the gates; eps of the two norms."""

    attended_rate: float
    hidden_rate: float
    gate_rate: float
    norm1_eps: float
    norm2_eps: float


_PARAMETERS = ", ".join(f"Tensor {name}" for name in Parameters._fields)
_OPTIONS = ", ".join(f"float {name}" for name in Options._fields)


def _rows(t):
    """A view as [R, d], with evenly spaced rows, of t or of a copy."""
    t = t if t.dim() and t.stride(-1) == 1 else t.contiguous()
    try:
        return t.view(-1, t.shape[-1] if t.dim() else 1)
    except RuntimeError:
        return t.contiguous().view(-1, t.shape[-1])


def _dropout(x, seed, rate, stream):
    out = empty(x, x.shape)
    if x.numel():
        core.dropout_fwd(_rows(x), seed, rate, stream, _rows(out), torch.get_num_threads())
    return out


dropout_fwd = define_op(
    "dropout_fwd(Tensor x, Tensor seed, float rate, int stream) -> Tensor",
    _dropout,
    lambda x, seed, rate, stream: x.new_empty(x.shape),
)


def _first_layers(p):
    """Of both hidden layers, whose products are one."""
    return torch.cat((p.linear1_weight, p.gate1_weight)), torch.cat((p.linear1_bias, p.gate1_bias))


def _fwd_outputs(new, x, p):
    (rows, width), hidden = x.shape, len(p.linear1_weight) + len(p.gate1_weight)
    return (
        new(x, (rows, width)),
        new(x, (rows, width)),
        new(x, (rows, hidden)),
        new(x, (rows, width)),
        new(x, (rows, 2)),
        new(x, (rows, 2)),
        new(x, (rows, width)),
    )


def _fwd(x, attended, *rest):
    p, seed, o = _split(rest)
    threads = torch.get_num_threads()
    y, a, h, u, stats1, stats2, z = outputs = _fwd_outputs(empty, x, p)
    norm1 = (p.norm1_weight, p.norm1_bias, o.norm1_eps)
    core.gated_update_attended_fwd(x, attended, *norm1, seed, o.attended_rate, a, stats1, threads)
    weight, bias = _first_layers(p)
    torch.mm(a, weight.t(), out=h)
    core.gated_update_hidden_fwd(h, bias, seed, o.hidden_rate, threads)
    of_update, of_gate = h.split((len(p.linear1_weight), len(p.gate1_weight)), 1)
    torch.mm(of_update, p.linear2_weight.t(), out=u)
    torch.mm(of_gate, p.gate2_weight.t(), out=z)
    last = (u, z, p.linear2_bias, p.gate2_bias, p.norm2_weight, p.norm2_bias, o.norm2_eps)
    core.gated_update_gate_fwd(x, *last, seed, o.gate_rate, y, stats2, threads)
    return outputs


def _split(rest):
    """(parameters, seed, options) of the arguments that all operations end with."""
    n = len(Parameters._fields)
    return Parameters(*rest[:n]), rest[n], Options(*rest[n + 1 :])


def _fwd_fake(x, attended, *rest):
    return _fwd_outputs(torch.Tensor.new_empty, x, _split(rest)[0])


gated_update_fwd = define_op(
    f"gated_update_fwd(Tensor x, Tensor attended, {_PARAMETERS}, Tensor seed, {_OPTIONS}) -> "
    "(Tensor y, Tensor a, Tensor hidden, Tensor u, Tensor stats1, Tensor stats2, Tensor z)",
    _fwd,
    _fwd_fake,
)


def _bwd(dy, x, attended, a, h, u, stats1, stats2, z, *rest):
    p, seed, o = _split(rest)
    threads, (rows, width) = torch.get_num_threads(), x.shape
    segments, sizes = core.gated_update_segments(rows), (len(p.linear1_weight), len(p.gate1_weight))

    def sums(kinds, columns=width):
        return empty(x, (segments, kinds, columns))

    du, dz, dx, dattended = (empty(x, x.shape) for _ in range(4))
    last = (u, z, p.linear2_bias, p.gate2_bias, p.norm2_weight, p.norm2_bias, o.norm2_eps)
    of_last = sums(4)
    core.gated_update_gate_bwd(x, *last, seed, o.gate_rate, dy, stats2, du, dz, dx, of_last, threads)
    dnorm2_weight, dnorm2_bias, dlinear2_bias, dgate2_bias = (t.clone() for t in of_last.sum(0))

    (h_update, h_gate), dh = h.split(sizes, 1), empty(x, h.shape)
    for d, weight, out in zip((du, dz), (p.linear2_weight, p.gate2_weight), dh.split(sizes, 1)):
        torch.mm(d, weight, out=out)
    dlinear2_weight, dgate2_weight = du.t() @ h_update, dz.t() @ h_gate
    of_hidden = sums(1, h.shape[1])
    core.gated_update_hidden_bwd(h, seed, o.hidden_rate, dh, of_hidden, threads)

    da = torch.mm(dh, _first_layers(p)[0], out=du)  # whose memory is free again
    dfirst_weight, dfirst_bias = dh.t() @ a, of_hidden.sum((0, 1))
    of_norm1 = sums(2)
    norm1 = (p.norm1_weight, p.norm1_bias, o.norm1_eps)
    core.gated_update_attended_bwd(
        x, attended, *norm1, seed, o.attended_rate, da, stats1, dx, dattended, of_norm1, threads
    )
    first = [t for pair in zip(dfirst_weight.split(sizes), dfirst_bias.split(sizes)) for t in pair]
    last = (dlinear2_weight, dlinear2_bias, dgate2_weight, dgate2_bias, dnorm2_weight, dnorm2_bias)
    one_of_many = (t.clone() for t in (*of_norm1.sum(0), *first))
    return dx, dattended, *one_of_many, *last


def _bwd_fake(dy, x, attended, a, h, u, stats1, stats2, z, *rest):
    return x.new_empty(x.shape), x.new_empty(x.shape), *(t.new_empty(t.shape) for t in _split(rest)[0])


gated_update_bwd = define_op(
    "gated_update_bwd(Tensor dy, Tensor x, Tensor attended, Tensor a, Tensor hidden, Tensor u, "
    f"Tensor stats1, Tensor stats2, Tensor z, {_PARAMETERS}, Tensor seed, {_OPTIONS}) -> (Tensor dx, Tensor dattended, "
    + ", ".join(f"Tensor d{name}" for name in Parameters._fields)
    + ")",
    _bwd,
    _bwd_fake,
)
