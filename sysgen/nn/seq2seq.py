"""The encoder-decoder models of (Csordás 2023, Ch. 4)."""

import torch
from torch import nn
from torch.nn import functional as F

from . import _checks, _tokens
from .embedding import EmbeddingScaling
from .encoders import SharedEncoder, StackedEncoder
from .transformer_layers import TransformerDecoderLayer, TransformerEncoderLayer


class Seq2SeqTransformer(nn.Module):
    """Standard or universal Transformer with absolute or relative positions, layer normalisation after the residual.

    The encoder reads a begin token, the source and an end token; the decoder starts from its end token. The output
    layer is the target embedding, transposed, with a bias. Universal: one layer for all steps of each stack, without
    timestep embedding. With relative attention, attention to the source has no positions.

    Args:
        num_src_tokens, num_tgt_tokens: V and V'; the encoder has tokens V (end) and V + 1 (begin), the decoder V'
            (end).
        d_model, nhead, num_encoder_layers, num_decoder_layers, dim_feedforward: sizes.
        dropout: rate everywhere: of each sublayer, in the feedforward, of attention weights, after the positional sum.
        attention: ``"softmax"`` (absolute positions) or ``"relative"``.
        universal: share the layers' parameters.
        embedding_scale: ``"teu"``, ``"none"`` or ``"ped"``, see :class:`EmbeddingScaling`; None: "ped". Relative
            models have none of them: only None.

    Shapes: see :meth:`forward` and :meth:`generate`.
    """

    def __init__(
        self,
        num_src_tokens,
        num_tgt_tokens,
        d_model=128,
        nhead=8,
        num_encoder_layers=3,
        num_decoder_layers=3,
        dim_feedforward=256,
        dropout=0.1,
        attention="softmax",
        universal=False,
        embedding_scale=None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        name = "Seq2SeqTransformer"
        _checks.positive_int(name, num_src_tokens=num_src_tokens, num_tgt_tokens=num_tgt_tokens)
        _checks.positive_int(name, num_encoder_layers=num_encoder_layers, num_decoder_layers=num_decoder_layers)
        _checks.one_of(name, ("softmax", "relative"), attention=attention)
        relative = attention == "relative"
        _checks.one_of(name, (None,) if relative else (None, "teu", "none", "ped"), embedding_scale=embedding_scale)
        self.num_src_tokens, self.num_tgt_tokens, self.universal = num_src_tokens, num_tgt_tokens, universal
        kwargs = {"device": device, "dtype": dtype}
        positions = {"positions": False, "init": "xavier"} if relative else {"scale": embedding_scale or "ped"}
        self.src_embedding = EmbeddingScaling(num_src_tokens + 2, d_model, dropout=dropout, **positions, **kwargs)
        self.tgt_embedding = EmbeddingScaling(num_tgt_tokens + 1, d_model, dropout=dropout, **positions, **kwargs)
        options = {"dropout_on": "weight", "learned_scale": False} if relative else {}
        layer = {
            "d_model": d_model,
            "nhead": nhead,
            "dim_feedforward": dim_feedforward,
            "dropout": dropout,
            "attention": attention,
            "attention_dropout": dropout,
            "attention_kwargs": {"init": "seq2seq", **options},
            **kwargs,
        }
        stack = SharedEncoder if universal else StackedEncoder
        self.encoder = stack(TransformerEncoderLayer(**layer), num_encoder_layers)
        decoders = [TransformerDecoderLayer(**layer) for _ in range(1 if universal else num_decoder_layers)]
        self.decoder_layers, self.num_decoder_layers = nn.ModuleList(decoders), num_decoder_layers
        self.output_bias = nn.Parameter(torch.zeros(num_tgt_tokens + 1, **kwargs))

    def reset_parameters(self):
        for module in (self.src_embedding, self.tgt_embedding, self.encoder, *self.decoder_layers):
            module.reset_parameters()
        nn.init.zeros_(self.output_bias)

    def encode(self, src, src_lengths=None):
        """src int [B, S], src_lengths int [B] -> (memory [B, S + 2, d_model], padding bool [B, S + 2])."""
        src_lengths = _tokens.check("Seq2SeqTransformer", src, src_lengths, "src")
        src, padding = _tokens.with_ends(src, src_lengths, self.num_src_tokens, self.num_src_tokens + 1)
        return self.encoder(self.src_embedding(src), src_key_padding_mask=padding), padding

    def _decode(self, tgt, memory, padding, past=None):
        """Logits of the tokens that follow tgt [B, T]; ``past`` (one entry a step) is replaced by the longer one."""
        x = self.tgt_embedding(tgt, 0 if past is None or past[0] is None else past[0].shape[1])
        for step in range(self.num_decoder_layers):
            earlier = None if past is None else past[step]
            if past is not None:
                past[step] = x if earlier is None else torch.cat((earlier, x), dim=1)
            x = self.decoder_layers[0 if self.universal else step](x, memory, padding, earlier)
        return F.linear(x, self.tgt_embedding.weight, self.output_bias)

    def forward(self, src, tgt, src_lengths=None, tgt_lengths=None):
        """Teacher forcing: src int [B, S], tgt int [B, T] without end token -> logits [B, T + 1, V' + 1].

        Logits [:, t] are for target t, which is the end token behind the last one; see :meth:`targets`.
        """
        tgt_lengths = _tokens.check("Seq2SeqTransformer", tgt, tgt_lengths, "tgt")
        end = self.num_tgt_tokens
        shifted = F.pad(_tokens.with_ends(tgt, tgt_lengths, 0)[0][:, :-1], (1, 0), value=end)
        return self._decode(shifted, *self.encode(src, src_lengths))

    def targets(self, tgt, tgt_lengths=None, ignore_index=-100):
        """tgt [B, T] -> [B, T + 1]: with the end token, and ``ignore_index`` behind it, for a cross-entropy."""
        tgt_lengths = _tokens.check("Seq2SeqTransformer", tgt, tgt_lengths, "tgt")
        tgt, padding = _tokens.with_ends(tgt, tgt_lengths, self.num_tgt_tokens)
        return tgt.masked_fill(padding, ignore_index)

    @torch.no_grad()
    def generate(self, src, src_lengths=None, max_length=100):
        """Greedy decoding until every sequence has ended or has ``max_length`` tokens.

        Returns (tokens int64 [B, T], T ≤ max_length, the end token behind each sequence's own; lengths int64 [B]).
        """
        _checks.positive_int("Seq2SeqTransformer.generate", max_length=max_length)
        memory, padding = self.encode(src, src_lengths)
        end, past = self.num_tgt_tokens, [None] * self.num_decoder_layers
        token = torch.full((len(src), 1), end, device=src.device)
        ended, tokens = torch.zeros_like(token, dtype=torch.bool), []
        while len(tokens) < max_length:
            token = self._decode(token, memory, padding, past).argmax(-1).masked_fill(ended, end)
            ended = ended | (token == end)
            if bool(ended.all()):
                break
            tokens.append(token)
        tokens = torch.cat(tokens, dim=1) if tokens else token[:, :0]
        return tokens, (tokens != end).sum(1)

    def extra_repr(self):
        return f"universal={self.universal}, num_decoder_layers={self.num_decoder_layers}"
