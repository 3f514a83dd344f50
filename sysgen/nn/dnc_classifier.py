"""The DNC baseline of compositional table lookup (Csordás 2023, Table 5.1)."""

import torch
from torch import nn

from . import _checks, _tokens
from ._dropout import dropout
from .dnc import DNC


class DNCClassifier(nn.Module):
    """Reads the class of a token sequence from the last output of a :class:`DNC` that has read the tokens and E.

    Args:
        num_tokens: V; E is token V.
        num_classes: size of the output.
        hidden_size: width of the DNC's controller and of its output.
        embedding_dim: width of the embedding, hidden_size if None.
        num_cells, word_size, num_reads: of the memory; word_size is hidden_size if None, as released.
        masked, dealloc, sharpen: the corrections of the DNC; the released baseline has the last two.
        dropout: rate on the embedding.
        released_readout: reads the output *before* E, as the released model does.

    Shapes: tokens int [B, N], lengths int [B] (None: all N) -> [B, num_classes].
    """

    def __init__(
        self,
        num_tokens,
        num_classes,
        hidden_size,
        embedding_dim=None,
        num_cells=21,
        word_size=None,
        num_reads=4,
        masked=False,
        dealloc=True,
        sharpen=True,
        dropout=0.0,
        released_readout=False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        embedding_dim = hidden_size if embedding_dim is None else embedding_dim
        sizes = {"num_tokens": num_tokens, "num_classes": num_classes, "embedding_dim": embedding_dim}
        _checks.positive_int("DNCClassifier", **sizes)
        _checks.rate("DNCClassifier", dropout=dropout)
        self.num_tokens, self.dropout, self.released_readout = num_tokens, dropout, released_readout
        kwargs = {"device": device, "dtype": dtype}
        self.embedding = nn.Embedding(num_tokens + 1, embedding_dim, **kwargs)
        self.dnc = DNC(
            embedding_dim,
            hidden_size,
            hidden_size,
            num_cells,
            hidden_size if word_size is None else word_size,
            num_reads,
            masked=masked,
            dealloc=dealloc,
            sharpen=sharpen,
            batch_first=True,
            **kwargs,
        )
        self.output = nn.Linear(hidden_size, num_classes, **kwargs)

    def reset_parameters(self):
        for module in (self.embedding, self.dnc, self.output):
            module.reset_parameters()

    def forward(self, tokens, lengths=None):
        lengths = _tokens.check("DNCClassifier", tokens, lengths)
        tokens, _ = _tokens.with_ends(tokens, lengths, self.num_tokens)
        x = dropout(self.embedding(tokens), self.dropout, self.training)
        last = (lengths - 1).clamp(min=0) if self.released_readout else lengths
        y, _ = self.dnc(x, lengths=last + 1)
        return self.output(y[torch.arange(len(x), device=x.device), last])

    def extra_repr(self):
        return f"num_tokens={self.num_tokens}, dropout={self.dropout}, released_readout={self.released_readout}"
