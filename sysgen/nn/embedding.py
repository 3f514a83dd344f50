"""Token embeddings, and how they are scaled against their positions (Csordás 2023, Sec. 4.1.2)."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from . import _checks
from ._dropout import dropout
from .positions import sinusoidal_positions

# The initial values that belong to a scaling, and the factors of the embedding and of the positions.
SCALES = {
    "teu": ("xavier", lambda d: math.sqrt(d), lambda d: 1.0),
    "none": ("normal", lambda d: 1.0, lambda d: 1.0),
    "ped": ("kaiming", lambda d: 1.0, lambda d: 1 / math.sqrt(d)),
}


class EmbeddingScaling(nn.Module):
    """``drop(factor · weight[token] + factor' · positions)``, factors and initial values by ``scale``.

    ====== ==================================== =====================
    scale  initial values                       output
    ====== ==================================== =====================
    teu    Xavier uniform                       √d · E + PE
    none   N(0, 1)                              E + PE
    ped    N(0, 2/d) (N(0, 1/d) in the text)    E + PE/√d
    ====== ==================================== =====================

    Args:
        num_embeddings, d_model: number of tokens, width d.
        scale: one of the above ("token embedding upscaling", none, "position embedding downscaling").
        positions: False leaves PE out. NDR: ``scale="none", positions=False``; models of Ch. 4 with relative attention
            also have ``init="xavier"``.
        dropout: rate after the sum; only where there are positions, as released.
        init: ``"xavier"``, ``"normal"`` or ``"kaiming"``; None: that of ``scale``.

    Shapes: tokens int [B, N] -> [B, N, d_model].
    """

    def __init__(
        self, num_embeddings, d_model, scale="none", positions=True, dropout=0.0, init=None, device=None, dtype=None
    ):
        super().__init__()
        _checks.positive_int("EmbeddingScaling", num_embeddings=num_embeddings, d_model=d_model)
        _checks.one_of("EmbeddingScaling", tuple(SCALES), scale=scale)
        _checks.rate("EmbeddingScaling", dropout=dropout)
        self.init = SCALES[scale][0] if init is None else init
        _checks.one_of("EmbeddingScaling", ("xavier", "normal", "kaiming"), init=self.init)
        self.scale, self.positions, self.dropout, self.d_model = scale, positions, dropout, d_model
        self.weight = nn.Parameter(torch.empty(num_embeddings, d_model, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self):
        """By ``init``."""
        fill = {"xavier": nn.init.xavier_uniform_, "normal": nn.init.normal_, "kaiming": nn.init.kaiming_normal_}
        fill[self.init](self.weight)

    def forward(self, tokens, offset=0):
        """``offset``: position of the first token."""
        _, of_token, of_position = SCALES[self.scale]
        x = F.embedding(tokens, self.weight)
        if of_token(self.d_model) != 1:
            x = x * of_token(self.d_model)
        if not self.positions:
            return x
        pe = sinusoidal_positions(offset, offset + tokens.shape[-1], self.d_model, x.device, x.dtype)
        x = torch.add(x, pe, alpha=of_position(self.d_model))
        return dropout(x, self.dropout, self.training)

    def extra_repr(self):
        return (
            f"{len(self.weight)}, {self.d_model}, scale={self.scale!r}, positions={self.positions}, "
            f"dropout={self.dropout}, init={self.init!r}"
        )
