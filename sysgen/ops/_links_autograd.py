"""Derivatives of dynamic allocation and of the temporal links."""

import torch

from ..reference import dnc as definition
from . import _links_ops as ops
from ._cvmm_autograd import needs_gradient
from ._memory_autograd import differentiable
from ._second_order import second_order

retention = differentiable(ops.retention_fwd, ops.retention_bwd, definition.retention)
usage_update = differentiable(
    ops.usage_update_fwd,
    ops.usage_update_bwd,
    lambda usage, write_weights, retention: definition.usage_update(usage, write_weights, retention, False),
)
allocation = differentiable(ops.allocation_fwd, ops.allocation_bwd, definition.allocation)
link_update = differentiable(ops.link_update_fwd, ops.link_update_bwd, definition.link_update)


def link_read(link, read_weights, sharp_forward, sharp_backward, eps):
    """(forward, backward). Unlike the others it saves results: the projections, [B, R, N], where they are sharpened."""
    tensors = link, read_weights, sharp_forward, sharp_backward
    if needs_gradient(*tensors):
        return _LinkRead.apply(*tensors, eps)
    return ops.link_read_fwd(*tensors, eps)[:2]


class _LinkRead(torch.autograd.Function):
    @staticmethod
    def forward(ctx, link, read_weights, sharp_forward, sharp_backward, eps):
        tensors = link, read_weights, sharp_forward, sharp_backward
        forward, backward, *projections = ops.link_read_fwd(*tensors, eps)
        projections = (None if s is None else p for s, p in zip(tensors[2:], projections))
        ctx.save_for_backward(*tensors, *projections)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return forward, backward

    @staticmethod
    def backward(ctx, dforward, dbackward):
        if dforward is None and dbackward is None:
            return (None,) * 5
        *tensors, projection_forward, projection_backward = ctx.saved_tensors
        given = (*tensors, projection_forward, projection_backward, dforward, dbackward)
        if needs_gradient(*given):
            gradients = _LinkReadBackward.apply(*given, ctx.eps)
        else:
            gradients = ops.link_read_bwd(*given, ctx.eps)
        return *(g if need else None for g, need in zip(gradients, ctx.needs_input_grad)), None


class _LinkReadBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *given):
        *tensors, eps = given
        ctx.save_for_backward(*tensors)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return ops.link_read_bwd(*given)

    @staticmethod
    def backward(ctx, *directions):
        tensors = ctx.saved_tensors
        inputs, incoming = tensors[:4], tensors[6:]
        needed = (*ctx.needs_input_grad[:4], *ctx.needs_input_grad[6:8])
        directions = [None if t is None else d for t, d in zip(inputs, directions)]

        def function(*leaves):
            return definition.link_read(*leaves, ctx.eps)

        *second, dforward, dbackward = second_order(function, inputs, incoming, directions, needed)
        return *second, None, None, dforward, dbackward, None
