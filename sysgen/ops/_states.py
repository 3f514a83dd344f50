"""States of the memory recurrences between two steps."""

from typing import NamedTuple

import torch


class DNCState(NamedTuple):
    """State of a Differentiable Neural Computer between two steps; B batch, H controller, N cells, W words, R heads."""

    hidden: torch.Tensor  #: [B, H], of the controller
    cell: torch.Tensor  #: [B, H], of the LSTM; of another controller its state, [B, S]
    memory: torch.Tensor  #: [B, N, W]
    usage: torch.Tensor  #: [B, N]
    link: torch.Tensor  #: [B, N, N]: [i, j] how much cell i was written right after cell j
    precedence: torch.Tensor  #: [B, N]: how much a cell was the last one written
    write_weights: torch.Tensor  #: [B, N]
    read_weights: torch.Tensor  #: [B, R, N]
    reads: torch.Tensor  #: [B, R, W]: what was read

    @classmethod
    def zeros(cls, batch, hidden_size, num_cells, word_size, num_reads, device=None, dtype=None):
        """The state before the first step."""
        b, h, n, w, r = batch, hidden_size, num_cells, word_size, num_reads
        shapes = (b, h), (b, h), (b, n, w), (b, n), (b, n, n), (b, n), (b, n), (b, r, n), (b, r, w)
        return cls(*(torch.zeros(shape, device=device, dtype=dtype) for shape in shapes))

    def detach(self):
        """The same state without history."""
        return DNCState(*(t.detach() for t in self))


class NTMState(NamedTuple):
    """State of a Neural Turing Machine between two steps; B batch, H controller, N cells, W words, P pairs of heads."""

    hidden: torch.Tensor  #: [B, H], of the controller
    cell: torch.Tensor  #: [B, H], of the LSTM; of another controller its state, [B, S]
    memory: torch.Tensor  #: [B, N, W]
    read_weights: torch.Tensor  #: [B, P, N]
    write_weights: torch.Tensor  #: [B, P, N]
    reads: torch.Tensor  #: [B, P, W]: what was read

    @classmethod
    def initial(cls, batch, hidden_size, num_cells, word_size, num_heads=1, memory_value=1e-6, device=None, dtype=None):
        """The state before the first step: zeros, a memory of one small number, and every head at the first cell.

        A constant memory trains more reliably than a random or a learned one (Collier and Beel 2018). The heads then
        must start at some cell: with weights that are equal too, all cells would stay equal for ever.
        """
        if num_cells < 1:
            raise ValueError(f"NTMState.initial: num_cells must be at least 1, got {num_cells}")
        b, h, n, w, p = batch, hidden_size, num_cells, word_size, num_heads
        shapes = (b, h), (b, h), (b, n, w), (b, p, n), (b, p, n), (b, p, w)
        state = cls(*(torch.zeros(shape, device=device, dtype=dtype) for shape in shapes))
        state.memory.fill_(memory_value)
        state.read_weights[..., 0] = state.write_weights[..., 0] = 1
        return state

    def detach(self):
        """The same state without history."""
        return NTMState(*(t.detach() for t in self))
