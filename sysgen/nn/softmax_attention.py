"""Scaled dot-product attention, the baseline of the other attention layers."""

import torch
from torch import nn
from torch.nn import functional as F

from . import _checks
from ._attention import MultiheadBase
from ._softmax import masked_softmax


class SoftmaxMultiheadAttention(MultiheadBase):
    """softmax(q·k / √head_dim) v; the interface is that of ``torch.nn.MultiheadAttention``.

    Scaled by 1/√head_dim as released; App. C.3 of the text has 1/√embed_dim.

    Args:
        embed_dim, num_heads: width E and number of heads.
        dropout: rate of dropout on the weights (Csordás 2023, Ch. 4). The released models of Ch. 5 apply none, whatever
            their settings say.
        bias: whether the projections of query, key and value have biases; the output projection has none.
        init: Xavier uniform, with ``"ndr"`` (Ch. 5) key and value as one matrix and the output projection as
            ``nn.Linear``, with ``"seq2seq"`` (Ch. 4) each of the four.
    """

    def __init__(
        self, embed_dim, num_heads, dropout=0.0, bias=False, init="ndr", batch_first=True, device=None, dtype=None
    ):
        super().__init__(embed_dim, num_heads, dropout, bias, batch_first, device, dtype)
        _checks.one_of("SoftmaxMultiheadAttention", ("ndr", "seq2seq"), init=init)
        self.init = init
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        """``init``; biases 0."""
        e = self.embed_dim
        parts = (e, 2 * e) if self.init == "ndr" else (e, e, e)
        for weight in self.in_proj_weight.split(parts):
            nn.init.xavier_uniform_(weight)
        self.out_proj.reset_parameters()
        if self.init == "seq2seq":
            nn.init.xavier_uniform_(self.out_proj.weight)
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)

    def query_rows(self):
        bias = None if self.in_proj_bias is None else self.in_proj_bias[: self.embed_dim]
        return self.in_proj_weight[: self.embed_dim], bias

    def attend(self, q, k, v, extra, masks, need_weights):
        unmasked = masks["key_padding_mask"] is None and masks["attn_mask"] is None
        square = q.shape[-2] == k.shape[-2] and masks["q_offset"] == 0
        if not need_weights and unmasked and (square or not masks["is_causal"]):
            dropout = self.dropout if self.training else 0.0
            return F.scaled_dot_product_attention(q, k, v, None, dropout, masks["is_causal"]), None
        weights = masked_softmax(q @ k.mT * self.head_dim**-0.5, **masks)
        return self._drop(weights).to(v.dtype) @ v, weights
