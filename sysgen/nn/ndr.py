"""The Neural Data Router's layer (NDR = Csordás et al. 2022; Csordás 2023, Sec. 5.1, App. D.2, and Ch. 6 for CTL++)."""

import torch
from torch import nn

from .._library import autocast_dtype
from ..ops._gated_update import Options, Parameters, gated_update
from . import _checks, maps
from ._dropout import dropout
from ._layers import check_layer, hidden, hooked, self_attention

UPDATES = ("norm", "tanh", "residual_norm")


class NDREncoderLayer(nn.Module):
    """A column is overwritten by its update u where its gate g opens, and otherwise kept exactly (Eq. 5.1-5.5).

    ::

        a = LN1(x + drop(attention(x)))        u = LN2(W2 drop(relu(W1 a + b1)) + b2)
        y = (1 − g) · x + g · u                g = sigmoid(Wg2 drop(relu(Wg1 a + bg1)) + bg2),  bg2 = gate_bias at first

    Released settings: NDR ``update="norm"``, geometric attention, dropout .5, attention_dropout .1, gate_dropout .1
    (ListOps: .1, .1, .05). "+rel+gate" and "+abs/rel+gate" ``update="tanh"``, attention ``"relative"`` and
    ``"abs_rel"``, gate_dropout 0, dim_feedforward 4 · d_model whatever the text says. CTL++
    ``update="residual_norm"``, ``activation="gelu"``, ``feedforward_dropout=0``, ``attention_kwargs={"bias": True,
    "content_bias": False, "init": "ctlpp"}``.

    Args:
        d_model, nhead: width and number of heads.
        dim_feedforward: width of W1, 4 · d_model if None.
        dropout: rate on the attention's output and, unless ``feedforward_dropout`` is given, within both feedforwards.
        attention_dropout: rate of the attention layer, on its keys.
        gate_dropout: rate at which, in training, the gate of a column is closed for all channels, without rescaling.
        gate_bias: first value of bg2.
        activation: ``"relu"`` or ``"gelu"`` of both feedforwards.
        update: ``"norm"`` as above; ``"tanh"``: u = tanh(W2 …), without LN2; ``"residual_norm"``: u = LN2(W2 … + a).
        attention: ``"geometric"``, ``"relative"`` or ``"abs_rel"``.
        scalar_gate: one gate for a column instead of one for each channel.
        gate_size: width of Wg1, d_model if None.
        attention_kwargs: further arguments of the attention layer.

    Shapes: src [B, N, d_model] ([N, B, d_model] unless ``batch_first``; [N, d_model]) -> the same.
    """

    def __init__(
        self,
        d_model,
        nhead,
        dim_feedforward=None,
        dropout=0.1,
        attention_dropout=0.0,
        gate_dropout=0.0,
        gate_bias=-3.0,
        activation="relu",
        update="norm",
        attention="geometric",
        batch_first=True,
        feedforward_dropout=None,
        scalar_gate=False,
        gate_size=None,
        attention_kwargs=None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.feedforward_dropout = dropout if feedforward_dropout is None else feedforward_dropout
        dim_feedforward = 4 * d_model if dim_feedforward is None else dim_feedforward
        gate_size = d_model if gate_size is None else gate_size
        rates = {"dropout": dropout, "gate_dropout": gate_dropout, "feedforward_dropout": self.feedforward_dropout}
        check_layer(self, d_model, nhead, dim_feedforward, activation, **rates)
        _checks.positive_int("NDREncoderLayer", gate_size=gate_size)
        _checks.finite("NDREncoderLayer", gate_bias=gate_bias)
        _checks.flag("NDREncoderLayer", scalar_gate=scalar_gate)
        _checks.one_of("NDREncoderLayer", UPDATES, update=update)
        _checks.one_of("NDREncoderLayer", ("geometric", "relative", "abs_rel"), attention=attention)
        self.d_model, self.dropout, self.gate_dropout, self.gate_bias = d_model, dropout, gate_dropout, gate_bias
        self.activation, self.update = activation, update
        kwargs = {"device": device, "dtype": dtype}
        self.self_attn = self_attention(
            attention, d_model, nhead, attention_dropout, batch_first=batch_first, **(attention_kwargs or {}), **kwargs
        )
        self.linear1 = nn.Linear(d_model, dim_feedforward, **kwargs)
        self.linear2 = nn.Linear(dim_feedforward, d_model, **kwargs)
        self.gate1 = nn.Linear(d_model, gate_size, **kwargs)
        self.gate2 = nn.Linear(gate_size, 1 if scalar_gate else d_model, **kwargs)
        self.norm1 = nn.LayerNorm(d_model, **kwargs)
        self.norm2 = None if update == "tanh" else nn.LayerNorm(d_model, **kwargs)
        self._reset_own_parameters()

    def reset_parameters(self):
        """Xavier uniform with gain √2 for W1 and Wg1, 1 for Wg2, and for W2 5/3 ("norm") or 1 ("residual_norm").

        W2 of "tanh" and all biases but ``gate_bias`` start as in ``nn.Linear``.
        """
        self.self_attn.reset_parameters()
        self._reset_own_parameters()

    @torch.no_grad()
    def _reset_own_parameters(self):
        gains = {"linear1": 2**0.5, "linear2": {"norm": 5 / 3, "residual_norm": 1}.get(self.update)}
        for name, gain in {**gains, "gate1": 2**0.5, "gate2": 1}.items():
            getattr(self, name).reset_parameters()
            if gain is not None:
                nn.init.xavier_uniform_(getattr(self, name).weight, gain)
        nn.init.constant_(self.gate2.bias, self.gate_bias)
        for norm in (self.norm1, self.norm2):
            if norm is not None:
                norm.reset_parameters()

    def _fused(self, x, attended):
        """Whether one operation computes everything behind the attention."""
        modules = (self.linear1, self.linear2, self.gate1, self.gate2, self.norm1, self.norm2)
        return (
            (self.update, self.activation) == ("norm", "relu")
            and x.device.type == "cpu"
            and x.dtype in (torch.float32, torch.float64)
            and attended.dtype == x.dtype
            and all(p is not None and p.dtype == x.dtype for m in modules for p in m._parameters.values())
            and len(self.gate2.weight) == self.d_model
            and all(type(m) in (nn.Linear, nn.LayerNorm) and not hooked(m) for m in modules)
            and not (torch.compiler.is_compiling() or autocast_dtype(x))
        )

    def forward(self, src, src_mask=None, src_key_padding_mask=None, is_causal=False):
        """Masks as in :class:`GeometricMultiheadAttention`; padded columns are computed and mean nothing."""
        masks = {"key_padding_mask": src_key_padding_mask, "attn_mask": src_mask, "is_causal": is_causal}
        attended = self.self_attn(src, src, src, need_weights=False, **masks)[0]
        x = src.reshape(-1, self.d_model)
        if self._fused(x, attended):
            return self._update(x, attended.flatten(0, -2), src.shape).view(src.shape)
        a = self.norm1(x + dropout(attended.flatten(0, -2), self.dropout, self.training))
        u = self.linear2(hidden(self, self.linear1, a, self.feedforward_dropout))
        if self.update == "residual_norm":
            u = u + a
        u = u.tanh() if self.norm2 is None else self.norm2(u)
        gate = self.gate2(hidden(self, self.gate1, a, self.feedforward_dropout))
        if self.training and self.gate_dropout > 0:
            closed = torch.rand((len(x), 1), device=gate.device) < self.gate_dropout
            gate = gate.masked_fill_(closed, -torch.inf)
        gate = gate.sigmoid_()
        if maps.wanted():
            maps.record(self, "gate", gate.view(*src.shape[:-1], gate.shape[-1]))
        return torch.lerp(x, u.to(x.dtype), gate.to(x.dtype)).view(src.shape)

    def _update(self, x, attended, shape):
        parameters = (
            *(self.norm1.weight, self.norm1.bias, self.linear1.weight, self.linear1.bias),
            *(self.gate1.weight, self.gate1.bias, self.linear2.weight, self.linear2.bias),
            *(self.gate2.weight, self.gate2.bias, self.norm2.weight, self.norm2.bias),
        )
        rates = (self.dropout, self.feedforward_dropout, self.gate_dropout) if self.training else (0.0,) * 3
        options = Options(*map(float, rates), self.norm1.eps, self.norm2.eps)
        if not maps.wanted():
            return gated_update(x, attended, Parameters(*parameters), options)
        y, gate = gated_update(x, attended, Parameters(*parameters), options, return_gate=True)
        maps.record(self, "gate", gate.view(*shape[:-1], gate.shape[-1]))
        return y

    def extra_repr(self):
        return (
            f"dropout={self.dropout}, feedforward_dropout={self.feedforward_dropout}, "
            f"gate_dropout={self.gate_dropout}, activation={self.activation!r}, update={self.update!r}"
        )
