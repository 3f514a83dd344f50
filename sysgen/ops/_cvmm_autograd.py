"""Derivatives of the CVMM family.

Every member is a derivative of S = Σ_r gate[r] · (x[src(r)]·W[e(r)] + b[e(r)])·y[dst(r)]: by y the product
(:func:`product`), by W the grouped outer product (:func:`outer`), by gate the routed dot (:func:`dot`). Each backward
below is written with these three, so the family is closed and derivatives of any order are exact.
"""

from typing import NamedTuple

import torch

from . import _cvmm_ops as ops


class Plan(NamedTuple):
    """A route as the operations take it; ``precision`` is the number of :data:`._cvmm_ops.PRECISIONS`."""

    order: torch.Tensor
    inverse: torch.Tensor
    offsets: torch.Tensor
    num_tokens: int
    k: int
    precision: int

    @property
    def tensors(self):
        return self.order, self.inverse, self.offsets

    @property
    def numbers(self):
        return self.num_tokens, self.k


def needs_gradient(*tensors):
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def product(x, w, gate, bias, plan, routed, reduce):
    """gate[r] · (x[src(r)]·W[e(r)] + b[e(r)]), summed over a token's routes if ``reduce``."""
    if needs_gradient(x, w, gate, bias):
        return _Product.apply(x, w, gate, bias, *plan, routed, reduce)
    return ops.cvmm_fwd(x, w, *plan.tensors, gate, bias, *plan.numbers, routed, reduce, 0, plan.precision)


def outer(x, y, gate, plan, x_routed, y_routed, dtype):
    """Σ over the routes r of expert e of gate[r] · x[src(r)]ᵀ y[dst(r)], [E, d, h]."""
    if needs_gradient(x, y, gate):
        return _Outer.apply(x, y, gate, *plan, x_routed, y_routed, dtype)
    return ops.cvmm_bwd_w(x, y, *plan.tensors, gate, *plan.numbers, x_routed, y_routed, dtype, plan.precision)


def dot(x, w, bias, y, plan, x_routed, y_routed):
    """(x[src(r)]·W[e(r)] + b[e(r)])·y[dst(r)] for every route, [R]."""
    if needs_gradient(x, w, bias, y):
        return _Dot.apply(x, w, bias, y, *plan, x_routed, y_routed)
    return ops.cvmm_dot(x, w, bias, y, *plan.tensors, *plan.numbers, x_routed, y_routed, plan.precision)


def bias_gradient(dy, gate, plan, dy_routed, dtype):
    """Σ over the routes of expert e of gate[r] · dy[dst(r)]: the outer product with ones."""
    ones = dy.new_ones(1, 1).expand(plan.num_tokens, 1)
    return outer(ones, dy, gate, plan, False, dy_routed, dtype).squeeze(1)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, gate, bias, order, inverse, offsets, num_tokens, k, precision, routed, reduce):
        ctx.save_for_backward(x, w, gate, bias, order, inverse, offsets)
        ctx.numbers, ctx.routed, ctx.reduce = (num_tokens, k, precision), routed, reduce
        return ops.cvmm_fwd(x, w, order, inverse, offsets, gate, bias, num_tokens, k, routed, reduce, 0, precision)

    @staticmethod
    def backward(ctx, dy):
        x, w, gate, bias, *route = ctx.saved_tensors
        plan, routed, y_routed = Plan(*route, *ctx.numbers), ctx.routed, not ctx.reduce
        need_x, need_w, need_gate, need_bias = ctx.needs_input_grad[:4]
        dx = dw = dgate = dbias = None
        if need_x and need_gate and bias is None and not torch.is_grad_enabled():
            dx, dgate = ops.cvmm_bwd_x(dy, w, *plan.tensors, gate, x, *plan.numbers, y_routed, routed, plan.precision)
        else:
            if need_x:
                dx = product(dy, w.transpose(1, 2), gate, None, plan, y_routed, not routed)
            if need_gate:
                dgate = dot(x, w, bias, dy, plan, routed, y_routed)
        if need_w:
            dw = outer(x, dy, gate, plan, routed, y_routed, w.dtype)
        if need_bias:
            dbias = bias_gradient(dy, gate, plan, y_routed, bias.dtype)
        return dx, dw, dgate, dbias, *(None,) * 8


class _Outer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, gate, order, inverse, offsets, num_tokens, k, precision, x_routed, y_routed, dtype):
        ctx.save_for_backward(x, y, gate, order, inverse, offsets)
        ctx.numbers, ctx.x_routed, ctx.y_routed = (num_tokens, k, precision), x_routed, y_routed
        return ops.cvmm_bwd_w(x, y, order, inverse, offsets, gate, num_tokens, k, x_routed, y_routed, dtype, precision)

    @staticmethod
    def backward(ctx, g):
        x, y, gate, *route = ctx.saved_tensors
        plan, x_routed, y_routed = Plan(*route, *ctx.numbers), ctx.x_routed, ctx.y_routed
        need_x, need_y, need_gate = ctx.needs_input_grad[:3]
        dx = product(y, g.transpose(1, 2), gate, None, plan, y_routed, not x_routed) if need_x else None
        dy = product(x, g, gate, None, plan, x_routed, not y_routed) if need_y else None
        dgate = dot(x, g, None, y, plan, x_routed, y_routed) if need_gate else None
        return dx, dy, dgate, *(None,) * 9


class _Dot(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, bias, y, order, inverse, offsets, num_tokens, k, precision, x_routed, y_routed):
        ctx.save_for_backward(x, w, bias, y, order, inverse, offsets)
        ctx.numbers, ctx.x_routed, ctx.y_routed = (num_tokens, k, precision), x_routed, y_routed
        return ops.cvmm_dot(x, w, bias, y, order, inverse, offsets, num_tokens, k, x_routed, y_routed, precision)

    @staticmethod
    def backward(ctx, g):
        x, w, bias, y, *route = ctx.saved_tensors
        plan, x_routed, y_routed = Plan(*route, *ctx.numbers), ctx.x_routed, ctx.y_routed
        need_x, need_w, need_bias, need_y = ctx.needs_input_grad[:4]
        dx = product(y, w.transpose(1, 2), g, None, plan, y_routed, not x_routed) if need_x else None
        dw = outer(x, y, g, plan, x_routed, y_routed, w.dtype) if need_w else None
        dbias = bias_gradient(y, g, plan, y_routed, bias.dtype) if need_bias else None
        dy = product(x, w, g, bias, plan, x_routed, not y_routed) if need_y else None
        return dx, dw, dbias, dy, *(None,) * 8
