"""What the Neural Turing Machine over a sequence and over one step share: parameters, state, the step."""

import torch
from torch import nn

from .. import ops
from .._library import without_autocast
from ..ops import NTMState
from ..ops._ntm_checks import check_state
from ..ops._ntm_ops import interface_size
from ..reference.ntm import controls, memory_step
from . import _checks
from ._memory_layer import MemoryLayer


class NTMBase(MemoryLayer):
    def __init__(
        self,
        input_size,
        output_size,
        hidden_size,
        num_cells,
        word_size,
        num_heads=1,
        *,
        max_shift=1,
        memory_value=1e-6,
        learn_initial=False,
        controller=None,
        device=None,
        dtype=None,
    ):
        sizes = {"input_size": input_size, "output_size": output_size, "hidden_size": hidden_size}
        sizes |= {"num_cells": num_cells, "word_size": word_size, "num_heads": num_heads}
        name = type(self).__name__
        _checks.positive_int(name, **sizes)
        _checks.at_least_zero(name, max_shift=max_shift)
        _checks.positive(name, memory_value=memory_value)
        _checks.flag(name, learn_initial=learn_initial)
        words = num_heads * word_size
        super().__init__(sizes, words, interface_size(num_heads, word_size, max_shift), controller, device, dtype)
        self.max_shift, self.memory_value, self.learn_initial = max_shift, memory_value, learn_initial
        kwargs = {"device": device, "dtype": dtype}
        self.output = nn.Linear(hidden_size + words, output_size, **kwargs)
        if learn_initial:
            self.initial_hidden = nn.Parameter(torch.empty(hidden_size, **kwargs))
            self.initial_cell = nn.Parameter(torch.empty(self._cell_size(), **kwargs))
            self.initial_reads = nn.Parameter(torch.empty(num_heads, word_size, **kwargs))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        """Controller: uniform in ±5 / √(inputs + H), biases 0. Interface: Xavier with a gain of 1.4. Output: Xavier.
        Biases of both: normal with a deviation of .01. What is learned of the initial state: normal, .05.

        A controller that was given stays as it is.
        """
        if self.controller is None:
            bound = 5 / (self.weight_input.shape[1] + self.weight_reads.shape[1] + self.hidden_size) ** 0.5
            for weight in (self.weight_input, self.weight_hidden, self.weight_reads):
                nn.init.uniform_(weight, -bound, bound)
            nn.init.zeros_(self.bias)
        for linear, gain in ((self.interface, 1.4), (self.output, 1.0)):
            nn.init.xavier_uniform_(linear.weight, gain)
            nn.init.normal_(linear.bias, std=0.01)
        if self.learn_initial:
            for initial in (self.initial_hidden, self.initial_cell, self.initial_reads):
                nn.init.normal_(initial, std=0.05)

    def initial_state(self, batch, num_cells=None, device=None, dtype=None):
        """The :class:`~sysgen.ops.NTMState` before the first step, with ``num_cells`` cells if given."""
        num_cells, options = self._state_defaults(batch, num_cells, device, dtype)
        sizes = batch, self.hidden_size, num_cells, self.word_size, self.num_heads
        state = NTMState.initial(*sizes, memory_value=self.memory_value, **options)
        if not self.learn_initial:
            return state._replace(cell=state.cell.new_zeros(batch, self._cell_size()))
        learned = self.initial_hidden, self.initial_cell, self.initial_reads
        hidden, cell, reads = (t.to(**options).expand(batch, *t.shape) for t in learned)
        return state._replace(hidden=hidden, cell=cell, reads=reads)

    def _check_state(self, x, state):
        sizes = self.hidden_size, self._cell_size(), self.word_size, self.num_heads
        check_state(type(self).__name__, state, x, sizes)

    def _step(self, x, state):
        """x [B, X] -> (state, what was computed on the way, by name). In the state's dtype, whatever autocast says."""
        hidden, cell, interface = self._control(x, state)
        with without_autocast(x.device):
            control = controls(interface, self.num_heads, self.word_size, self.max_shift)
            new = memory_step(control, *state[2:5], 1e-6, ops)
        return NTMState(hidden, cell, *new), control

    def _output(self, hidden, reads, dtype):
        with without_autocast(hidden.device):  # its cat takes no other half type than its own
            found = torch.cat([hidden, reads.flatten(-2)], -1).to(dtype)
        return self.output(found)

    def extra_repr(self):
        names = "input_size", "output_size", "hidden_size", "num_cells", "word_size", "num_heads"
        names += "max_shift", "memory_value", "learn_initial"
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)
