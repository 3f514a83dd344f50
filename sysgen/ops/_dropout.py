"""Dropout on the CPU, whose factors are functions of one drawn number: they are stored nowhere, and made anew for the
gradient."""

import torch

from ._cvmm_autograd import needs_gradient
from ._gated_update_ops import STREAMS, dropout_fwd


def noise_seed(*rates):
    """From the default generator, unless all rates are 0."""
    seed = torch.empty(1, dtype=torch.int64, device="cpu")  # whatever the default device is
    return seed.random_(-(2**63), None) if any(rates) else seed.zero_()


def dropout(x, p):
    """x times 0 or 1 / (1 − p); p is rounded to a multiple of 2⁻¹⁶. x [..., d] on the CPU, float32 or float64."""
    if needs_gradient(x):
        return _Dropout.apply(x, noise_seed(p), p)
    return dropout_fwd(x, noise_seed(p), p, STREAMS["attended"])


class _Dropout(torch.autograd.Function):
    """Linear: derivative and transpose are the function itself."""

    @staticmethod
    def forward(x, seed, p):
        return dropout_fwd(x, seed, p, STREAMS["attended"])

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.seed, ctx.p = inputs

    @staticmethod
    def backward(ctx, dy):
        return _Dropout.apply(dy, ctx.seed, ctx.p), None, None

    @staticmethod
    def jvp(ctx, dx, *_):
        return _Dropout.apply(dx, ctx.seed, ctx.p)
