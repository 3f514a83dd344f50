"""Arguments of geometric attention: what may be given, and the form in which the registered operations take it."""

import torch

from .._library import autocast_dtype
from ._cvmm_checks import check_tensor, name
from ._cvmm_ops import accumulator_dtype
from ._geometric_attention_ops import Options

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INTEGERS = (int, torch.SymInt)
_NUMBERS = (*_INTEGERS, float, torch.SymFloat)
_OFFSET_LIMIT = 2**62


def cast_heads(op, **tensors):
    """The tensors in one dtype: autocast's where autocast is on (float64 stays)."""
    cast = []
    for argument, t in tensors.items():
        check_tensor(op, argument, t)
        if t.dtype not in _DTYPES:
            raise TypeError(f"{op}: {argument} must be float32, bfloat16, float16 or float64, got {name(t.dtype)}")
        if t.dim() != 4:
            raise ValueError(
                f"{op}: {argument} must have 4 dimensions [B, H, {'L' if argument == 'query' else 'S'}, D], "
                f"got shape {list(t.shape)}"
            )
        wanted = autocast_dtype(t)
        cast.append(t if wanted is None or t.dtype == torch.float64 else t.to(wanted))
    query = cast[0]
    for argument, t in zip(tensors, cast):
        if t.dtype != query.dtype:
            raise TypeError(f"{op}: {argument} must have query's dtype {name(query.dtype)}, got {name(t.dtype)}")
        _check_device(op, argument, t, query)
    return cast


def check_keys(op, query, key):
    b, h, _, d = query.shape
    if key.shape[0] != b or key.shape[1] != h or key.shape[3] != d:
        raise ValueError(
            f"{op}: key must have shape {[b, h, 'S', d]} to match query {list(query.shape)}, got {list(key.shape)}"
        )


def check_value(op, key, value):
    if value.shape != key.shape:
        raise ValueError(f"{op}: value must have key's shape {list(key.shape)}, got {list(value.shape)}")


def _check_device(op, argument, t, query, first="query"):
    if t.device != query.device:
        raise ValueError(f"{op}: {argument} is on {t.device}, {first} on {query.device}")


def cast_bias(op, bias, query):
    """[B, H, L, 2] in the accumulator's dtype."""
    if bias is None:
        return None
    check_tensor(op, "direction_bias", bias)
    if not bias.dtype.is_floating_point:
        raise TypeError(f"{op}: direction_bias must be floating point, got {name(bias.dtype)}")
    if bias.shape != (*query.shape[:3], 2):
        raise ValueError(f"{op}: direction_bias must have shape {[*query.shape[:3], 2]}, got {list(bias.shape)}")
    _check_device(op, "direction_bias", bias, query)
    return bias.to(accumulator_dtype(query.dtype))


def check_mask(op, argument, mask, like, first="query"):
    check_tensor(op, argument, mask)
    if mask.dtype != torch.bool and not mask.dtype.is_floating_point:
        raise TypeError(
            f"{op}: {argument} must be bool (True: takes no part) or floating point (added to the scores), "
            f"got {name(mask.dtype)}"
        )
    _check_device(op, argument, mask, like, first)


def check_key_padding_mask(op, mask, batch, keys, like, first="query"):
    check_mask(op, "key_padding_mask", mask, like, first)
    if mask.shape != (batch, keys):
        raise ValueError(
            f"{op}: key_padding_mask must have shape {[batch, keys]} (batch, keys), got {list(mask.shape)}"
        )


def check_attn_mask(op, mask, shape, like, first="query"):
    check_mask(op, "attn_mask", mask, like, first)
    trailing = shape[len(shape) - mask.dim() :]
    if mask.dim() > len(shape) or any(n != 1 and n != full for n, full in zip(mask.shape, trailing)):
        raise ValueError(
            f"{op}: attn_mask must have a shape that broadcasts to {list(shape)} (batch, heads, queries, keys), "
            f"got {list(mask.shape)}"
        )


