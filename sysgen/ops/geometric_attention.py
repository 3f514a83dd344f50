"""Geometric attention (Csordás 2023, section 5.1.2)."""

import torch

from .. import reference
from . import _geometric_attention_checks as checks
from ._cvmm_ops import accumulator_dtype
from ._geometric_attention_autograd import attention


def geometric_attention(
    query,
    key,
    value,
    *,
    direction_bias=None,
    key_padding_mask=None,
    attn_mask=None,
    scale=None,
    normalize=False,
    eps=1e-12,
    include_self=False,
    is_causal=False,
    q_offset=0,
    return_remainder=False,
):
    """Every query takes the keys in the order of their distance and stops at the first match.

    A key matches with probability ``P = sigmoid(s)``, and ``A[i, j] = P[i, j] · Π (1 − P[i, m])`` over the keys m that
    are closer to i than j: ``out[i] = Σ_j A[i, j] · value[j]``. The order is distance 1 right, 1 left, 2 right, 2 left,
    … (right wins ties); a query does not attend to its own position. The scores are ``s[i, j] = scale · <query[i],
    key[j]> + direction_bias[i, 0 or 1] + masks``, computed in float32 (float64 for float64) under every dtype and
    autocast.

    Nothing of size L · S is stored, unless a floating mask requires a gradient, or an ``attn_mask`` has to be converted
    or to be added to a floating ``key_padding_mask``; saved for backward are the inputs only. Results are bitwise
    repeatable. Derivatives are exact up to rounding; the second and higher ones are computed densely, in O(L · S)
    memory.

    Args:
        query: [B, H, L, D].
        key, value: [B, H, S, D]. Heads that were split from [B, S, H · D] need no copy.
        direction_bias: [B, H, L, 2] or None, any floating dtype: ``[..., 0]`` is added to the scores of the keys left
            of the query, ``[..., 1]`` right of it (the thesis' D_LR).
        key_padding_mask: [B, S] or None. bool: True takes no part (as in ``torch.nn.MultiheadAttention``); floating: is
            added to the scores, −inf takes no part. What the key and value hold there does not matter, even NaN.
        attn_mask: broadcastable to [B, H, L, S], or None. bool: True takes no part; floating: is added to the scores,
            −inf takes no part.
        scale: a number; default ``1 / sqrt(D)``. A learned scale can be multiplied into the query.
        normalize: divide each row of A by ``max(its sum, eps)``.
        eps: of ``normalize``, at least the smallest normal number.
        include_self: the key at distance 0 takes part, as the first one. It gets no direction_bias.
        is_causal: keys right of the query take no part (which leaves stick-breaking attention).
        q_offset: query i is at position ``i + q_offset`` among the keys; it may lie outside of them.
        return_remainder: return also the probability that no key matches.

    dtypes: float64, float32, bfloat16, float16, the same for query, key and value; under autocast they are cast to its
    dtype (float64 stays).

    Returns:
        [B, H, L, D] in query's dtype, in [B, L, H, D] order of memory, so that merging the heads copies nothing. With
        ``return_remainder`` also ``1 − Σ_j A[i, j]`` before normalisation, [B, H, L], without cancellation, in float32
        (float64 for float64).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape, device or number that does not fit.
    """
    op = "geometric_attention"
    query, key, value = checks.cast_heads(op, query=query, key=key, value=value)
    checks.check_keys(op, query, key)
    checks.check_value(op, key, value)
    options = checks.as_options(op, query, scale, normalize, eps, include_self, is_causal, q_offset)
    checks.check_flag(op, "return_remainder", return_remainder)
    direction_bias = checks.cast_bias(op, direction_bias, query)
    key_mask, mask = checks.merge_masks(op, key_padding_mask, attn_mask, query, key)
    out, remainder = attention(query, key, value, direction_bias, mask, key_mask, options, return_remainder)
    return (out, remainder) if return_remainder else out


def geometric_attention_scores(query, key, *, direction_bias=None, scale=None, q_offset=0):
    """The scores of :func:`geometric_attention` before masks, dense: for looking at, in O(L · S) memory.

    Args, errors: as there.

    Returns:
        [B, H, L, S], float32 (float64 for float64).
    """
    op = "geometric_attention_scores"
    query, key = checks.cast_heads(op, query=query, key=key)
    checks.check_keys(op, query, key)
    checks.check_q_offset(op, q_offset)
    scale = checks.as_scale(op, scale, query)
    direction_bias = checks.cast_bias(op, direction_bias, query)
    accumulator = accumulator_dtype(query.dtype)
    with torch.autocast(query.device.type, enabled=False):
        return reference.geometric_attention_scores(
            query.to(accumulator), key.to(accumulator), direction_bias=direction_bias, scale=scale, q_offset=q_offset
        )


def geometric_attention_weights(
    scores,
    *,
    key_padding_mask=None,
    attn_mask=None,
    normalize=False,
    eps=1e-12,
    include_self=False,
    is_causal=False,
    q_offset=0,
):
    """The weights A of :func:`geometric_attention`, dense: for looking at, in O(L · S) memory.

    Args:
        scores: [B, H, L, S], of :func:`geometric_attention_scores` or of any other kind; without key_padding_mask
            [..., L, S]. Any floating dtype.
        others: as in :func:`geometric_attention`.

    Returns:
        Shape of ``scores``, float32 (float64 for float64).
    """
    op = "geometric_attention_weights"
    checks.check_scores(op, scores, key_padding_mask, attn_mask)
    checks.check_order(op, normalize, eps, include_self, is_causal, q_offset, scores.dtype)
    return reference.geometric_attention_weights(
        scores.to(accumulator_dtype(scores.dtype)),
        key_padding_mask=key_padding_mask,
        attn_mask=attn_mask,
        normalize=normalize,
        eps=eps,
        include_self=include_self,
        is_causal=is_causal,
        q_offset=q_offset,
    )
