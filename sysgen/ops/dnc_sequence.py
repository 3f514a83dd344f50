"""The whole recurrence of a Differentiable Neural Computer in one operation."""

from typing import NamedTuple

import torch

from . import _dnc_ops as ops
from ._cvmm_autograd import needs_gradient
from ._dnc_checks import check_sequence


class DNCState(NamedTuple):
    """State of a Differentiable Neural Computer between two steps; B batch, H controller, N cells, W words, R heads."""

    hidden: torch.Tensor  #: [B, H], of the controller
    cell: torch.Tensor  #: [B, H], of the controller
    memory: torch.Tensor  #: [B, N, W]
    usage: torch.Tensor  #: [B, N]
    link: torch.Tensor  #: [B, N, N]: [i, j] how much cell i was written right after cell j
    precedence: torch.Tensor  #: [B, N]: how much a cell was the last one written
    write_weights: torch.Tensor  #: [B, N]
    read_weights: torch.Tensor  #: [B, R, N]
    reads: torch.Tensor  #: [B, R, W]: what was read

    @classmethod
    def zeros(cls, batch, hidden_size, num_cells, word_size, num_reads, device=None, dtype=None):
        """The state before the first step."""
        b, h, n, w, r = batch, hidden_size, num_cells, word_size, num_reads
        shapes = (b, h), (b, h), (b, n, w), (b, n), (b, n, n), (b, n), (b, n), (b, r, n), (b, r, w)
        return cls(*(torch.zeros(shape, device=device, dtype=dtype) for shape in shapes))

    def detach(self):
        """The same state without history."""
        return DNCState(*(t.detach() for t in self))


def dnc_sequence(
    input,
    state,
    weight_input,
    weight_hidden,
    weight_reads,
    bias,
    weight_interface,
    bias_interface,
    *,
    lengths=None,
    masked=True,
    dealloc=True,
    sharpen=True,
    detach_write=True,
    mask_min=0.0,
    clip=20.0,
    eps=1e-6,
    checkpoint_every=None,
):
    """A Differentiable Neural Computer with an LSTM controller over a whole sequence (Csordas 2023, chapter 2, App. A).

    Saved for backward are the gates, the outputs and the state before every ``checkpoint_every`` steps (default: about
    the root of their number): backward repeats the steps between, to the same bits, and never stores N² a step.

    Args:
        input: [T, B, X].
        state: :class:`DNCState` before the first step.
        weight_input: [4 H, X]; weight_hidden: [4 H, H]; weight_reads: [4 H, R · W]; bias: [4 H]: of the controller, in
            torch's order of gates (input, forget, cell, output).
        weight_interface: [I, H], bias_interface: [I]; what its entries are stands in csrc/dnc/dnc.h.
        lengths: int64 [B] or None: a sample takes part in its first steps only; then its state stays as it is and its
            outputs are 0.
        masked, dealloc, sharpen: masked content addressing, de-allocation, sharpened links.
        detach_write: the usage gives the write weights no gradient, as in the released code.
        mask_min: smallest value of a mask.
        clip: bound of the interface's absolute values; its gradient is 0 outside.
        eps: in cosines, usages and sharpened weights.

    dtypes: float32 or float64, the same for all; input and weights may also be bfloat16 or float16 with a state of
    float32, which then is what everything is computed in. Autocast does not change that.

    Returns:
        (hidden [T, B, H] and reads [T, B, R, W] in the input's dtype, the :class:`DNCState` after the last step).

    Raises:
        TypeError, ValueError: an argument that does not fit, by its name. There are no CUDA kernels yet
        (NotImplementedError), and no second derivatives (RuntimeError).
    """
    weights = {
        "weight_input": weight_input,
        "bias": bias,
        "weight_hidden": weight_hidden,
        "weight_reads": weight_reads,
        "weight_interface": weight_interface,
        "bias_interface": bias_interface,
    }
    flags = {"masked": masked, "dealloc": dealloc, "sharpen": sharpen, "detach_write": detach_write}
    numbers = {"eps": eps, "clip": clip, "mask_min": mask_min}
    check_sequence(input, state, weights, lengths, flags, numbers, checkpoint_every)
    dtype = input.dtype
    input, *weights = (t.to(state[0].dtype) for t in (input, *weights.values()))
    chunk = min(checkpoint_every, 2**62) if checkpoint_every else _default_chunk(input.shape[0])  # fits the core
    options = ops.Options(*flags.values(), *numbers.values(), chunk)
    if needs_gradient(input, *weights, *state):
        hidden, reads, *state = _Sequence.apply(input, *weights, lengths, *state, *options)
    else:
        _, hidden, reads, _, *state = ops.dnc_sequence_fwd(input, *weights, lengths, *state, *options, False)
    return hidden.to(dtype), reads.to(dtype), DNCState(*state)


