"""Geometric attention as a layer (Csordás 2023, Sec. 5.1.2; NDR = Csordás et al. 2022)."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from .. import ops
from . import _checks
from ._attention import MultiheadBase


class GeometricMultiheadAttention(MultiheadBase):
    """Each query reads the nearest key that matches; the interface is that of ``torch.nn.MultiheadAttention``.

    Scores ``s[i, j] = α · (q[i] + b) · k[j] + β · D[i, j] + γ``, with ``D`` one of two numbers that ``direction`` makes
    of x[i] for each head, the first for keys left of the query and the second for those right of it; weights by
    :func:`sysgen.ops.geometric_attention`. α = 1/√head_dim, β = 1 and γ = 0 are learned, and shared by the heads.

    Args:
        embed_dim, num_heads: width E and number of heads H.
        dropout: rate of dropout on the keys, as in the released models. The text says the content query (Sec. D.3.3):
            ``dropout_on="query"``.
        bias: whether the projections of query, key and value have biases (CTL++); the output projection has none.
        direction: False drops ``D`` and γ.
        normalize: weights that sum to 1. The models "+geom" and "+ACT" without gate were run with it, NDR without; the
            text does not say.
        include_self: the key at distance 0 comes first, instead of being left out.
        content_bias: the learned b [H, head_dim] (NDR); CTL++ has none, and ``bias=True`` instead.
        init: ``"ndr"`` or ``"ctlpp"``, see :meth:`reset_parameters`.
    """

    def __init__(
        self,
        embed_dim,
        num_heads,
        dropout=0.0,
        bias=False,
        direction=True,
        normalize=False,
        include_self=False,
        dropout_on="key",
        content_bias=True,
        init="ndr",
        batch_first=True,
        device=None,
        dtype=None,
    ):
        super().__init__(embed_dim, num_heads, dropout, bias, batch_first, device, dtype)
        _checks.one_of("GeometricMultiheadAttention", ("key", "query"), dropout_on=dropout_on)
        _checks.one_of("GeometricMultiheadAttention", ("ndr", "ctlpp"), init=init)
        self.normalize, self.include_self, self.dropout_on, self.init = normalize, include_self, dropout_on, init
        kwargs = {"device": device, "dtype": dtype}
        self.direction = nn.Linear(embed_dim, 2 * num_heads, **kwargs) if direction else None
        self.content_bias = nn.Parameter(torch.empty(num_heads, self.head_dim, **kwargs)) if content_bias else None
        self.alpha = nn.Parameter(torch.empty(1, **kwargs))
        self.beta = nn.Parameter(torch.empty(1, **kwargs)) if direction else None
        self.gamma = nn.Parameter(torch.empty(1, **kwargs)) if direction else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        """Uniform in ±√(6 / (fan_in + fan_out)), where a fan over heads counts one head; biases 0, direction's apart.

        So |s| stays below about 2 at first; a key that starts out at P ≈ 0 gets no gradient and stays unused. With
        ``init="ctlpp"``, the output projection and, of the keys and values, those of the second half of the heads count
        all heads (released: the halves were meant to be keys and values).
        """
        e, d, h = self.embed_dim, self.head_dim, self.num_heads
        narrow, wide = math.sqrt(6 / (e + d)), math.sqrt(6 / (e + e))
        later = wide if self.init == "ctlpp" else narrow
        nn.init.uniform_(self.in_proj_weight, -narrow, narrow)
        by_head = self.in_proj_weight[e:].view(2, h, d, e).transpose(0, 1).reshape(2 * e, e)
        by_head[e:].mul_(later / narrow)
        self.in_proj_weight[e:] = by_head.view(h, 2, d, e).transpose(0, 1).reshape(2 * e, e)
        nn.init.uniform_(self.out_proj.weight, -later, later)
        for p in (self.in_proj_bias, self.content_bias, self.gamma):
            if p is not None:
                nn.init.zeros_(p)
        nn.init.constant_(self.alpha, d**-0.5)
        if self.direction is not None:
            self.direction.reset_parameters()
            nn.init.ones_(self.beta)

    def query_rows(self):
        """α, β, γ and b cost nothing per token when they are folded into the projection."""
        e = self.embed_dim
        weight = self.alpha * self.in_proj_weight[:e]
        bias = None if self.in_proj_bias is None else self.in_proj_bias[:e]
        if self.content_bias is not None:
            bias = self.content_bias.flatten() if bias is None else bias + self.content_bias.flatten()
        bias = None if bias is None else self.alpha * bias
        if self.direction is None:
            return weight, bias
        if bias is None:
            bias = weight.new_zeros(e)
        fill = -2 * self.num_heads % 8  # keeps the rows of k and v aligned
        weight = torch.cat((weight, F.pad(self.beta * self.direction.weight, (0, 0, 0, fill))))
        return weight, torch.cat((bias, F.pad(self.beta * self.direction.bias + self.gamma, (0, fill))))

    def attend(self, q, k, v, extra, masks, need_weights):
        if self.dropout_on == "key":
            k = self._drop(k.transpose(1, 2)).transpose(1, 2)  # in the order of memory
        else:
            q = self._drop(q.transpose(1, 2)).transpose(1, 2)
        direction = None
        if self.direction is not None:  # [B, L, 2H + fill] -> [B, H, L, 2]
            direction = extra[..., : 2 * self.num_heads].unflatten(-1, (self.num_heads, 2)).transpose(1, 2)
        masks = {**masks, "normalize": self.normalize, "include_self": self.include_self}
        out = ops.geometric_attention(q, k, v, direction_bias=direction, scale=1.0, **masks)
        if not need_weights:
            return out, None
        scores = ops.geometric_attention_scores(q, k, direction_bias=direction, scale=1.0, q_offset=masks["q_offset"])
        return out, ops.geometric_attention_weights(scores, **masks)

    def extra_repr(self):
        return (
            f"{super().extra_repr()}, normalize={self.normalize}, include_self={self.include_self}, "
            f"dropout_on={self.dropout_on!r}"
        )
