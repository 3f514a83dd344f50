"""Activations that ``moe_ffn`` knows by name, with the derivative in the form that needs the least saved."""

from typing import Callable, NamedTuple

import torch

_aten = torch.ops.aten


class Activation(NamedTuple):
    """``backward(grad, saved)``, where saved is the output if ``from_output``, else the input. Twice differentiable.

    ``code`` as in csrc/cvmm/activation.cuh.
    """

    forward: Callable
    backward: Callable
    from_output: bool
    code: int


def _silu_backward(g, z):
    if not torch.is_grad_enabled():
        return _aten.silu_backward(g, z)
    s = torch.sigmoid(z)  # the fused form has no derivative of its own
    return g * s * (1 + z * (1 - s))


ACTIVATIONS = {
    "relu": Activation(torch.relu, lambda g, h: _aten.threshold_backward(g, h, 0), True, 1),
    "gelu": Activation(torch.nn.functional.gelu, lambda g, z: _aten.gelu_backward(g, z), False, 3),
    "silu": Activation(torch.nn.functional.silu, _silu_backward, False, 4),
    "tanh": Activation(torch.tanh, lambda g, h: _aten.tanh_backward(g, h), True, 2),
    "identity": Activation(lambda z: z, lambda g, h: g, True, 0),
}
