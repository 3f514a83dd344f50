"""Arguments of the DNC's recurrence: what may be given."""

import math

from ._dnc_ops import interface_size
from ._geometric_attention_checks import check_flag
from ._memory_checks import check_eps
from ._recurrence_checks import (
    check_checkpoint_every,
    check_input,
    check_lengths,
    check_number,
    check_state_shapes,
    check_state_tensors,
    check_weights,
)
from ._states import DNCState

OP = "dnc_sequence"
_NUMBERS = {
    "clip": (lambda v: v > 0, "positive"),
    "mask_min": (lambda v: 0 <= v <= 1, "in [0, 1]"),
}


def check_sequence(input, state, weights, lengths, flags, numbers, checkpoint_every):
    """Raises unless all fit together. ``weights`` and ``flags`` and ``numbers`` are dicts by argument name."""
    check_input(OP, input)
    dtype = check_state(OP, state, input)
    for flag, value in flags.items():
        check_flag(OP, flag, value)
    heads = state[8].shape[1:]
    interface = interface_size(*heads, flags["masked"], flags["sharpen"])
    check_weights(OP, weights, input, state[0].shape[1], math.prod(heads), interface, dtype)
    check_lengths(OP, lengths, input)
    check_eps(OP, numbers["eps"], dtype)
    for argument, fits in _NUMBERS.items():
        check_number(OP, argument, numbers[argument], *fits)
    check_checkpoint_every(OP, checkpoint_every)


def check_state(op, state, input, sizes=None):
    """Raises unless ``state`` is one for input [..., B, X]; returns its dtype.

    ``sizes``: the widths (H, of the cell, W, R) that it must have; None: those of its own hidden, memory and reads.
    """
    state = check_state_tensors(op, state, DNCState, {"hidden": 2, "memory": 3, "reads": 3})
    b, n = input.shape[-2], state.memory.shape[1]
    own = state.hidden.shape[1], state.hidden.shape[1], state.memory.shape[2], state.reads.shape[1]
    h, c, w, r = sizes or own
    shapes = (b, h), (b, c), (b, n, w), (b, n), (b, n, n), (b, n), (b, n), (b, r, n), (b, r, w)
    return check_state_shapes(op, state, shapes, input)
