"""The whole recurrence of a Differentiable Neural Computer in one operation."""

from . import _dnc_ops as ops
from ._dnc_checks import check_sequence
from ._recurrence_autograd import checkpoint_distance, differentiable
from ._states import DNCState

_sequence = differentiable("dnc_sequence", ops.dnc_sequence_fwd, ops.dnc_sequence_bwd, len(ops.STATE))


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
    the root of their number): backward repeats the steps between, operation by operation, and never stores N² a step.

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
        TypeError, ValueError: an argument that does not fit, by its name. There are no second
        derivatives (RuntimeError).
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
    chunk = checkpoint_distance(checkpoint_every, input.shape[0])
    options = ops.Options(*flags.values(), *numbers.values(), chunk)
    hidden, reads, *state = _sequence(input, *weights, lengths, *state, *options)
    return hidden.to(dtype), reads.to(dtype), DNCState(*state)
