"""Softmax over dense scores with the masks of the attention layers."""

import torch


def masked_softmax(scores, key_padding_mask=None, attn_mask=None, is_causal=False, q_offset=0):
    """Weights [B, H, L, S] of ``scores`` [B, H, L, S] (float32 for half types); a row without keys is 0."""
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    ignored = None
    if is_causal:
        queries, keys = scores.shape[-2:]
        position = torch.arange(queries, device=scores.device) + q_offset
        ignored = torch.arange(keys, device=scores.device) > position[:, None]
    for mask in (None if key_padding_mask is None else key_padding_mask[:, None, None], attn_mask):
        if mask is None:
            continue
        if mask.dtype != torch.bool:
            scores, mask = scores + mask, mask == float("-inf")
        ignored = mask if ignored is None else ignored | mask
    if ignored is None:
        return scores.softmax(-1)
    # A finite stand-in for -inf: a row of -inf alone would be NaN, forward and backward.
    weights = scores.masked_fill(ignored, torch.finfo(scores.dtype).min).softmax(-1)
    return weights.masked_fill(ignored, 0)
