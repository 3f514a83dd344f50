"""The names and layouts of the parameters in the released models of Ch. 2 and 4 to 6, and those of the layers here."""

import torch
from torch import nn

from . import _released_dnc
from ._attention import MultiheadBase
from ._dnc import DNCBase
from .act import ACTEncoder
from .classifier import SequenceClassifier
from .embedding import EmbeddingScaling
from .encoders import SharedEncoder, StackedEncoder
from .ndr import NDREncoderLayer
from .rnn_classifier import RNNClassifier
from .seq2seq import Seq2SeqTransformer
from .transformer_layers import TransformerDecoderLayer, TransformerEncoderLayer

# Child or parameter here -> there, where they differ.
_NAMES = {
    NDREncoderLayer: {
        "self_attn": "att",
        "linear1": "p1",
        "linear2": "p2",
        "gate1": "g1",
        "gate2": "g2",
        "norm1": "nmerge",
        "norm2": "no",
    },
    ACTEncoder: {"halt": "p_map"},
    SequenceClassifier: {"encoder": "trafo", "output": "output_map"},
    RNNClassifier: {"embedding": "encoder.embedding", "lstm": "encoder.lstm", "output": "classifier"},
    Seq2SeqTransformer: {
        "src_embedding": "input_embedding",
        "tgt_embedding": "output_embedding",
        "output_bias": "output_map.bias",
        "encoder": "trafo.encoder",
        "decoder_layers": "trafo.decoder.layers",
    },
}
_ATTENTION_NAMES = {
    "out_proj": "multi_head_merge",
    "direction": "data_to_qp",
    "position_proj": "pos_to_pq",
    "absolute_gate": "data_to_absgate",
    "content_bias": "global_content_bias",
    "position_bias": "global_pos_bias",
    "alpha": "scale",
    "beta": "scale_pos",
    "gamma": "s_bias",
}
# A name by which each kind of module is found in a state dict.
_ANCHORS = {
    NDREncoderLayer: "att.data_to_q.weight",
    TransformerEncoderLayer: "linear1.weight",
    TransformerDecoderLayer: "linear1.weight",
    SequenceClassifier: "output_map.weight",
    RNNClassifier: "classifier.weight",
    Seq2SeqTransformer: "output_embedding.weight",
}
# Saved, but without influence on the output of a model that has no counterpart of them.
_UNUSED = (
    *("pos_encoding", "pos_encoding_test", "pos_to_pq.weight", "s_bias", "scale_pos", "int_seq", "pos.pe"),
    *("n1.weight", "n1.bias"),
)


def anchor(module):
    """The end of a released name that occurs once in each such module."""
    if isinstance(module, MultiheadBase):
        return "data_to_q.weight"
    if isinstance(module, (SharedEncoder, ACTEncoder)):
        return f"layer.{anchor(module.layer)}"
    if isinstance(module, DNCBase):
        return _released_dnc.ANCHOR
    if isinstance(module, StackedEncoder):
        return f"layers.0.{anchor(module.layers[0])}"
    return _ANCHORS.get(type(module))


def unused(name):
    return any(name == u or name.endswith("." + u) for u in _UNUSED)


def converted(module, take, prefix=""):
    """State dict of ``module`` from ``take(released name, shape)``."""
    if isinstance(module, DNCBase):
        return _released_dnc.converted(module, take, prefix)
    names = _ATTENTION_NAMES if isinstance(module, MultiheadBase) else _NAMES.get(type(module), {})
    state = {}
    if isinstance(module, MultiheadBase):
        for kind in ("weight", "bias"):
            if getattr(module, f"in_proj_{kind}") is not None:
                state[f"in_proj_{kind}"] = _in_projection(module, kind, take, prefix)
    for name, p in module.named_parameters(recurse=False):
        if name not in state:
            state[name] = take(f"{prefix}{names.get(name, name)}", p.shape, nested=isinstance(module, EmbeddingScaling))
    for name, child in module.named_children():
        theirs = names.get(name, name)
        if isinstance(module, Seq2SeqTransformer) and module.universal and name == "decoder_layers":
            child, name, theirs = child[0], "decoder_layers.0", "trafo.decoder.layer"
        for inner, value in converted(child, take, f"{prefix}{theirs}.").items():
            state[f"{name}.{inner}"] = value
    return state


def _in_projection(module: nn.Module, kind, take, prefix):
    """There q, [H, head_dim] rows, and kv, [H, 2, head_dim]; here q, k, v."""
    e, h, d = module.embed_dim, module.num_heads, module.head_dim
    columns = (e,) if kind == "weight" else ()
    q = take(f"{prefix}data_to_q.{kind}", torch.Size((e, *columns)))
    kv = take(f"{prefix}data_to_kv.{kind}", torch.Size((2 * e, *columns)))
    return torch.cat((q, kv.view(h, 2, d, *columns).transpose(0, 1).reshape(2 * e, *columns)))