def _default_chunk(steps):
    """The power of two next to the root; by comparisons only, so that a traced call serves all numbers in a range."""
    chunk = 1
    while 2 * chunk * chunk < steps:
        chunk *= 2
    return chunk


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, *arguments):
        weights, lengths, state, options = arguments[:6], arguments[6], arguments[7:16], arguments[16:]
        gates, hidden, reads, checkpoints, *final = ops.dnc_sequence_fwd(input, *arguments, True)
        ctx.save_for_backward(input, gates, hidden, reads, checkpoints, state[0], state[8], *weights, lengths)
        ctx.options, ctx.cells = options, state[2].shape[1]
        ctx.set_materialize_grads(False)
        return hidden, reads, *final

    @staticmethod
    def backward(ctx, *doutputs):
        saved = ctx.saved_tensors  # once: torch.utils.checkpoint does not let them be unpacked again
        with torch.no_grad(), ops.without_autocast(saved[0].device):
            given = _gradients(ctx, saved, *doutputs)
        sources = *doutputs, *saved
        if needs_gradient(*sources):
            at = [i for i, g in enumerate(given) if g is not None]
            kept = _Once.apply(len(sources), *sources, *(given[i] for i in at))
            for i, g in zip(at, kept):
                given[i] = g
        return *given, *(None,) * len(ctx.options)


def _gradients(ctx, saved, dhidden, dreads, *dfinal):
    """Of all arguments of the forward but the options; None where nobody asked, and for the lengths."""
    input, gates, hidden, reads, checkpoints, h0, reads0, *weights, lengths = saved
    weight_input, _, weight_hidden, weight_reads, weight_interface, bias_interface = weights
    dgates, dinterface, *dinitial = ops.dnc_sequence_bwd(
        *(gates, hidden, reads, checkpoints),
        *(weight_hidden, weight_reads, weight_interface, bias_interface, lengths),
        *(dhidden, dreads, *dfinal, ctx.cells, *ctx.options),
    )
    rows, flat = dgates.flatten(0, 1), dinterface.flatten(0, 1)
    before = torch.cat([h0[None], hidden[:-1]]) if len(hidden) else hidden
    read_before = torch.cat([reads0[None], reads[:-1]]) if len(reads) else reads
    gradients = (
        lambda: dgates @ weight_input,
        lambda: rows.t() @ input.flatten(0, 1),
        lambda: rows.sum(0),
        lambda: rows.t() @ before.flatten(0, 1),
        lambda: rows.t() @ read_before.flatten(2).flatten(0, 1),
        lambda: flat.t() @ hidden.flatten(0, 1),
        lambda: flat.sum(0),
    )
    return [g() if need else None for g, need in zip(gradients, ctx.needs_input_grad)] + [None, *dinitial]


class _Once(torch.autograd.Function):
    """Hands gradients on with a history that ends in an error: better than a second derivative without its terms."""

    @staticmethod
    def forward(ctx, num_sources, *tensors):
        return tuple(g.view_as(g) for g in tensors[num_sources:])

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError("sysgen: dnc_sequence has no second derivative; differentiate sysgen.reference.dnc_sequence")
