"""Modules as controllers of a Differentiable Neural Computer: what they are given, what they return."""

import torch
from torch import nn


def check(layer, controller, input_size, hidden_size):
    """Raises unless ``controller`` can be stepped on [B, input_size] to [B, hidden_size], as far as one can tell."""
    if not isinstance(controller, nn.Module):
        raise TypeError(f"{layer}: controller must be an nn.Module or None, got {type(controller).__name__}")
    if isinstance(controller, nn.RNNBase):
        kind = type(controller).__name__
        raise TypeError(f"{layer}: controller must do one step at a time, as nn.{kind}Cell does; got nn.{kind}")
    if isinstance(controller, nn.RNNCellBase):
        sizes = {"input_size": input_size, "hidden_size": hidden_size}
        for name, size in sizes.items():
            if getattr(controller, name) != size:
                given = getattr(controller, name)
                raise ValueError(f"{layer}: controller's {name} must be {size}, got {given}")
    state_size(layer, controller)


def state_size(layer, controller):
    """Width of the state besides the output."""
    if isinstance(controller, nn.LSTMCell):
        return controller.hidden_size
    size = getattr(controller, "state_size", 0)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError(f"{layer}: controller's state_size must be an int of at least 0, got {size!r}")
    return size


def step(layer, controller, input, hidden, cell):
    """input [B, X + R · W], hidden [B, H], cell [B, S] -> (hidden, cell) in the dtype of the state."""
    dtype = hidden.dtype
    before = hidden.to(input.dtype), cell.to(input.dtype)
    after = cell
    if isinstance(controller, nn.LSTMCell):
        output, after = controller(input, before)
    elif isinstance(controller, nn.RNNCellBase):
        output = controller(input, before[0])
    elif cell.shape[1]:
        output, after = controller(input, before[1])
    else:
        output = controller(input)
    for name, t, like in (("output", output, hidden), ("state", after, cell)):
        if not isinstance(t, torch.Tensor) or t.shape != like.shape:
            given = list(t.shape) if isinstance(t, torch.Tensor) else type(t).__name__
            raise ValueError(f"{layer}: the controller's {name} must have shape {list(like.shape)}, got {given}")
    return output.to(dtype), after.to(dtype)
