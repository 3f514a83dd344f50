"""Arguments of the memory operations: what may be given, and the form in which the registered operations take it.

State, which is the memory, the links and whatever has an entry for each cell, is float32 or float64, and everything is
computed in its dtype. What a network emits at every step (keys, words, masks, gates, strengths) has that dtype too, or
is bfloat16 or float16 beside a state of float32: it is small and cast here, outside the ``autograd.Function``, so that
its gradient comes back in its own dtype. Autocast changes nothing.
"""

import torch

from ._cvmm_checks import check_tensor, name

_STATE_DTYPES = (torch.float32, torch.float64)
_HALF_DTYPES = (torch.bfloat16, torch.float16)
_NUMBERS = (int, float, torch.SymInt, torch.SymFloat)


def memory_arguments(op, state, emitted=None):
    """The tensors of both dicts in their order, those emitted by a network in the dtype of the state.

    Args:
        op: name of the operation, for messages.
        state, emitted: argument -> (tensor, its dimensions as one letter each, such as ``"BNW"``); equal letters are
            equal sizes. With a ``?`` behind them, the tensor may be None. The first of ``state`` decides dtype and
            device.

    Raises:
        TypeError: no tensor, or a dtype that does not fit.
        ValueError: a shape or device that does not fit.
    """
    emitted = emitted or {}
    sizes, (first, (like, _)) = {}, next(iter(state.items()))
    for argument, (t, dimensions) in (*state.items(), *emitted.items()):
        if t is None and dimensions.endswith("?"):
            continue
        check_tensor(op, argument, t)
        (_check_state_dtype if argument in state else _check_emitted_dtype)(op, argument, t, like, first)
        _check_shape(op, argument, t, dimensions.rstrip("?"), sizes)
        if t.device != like.device:
            raise ValueError(f"{op}: {argument} is on {t.device}, {first} on {like.device}")
    cast = (t if t is None or t.dtype == like.dtype else t.to(like.dtype) for t, _ in emitted.values())
    return *(t for t, _ in state.values()), *cast


def _check_state_dtype(op, argument, t, like, first):
    if t.dtype not in _STATE_DTYPES:
        raise TypeError(
            f"{op}: {argument} must be float32 or float64, got {name(t.dtype)}; keep state in float32 "
            "(only what a network emits, such as keys and gates, may be bfloat16 or float16)"
        )
    if t.dtype != like.dtype:
        raise TypeError(f"{op}: {argument} must be {name(like.dtype)} as {first}, got {name(t.dtype)}")


def _check_emitted_dtype(op, argument, t, like, first):
    half = like.dtype == torch.float32
    if t.dtype != like.dtype and not (half and t.dtype in _HALF_DTYPES):
        raise TypeError(
            f"{op}: {argument} must be {name(like.dtype)} as {first}{', or bfloat16 or float16' if half else ''}, "
            f"got {name(t.dtype)}"
        )


def _check_shape(op, argument, t, dimensions, sizes):
    known = [sizes.get(d, d) for d in dimensions]
    if t.dim() != len(dimensions):
        raise ValueError(
            f"{op}: {argument} must have {len(dimensions)} dimensions [{', '.join(dimensions)}], "
            f"got shape {list(t.shape)}"
        )
    for d, n in zip(dimensions, t.shape):
        if sizes.setdefault(d, n) != n:
            expected = ", ".join(map(str, known))
            raise ValueError(
                f"{op}: {argument} must have shape [{expected}] ([{', '.join(dimensions)}]), got {list(t.shape)}"
            )


def check_eps(op, eps, dtype):
    """A number that is positive in the dtype of the state."""
    if isinstance(eps, bool) or not isinstance(eps, _NUMBERS):
        raise TypeError(f"{op}: eps must be a number, got {type(eps).__name__}")
    limits = torch.finfo(dtype)
    if not limits.tiny <= eps <= limits.max:
        raise ValueError(f"{op}: eps must be at least {limits.tiny:.3g} and finite, got {eps}")
