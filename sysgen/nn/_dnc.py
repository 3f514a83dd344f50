"""What the Differentiable Neural Computer over a sequence and over one step share: parameters, state, the step."""

import math

import torch
from torch import nn

from .. import ops
from .._library import without_autocast
from ..ops import DNCState
from ..ops._dnc_checks import check_state
from ..ops._dnc_ops import interface_size
from ..reference.dnc import controls, memory_step
from . import _checks
from ._memory_layer import MemoryLayer

RELEASED = {"mask_min": 0.0, "mask_bias": 0.0}


class DNCBase(MemoryLayer):
    def __init__(
        self,
        input_size,
        output_size,
        hidden_size,
        num_cells,
        word_size,
        num_reads=1,
        *,
        masked=True,
        dealloc=True,
        sharpen=True,
        mask_min=0.1,
        mask_bias=1.0,
        clip=20.0,
        controller=None,
        device=None,
        dtype=None,
    ):
        sizes = {"input_size": input_size, "output_size": output_size, "hidden_size": hidden_size}
        sizes |= {"num_cells": num_cells, "word_size": word_size, "num_reads": num_reads}
        name = type(self).__name__
        _checks.positive_int(name, **sizes)
        _checks.rate(name, mask_min=mask_min)
        _checks.positive(name, clip=clip)
        _checks.finite(name, mask_bias=mask_bias)
        _checks.flag(name, masked=masked, dealloc=dealloc, sharpen=sharpen)
        words, interface = num_reads * word_size, interface_size(num_reads, word_size, masked, sharpen)
        super().__init__(sizes, words, interface, controller, device, dtype)
        self.masked, self.dealloc, self.sharpen = masked, dealloc, sharpen
        self.mask_min, self.mask_bias, self.clip = mask_min, mask_bias, clip
        kwargs = {"device": device, "dtype": dtype}
        self.output = nn.Linear(hidden_size, output_size, **kwargs)
        self.read_output = nn.Linear(words, output_size, bias=False, **kwargs)
        self.reset_parameters()

    @classmethod
    def variant(cls, name, *sizes, released=False, **options):
        """A model of the thesis by its name: ``DNC.variant("dnc-ds", input_size, output_size, …)``.

        Args:
            name: ``"dnc"``, or ``"dnc-"`` and some of m (masked), d (dealloc), s (sharpen) in any order.
            sizes, options: as for the class; an option wins over what ``released`` means.
            released: the masks start and end as in the released code (``mask_bias=0, mask_min=0``) and not as the
                thesis advises (App. A.1).
        """
        plain, _, letters = name.lower().partition("-") if isinstance(name, str) else ("", "", "")
        if plain != "dnc" or len(set(letters)) != len(letters) or set(letters) - set("mds") or name[-1:] == "-":
            raise ValueError(
                f"{cls.__name__}.variant: name must be 'dnc', or 'dnc-' and some of the letters m, d and s once each, "
                f"got {name!r}"
            )
        flags = {"masked": "m" in letters, "dealloc": "d" in letters, "sharpen": "s" in letters}
        given = sorted(flags.keys() & options.keys())
        if given:
            raise TypeError(f"{cls.__name__}.variant: {given[0]} follows from the name {name!r}")
        return cls(*sizes, **flags, **{**(RELEASED if released else {}), **options})

    @torch.no_grad()
    def reset_parameters(self):
        """As released: Xavier, the controller's rows of the cell × 5/3; biases 0, forget gate 1, ``mask_bias``.

        A controller that was given stays as it is.
        """
        h, w, r = self.hidden_size, self.word_size, self.num_reads
        if self.controller is None:
            bound = math.sqrt(6 / (h + self.input_size + h + r * w))
            for weight in (self.weight_input, self.weight_hidden, self.weight_reads):
                nn.init.uniform_(weight, -bound, bound)
                weight[2 * h : 3 * h] *= 5 / 3
            nn.init.zeros_(self.bias)
            nn.init.ones_(self.bias[h : 2 * h])
        for linear in (self.interface, self.output, self.read_output):
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        if self.masked:
            after_write = 4 * w + r + 3  # write mask, write key, erase, value, free gates, strength, two gates
            self.interface.bias[:w] = self.mask_bias
            self.interface.bias[after_write : after_write + r * w] = self.mask_bias

    def initial_state(self, batch, num_cells=None, device=None, dtype=None):
        """The :class:`~sysgen.ops.DNCState` before the first step, with ``num_cells`` cells if given."""
        num_cells, options = self._state_defaults(batch, num_cells, device, dtype)
        state = DNCState.zeros(batch, self.hidden_size, num_cells, self.word_size, self.num_reads, **options)
        return state._replace(cell=state.cell.new_zeros(batch, self._cell_size()))

    def _check_state(self, x, state):
        sizes = self.hidden_size, self._cell_size(), self.word_size, self.num_reads
        check_state(type(self).__name__, state, x, sizes)

    def _step(self, x, state):
        """x [B, X] -> (state, what was computed on the way, by name). In the state's dtype, whatever autocast says."""
        hidden, cell, interface = self._control(x, state)
        with without_autocast(x.device):
            sizes = self.num_reads, self.word_size
            control = controls(interface, *sizes, self.masked, self.sharpen, self.mask_min, self.clip)
            *new, computed = memory_step(control, *state[2:8], self.dealloc, True, 1e-6, ops)
        return DNCState(hidden, cell, *new), {**control, **computed}

    def _output(self, hidden, reads, dtype):
        return self.output(hidden.to(dtype)) + self.read_output(reads.flatten(-2).to(dtype))

    def extra_repr(self):
        sizes = "input_size", "output_size", "hidden_size", "num_cells", "word_size", "num_reads"
        flags = "masked", "dealloc", "sharpen", "mask_min", "clip"
        return ", ".join(f"{name}={getattr(self, name)}" for name in sizes + flags)
