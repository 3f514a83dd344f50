"""Derivatives of a recurrence over an external memory, and how often its state is kept for them.

A state has ``hidden`` first and ``reads`` last.
"""

import torch

from .._library import without_autocast
from ..reference.dnc import until_end
from ._cvmm_autograd import needs_gradient


def checkpoint_distance(checkpoint_every, steps):
    """The power of two next to the root; by comparisons only, so that a traced call serves all numbers in a range."""
    if checkpoint_every:
        return min(checkpoint_every, 2**62)  # fits the core
    chunk = 1
    while 2 * chunk * chunk < steps:
        chunk *= 2
    return chunk


def differentiable(name, fwd, bwd, num_state):
    """``call(input, *weights, lengths, *state, *options)`` -> (hidden, reads, *state) of an operation.

    Args:
        name: public name, of the definition in :mod:`sysgen.reference` too.
        fwd: registered operation of the same arguments and ``save`` -> (gates, hidden, reads, checkpoints, *state).
        bwd: registered operation of what was saved, the weights without those of the input, the lengths, the gradients
            of the outputs, the number of cells and the options -> (dgates, dinterface, *dstate).
        num_state: number of tensors of a state.
    """
    num_weights = 6

    class Sequence(torch.autograd.Function):
        @staticmethod
        def forward(ctx, input, *arguments):
            weights, (lengths, *state) = arguments[:num_weights], arguments[num_weights : num_weights + 1 + num_state]
            gates, hidden, reads, checkpoints, *final = fwd(input, *arguments, True)
            ctx.save_for_backward(input, gates, hidden, reads, checkpoints, state[0], state[-1], *weights, lengths)
            ctx.options, ctx.cells = arguments[num_weights + 1 + num_state :], state[2].shape[1]
            ctx.set_materialize_grads(False)
            return hidden, reads, *final

        @staticmethod
        def backward(ctx, *doutputs):
            saved = ctx.saved_tensors  # once: torch.utils.checkpoint does not let them be unpacked again
            with torch.no_grad(), without_autocast(saved[0].device):
                given = gradients(ctx, saved, *doutputs)
            sources = *doutputs, *saved
            if needs_gradient(*sources):
                at = [i for i, g in enumerate(given) if g is not None]
                kept = Once.apply(len(sources), *sources, *(given[i] for i in at))
                for i, g in zip(at, kept):
                    given[i] = g
            return *given, *(None,) * len(ctx.options)

    def gradients(ctx, saved, dhidden, dreads, *dfinal):
        """Of all arguments of the forward but the options; None where nobody asked, and for the lengths."""
        input, gates, hidden, reads, checkpoints, h0, reads0, *weights, lengths = saved
        weight_input, _, weight_hidden, weight_reads, weight_interface, bias_interface = weights
        dgates, dinterface, *dinitial = bwd(
            *(gates, hidden, reads, checkpoints),
            *(weight_hidden, weight_reads, weight_interface, bias_interface, lengths),
            *(dhidden, dreads, *dfinal, ctx.cells, *ctx.options),
        )
        rows, flat = dgates.flatten(0, 1), dinterface.flatten(0, 1)
        before = torch.cat([h0[None], hidden[:-1]]) if len(hidden) else hidden
        read_before = torch.cat([reads0[None], reads[:-1]]) if len(reads) else reads
        of_each = (
            lambda: dgates @ weight_input,
            lambda: rows.t() @ until_end(input, lengths).flatten(0, 1),  # 0 · NaN in the padding is no 0
            lambda: rows.sum(0),
            lambda: rows.t() @ before.flatten(0, 1),
            lambda: rows.t() @ read_before.flatten(2).flatten(0, 1),
            lambda: flat.t() @ hidden.flatten(0, 1),
            lambda: flat.sum(0),
        )
        return [g() if need else None for g, need in zip(of_each, ctx.needs_input_grad)] + [None, *dinitial]

    class Once(torch.autograd.Function):
        """Hands gradients on with a history that ends in an error: better than a second derivative that lacks terms."""

        @staticmethod
        def forward(ctx, num_sources, *tensors):
            return tuple(g.view_as(g) for g in tensors[num_sources:])

        @staticmethod
        def backward(ctx, *_):
            raise RuntimeError(f"sysgen: {name} has no second derivative; differentiate sysgen.reference.{name}")

    def call(input, *arguments):
        if needs_gradient(input, *arguments[:num_weights], *arguments[num_weights + 1 : num_weights + 1 + num_state]):
            return Sequence.apply(input, *arguments)
        _, hidden, reads, _, *state = fwd(input, *arguments, False)
        return hidden, reads, *state

    return call
