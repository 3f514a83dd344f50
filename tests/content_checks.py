"""The content-based operations against their definitions in float64, with error bounds that follow from their
arithmetic."""

import inspect

import torch
from support import place, values

from sysgen import reference
from sysgen.testing import assert_within

EMITTED = ("key", "strength", "mask", "gate", "shift", "sharpness", "erase", "value")


def weights_of(generator, *shape):
    """Positive weights over the last dimension, whose sum is below 1."""
    w = torch.rand(shape, generator=generator) + 0.05
    return w / (w.sum(-1, keepdim=True) + 0.5)


def make_inputs(op, sizes, dtype=torch.float64, device="cpu", *, optional=True, shifts=3, layout="contiguous", seed=0):
    """Arguments of an operation for (B, N, W, R) by name, which all require a gradient. ``optional``: with those that
    may be None."""
    b, n, w, r = sizes
    g = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, generator=g) * 0.9 + 0.05

    made = {
        "memory": lambda: values(g, (b, n, w)),
        "key": lambda: values(g, (b, r, w)),
        "strength": lambda: 5 * uniform(b, r),
        "mask": lambda: uniform(b, r, w),
        "gate": lambda: uniform(b, r),
        "shift": lambda: torch.softmax(values(g, (b, r, shifts)), 2),
        "sharpness": lambda: 1 + 2 * uniform(b, r),
        "previous": lambda: weights_of(g, b, r, n),
        "write_weights": lambda: weights_of(g, b, n),
        "erase": lambda: uniform(b, w),
        "value": lambda: values(g, (b, w)),
        "retention": lambda: uniform(b, n),
        "read_weights": lambda: weights_of(g, b, r, n),
    }
    names = [p for p in inspect.signature(getattr(reference, op)).parameters if p in made]
    if not optional:
        names = [p for p in names if p not in ("mask", "retention")]
    placed = {p: place(made[p]().to(device, dtype), layout) for p in names}
    return {p: t.requires_grad_() for p, t in placed.items()}


def results_of(function, inputs, direction=None):
    """The output and the gradient of each input by name, and the direction used."""
    y = function(**inputs)
    if direction is None:
        direction = values(torch.Generator().manual_seed(y.numel()), y.shape, y.dtype, y.device)
    gradients = torch.autograd.grad(y, list(inputs.values()), direction, materialize_grads=True)
    return {"output": y.detach(), **dict(zip(inputs, gradients))}, direction


def check(ops, op, inputs, what=""):
    """Output and all gradients within their bounds.

    In norm: to first order an error is K roundings of the largest terms that a result is made of. K: a term passes
    through sums over the words, the cells and the heads (4 √n roundings each, see :func:`sysgen.testing.error_bound`),
    a softmax or two whose exponents of at most E in size are off by E roundings, and about 20 elementary operations.
    The terms are as large as the exact result, or, where they cancel, as the direction times the steepest slope: the
    strength over the length of a key or cell, both at least 1/4, or the sharpness over the smallest weight.
    """
    dtype = inputs["memory"].dtype
    results, direction = results_of(getattr(ops, op), inputs)
    double = {name: t.detach().cpu().double().requires_grad_() for name, t in inputs.items()}
    exact, _ = results_of(getattr(reference, op), double, direction.cpu().double())
    _, n, w = inputs["memory"].shape
    heads = next((t.shape[1] for name, t in inputs.items() if name in ("key", "read_weights")), 1)
    exponent = 5 + (3 * 8 if op == "ntm_address" else 0)
    u = torch.finfo(dtype).eps / 2 + 2**-53
    count = 4 * (w**0.5 + n**0.5 + heads**0.5) + 2 * exponent + 20
    slope = {"content_address": 5 * 4, "ntm_address": 5 * 4 * 3}.get(op, 1)
    floor = float(direction.abs().max()) * slope if direction.numel() else 0.0
    worst = {}
    for name, actual in results.items():
        largest = float(exact[name].abs().max()) if exact[name].numel() else 0.0
        terms = largest if name == "output" else max(largest, floor)
        bound = torch.full_like(exact[name], count * u * terms + torch.finfo(dtype).tiny)
        assert actual.dtype == inputs[name].dtype if name in inputs else actual.dtype == dtype
        worst[name] = assert_within(actual, exact[name], bound, f"{what} {op} {name}".strip())
    return worst
