"""Geometric attention (Csordás 2023, section 5.1.2)."""

from .. import reference


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
    """Every query takes the keys in the order of their distance and stops at the first match."""
    return reference.geometric_attention(
        query,
        key,
        value,
        direction_bias=direction_bias,
        key_padding_mask=key_padding_mask,
        attn_mask=attn_mask,
        scale=scale,
        normalize=normalize,
        eps=eps,
        include_self=include_self,
        is_causal=is_causal,
        q_offset=q_offset,
        return_remainder=return_remainder,
    )


def geometric_attention_scores(query, key, *, direction_bias=None, scale=None, q_offset=0):
    """The scores [B, H, L, S] of :func:`geometric_attention`, dense and without masks."""
    return reference.geometric_attention_scores(
        query, key, direction_bias=direction_bias, scale=scale, q_offset=q_offset
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
    """The weights [B, H, L, S] of :func:`geometric_attention` for scores [B, H, L, S], dense."""
    return reference.geometric_attention_weights(
        scores,
        key_padding_mask=key_padding_mask,
        attn_mask=attn_mask,
        normalize=normalize,
        eps=eps,
        include_self=include_self,
        is_causal=is_causal,
        q_offset=q_offset,
    )
