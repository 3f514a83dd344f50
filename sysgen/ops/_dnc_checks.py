"""Arguments of the DNC's recurrence: what may be given."""

import math

import torch

from ._cvmm_checks import check_tensor, name
from ._dnc_ops import STATE, interface_size

OP = "dnc_sequence"


def check_sequence(input, state, weights, lengths, flags, numbers, checkpoint_every):
    """Raises unless all fit together. ``weights`` and ``flags`` and ``numbers`` are dicts by argument name."""
    check_tensor(OP, "input", input)
    if input.dim() != 3:
        raise ValueError(f"{OP}: input must have 3 dimensions [T, B, X], got shape {list(input.shape)}")
    dtype, device = check_state(OP, state, input), input.device
    for flag, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{OP}: {flag} must be a bool, got {type(value).__name__}")
    hidden, words = state[0].shape[1], math.prod(state[8].shape[1:])
    interface = interface_size(*state[8].shape[1:], flags["masked"], flags["sharpen"])
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
        check_tensor(OP, argument, t)
        if t.dtype not in (dtype, input.dtype):
            raise TypeError(f"{OP}: {argument} must be {name(dtype)} as the state, got {name(t.dtype)}")
        if t.shape != shape:
            raise ValueError(f"{OP}: {argument} must have shape {list(shape)}, got {list(t.shape)}")
        if t.device != device:
            raise ValueError(f"{OP}: {argument} is on {t.device}, input on {device}")
    check_lengths(OP, lengths, input)
    _check_numbers(numbers, checkpoint_every)


def check_state(op, state, input, sizes=None):
    """Raises unless ``state`` is one for input [..., B, X]; returns its dtype.

    ``sizes``: the widths (H, of the cell, W, R) that it must have; None: those of its own hidden, memory and reads.
    """
    if not isinstance(state, tuple) or len(state) != len(STATE):
        raise TypeError(f"{op}: state must be a DNCState of {len(STATE)} tensors, got {type(state).__name__}")
    for field, t in zip(STATE, state):
        check_tensor(op, f"state.{field}", t)
    dtype = state[0].dtype
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{op}: state must be float32 or float64, whatever the input is, got {name(dtype)}")
    hidden, memory, reads = state[0], state[2], state[8]
    for field, t, rank in (("hidden", hidden, 2), ("memory", memory, 3), ("reads", reads, 3)):
        if t.dim() != rank:
            raise ValueError(f"{op}: state.{field} must have {rank} dimensions, got shape {list(t.shape)}")
    b, n = input.shape[-2], memory.shape[1]
    h, c, w, r = sizes or (hidden.shape[1], hidden.shape[1], memory.shape[2], reads.shape[1])
    shapes = (b, h), (b, c), (b, n, w), (b, n), (b, n, n), (b, n), (b, n), (b, r, n), (b, r, w)
    for field, t, shape in zip(STATE, state, shapes):
        if t.dtype != dtype:
            raise TypeError(f"{op}: state.{field} must be {name(dtype)} as state.hidden, got {name(t.dtype)}")
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


def _check_numbers(numbers, checkpoint_every):
    allowed = {
        "eps": (lambda v: v > 0, "positive"),
        "clip": (lambda v: v > 0, "positive"),
        "mask_min": (lambda v: 0 <= v <= 1, "in [0, 1]"),
    }
    for argument, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{OP}: {argument} must be a number, got {type(value).__name__}")
        fits, described = allowed[argument]
        if not (value < math.inf and fits(value)):
            raise ValueError(f"{OP}: {argument} must be {described}, got {value}")
    if checkpoint_every is not None and (isinstance(checkpoint_every, bool) or not isinstance(checkpoint_every, int)):
        raise TypeError(f"{OP}: checkpoint_every must be an int or None, got {type(checkpoint_every).__name__}")
    if checkpoint_every is not None and checkpoint_every < 1:
        raise ValueError(f"{OP}: checkpoint_every must be at least 1, got {checkpoint_every}")
