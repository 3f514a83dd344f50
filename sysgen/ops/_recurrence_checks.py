"""Arguments of a recurrence over an external memory: what may be given. ``op`` names the operation in messages."""

import math

import torch

from ._cvmm_checks import check_tensor, name


def check_input(op, input):
    check_tensor(op, "input", input)
    if input.dim() != 3:
        raise ValueError(f"{op}: input must have 3 dimensions [T, B, X], got shape {list(input.shape)}")


def check_state_tensors(op, state, kind, ranks):
    """Raises unless ``state`` has the tensors of the NamedTuple ``kind``, float32 or float64.

    ``ranks``: field -> number of dimensions, of those that sizes are read from. Returns the state as a ``kind``.
    """
    fields = kind._fields
    if not isinstance(state, tuple) or len(state) != len(fields):
        raise TypeError(f"{op}: state must be a {kind.__name__} of {len(fields)} tensors, got {type(state).__name__}")
    for field, t in zip(fields, state):
        check_tensor(op, f"state.{field}", t)
    dtype = state[0].dtype
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{op}: state must be float32 or float64, whatever the input is, got {name(dtype)}")
    state = kind(*state)
    for field, rank in ranks.items():
        t = getattr(state, field)
        if t.dim() != rank:
            raise ValueError(f"{op}: state.{field} must have {rank} dimensions, got shape {list(t.shape)}")
    return state


def check_state_shapes(op, state, shapes, input):
    """Raises unless the tensors have these shapes, one dtype, and the input's device; returns the dtype."""
    dtype, first = state[0].dtype, state._fields[0]
    for field, t, shape in zip(state._fields, state, shapes):
        if t.dtype != dtype:
            raise TypeError(f"{op}: state.{field} must be {name(dtype)} as state.{first}, got {name(t.dtype)}")
        if t.shape != shape:
            raise ValueError(f"{op}: state.{field} must have shape {list(shape)}, got {list(t.shape)}")
        if t.device != input.device:
            raise ValueError(f"{op}: state.{field} is on {t.device}, input on {input.device}")
    half = dtype == torch.float32 and input.dtype in (torch.bfloat16, torch.float16)
    if input.dtype != dtype and not half:
        raise TypeError(
            f"{op}: input must have the state's dtype {name(dtype)}"
            f"{' or be bfloat16 or float16' if dtype == torch.float32 else ''}, got {name(input.dtype)}"
        )
    return dtype


def check_weights(op, weights, input, hidden, words, interface, dtype):
    """``weights``: argument -> tensor, of an LSTM that also reads ``words`` numbers, and of its interface."""
    shapes = {
        "weight_input": (4 * hidden, input.shape[2]),
        "weight_hidden": (4 * hidden, hidden),
        "weight_reads": (4 * hidden, words),
        "bias": (4 * hidden,),
        "weight_interface": (interface, hidden),
        "bias_interface": (interface,),
    }
    for argument, shape in shapes.items():
        t = weights[argument]
        check_tensor(op, argument, t)
        if t.dtype not in (dtype, input.dtype):
            raise TypeError(f"{op}: {argument} must be {name(dtype)} as the state, got {name(t.dtype)}")
        if t.shape != shape:
            raise ValueError(f"{op}: {argument} must have shape {list(shape)}, got {list(t.shape)}")
        if t.device != input.device:
            raise ValueError(f"{op}: {argument} is on {t.device}, input on {input.device}")


def check_lengths(op, lengths, input):
    if lengths is None:
        return
    check_tensor(op, "lengths", lengths)
    if lengths.dtype != torch.int64:
        raise TypeError(f"{op}: lengths must be int64, got {name(lengths.dtype)}")
    steps, b = input.shape[:2]
    if lengths.shape != (b,):
        raise ValueError(f"{op}: lengths must have shape {[b]}, got {list(lengths.shape)}")
    if lengths.device != input.device:
        raise ValueError(f"{op}: lengths is on {lengths.device}, input on {input.device}")
    readable = lengths.device.type == "cpu" and not torch.compiler.is_compiling()
    readable = readable and not isinstance(lengths, torch._subclasses.FakeTensor)
    if readable and b and not (lengths.min() >= 0 and lengths.max() <= steps):
        raise ValueError(f"{op}: lengths must lie in [0, {steps}], got {int(lengths.min())} to {int(lengths.max())}")


def check_number(op, argument, value, fits, described):
    """Raises unless ``value`` is a finite number with ``fits(value)``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: {argument} must be a number, got {type(value).__name__}")
    if not (value < math.inf and fits(value)):
        raise ValueError(f"{op}: {argument} must be {described}, got {value}")


def check_integer(op, argument, value, least):
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{op}: {argument} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{op}: {argument} must be at least {least}, got {value}")


def check_checkpoint_every(op, checkpoint_every):
    if checkpoint_every is None:
        return
    if isinstance(checkpoint_every, bool) or not isinstance(checkpoint_every, int):
        raise TypeError(f"{op}: checkpoint_every must be an int or None, got {type(checkpoint_every).__name__}")
    check_integer(op, "checkpoint_every", checkpoint_every, 1)
