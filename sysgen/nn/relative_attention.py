"""Attention with relative positions (Dai et al. 2019), and its gated mixture with absolute ones (NDR, App. D.2)."""

import torch
from torch import nn
from torch.nn import functional as F

from . import _checks
from ._attention import MultiheadBase
from ._softmax import masked_softmax
from .positions import sinusoidal_positions


class RelativeMultiheadAttention(MultiheadBase):
    """Softmax of ``α · [(q[i] + b_E) · k[j] + (q[i] + b_P) · W_P p(j − i)]``, for encoders and, causal, decoders.

    p are sinusoidal positions of either sign, so sequences may have any length. The interface is that of
    ``torch.nn.MultiheadAttention``; no tensor [L, S, E] is made. α = 1/√head_dim is learned and shared by the heads;
    b_E and b_P are [H, head_dim].

    Args:
        embed_dim, num_heads: width E (even) and number of heads H.
        dropout: rate. ``dropout_on="key"``: on the keys and on the projected positions (with one mask for the batch),
            as the released models of Ch. 5 do; ``"weight"``: on the weights, as those of Ch. 4.
        absolute_gate: the position term becomes ``r · (q + b_P) · W_P p(j − i) + (1 − r) · (q + b_P) · W_P p(j)`` with
            r[i] = sigmoid of a linear map of x[i], one for each head as released (one for all in the text).
        learned_scale: False keeps α = 1/√head_dim (Ch. 4).
        init: ``"ndr"``: Xavier uniform (Ch. 5); ``"seq2seq"``: as ``nn.Linear`` throughout, since the released layers
            of Ch. 4 never call their own.
    """

    def __init__(
        self,
        embed_dim,
        num_heads,
        dropout=0.0,
        bias=False,
        absolute_gate=False,
        dropout_on="key",
        learned_scale=True,
        init="ndr",
        batch_first=True,
        device=None,
        dtype=None,
    ):
        super().__init__(embed_dim, num_heads, dropout, bias, batch_first, device, dtype)
        _checks.one_of("RelativeMultiheadAttention", ("key", "weight"), dropout_on=dropout_on)
        _checks.one_of("RelativeMultiheadAttention", ("ndr", "seq2seq"), init=init)
        if embed_dim % 2:
            raise ValueError(f"RelativeMultiheadAttention: embed_dim must be even, got {embed_dim}")
        self.dropout_on, self.init = dropout_on, init
        kwargs = {"device": device, "dtype": dtype}
        self.position_proj = nn.Linear(embed_dim, embed_dim, bias=False, **kwargs)
        self.absolute_gate = nn.Linear(embed_dim, num_heads, **kwargs) if absolute_gate else None
        self.content_bias = nn.Parameter(torch.empty(num_heads, self.head_dim, **kwargs))
        self.position_bias = nn.Parameter(torch.empty(num_heads, self.head_dim, **kwargs))
        self.alpha = nn.Parameter(torch.empty(1, **kwargs)) if learned_scale else self.head_dim**-0.5
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        """``init``; the output projection and the gate as ``nn.Linear``, biases 0 but for the gate's."""
        e = self.embed_dim
        if self.init == "ndr":
            for weight in (self.in_proj_weight[:e], self.in_proj_weight[e:], self.position_proj.weight):
                nn.init.xavier_uniform_(weight)  # keys and values as one matrix
        else:
            nn.init.uniform_(self.in_proj_weight, -(e**-0.5), e**-0.5)
            self.position_proj.reset_parameters()
        self.out_proj.reset_parameters()
        if self.absolute_gate is not None:
            self.absolute_gate.reset_parameters()
        for p in (self.in_proj_bias, self.content_bias, self.position_bias):
            if p is not None:
                nn.init.zeros_(p)
        if isinstance(self.alpha, nn.Parameter):
            nn.init.constant_(self.alpha, self.head_dim**-0.5)

    def query_rows(self):
        e = self.embed_dim
        bias = self.content_bias.flatten()
        if self.in_proj_bias is not None:
            bias = bias + self.in_proj_bias[:e]
        weight, bias = self.alpha * self.in_proj_weight[:e], self.alpha * bias
        if self.absolute_gate is None:
            return weight, bias
        fill = -self.num_heads % 8  # keeps the rows of k and v aligned
        gate = self.absolute_gate
        return torch.cat((weight, F.pad(gate.weight, (0, 0, 0, fill)))), torch.cat((bias, F.pad(gate.bias, (0, fill))))

    def _position_scores(self, q, keys, extra, q_offset):
        """[B, H, L, S]. Row i of the products by distance is read from one column earlier than row i − 1."""
        queries, offset = q.shape[-2], -(q.shape[-2] - 1) - q_offset
        if queries == 0:
            return q.new_empty(*q.shape[:-1], keys)
        first, stop = offset, offset + queries + keys
        if self.absolute_gate is not None:
            first, stop = min(first, 0), max(stop, keys)
        weight = self.position_proj.weight
        p = self.position_proj(sinusoidal_positions(first, stop, self.embed_dim, weight.device, weight.dtype))
        if self.dropout_on == "key":
            p = self._drop(p)
        shifted = q + (self.alpha * (self.position_bias - self.content_bias)).unsqueeze(-2).to(q.dtype)
        by_distance = torch.einsum("bhld,thd->bhlt", shifted, p.unflatten(-1, (self.num_heads, self.head_dim)))
        width = queries + keys - 1
        relative = by_distance[..., offset - first : offset - first + width + 1].flatten(-2)
        relative = relative[..., queries - 1 : queries - 1 + queries * width].unflatten(-1, (queries, width))[
            ..., :keys
        ]
        if self.absolute_gate is None:
            return relative
        absolute = by_distance[..., -first : keys - first]
        gate = torch.sigmoid(extra[..., : self.num_heads]).transpose(1, 2).unsqueeze(-1)
        return torch.lerp(absolute, relative, gate.to(absolute.dtype))

    def attend(self, q, k, v, extra, masks, need_weights):
        if self.dropout_on == "key":
            k = self._drop(k.transpose(1, 2)).transpose(1, 2)
        scores = q @ k.mT + self._position_scores(q, k.shape[-2], extra, masks["q_offset"])
        weights = masked_softmax(scores, **masks)
        if self.dropout_on == "weight":
            return self._drop(weights).to(v.dtype) @ v, weights
        return weights.to(v.dtype) @ v, weights

    def extra_repr(self):
        return f"{super().extra_repr()}, dropout_on={self.dropout_on!r}"
