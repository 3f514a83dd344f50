"""Derivatives of the memory operations: the first by a kernel, which needs nothing but the inputs; higher ones through
the definition in :mod:`sysgen.reference`."""

import torch

from ._cvmm_autograd import needs_gradient
from ._second_order import second_order


def differentiable(fwd, bwd, definition):
    """``call(tensors, options)`` of an operation, with its derivatives.

    Args:
        fwd: registered operation of ``(*tensors, *options)``.
        bwd: registered operation of ``(*tensors, *incoming, *options)``, one incoming gradient or None for each output;
            gives one gradient for each tensor (of any size for a tensor that is None).
        definition: function of ``(*tensors, *options)`` in torch.
    """

    class Operation(torch.autograd.Function):
        @staticmethod
        def forward(ctx, options, *tensors):
            ctx.save_for_backward(*tensors)
            ctx.options = options
            ctx.set_materialize_grads(False)
            return fwd(*tensors, *options)

        @staticmethod
        def backward(ctx, *incoming):
            tensors, options = ctx.saved_tensors, ctx.options
            if all(g is None for g in incoming):
                return None, *(None,) * len(tensors)
            if needs_gradient(*tensors, *incoming):
                gradients = Backward.apply(options, len(tensors), *tensors, *incoming)
            else:
                gradients = _as_tuple(bwd(*tensors, *incoming, *options))
            return None, *(g if need else None for g, need in zip(gradients, ctx.needs_input_grad[1:]))

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, options, count, *tensors):
            ctx.save_for_backward(*tensors)
            ctx.options, ctx.count = options, count
            ctx.set_materialize_grads(False)
            return _as_tuple(bwd(*tensors, *options))

        @staticmethod
        def backward(ctx, *directions):
            tensors, options = ctx.saved_tensors, ctx.options
            inputs, incoming = tensors[: ctx.count], tensors[ctx.count :]
            directions = [None if t is None else d for t, d in zip(inputs, directions)]
            found = second_order(
                lambda *leaves: definition(*leaves, *options), inputs, incoming, directions, ctx.needs_input_grad[2:]
            )
            return None, None, *found

    def call(tensors, options=()):
        if needs_gradient(*tensors):
            return Operation.apply(options, *_distinct(tensors))
        return fwd(*tensors, *options)

    return call


def _distinct(tensors):
    """torch.compile takes a tensor only once; where one comes again, a view of it."""
    return [
        t.view_as(t) if t is not None and any(t is before for before in tensors[:i]) else t
        for i, t in enumerate(tensors)
    ]


def _as_tuple(outputs):
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)
