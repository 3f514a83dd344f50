"""What layers with an external memory share, over a sequence or over one step: a controller and its interface."""

import torch
from torch import nn
from torch.nn import functional as F

from .._library import without_autocast
from ..reference.dnc import lstm_step
from . import _checks, _dnc_controller


class MemoryLayer(nn.Module):
    """
    Args:
        sizes: name -> size, ``input_size`` and ``hidden_size`` among them; they become attributes.
        num_words: how many numbers all heads read.
        interface_size: how many numbers the controller tells the memory.
        controller: a module, or None: an LSTM.
    """

    def __init__(self, sizes, num_words, interface_size, controller, device=None, dtype=None):
        super().__init__()
        for size, value in sizes.items():
            setattr(self, size, value)
        kwargs = {"device": device, "dtype": dtype}
        x, h = self.input_size, self.hidden_size
        self.controller = controller
        if controller is None:
            self.weight_input = nn.Parameter(torch.empty(4 * h, x, **kwargs))
            self.weight_hidden = nn.Parameter(torch.empty(4 * h, h, **kwargs))
            self.weight_reads = nn.Parameter(torch.empty(4 * h, num_words, **kwargs))
            self.bias = nn.Parameter(torch.empty(4 * h, **kwargs))
        else:
            _dnc_controller.check(type(self).__name__, controller, x + num_words, h)
        self.interface = nn.Linear(h, interface_size, **kwargs)

    def _controller_weights(self):
        return self.weight_input, self.weight_hidden, self.weight_reads, self.bias

    def _cell_size(self):
        if self.controller is None:
            return self.hidden_size
        return _dnc_controller.state_size(type(self).__name__, self.controller)

    def _state_defaults(self, batch, num_cells, device, dtype):
        """Number of cells, device and dtype of a new state, where those that are None follow from the layer."""
        num_cells = self.num_cells if num_cells is None else num_cells
        name = f"{type(self).__name__}.initial_state"
        if not isinstance(batch, torch.SymInt):
            _checks.at_least_zero(name, batch=batch)
        _checks.positive_int(name, num_cells=num_cells)
        w = self.interface.weight
        dtype = dtype or (torch.float64 if w.dtype == torch.float64 else torch.float32)
        return num_cells, {"device": device or w.device, "dtype": dtype}

    def _control(self, x, state):
        """x [B, X] -> (hidden, cell, interface vector [B, I]) in the state's dtype, whatever autocast says."""
        dtype = state.memory.dtype
        if self.controller is not None:
            with without_autocast(x.device):  # its cat takes no other half type than its own
                words = torch.cat([x, state.reads.flatten(1).to(x.dtype)], 1)
            name = type(self).__name__
            hidden, cell = _dnc_controller.step(name, self.controller, words, state.hidden, state.cell)
        with without_autocast(x.device):
            if self.controller is None:
                weights = (w.to(dtype) for w in self._controller_weights())
                hidden, cell = lstm_step(x.to(dtype), state.hidden, state.cell, state.reads, *weights)
            return hidden, cell, F.linear(hidden, self.interface.weight.to(dtype), self.interface.bias.to(dtype))
