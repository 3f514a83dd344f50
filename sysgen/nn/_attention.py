"""What the attention layers share: the interface of ``torch.nn.MultiheadAttention`` around their scores."""

import torch
from torch import nn
from torch.nn import functional as F

from ..ops._geometric_attention_checks import check_flag, check_q_offset
from . import _checks, maps
from ._dropout import dropout


class MultiheadBase(nn.Module):
    """Projects, splits into heads, calls ``attend`` of the subclass, merges, and projects again.

    ``attend(q, k, v, extra, masks, need_weights)`` takes q [B, H, L, D] and k, v [B, H, S, D], which lie in memory as
    [B, N, H, D], and returns (out [B, H, L, D], weights [B, H, L, S] or None).
    """

    def __init__(self, embed_dim, num_heads, dropout, bias, batch_first, device, dtype):
        super().__init__()
        name = type(self).__name__
        _checks.positive_int(name, embed_dim=embed_dim, num_heads=num_heads)
        _checks.rate(name, dropout=dropout)
        if embed_dim % num_heads:
            raise ValueError(f"{name}: embed_dim must be divisible by num_heads, got {embed_dim} and {num_heads}")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.dropout, self.batch_first = dropout, batch_first
        kwargs = {"device": device, "dtype": dtype}
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim, **kwargs))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * embed_dim, **kwargs)) if bias else None
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=False, **kwargs)

    def query_rows(self):
        """Weight [R, E] and bias [R] or None of the query projection; rows from E on come back as ``extra``."""
        raise NotImplementedError

    def attend(self, q, k, v, extra, masks, need_weights):
        raise NotImplementedError

    def forward(
        self,
        query,
        key,
        value,
        key_padding_mask=None,
        need_weights=True,
        attn_mask=None,
        average_attn_weights=True,
        is_causal=False,
        q_offset=0,
    ):
        """Arguments and results of ``torch.nn.MultiheadAttention``; query [B, L, E], key and value [B, S, E].

        Args:
            key_padding_mask: [B, S]; True (or -inf) where a key takes no part.
            attn_mask: [L, S] or [B · H, L, S]; True (or -inf) likewise, other floating values are added to the scores.
            is_causal: keys right of the query take no part. Needs no ``attn_mask``, and may come with one.
            q_offset: position of the first query among the keys.

        Returns:
            (output [B, L, E], weights [B, L, S], or [B, H, L, S] unless ``average_attn_weights``, or None). Without B
            for unbatched input, with the first two dimensions of inputs and output swapped unless ``batch_first``.
        """
        batched = self._check(query, key, value)
        self_attention = key is query and value is query
        shared = value is key
        query, key, value = (self._to_batch(t, batched) for t in (query, key, value))
        if isinstance(key_padding_mask, torch.Tensor) and not batched:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        masks = self._masks(query, key, key_padding_mask, attn_mask, is_causal, q_offset)
        q, k, v, extra = self._project(query, key, value, self_attention, shared)
        collect = maps.wanted()
        out, weights = self.attend(q, k, v, extra, masks, need_weights or collect)
        if collect:
            maps.record(self, "attention", weights)
        out = self._from_batch(self.out_proj(out.transpose(1, 2).flatten(2)), batched)
        if not need_weights:
            return out, None
        if average_attn_weights:
            weights = weights.mean(1)
        return out, weights if batched else weights.squeeze(0)

    def _project(self, query, key, value, self_attention, shared):
        weight, bias = self.query_rows()
        e, rows = self.embed_dim, len(weight)
        kv_weight = self.in_proj_weight[e:]
        kv_bias = None if self.in_proj_bias is None else self.in_proj_bias[e:]
        if self_attention:  # one product for everything that is linear in x
            if bias is not None:
                kv_bias = self.in_proj_weight.new_zeros(2 * e) if kv_bias is None else kv_bias
                bias = torch.cat((bias, kv_bias))
            parts = F.linear(query, torch.cat((weight, kv_weight)), bias).split((e, rows - e, e, e), -1)
            q, extra, k, v = parts
        else:
            q, extra = F.linear(query, weight, bias).split((e, rows - e), -1)
            if shared:
                k, v = F.linear(key, kv_weight, kv_bias).chunk(2, -1)
            else:
                b_k, b_v = (None, None) if kv_bias is None else kv_bias.chunk(2)
                k, v = F.linear(key, kv_weight[:e], b_k), F.linear(value, kv_weight[e:], b_v)
        return *(t.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for t in (q, k, v)), extra

    def _drop(self, t):
        return dropout(t, self.dropout, self.training)

    def _to_batch(self, t, batched):
        if not batched:
            return t.unsqueeze(0)
        return t if self.batch_first else t.transpose(0, 1)

    def _from_batch(self, t, batched):
        if not batched:
            return t.squeeze(0)
        return t if self.batch_first else t.transpose(0, 1)

    def _check(self, query, key, value):
        name = type(self).__name__
        for argument, t in (("query", query), ("key", key), ("value", value)):
            if not isinstance(t, torch.Tensor) or not t.is_floating_point():
                given = t.dtype if isinstance(t, torch.Tensor) else type(t).__name__
                raise TypeError(f"{name}: {argument} must be a floating-point tensor, got {given}")
            if t.dim() not in (2, 3) or t.dim() != query.dim() or t.shape[-1] != self.embed_dim:
                wanted = f"[{'B, N' if self.batch_first else 'N, B'}, {self.embed_dim}] or [N, {self.embed_dim}]"
                raise ValueError(f"{name}: {argument} must have shape {wanted}, got {list(t.shape)}")
        batch = 0 if self.batch_first else 1
        if key.shape != value.shape or (query.dim() == 3 and query.shape[batch] != key.shape[batch]):
            shapes = ", ".join(str(list(t.shape)) for t in (query, key, value))
            raise ValueError(f"{name}: query, key and value must agree in batch, key and value in length, got {shapes}")
        return query.dim() == 3

    def _masks(self, query, key, key_padding_mask, attn_mask, is_causal, q_offset):
        name = type(self).__name__
        b, l, s = len(query), query.shape[1], key.shape[1]
        check_flag(name, "is_causal", is_causal)
        check_q_offset(name, q_offset)
        for argument, mask in (("key_padding_mask", key_padding_mask), ("attn_mask", attn_mask)):
            given = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
            if mask is not None and given != torch.bool and not getattr(given, "is_floating_point", False):
                raise TypeError(f"{name}: {argument} must be a bool or floating-point tensor, got {given}")
        if key_padding_mask is not None and key_padding_mask.shape != (b, s):
            raise ValueError(f"{name}: key_padding_mask must have shape {[b, s]}, got {list(key_padding_mask.shape)}")
        if attn_mask is not None:
            if attn_mask.shape == (b * self.num_heads, l, s):
                attn_mask = attn_mask.unflatten(0, (b, self.num_heads))
            elif attn_mask.shape != (l, s):
                wanted = f"{[l, s]} or {[b * self.num_heads, l, s]}"
                raise ValueError(f"{name}: attn_mask must have shape {wanted}, got {list(attn_mask.shape)}")
        return {
            "key_padding_mask": key_padding_mask,
            "attn_mask": attn_mask,
            "is_causal": is_causal,
            "q_offset": q_offset,
        }

    def extra_repr(self):
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, dropout={self.dropout}"
