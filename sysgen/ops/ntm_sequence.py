"""The whole recurrence of a Neural Turing Machine in one operation."""

from . import _ntm_ops as ops
from ._ntm_checks import check_sequence
from ._recurrence_autograd import checkpoint_distance, differentiable
from ._states import NTMState

_sequence = differentiable("ntm_sequence", ops.ntm_sequence_fwd, ops.ntm_sequence_bwd, len(ops.STATE))


def ntm_sequence(
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
    max_shift=1,
    eps=1e-6,
    checkpoint_every=None,
):
    """A Neural Turing Machine with an LSTM controller over a whole sequence (Graves et al. 2014).

    In every step the controller sees the input and what was last read. Then each pair of heads in turn finds its
    places (content, interpolation with its last weights, circular shift, sharpening; Eq. 5 to 9), reads (Eq. 2) and
    writes (Eq. 3 and 4): reads see the memory before the pair's own write and after those of the pairs before it.

    Saved for backward are the gates, the outputs and the state before every ``checkpoint_every`` steps (default: about
    the root of their number): backward repeats the steps between, to the same bits, and never stores a memory a step.

    Args:
        input: [T, B, X].
        state: :class:`NTMState` before the first step.
        weight_input: [4 H, X]; weight_hidden: [4 H, H]; weight_reads: [4 H, P · W]; bias: [4 H]: of the controller, in
            torch's order of gates (input, forget, cell, output).
        weight_interface: [I, H], bias_interface: [I], I = 2 P (2 W + 2 S + 4); what its entries are stands in
            csrc/ntm/ntm.h.
        lengths: int64 [B] or None: a sample takes part in its first steps only; then its state stays as it is and its
            outputs are 0.
        max_shift: S: a step moves the focus by at most so many cells either way.
        eps: in the denominators of the cosines.

    dtypes: float32 or float64, the same for all; input and weights may also be bfloat16 or float16 with a state of
    float32, which then is what everything is computed in. Autocast does not change that.

    Returns:
        (hidden [T, B, H] and reads [T, B, P, W] in the input's dtype, the :class:`NTMState` after the last step).

    Raises:
        TypeError, ValueError: an argument that does not fit, by its name. There are no second derivatives
        (RuntimeError).
    """
    weights = {
        "weight_input": weight_input,
        "bias": bias,
        "weight_hidden": weight_hidden,
        "weight_reads": weight_reads,
        "weight_interface": weight_interface,
        "bias_interface": bias_interface,
    }
    check_sequence(input, state, weights, lengths, max_shift, eps, checkpoint_every)
    dtype = input.dtype
    input, *weights = (t.to(state[0].dtype) for t in (input, *weights.values()))
    options = max_shift, eps, checkpoint_distance(checkpoint_every, input.shape[0])
    hidden, reads, *state = _sequence(input, *weights, lengths, *state, *options)
    return hidden.to(dtype), reads.to(dtype), NTMState(*state)
