"""Registered operations of the DNC's recurrence: allocation and one core call each. Arguments as in csrc/dnc/dnc.h.

A state is nine tensors, in the order of :class:`~sysgen.ops.DNCState`. A checkpoint is a state without h and the reads.
On the CPU its rows are padded to whole vectors of the processor, and behind them stand the projections of the read
weights through the links, [2, R, N] for each step that the checkpoint is for: backward then needs no links for them.
"""

from typing import NamedTuple

import torch

from .._alloc import empty
from .._library import define_op, raw_stream, without_autocast
from .._load import core
from ._core_call import dense, weights_of_backward


class Options(NamedTuple):
    """What determines a step besides tensors, in the order of the operations' arguments."""

    masked: bool
    dealloc: bool
    sharpen: bool
    detach_write: bool
    eps: float
    clip: float
    mask_min: float
    chunk: int


STATE = ("hidden", "cell", "memory", "usage", "link", "precedence", "write_weights", "read_weights", "reads")
_STATE = ", ".join(f"Tensor {name}" for name in STATE)
_STATE_GRADIENT = ", ".join(f"Tensor? d{name}" for name in STATE)
_OPTIONS = (
    "bool masked, bool dealloc, bool sharpen, bool detach_write, float eps, float clip, float mask_min, int chunk"
)
_NUM_STATE = len(STATE)


def interface_size(reads, width, masked, sharpen):
    size = width * (3 + reads) + 5 * reads + 3
    return size + masked * width * (1 + reads) + sharpen * 2 * reads


def _checkpoint_numel(state, dtype, steps):
    _, reads, cells = state[7].shape
    width, hidden = state[2].shape[2], state[0].shape[1]
    if state[0].is_cuda or core.emulated:
        return cells * (width + cells + 3 + reads) + hidden
    lanes = core.dnc_vector_bytes() // dtype.itemsize

    def padded(n):
        return (n + lanes - 1) // lanes * lanes

    return padded(cells) * (width + cells + 3 + reads + 2 * reads * steps) + padded(hidden)


def _fwd_outputs(new, input, state, chunk, save):
    steps, batch, _ = input.shape
    hidden, reads = state[0], state[8]
    chunks = (steps + chunk - 1) // chunk
    checkpoints = (chunks, batch, _checkpoint_numel(state, input.dtype, min(chunk, steps))) if save else (0,)
    return (
        new(input, (steps, *hidden.shape)),
        new(input, (steps, *reads.shape)),
        new(input, checkpoints),
        *(new(t, t.shape) for t in state),
    )


def _scratch(gates, reads, cells, options, backward):
    threads = torch.get_num_threads()
    size = core.dnc_sequence_scratch_bytes(gates, reads, cells, options, backward, threads)
    return empty(gates, size, torch.uint8), cells, options, threads, raw_stream(gates)


def _fwd(input, weight_input, bias, weight_hidden, weight_reads, weight_interface, bias_interface, lengths, *rest):
    state, options, save = rest[:_NUM_STATE], core.DncOptions(*rest[_NUM_STATE:-1]), rest[-1]
    hidden, reads, checkpoints, *final = _fwd_outputs(empty, input, state, rest[-2], save)
    with without_autocast(input.device):
        gates = torch.nn.functional.linear(input, weight_input, bias)
    weights = [w.contiguous() for w in (weight_hidden, weight_reads, weight_interface, bias_interface)]
    core.dnc_sequence_fwd(
        gates,
        *weights,
        dense(lengths),
        [t.contiguous() for t in state],
        final,
        hidden,
        reads,
        checkpoints if save else None,
        *_scratch(gates, reads, state[2].shape[1], options, False),
    )
    return gates, hidden, reads, checkpoints, *final


def _fwd_fake(input, weight_input, bias, weight_hidden, weight_reads, weight_interface, bias_interface, lengths, *rest):
    gates = input.new_empty(*input.shape[:2], weight_input.shape[0])
    return gates, *_fwd_outputs(torch.Tensor.new_empty, input, rest[:_NUM_STATE], rest[-2], rest[-1])


dnc_sequence_fwd = define_op(
    "dnc_sequence_fwd(Tensor input, Tensor weight_input, Tensor bias, Tensor weight_hidden, Tensor weight_reads, "
    f"Tensor weight_interface, Tensor bias_interface, Tensor? lengths, {_STATE}, {_OPTIONS}, bool save) -> "
    "(Tensor gates, Tensor hidden_out, Tensor reads_out, Tensor checkpoints, "
    + ", ".join(f"Tensor {name}_out" if name not in ("hidden", "reads") else f"Tensor {name}_last" for name in STATE)
    + ")",
    _fwd,
    _fwd_fake,
)


def _bwd_outputs(new, gates, weight_interface, sizes):
    steps, batch, _ = gates.shape
    cells, reads, width = sizes
    n = gates.shape[2] // 4
    shapes = [(n,), (n,), (cells, width), (cells,), (cells, cells), (cells,), (cells,), (reads, cells), (reads, width)]
    interface = new(gates, (steps, batch, weight_interface.shape[0]))
    return new(gates, gates.shape), interface, *(new(gates, (batch, *shape)) for shape in shapes)


def _bwd(
    gates, hidden, reads, checkpoints, weight_hidden, weight_reads, weight_interface, bias_interface, lengths, *rest
):
    dhidden, dreads, *rest = rest
    dfinal, cells, options = rest[:_NUM_STATE], rest[_NUM_STATE], core.DncOptions(*rest[_NUM_STATE + 1 :])

    outputs = _bwd_outputs(empty, gates, weight_interface, (cells, *reads.shape[2:]))
    core.dnc_sequence_bwd(
        gates,
        *weights_of_backward(weight_hidden, weight_reads, weight_interface),
        bias_interface.contiguous(),
        dense(lengths),
        hidden,
        reads,
        checkpoints,
        dense(dhidden),
        dense(dreads),
        [dense(t) for t in dfinal],
        *outputs[:2],
        outputs[2:],
        *_scratch(gates, reads, cells, options, True),
    )
    return outputs


def _bwd_fake(gates, hidden, reads, checkpoints, weight_hidden, weight_reads, weight_interface, *rest):
    cells = rest[4 + _NUM_STATE]
    return _bwd_outputs(torch.Tensor.new_empty, gates, weight_interface, (cells, *reads.shape[2:]))


dnc_sequence_bwd = define_op(
    "dnc_sequence_bwd(Tensor gates, Tensor hidden_out, Tensor reads_out, Tensor checkpoints, Tensor weight_hidden, "
    "Tensor weight_reads, Tensor weight_interface, Tensor bias_interface, Tensor? lengths, Tensor? dhidden_out, "
    f"Tensor? dreads_out, {_STATE_GRADIENT}, SymInt cells, {_OPTIONS}) -> (Tensor dgates, Tensor dinterface, "
    + ", ".join(f"Tensor d{name}_out" for name in STATE)
    + ")",
    _bwd,
    _bwd_fake,
)
