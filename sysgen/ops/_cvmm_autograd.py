"""Derivatives of the CVMM family.

Every member is a derivative of S = Σ_r gate[r] · (x[src(r)]·W[e(r)] + b[e(r)])·y[dst(r)]: by y the product
(:func:`product`), by W the grouped outer product (:func:`outer`), by gate the routed dot (:func:`dot`). Each backward
below is written with these three, so the family is closed and derivatives of any order are exact.

Row operands are [T, width], shared by the routes of a token, or [T, k, width]. The gradient of a shared operand is a
sum over the routes: a product with ``reduce``.
"""

from typing import NamedTuple

import torch
from torch.autograd import forward_ad

from . import _cvmm_ops as ops


class Plan(NamedTuple):
    """A route as the operations take it (inverse [tokens, k]), and a number of :data:`._cvmm_ops.PRECISIONS`."""

    order: torch.Tensor
    inverse: torch.Tensor
    offsets: torch.Tensor
    precision: int


def needs_gradient(*tensors):
    """Whether to enter the ``Function``: also in forward mode, where it raises and the bare op would be silent."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return forward_ad._current_level >= 0


def product(x, w, gate, bias, plan, reduce):
    """gate[r] · (x[src(r)]·W[e(r)] + b[e(r)]), summed over a token's routes if ``reduce``."""
    if needs_gradient(x, w, gate, bias):
        return _Product.apply(x, w, gate, bias, *plan, reduce)
    order, inverse, offsets, precision = plan
    return ops.cvmm_fwd(x, w, order, inverse, offsets, gate, bias, reduce, 0, precision)


def outer(x, y, gate, plan, dtype):
    """Σ over the routes r of expert e of gate[r] · x[src(r)]ᵀ y[dst(r)], [E, d, h]."""
    if needs_gradient(x, y, gate):
        return _Outer.apply(x, y, gate, *plan, dtype)
    order, inverse, offsets, precision = plan
    return ops.cvmm_bwd_w(x, y, order, inverse, offsets, gate, dtype, precision)


def dot(x, w, bias, y, plan):
    """(x[src(r)]·W[e(r)] + b[e(r)])·y[dst(r)] for every route, [T, k]."""
    if needs_gradient(x, w, bias, y):
        return _Dot.apply(x, w, bias, y, *plan)
    return ops.cvmm_dot(x, w, bias, y, *plan)


def product_and_dot(dy, w, gate, x, plan):
    """The gradients by x and by gate of one product, in one pass. Without history."""
    order, inverse, offsets, precision = plan
    return ops.cvmm_bwd_x(dy, w, order, inverse, offsets, gate, x, shared(x), precision)


def shared(rows):
    """Whether a row operand has one row a token, so that its gradient is a sum over the routes."""
    return rows.dim() == 2


def bias_gradient(dy, gate, plan, dtype):
    """Σ over the routes of expert e of gate[r] · dy[dst(r)]: the outer product with ones."""
    ones = dy.new_ones(1, 1).expand(plan.inverse.shape[0], 1)
    return outer(ones, dy, gate, plan, dtype).squeeze(1)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, gate, bias, order, inverse, offsets, precision, reduce):
        ctx.save_for_backward(x, w, gate, bias, order, inverse, offsets)
        ctx.precision = precision
        return ops.cvmm_fwd(x, w, order, inverse, offsets, gate, bias, reduce, 0, precision)

    @staticmethod
    def backward(ctx, dy):
        x, w, gate, bias, *route = ctx.saved_tensors
        plan = Plan(*route, ctx.precision)
        need_x, need_w, need_gate, need_bias = ctx.needs_input_grad[:4]
        dx = dw = dgate = dbias = None
        if need_x and need_gate and bias is None and not torch.is_grad_enabled():
            dx, dgate = product_and_dot(dy, w, gate, x, plan)
        else:
            if need_x:
                dx = product(dy, w.transpose(1, 2), gate, None, plan, shared(x))
            if need_gate:
                dgate = dot(x, w, bias, dy, plan)
        if need_w:
            dw = outer(x, dy, gate, plan, w.dtype)
        if need_bias:
            dbias = bias_gradient(dy, gate, plan, bias.dtype)
        return dx, dw, dgate, dbias, *(None,) * 5


class _Outer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, gate, order, inverse, offsets, precision, dtype):
        ctx.save_for_backward(x, y, gate, order, inverse, offsets)
        ctx.precision = precision
        return ops.cvmm_bwd_w(x, y, order, inverse, offsets, gate, dtype, precision)

    @staticmethod
    def backward(ctx, g):
        x, y, gate, *route = ctx.saved_tensors
        plan = Plan(*route, ctx.precision)
        need_x, need_y, need_gate = ctx.needs_input_grad[:3]
        dx = product(y, g.transpose(1, 2), gate, None, plan, shared(x)) if need_x else None
        dy = product(x, g, gate, None, plan, shared(y)) if need_y else None
        dgate = dot(x, g, None, y, plan) if need_gate else None
        return dx, dy, dgate, *(None,) * 5


class _Dot(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, bias, y, order, inverse, offsets, precision):
        ctx.save_for_backward(x, w, bias, y, order, inverse, offsets)
        ctx.precision = precision
        return ops.cvmm_dot(x, w, bias, y, order, inverse, offsets, precision)

    @staticmethod
    def backward(ctx, g):
        x, w, bias, y, *route = ctx.saved_tensors
        plan = Plan(*route, ctx.precision)
        need_x, need_w, need_bias, need_y = ctx.needs_input_grad[:4]
        dx = product(y, w.transpose(1, 2), g, None, plan, shared(x)) if need_x else None
        dw = outer(x, y, g, plan, w.dtype) if need_w else None
        dbias = bias_gradient(y, g, plan, bias.dtype) if need_bias else None
        dy = product(x, w, g, bias, plan, shared(y)) if need_y else None
        return dx, dw, dbias, dy, *(None,) * 4
