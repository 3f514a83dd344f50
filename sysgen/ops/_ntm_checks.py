"""Arguments of the Neural Turing Machine's recurrence: what may be given."""

from ._memory_checks import check_eps
from ._ntm_ops import interface_size
from ._recurrence_checks import (
    check_checkpoint_every,
    check_input,
    check_integer,
    check_lengths,
    check_state_shapes,
    check_state_tensors,
    check_weights,
)
from ._states import NTMState

OP = "ntm_sequence"


def check_sequence(input, state, weights, lengths, max_shift, eps, checkpoint_every):
    """Raises unless all fit together. ``weights``: a dict by argument name."""
    check_input(OP, input)
    check_integer(OP, "max_shift", max_shift, 0)
    dtype = check_state(OP, state, input)
    heads, width = state[-1].shape[1:]
    interface = interface_size(heads, width, max_shift)
    check_weights(OP, weights, input, state[0].shape[1], heads * width, interface, dtype)
    check_lengths(OP, lengths, input)
    check_eps(OP, eps, dtype)
    check_checkpoint_every(OP, checkpoint_every)


def check_state(op, state, input, sizes=None):
    """Raises unless ``state`` is one for input [..., B, X]; returns its dtype.

    ``sizes``: the widths (H, of the cell, W, P) that it must have; None: those of its own hidden, memory and reads.
    """
    state = check_state_tensors(op, state, NTMState, {"hidden": 2, "memory": 3, "reads": 3})
    b, n = input.shape[-2], state.memory.shape[1]
    own = state.hidden.shape[1], state.hidden.shape[1], state.memory.shape[2], state.reads.shape[1]
    h, c, w, p = sizes or own
    return check_state_shapes(op, state, ((b, h), (b, c), (b, n, w), (b, p, n), (b, p, n), (b, p, w)), input)
