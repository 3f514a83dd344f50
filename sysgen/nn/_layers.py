"""What encoder and decoder layers share."""

from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from . import _checks
from ._dropout import dropout
from .geometric_attention import GeometricMultiheadAttention
from .relative_attention import RelativeMultiheadAttention
from .softmax_attention import SoftmaxMultiheadAttention

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu}


def self_attention(kind, d_model, nhead, dropout, **kwargs):
    """The attention of the name ``kind`` with what it is known by in the tables of Ch. 5."""
    if kind == "geometric":
        return GeometricMultiheadAttention(d_model, nhead, dropout, **kwargs)
    if kind == "softmax":
        return SoftmaxMultiheadAttention(d_model, nhead, dropout, **kwargs)
    return RelativeMultiheadAttention(d_model, nhead, dropout, absolute_gate=kind == "abs_rel", **kwargs)


def hidden(layer, linear, x, p):
    """``dropout(activation(linear(x)))``. Factors ≥ 0 commute with relu, and so need no memory of their own.

    x is [rows, d]: of more dimensions ``linear`` returns a view, which changed in place costs copies in backward.
    """
    if layer.activation == "relu":
        return dropout(linear(x), p, layer.training).relu_()
    return dropout(ACTIVATIONS[layer.activation](linear(x)), p, layer.training)


def hooked(module):
    """Whether somebody has asked to be called with the module, or calls something else in its place."""
    own = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(own or _has_any_global_hook() or "forward" in module.__dict__)


def reset_feedforward(linear1, linear2, activation):
    """Xavier uniform, with gain √2 before a relu; biases as nn.Linear."""
    for linear, gain in ((linear1, nn.init.calculate_gain("relu") if activation == "relu" else 1.0), (linear2, 1.0)):
        linear.reset_parameters()
        nn.init.xavier_uniform_(linear.weight, gain)


def check_layer(layer, d_model, nhead, dim_feedforward, activation, **rates):
    name = type(layer).__name__
    _checks.positive_int(name, d_model=d_model, nhead=nhead, dim_feedforward=dim_feedforward)
    _checks.rate(name, **rates)
    _checks.one_of(name, tuple(ACTIVATIONS), activation=activation)
