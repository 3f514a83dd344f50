"""Derivatives of geometric attention: the first by the kernels, which save nothing but the inputs; higher ones through
the dense reference."""

import torch

from .. import reference
from . import _geometric_attention_ops as ops
from ._cvmm_autograd import needs_gradient
from ._second_order import second_order


def attention(query, key, value, direction_bias, mask, key_mask, options, return_remainder):
    """(out, remainder), the second of no meaning without ``return_remainder``."""
    if needs_gradient(query, key, value, direction_bias, mask):
        if key is query:  # torch.compile takes a tensor only once
            key = key.view_as(key)
        if value is key or value is query:
            value = value.view_as(value)
        return _Attention.apply(query, key, value, direction_bias, mask, key_mask, return_remainder, *options)
    return ops.geometric_attention_fwd(query, key, value, direction_bias, key_mask, mask, *options, return_remainder)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, direction_bias, mask, key_mask, return_remainder, *options):
        ctx.save_for_backward(query, key, value, direction_bias, mask, key_mask)
        ctx.options, ctx.return_remainder = options, return_remainder
        out, remainder = ops.geometric_attention_fwd(
            query, key, value, direction_bias, key_mask, mask, *options, return_remainder
        )
        if not return_remainder:
            ctx.mark_non_differentiable(remainder)
        return out, remainder

    @staticmethod
    def backward(ctx, dout, dremainder):
        query, key, value, direction_bias, mask, key_mask = ctx.saved_tensors
        needed = ctx.needs_input_grad[:5]
        inputs = (query, key, value, direction_bias, mask, dout, dremainder if ctx.return_remainder else None)
        if needs_gradient(*inputs):
            gradients = _AttentionBackward.apply(*inputs, key_mask, needed[3], needed[4], *ctx.options)
        else:
            gradients = _gradients(*inputs, key_mask, needed[3], needed[4], *ctx.options)
        gradients = (g if need else None for g, need in zip(gradients, needed))
        return *gradients, *(None,) * (2 + len(ctx.options))


def _gradients(query, key, value, direction_bias, mask, dout, dremainder, key_mask, need_bias, need_mask, *options):
    return ops.geometric_attention_bwd(
        query, key, value, direction_bias, key_mask, mask, dout, dremainder, *options, need_bias, need_mask
    )


class _AttentionBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        ctx.save_for_backward(*arguments[:8])
        ctx.needed, ctx.options = arguments[8:10], arguments[10:]
        return _gradients(*arguments)

    @staticmethod
    def backward(ctx, *directions):
        *inputs, key_mask = ctx.saved_tensors
        wanted = (True, True, True, *ctx.needed)
        directions = [d if want else None for d, want in zip(directions, wanted)]
        second = second_order(
            _definition(key_mask, ctx.options), inputs[:5], inputs[5:], directions, ctx.needs_input_grad
        )
        return *second, *(None,) * (3 + len(ctx.options))


def _definition(key_mask, options):
    """The dense reference as a function of the differentiable inputs."""
    options = ops.Options(*options)._asdict()
    del options["early_stop"]  # results are the same bits

    def function(query, key, value, direction_bias, mask):
        return reference.geometric_attention(
            query,
            key,
            value,
            direction_bias=direction_bias,
            attn_mask=mask,
            key_padding_mask=key_mask,
            return_remainder=True,
            **options,
        )

    return function
