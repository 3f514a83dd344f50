"""Encoder and decoder layers with layer normalisation after the residual (Vaswani et al. 2017)."""

import torch
from torch import nn

from . import _checks
from ._dropout import dropout
from ._layers import check_layer, hidden, reset_feedforward, self_attention
from .softmax_attention import SoftmaxMultiheadAttention

ATTENTIONS = ("softmax", "relative", "geometric")


class TransformerEncoderLayer(nn.Module):
    """``a = LN1(x + drop(attention(x))); y = LN2(a + drop(W2 drop(relu(W1 a + b1)) + b2))``.

    The baselines of Ch. 4 and 5: attention ``"softmax"`` ("Transformer"), ``"relative"`` ("+rel"), and ``"geometric"``
    ("+geom": with weights that sum to 1, as released; the text does not say so). Universal with :class:`SharedEncoder`,
    standard with :class:`StackedEncoder`.

    Args:
        d_model, nhead, dim_feedforward, dropout, activation: as in ``torch.nn.TransformerEncoderLayer``.
        attention_dropout: rate of the attention layer (on weights if softmax, else on keys).
        attention_kwargs: further arguments of the attention layer.

    Shapes: src [B, N, d_model] ([N, B, d_model] unless ``batch_first``; [N, d_model]) -> the same.
    """

    def __init__(
        self,
        d_model,
        nhead,
        dim_feedforward=2048,
        dropout=0.1,
        activation="relu",
        attention="softmax",
        attention_dropout=0.0,
        batch_first=True,
        attention_kwargs=None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        check_layer(self, d_model, nhead, dim_feedforward, activation, dropout=dropout)
        _checks.one_of("TransformerEncoderLayer", ATTENTIONS, attention=attention)
        self.d_model, self.dropout, self.activation = d_model, dropout, activation
        kwargs = {"device": device, "dtype": dtype}
        options = {"normalize": True} if attention == "geometric" else {}
        options |= {**(attention_kwargs or {}), "batch_first": batch_first, **kwargs}
        self.self_attn = self_attention(attention, d_model, nhead, attention_dropout, **options)
        self.linear1 = nn.Linear(d_model, dim_feedforward, **kwargs)
        self.linear2 = nn.Linear(dim_feedforward, d_model, **kwargs)
        self.norm1 = nn.LayerNorm(d_model, **kwargs)
        self.norm2 = nn.LayerNorm(d_model, **kwargs)
        reset_feedforward(self.linear1, self.linear2, activation)

    def reset_parameters(self):
        """Xavier uniform, W1 with gain √2 before a relu; biases as ``nn.Linear``."""
        for module in (self.self_attn, self.norm1, self.norm2):
            module.reset_parameters()
        reset_feedforward(self.linear1, self.linear2, self.activation)

    def forward(self, src, src_mask=None, src_key_padding_mask=None, is_causal=False):
        """Masks as in :class:`GeometricMultiheadAttention`."""
        masks = {"key_padding_mask": src_key_padding_mask, "attn_mask": src_mask, "is_causal": is_causal}
        attended = self.self_attn(src, src, src, need_weights=False, **masks)[0]
        a = self.norm1(src + dropout(attended, self.dropout, self.training)).flatten(0, -2)
        u = self.linear2(hidden(self, self.linear1, a, self.dropout))
        return self.norm2(a + dropout(u, self.dropout, self.training)).view(src.shape)

    def extra_repr(self):
        return f"dropout={self.dropout}, activation={self.activation!r}"


class TransformerDecoderLayer(nn.Module):
    """Causal self-attention, attention to ``memory`` and a feedforward, each ``x = LN(x + drop(f(x)))``.

    attention: ``"softmax"`` or ``"relative"``, of the self-attention; that to the memory is softmax without positions.
    Other arguments as in :class:`TransformerEncoderLayer`. Shapes: tgt [B, T, d_model], memory [B, S, d_model].
    """

    def __init__(
        self,
        d_model,
        nhead,
        dim_feedforward=2048,
        dropout=0.1,
        activation="relu",
        attention="softmax",
        attention_dropout=0.0,
        batch_first=True,
        attention_kwargs=None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        check_layer(self, d_model, nhead, dim_feedforward, activation, dropout=dropout)
        _checks.one_of("TransformerDecoderLayer", ("softmax", "relative"), attention=attention)
        self.d_model, self.dropout, self.activation = d_model, dropout, activation
        kwargs = {"device": device, "dtype": dtype}
        options = {**(attention_kwargs or {}), "batch_first": batch_first, **kwargs}
        self.self_attn = self_attention(attention, d_model, nhead, attention_dropout, **options)
        self.multihead_attn = SoftmaxMultiheadAttention(
            d_model, nhead, attention_dropout, init=options.get("init", "ndr"), batch_first=batch_first, **kwargs
        )
        self.linear1 = nn.Linear(d_model, dim_feedforward, **kwargs)
        self.linear2 = nn.Linear(dim_feedforward, d_model, **kwargs)
        self.norm1 = nn.LayerNorm(d_model, **kwargs)
        self.norm2 = nn.LayerNorm(d_model, **kwargs)
        self.norm3 = nn.LayerNorm(d_model, **kwargs)
        reset_feedforward(self.linear1, self.linear2, activation)

    def reset_parameters(self):
        """As :meth:`TransformerEncoderLayer.reset_parameters`."""
        for module in (self.self_attn, self.multihead_attn, self.norm1, self.norm2, self.norm3):
            module.reset_parameters()
        reset_feedforward(self.linear1, self.linear2, self.activation)

    def forward(self, tgt, memory, memory_key_padding_mask=None, past=None):
        """With ``past`` [B, P, d_model], the layer's inputs so far, tgt [B, T, d_model] is the next T of them."""
        context = tgt if past is None else torch.cat((past, tgt), dim=1)
        start = context.shape[1] - tgt.shape[1]
        attended = self.self_attn(tgt, context, context, need_weights=False, is_causal=True, q_offset=start)[0]
        x = self.norm1(tgt + dropout(attended, self.dropout, self.training))
        read = self.multihead_attn(x, memory, memory, key_padding_mask=memory_key_padding_mask, need_weights=False)[0]
        x = self.norm2(x + dropout(read, self.dropout, self.training)).flatten(0, -2)
        u = self.linear2(hidden(self, self.linear1, x, self.dropout))
        return self.norm3(x + dropout(u, self.dropout, self.training)).view(tgt.shape)

    def extra_repr(self):
        return f"dropout={self.dropout}, activation={self.activation!r}"
