"""Registered operations of the Neural Turing Machine's recurrence: allocation and one core call each. Arguments as in
csrc/ntm/ntm.h.

A state is six tensors, in the order of :class:`~sysgen.ops.NTMState`. A checkpoint is a state without h and the reads;
on the CPU its rows are padded to whole vectors of the processor.
"""

import torch

from .._alloc import empty
from .._library import define_op, raw_stream, without_autocast
from .._load import core
from ._core_call import dense, weights_of_backward
from ._states import NTMState

STATE = NTMState._fields
_STATE = ", ".join(f"Tensor {name}" for name in STATE)
_STATE_GRADIENT = ", ".join(f"Tensor? d{name}" for name in STATE)
_OPTIONS = "int max_shift, float eps, int chunk"
_NUM_STATE = len(STATE)


def interface_size(num_heads, word_size, max_shift):
    return 2 * num_heads * (2 * word_size + 3 + 2 * max_shift + 1)


def _checkpoint_numel(state, dtype):
    state = NTMState(*state)
    _, cells, width = state.memory.shape
    heads, hidden = state.reads.shape[1], state.hidden.shape[1]
    if state.memory.is_cuda or core.emulated:
        return cells * (width + 2 * heads) + hidden
    lanes = core.ntm_vector_bytes() // dtype.itemsize

    def padded(n):
        return (n + lanes - 1) // lanes * lanes

    return padded(cells) * (width + 2 * heads) + padded(hidden)


def _fwd_outputs(new, input, state, chunk, save):
    steps, batch, _ = input.shape
    chunks = (steps + chunk - 1) // chunk
    checkpoints = (chunks, batch, _checkpoint_numel(state, input.dtype)) if save else (0,)
    return (
        new(input, (steps, *state[0].shape)),
        new(input, (steps, *state[-1].shape)),
        new(input, checkpoints),
        *(new(t, t.shape) for t in state),
    )


def _scratch(gates, reads, cells, options, backward):
    threads = torch.get_num_threads()
    size = core.ntm_sequence_scratch_bytes(gates, reads, cells, options, backward, threads)
    return empty(gates, size, torch.uint8), cells, options, threads, raw_stream(gates)


def _fwd(input, weight_input, bias, weight_hidden, weight_reads, weight_interface, bias_interface, lengths, *rest):
    state, options, save = rest[:_NUM_STATE], core.NtmOptions(*rest[_NUM_STATE:-1]), rest[-1]
    hidden, reads, checkpoints, *final = _fwd_outputs(empty, input, state, rest[-2], save)
    with without_autocast(input.device):
        gates = torch.nn.functional.linear(input, weight_input, bias)
    core.ntm_sequence_fwd(
        gates,
        *map(dense, (weight_hidden, weight_reads, weight_interface, bias_interface, lengths)),
        list(map(dense, state)),
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


ntm_sequence_fwd = define_op(
    "ntm_sequence_fwd(Tensor input, Tensor weight_input, Tensor bias, Tensor weight_hidden, Tensor weight_reads, "
    f"Tensor weight_interface, Tensor bias_interface, Tensor? lengths, {_STATE}, {_OPTIONS}, bool save) -> "
    "(Tensor gates, Tensor hidden_out, Tensor reads_out, Tensor checkpoints, "
    + ", ".join(f"Tensor {name}_last" for name in STATE)
    + ")",
    _fwd,
    _fwd_fake,
)


def _bwd_outputs(new, gates, reads, weight_interface, cells):
    steps, batch, _ = gates.shape
    n, (heads, width) = gates.shape[2] // 4, reads.shape[2:]
    shapes = (n,), (n,), (cells, width), (heads, cells), (heads, cells), (heads, width)
    interface = new(gates, (steps, batch, weight_interface.shape[0]))
    return new(gates, gates.shape), interface, *(new(gates, (batch, *shape)) for shape in shapes)


def _bwd(
    gates, hidden, reads, checkpoints, weight_hidden, weight_reads, weight_interface, bias_interface, lengths, *rest
):
    dhidden, dreads, *rest = rest
    dfinal, cells, options = rest[:_NUM_STATE], rest[_NUM_STATE], core.NtmOptions(*rest[_NUM_STATE + 1 :])
    outputs = _bwd_outputs(empty, gates, reads, weight_interface, cells)
    weights = *weights_of_backward(weight_hidden, weight_reads, weight_interface), bias_interface
    core.ntm_sequence_bwd(
        gates,
        *map(dense, (*weights, lengths)),
        hidden,
        reads,
        checkpoints,
        dense(dhidden),
        dense(dreads),
        list(map(dense, dfinal)),
        *outputs[:2],
        outputs[2:],
        *_scratch(gates, reads, cells, options, True),
    )
    return outputs


def _bwd_fake(gates, hidden, reads, checkpoints, weight_hidden, weight_reads, weight_interface, *rest):
    return _bwd_outputs(torch.Tensor.new_empty, gates, reads, weight_interface, rest[4 + _NUM_STATE])


ntm_sequence_bwd = define_op(
    "ntm_sequence_bwd(Tensor gates, Tensor hidden_out, Tensor reads_out, Tensor checkpoints, Tensor weight_hidden, "
    "Tensor weight_reads, Tensor weight_interface, Tensor bias_interface, Tensor? lengths, Tensor? dhidden_out, "
    f"Tensor? dreads_out, {_STATE_GRADIENT}, SymInt cells, {_OPTIONS}) -> (Tensor dgates, Tensor dinterface, "
    + ", ".join(f"Tensor d{name}_out" for name in STATE)
    + ")",
    _bwd,
    _bwd_fake,
)
