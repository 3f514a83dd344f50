"""The LSTM and Bi-LSTM baselines (Csordás 2023, Ch. 5 and 6)."""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from . import _checks, _tokens
from ._dropout import dropout


class RNNClassifier(nn.Module):
    """Reads the class of a token sequence from the last state of an LSTM that has read the tokens and E.

    Args:
        num_tokens: V; E is token V.
        num_classes: size of the output.
        hidden_size: width of the state, of both directions together.
        embedding_dim: width of the embedding, hidden_size if None.
        num_layers, bidirectional: of the LSTM. Bidirectional ones read ``lengths`` on the host.
        dropout: rate on the embedding and between the layers.
        released_readout: reads what the released models read, to reproduce their numbers: an LSTM the state *before* E;
            a Bi-LSTM the last two of its states in PyTorch's order as if layers came after directions, which is right
            with one layer only (with 2, layers 0 and 1 both backwards; with 4, layers 1 and 3).
        padding_idx: token whose embedding stays 0. The released models have 1, which is an ordinary token.

    Shapes: tokens int [B, N], lengths int [B] (None: all N) -> [B, num_classes].
    """

    def __init__(
        self,
        num_tokens,
        num_classes,
        hidden_size,
        embedding_dim=None,
        num_layers=1,
        bidirectional=False,
        dropout=0.0,
        released_readout=False,
        padding_idx=None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        embedding_dim = hidden_size if embedding_dim is None else embedding_dim
        _checks.positive_int(
            "RNNClassifier",
            num_tokens=num_tokens,
            num_classes=num_classes,
            hidden_size=hidden_size,
            embedding_dim=embedding_dim,
            num_layers=num_layers,
        )
        _checks.rate("RNNClassifier", dropout=dropout)
        if bidirectional and hidden_size % 2:
            raise ValueError(f"RNNClassifier: hidden_size must be even if bidirectional, got {hidden_size}")
        self.num_tokens, self.dropout, self.released_readout = num_tokens, dropout, released_readout
        kwargs = {"device": device, "dtype": dtype}
        self.embedding = nn.Embedding(num_tokens + 1, embedding_dim, padding_idx, **kwargs)
        self.lstm = nn.LSTM(
            embedding_dim,
            hidden_size // 2 if bidirectional else hidden_size,
            num_layers,
            dropout=dropout if num_layers > 1 else 0.0,
            bidirectional=bidirectional,
            batch_first=True,
            **kwargs,
        )
        self.output = nn.Linear(hidden_size, num_classes, **kwargs)

    def reset_parameters(self):
        for module in (self.embedding, self.lstm, self.output):
            module.reset_parameters()

    def forward(self, tokens, lengths=None):
        lengths = _tokens.check("RNNClassifier", tokens, lengths)
        tokens, _ = _tokens.with_ends(tokens, lengths, self.num_tokens)
        x = dropout(self.embedding(tokens), self.dropout, self.training)
        if not self.lstm.bidirectional:  # causal, so that what follows E does not matter
            last = (lengths - 1).clamp(min=0) if self.released_readout else lengths
            state = self.lstm(x)[0][torch.arange(len(x), device=x.device), last]
        else:
            packed = pack_padded_sequence(x, (lengths + 1).cpu(), batch_first=True, enforce_sorted=False)
            h = self.lstm(packed)[1][0]  # [layer · direction, B, hidden]
            forward, backward = (h[len(h) // 2 - 1], h[-1]) if self.released_readout else (h[-2], h[-1])
            state = torch.cat((forward, backward), dim=-1)
        return self.output(state)

    def extra_repr(self):
        return f"num_tokens={self.num_tokens}, dropout={self.dropout}, released_readout={self.released_readout}"
