"""Argument handling that ``cvmm`` and ``moe_ffn`` share: routes, autocast, dtypes and shapes."""

import torch

from .._library import autocast_dtype
from ._cvmm_autograd import Plan
from ._cvmm_ops import PRECISIONS, accumulator_dtype
from .routing import Route, route

_ROW_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def name(dtype):
    return str(dtype).removeprefix("torch.")


def check_tensor(op, argument, value):
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{op}: {argument} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided or value.is_nested:
        raise TypeError(f"{op}: {argument} must be a dense tensor, got layout {name(value.layout)}")


def check_name(op, argument, value, known):
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{op}: {argument} must be one of {', '.join(known)}, got {value!r}")


def as_route(op, experts, num_experts):
    if not isinstance(experts, Route):
        if not isinstance(experts, torch.Tensor):
            raise TypeError(f"{op}: experts must be a tensor of expert ids or a Route, got {type(experts).__name__}")
        return route(experts, num_experts)
    if experts.num_experts != num_experts:
        raise ValueError(f"{op}: the Route is for {experts.num_experts} experts, weight has {num_experts}")
    return experts


def as_plan(op, r, x, precision):
    for t in (r.order, r.inverse, r.offsets):
        if t.device != x.device:
            raise ValueError(f"{op}: experts is on {t.device}, x on {x.device}")
    check_name(op, "precision", precision, PRECISIONS)
    inverse = r.inverse
    if inverse.dim() != 2:
        inverse = inverse.reshape(r.num_tokens, r.k)
    return Plan(r.order, inverse, r.offsets, PRECISIONS[precision])


def cast_input(op, x):
    """x as the kernels take it: in autocast's dtype where autocast is on (float64 stays)."""
    check_tensor(op, "x", x)
    if x.dtype not in _ROW_DTYPES:
        raise TypeError(f"{op}: x must be float32, bfloat16, float16 or float64, got {name(x.dtype)}")
    cast = autocast_dtype(x)
    if cast is not None and x.dtype != torch.float64 and x.dtype != cast:
        return x.to(cast)
    return x


def cast_weight(op, argument, w, x, shape):
    """The weight as the kernels take it: x's dtype, or a float32 master of a half x."""
    check_tensor(op, argument, w)
    if w.dim() != 3:
        raise ValueError(f"{op}: {argument} must have 3 dimensions {shape}, got {list(w.shape)}")
    if w.device != x.device:
        raise ValueError(f"{op}: {argument} is on {w.device}, x on {x.device}")
    if w.dtype == x.dtype or (w.dtype == torch.float32 and x.dtype in (torch.bfloat16, torch.float16)):
        return w
    if autocast_dtype(x) is not None and w.dtype in (torch.bfloat16, torch.float16):
        return w.to(x.dtype)
    raise TypeError(
        f"{op}: {argument} must have x's dtype {name(x.dtype)} (or float32 for a half x), got {name(w.dtype)}"
    )


def cast_bias(op, argument, bias, x, shape):
    check_tensor(op, argument, bias)
    if not bias.dtype.is_floating_point:
        raise TypeError(f"{op}: {argument} must be floating point, got {name(bias.dtype)}")
    if tuple(bias.shape) != shape:
        raise ValueError(f"{op}: {argument} must have shape {list(shape)}, got {list(bias.shape)}")
    if bias.device != x.device:
        raise ValueError(f"{op}: {argument} is on {bias.device}, x on {x.device}")
    return bias.to(accumulator_dtype(x.dtype))


def cast_gate(op, gate, x, r):
    """[T, k] in the accumulator's dtype; differentiable, so the gradient arrives in the gate's own dtype."""
    check_tensor(op, "gate", gate)
    if not gate.dtype.is_floating_point:
        raise TypeError(f"{op}: gate must be floating point, got {name(gate.dtype)}")
    if tuple(gate.shape) != (*r.lead_shape, r.k):
        raise ValueError(f"{op}: gate must have shape {[*r.lead_shape, r.k]}, got {list(gate.shape)}")
    if gate.device != x.device:
        raise ValueError(f"{op}: gate is on {gate.device}, x on {x.device}")
    gate = gate.to(accumulator_dtype(x.dtype))
    return gate if gate.dim() == 2 else gate.reshape(r.num_tokens, r.k)
