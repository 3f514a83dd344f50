"""Sequence classification with an encoder (Csordás 2023, Ch. 5 and 6)."""

import torch
from torch import nn

from . import _checks, _tokens
from .embedding import EmbeddingScaling


class SequenceClassifier(nn.Module):
    """Reads the class of a token sequence from one column of an encoder.

    The input is B, the tokens, E; ``readout="last"`` takes the column of E and ``"first"`` that of B. Released: "last"
    for CTL and NDR on arithmetic, "first" for ListOps, CTL++ and the baselines on arithmetic.

    Args:
        encoder: called as ``encoder(x [B, N + 2, d_model], src_key_padding_mask=…)``, batch first.
        num_tokens: V; E is token V and B is V + 1.
        num_classes: size of the output.
        d_model: width of the encoder.
        readout: ``"last"`` or ``"first"``.
        embedding: arguments of :class:`EmbeddingScaling`; None is that of NDR: N(0, 1), no positions. The absolute
            baseline has ``{"positions": True, "dropout": 0.1}``, "+rel" ``{"positions": False, "init": "xavier"}``.

    Shapes: tokens int [B, N], lengths int [B] (None: all N) -> [B, num_classes], or with an :class:`ACTEncoder`
    ([B, num_classes], loss). Whatever stands behind ``lengths``, -1 included, does not matter.
    """

    def __init__(
        self, encoder, num_tokens, num_classes, d_model, readout="last", embedding=None, device=None, dtype=None
    ):
        super().__init__()
        _checks.positive_int("SequenceClassifier", num_tokens=num_tokens, num_classes=num_classes, d_model=d_model)
        _checks.one_of("SequenceClassifier", ("last", "first"), readout=readout)
        self.num_tokens, self.readout = num_tokens, readout
        kwargs = {"device": device, "dtype": dtype}
        self.embedding = EmbeddingScaling(
            num_tokens + 2, d_model, **{"positions": False, **(embedding or {})}, **kwargs
        )
        self.encoder = encoder
        self.output = nn.Linear(d_model, num_classes, **kwargs)

    def reset_parameters(self):
        for module in (self.embedding, self.encoder, self.output):
            module.reset_parameters()

    def forward(self, tokens, lengths=None):
        lengths = _tokens.check("SequenceClassifier", tokens, lengths)
        tokens, padding = _tokens.with_ends(tokens, lengths, self.num_tokens, self.num_tokens + 1)
        x = self.encoder(self.embedding(tokens), src_key_padding_mask=padding)
        x, *loss = x if isinstance(x, tuple) else (x,)
        column = lengths + 1 if self.readout == "last" else torch.zeros_like(lengths)
        logits = self.output(x[torch.arange(len(x), device=x.device), column])
        return (logits, *loss) if loss else logits

    def extra_repr(self):
        return f"num_tokens={self.num_tokens}, readout={self.readout!r}"