def merge_masks(op, key_padding_mask, attn_mask, query, key):
    """(key_mask, mask): bool [B, S] or None; bool, or in the accumulator's dtype, a view as [B, H, L, S], or None."""
    (b, h, l, _), s = query.shape, key.shape[2]
    accumulator = accumulator_dtype(query.dtype)
    key_mask = added = None
    if key_padding_mask is not None:
        check_key_padding_mask(op, key_padding_mask, b, s, query)
        key_mask = key_padding_mask
        if key_mask.dtype != torch.bool:
            key_mask = key_padding_mask == float("-inf")
            added = key_padding_mask.to(accumulator)[:, None, None]
    mask = added
    if attn_mask is not None:
        check_attn_mask(op, attn_mask, (b, h, l, s), query)
        if attn_mask.dtype != torch.bool:
            attn_mask = attn_mask.to(accumulator)
            mask = attn_mask if added is None else _sum(attn_mask, added)
        else:
            mask = attn_mask if added is None else torch.where(attn_mask, float("-inf"), added)
    return key_mask, None if mask is None else mask.expand(b, h, l, s)


def _sum(attn_mask, padding):
    """Where ``attn_mask`` is -inf that, even if the other is +inf; where the other is -inf it does not matter."""
    return torch.where(attn_mask == float("-inf"), float("-inf"), attn_mask + padding)


def _check_number(op, argument, value):
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        raise TypeError(f"{op}: {argument} must be a number, got {type(value).__name__}")


def as_scale(op, scale, query):
    if scale is None:
        return max(query.shape[3], 1) ** -0.5
    _check_number(op, "scale", scale)
    limit = torch.finfo(accumulator_dtype(query.dtype)).max
    if not -limit <= scale <= limit:
        raise ValueError(f"{op}: scale must be finite (at most {limit:.3g} in size), got {scale}")
    return float(scale)


def check_flag(op, argument, value):
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {argument} must be a bool, got {value!r}")


def check_q_offset(op, q_offset):
    if isinstance(q_offset, bool) or not isinstance(q_offset, _INTEGERS):
        raise TypeError(f"{op}: q_offset must be an int, got {type(q_offset).__name__}")
    if not -_OFFSET_LIMIT < q_offset < _OFFSET_LIMIT:
        raise ValueError(f"{op}: q_offset must be between -2^62 and 2^62, got {q_offset}")


def check_order(op, normalize, eps, include_self, is_causal, q_offset, dtype):
    """The options that a dense matrix of scores needs too."""
    check_flag(op, "normalize", normalize)
    check_flag(op, "include_self", include_self)
    check_flag(op, "is_causal", is_causal)
    check_q_offset(op, q_offset)
    _check_number(op, "eps", eps)
    limits = torch.finfo(accumulator_dtype(dtype))
    if not limits.tiny <= eps <= limits.max:
        raise ValueError(f"{op}: eps must be at least {limits.tiny:.3g} and finite, got {eps}")


def as_options(op, query, scale, normalize, eps, include_self, is_causal, q_offset):
    check_order(op, normalize, eps, include_self, is_causal, q_offset, query.dtype)
    return Options(as_scale(op, scale, query), normalize, float(eps), include_self, is_causal, q_offset)


def check_scores(op, scores, key_padding_mask, attn_mask):
    check_tensor(op, "scores", scores)
    if not scores.dtype.is_floating_point:
        raise TypeError(f"{op}: scores must be floating point, got {name(scores.dtype)}")
    least = 2 if key_padding_mask is None else 3
    if scores.dim() < least:
        raise ValueError(
            f"{op}: scores must have at least {least} dimensions {'[L, S]' if least == 2 else '[B, L, S]'}, "
            f"got shape {list(scores.shape)}"
        )
    if key_padding_mask is not None:
        check_key_padding_mask(op, key_padding_mask, scores.shape[0], scores.shape[-1], scores, "scores")
    if attn_mask is not None:
        check_attn_mask(op, attn_mask, tuple(scores.shape), scores, "scores")
