"""The Differentiable Neural Computer as a layer."""

import math
from typing import NamedTuple

import torch
from torch import nn

from ..ops import DNCState, dnc_sequence
from ..ops._dnc_ops import interface_size
from . import _checks
from ._recurrent import run_sequence
from .dnc_trace import trace


class DNCOutput(NamedTuple):
    """What :class:`DNC` returns with ``return_trace=True``."""

    output: torch.Tensor
    state: DNCState
    trace: dict


class DNC(nn.Module):
    """Differentiable Neural Computer (Graves et al. 2016) with an LSTM controller, masked content addressing,
    de-allocation of freed cells and sharpened temporal links (Csordás 2023, chapter 2 and App. A).

    ``DNC(…, masked=False, dealloc=False, sharpen=False)`` is the original model. The whole sequence is one operation,
    :func:`sysgen.ops.dnc_sequence`; state, memory and links are float32 (float64 for float64) whatever the input is.

    Args:
        input_size, output_size, hidden_size: widths of input, output and controller.
        num_cells, word_size, num_reads: of the memory: N cells of W words, R read heads. N may change after training:
            ``state=dnc.initial_state(batch, num_cells=…)``.
        masked, dealloc, sharpen: the three corrections.
        mask_min: smallest value of a mask (released: 0, and .1 for associative recall).
        mask_bias: first value of the masks' biases, before the sigmoid (released: 0).
        clip: bound of the interface's absolute values.
        batch_first: input and output are [B, T, ·] instead of [T, B, ·]. The state has the batch first in any case.
        checkpoint_every: see :func:`sysgen.ops.dnc_sequence`.

    Shapes: input [T, B, input_size], [T, input_size] unbatched, or a ``PackedSequence``; output likewise.
    """

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
        batch_first=False,
        checkpoint_every=None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        sizes = {"input_size": input_size, "output_size": output_size, "hidden_size": hidden_size}
        sizes |= {"num_cells": num_cells, "word_size": word_size, "num_reads": num_reads}
        _checks.positive_int("DNC", **sizes)
        for name, value in sizes.items():
            setattr(self, name, value)
        self.masked, self.dealloc, self.sharpen = masked, dealloc, sharpen
        self.mask_min, self.mask_bias, self.clip = mask_min, mask_bias, clip
        self.batch_first, self.checkpoint_every = batch_first, checkpoint_every
        kwargs = {"device": device, "dtype": dtype}
        words = num_reads * word_size
        self.weight_input = nn.Parameter(torch.empty(4 * hidden_size, input_size, **kwargs))
        self.weight_hidden = nn.Parameter(torch.empty(4 * hidden_size, hidden_size, **kwargs))
        self.weight_reads = nn.Parameter(torch.empty(4 * hidden_size, words, **kwargs))
        self.bias = nn.Parameter(torch.empty(4 * hidden_size, **kwargs))
        self.interface = nn.Linear(hidden_size, interface_size(num_reads, word_size, masked, sharpen), **kwargs)
        self.output = nn.Linear(hidden_size, output_size, **kwargs)
        self.read_output = nn.Linear(words, output_size, bias=False, **kwargs)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        """As released: Xavier, the controller's rows of the cell × 5/3; biases 0, forget gate 1, ``mask_bias``."""
        h, w, r = self.hidden_size, self.word_size, self.num_reads
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
        w = self.weight_input
        dtype = dtype or (torch.float64 if w.dtype == torch.float64 else torch.float32)
        num_cells = self.num_cells if num_cells is None else num_cells
        _checks.positive_int("DNC.initial_state", num_cells=num_cells)
        sizes = batch, self.hidden_size, num_cells, self.word_size, self.num_reads
        return DNCState.zeros(*sizes, device=device or w.device, dtype=dtype)

    def forward(self, input, state=None, lengths=None, return_trace=False):
        """
        Args:
            input: see above.
            state: :class:`~sysgen.ops.DNCState`, or None for an empty memory.
            lengths: [B] int64 or None: a sample ends after its first steps: its outputs are 0 then, its state stays.
            return_trace: return a :class:`DNCOutput` with every distribution, gate and mask of every step, for looking
                at (slow, without gradients).

        Returns:
            (output, state), or a :class:`DNCOutput`.
        """
        options = {"masked": self.masked, "dealloc": self.dealloc, "sharpen": self.sharpen}
        options |= {"mask_min": self.mask_min, "clip": self.clip, "checkpoint_every": self.checkpoint_every}
        weights = self.weight_input, self.weight_hidden, self.weight_reads, self.bias
        weights += self.interface.weight, self.interface.bias

        def run(x, state, lengths):
            hidden, reads, last = dnc_sequence(x, state, *weights, lengths=lengths, **options)
            y = self.output(hidden) + self.read_output(reads.flatten(2))
            return y, last, trace(x, state, weights, **options) if return_trace else None

        output = run_sequence(self, DNCState, input, state, lengths, run)
        return DNCOutput(*output) if return_trace else output[:2]

    def extra_repr(self):
        sizes = "input_size", "output_size", "hidden_size", "num_cells", "word_size", "num_reads"
        flags = "masked", "dealloc", "sharpen", "mask_min", "clip", "batch_first"
        return ", ".join(f"{name}={getattr(self, name)}" for name in sizes + flags)
