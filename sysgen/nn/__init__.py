"""Layers: modules that hold parameters and call :mod:`sysgen.ops`."""

from .act import ACTEncoder
from .classifier import SequenceClassifier
from .dnc import DNC
from .dnc_cell import DNCCell
from .dnc_classifier import DNCClassifier
from .embedding import EmbeddingScaling
from .encoders import SharedEncoder, StackedEncoder
from .geometric_attention import GeometricMultiheadAttention
from .maps import collect_maps
from .ndr import NDREncoderLayer
from .ntm import NTM
from .ntm_cell import NTMCell
from .positions import sinusoidal_positions
from .relative_attention import RelativeMultiheadAttention
from .released import load_released_state_dict
from .rnn_classifier import RNNClassifier
from .seq2seq import Seq2SeqTransformer
from .sigma_moe import SigmaMoE
from .softmax_attention import SoftmaxMultiheadAttention
from .transformer_layers import TransformerDecoderLayer, TransformerEncoderLayer

__all__ = [
    "DNC",
    "NTM",
    "ACTEncoder",
    "DNCCell",
    "DNCClassifier",
    "EmbeddingScaling",
    "GeometricMultiheadAttention",
    "NDREncoderLayer",
    "NTMCell",
    "RNNClassifier",
    "RelativeMultiheadAttention",
    "Seq2SeqTransformer",
    "SequenceClassifier",
    "SharedEncoder",
    "SigmaMoE",
    "SoftmaxMultiheadAttention",
    "StackedEncoder",
    "TransformerDecoderLayer",
    "TransformerEncoderLayer",
    "collect_maps",
    "load_released_state_dict",
    "sinusoidal_positions",
]
