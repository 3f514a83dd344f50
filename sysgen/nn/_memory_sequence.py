"""What layers that run a memory over a sequence share beyond those over one step."""

import torch

from ..ops._recurrence_checks import check_checkpoint_every, check_lengths
from ..reference.dnc import unroll
from . import _checks


class MemorySequence:
    """Comes before a :class:`~._memory_layer.MemoryLayer` with ``_step``, ``_check_state`` and ``_fused(x, state,
    lengths)``, the operation that runs all steps of the LSTM controller."""

    def _set_sequence_options(self, batch_first, checkpoint_every):
        name = type(self).__name__
        _checks.flag(name, batch_first=batch_first)
        check_checkpoint_every(name, checkpoint_every)
        self.batch_first, self.checkpoint_every = batch_first, checkpoint_every

    def _sequence(self, x, state, lengths, trace):
        def step(x, state):
            state, computed = self._step(x, state)
            if trace is not None:
                trace.add(state, computed)
            return state

        self._check_state(x, state)
        if self.controller is not None:
            check_lengths(type(self).__name__, lengths, x)
            return unroll(step, x, state, lengths)
        result = self._fused(x, state, lengths)
        if trace is not None:  # the operation tells nothing of its steps: repeat them
            with torch.no_grad():
                unroll(step, x, state, None)
        return result

    def extra_repr(self):
        return f"{super().extra_repr()}, batch_first={self.batch_first}"
