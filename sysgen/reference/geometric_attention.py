"""Definition of :func:`sysgen.ops.geometric_attention` (Csordás 2023, section 5.1.2)."""

import torch
import torch.nn.functional as F


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

    query [B, H, L, D]; key, value [B, H, S, D]; direction_bias [B, H, L, 2]; key_padding_mask [B, S] and attn_mask
    (broadcast to [B, H, L, S]): bool, True takes no part, or floating, added to the scores. Returns [B, H, L, D] and,
    with ``return_remainder``, [B, H, L]. Half types are computed in float32. Needs O(L · S) memory.
    """
    dtype, accumulator = query.dtype, torch.float64 if query.dtype == torch.float64 else torch.float32
    query, key, value = (t.to(accumulator) for t in (query, key, value))
    if key_padding_mask is not None:  # 0 · NaN is NaN, forward and backward: what is padded is never multiplied
        padded = _ignored(key_padding_mask)[:, None, :, None]
        key, value = key.masked_fill(padded, 0), value.masked_fill(padded, 0)
    scores = geometric_attention_scores(query, key, direction_bias=direction_bias, scale=scale, q_offset=q_offset)
    weights, remainder = _weights_and_remainder(
        scores, key_padding_mask, attn_mask, normalize, eps, include_self, is_causal, q_offset
    )
    out = (weights @ value).to(dtype)
    return (out, remainder) if return_remainder else out


def geometric_attention_scores(query, key, *, direction_bias=None, scale=None, q_offset=0):
    """``s[i, j] = scale · <query[i], key[j]> + direction_bias[i, 0 if j < p else 1]``, p = i + q_offset, [..., L, S].

    query [..., L, D], key [..., S, D], direction_bias [..., L, 2]; the key at distance 0 gets no bias.
    """
    scores = (max(query.shape[-1], 1) ** -0.5 if scale is None else scale) * (query @ key.mT)
    if direction_bias is None:
        return scores
    offset = _offsets(scores, q_offset)
    left, right = direction_bias.to(scores.dtype).unsqueeze(-2).unbind(-1)
    return scores + torch.where(offset < 0, left, torch.where(offset > 0, right, 0))


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
    """The dense weights A [..., L, S] of scores [..., L, S]; key_padding_mask [B, S] with B the first dimension."""
    return _weights_and_remainder(
        scores, key_padding_mask, attn_mask, normalize, eps, include_self, is_causal, q_offset
    )[0]


def _weights_and_remainder(scores, key_padding_mask, attn_mask, normalize, eps, include_self, is_causal, q_offset):
    offset = _offsets(scores, q_offset)
    ignored = (offset > 0) if is_causal else torch.zeros_like(offset, dtype=torch.bool)
    if not include_self:
        ignored = ignored | (offset == 0)
    if key_padding_mask is not None:
        key_padding_mask = key_padding_mask[(slice(None), *(None,) * (scores.dim() - 2))]
    for mask in (key_padding_mask, attn_mask):
        if mask is not None:
            ignored = ignored | _ignored(mask)
            if mask.dtype != torch.bool:
                scores = scores + mask.to(scores.dtype).masked_fill(_ignored(mask), 0)
    scores = torch.where(ignored, 0, scores)
    log_match = F.logsigmoid(scores)
    log_pass = torch.where(ignored, 0, F.logsigmoid(-scores))

    order = (2 * offset.abs() + (offset < 0)).argsort(-1).expand(scores.shape)  # right wins ties
    log_reach = F.pad(log_pass.gather(-1, order), (1, 0)).cumsum(-1)  # that no closer key matched; last: none at all
    log_reach, log_none = log_reach[..., :-1], log_reach[..., -1]
    log_reach = log_reach.gather(-1, order.argsort(-1))
    weights = torch.where(ignored, 0, torch.exp(log_match + log_reach))
    if normalize:
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=eps)
    return weights, torch.exp(log_none)


def _offsets(scores, q_offset):
    """Position of the key minus position of the query (or of the nearest place beyond the keys), [L, S]."""
    queries, keys = scores.shape[-2:]
    query = torch.arange(queries, device=scores.device) + q_offset
    query = query.clamp(-1, keys)  # beyond all keys the order is the same, and twice the distance cannot overflow
    return torch.arange(keys, device=scores.device) - query[:, None]


def _ignored(mask):
    return mask if mask.dtype == torch.bool else mask == float("-inf")
