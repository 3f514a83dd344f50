"""The Neural Turing Machine as a layer."""

from typing import NamedTuple

import torch

from ..ops import NTMState, ntm_sequence
from ._memory_sequence import MemorySequence
from ._ntm import NTMBase
from ._recurrent import run_sequence
from .ntm_trace import NTMTrace


class NTMOutput(NamedTuple):
    """What :class:`NTM` returns with ``return_trace=True``."""

    output: torch.Tensor
    state: NTMState
    trace: dict


class NTM(MemorySequence, NTMBase):
    """Neural Turing Machine (Graves et al. 2014) with pairs of a read and a write head.

    The whole sequence is one operation, :func:`sysgen.ops.ntm_sequence`; state and memory are float32 (float64 for
    float64) whatever the input is. The output is a linear function of the controller and what was read, without an
    activation.

    Args:
        input_size, output_size, hidden_size: widths of input, output and controller.
        num_cells, word_size: of the memory: N cells of W words. N may change after training:
            ``state=ntm.initial_state(batch, num_cells=…)``.
        num_heads: P pairs of heads; each reads before it writes, and the pairs take turns within a step.
        max_shift: S: a head moves its focus by at most so many cells a step.
        memory_value: of the initial memory; see :meth:`sysgen.ops.NTMState.initial`, which also says where heads start.
        learn_initial: the controller's first state and the first reads are parameters instead of zeros.
        controller: None: an LSTM, inside the one operation. Or a module, which is stepped in Python, several times
            slower; what it may be: :class:`DNC`.
        batch_first: input and output are [B, T, ·] instead of [T, B, ·]. The state has the batch first in any case.
        checkpoint_every: see :func:`sysgen.ops.ntm_sequence`; without effect if ``controller`` is a module.

    Shapes: input [T, B, input_size], [T, input_size] unbatched, or a ``PackedSequence``; output likewise.
    """

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
        batch_first=False,
        checkpoint_every=None,
        device=None,
        dtype=None,
    ):
        super().__init__(
            input_size,
            output_size,
            hidden_size,
            num_cells,
            word_size,
            num_heads,
            max_shift=max_shift,
            memory_value=memory_value,
            learn_initial=learn_initial,
            controller=controller,
            device=device,
            dtype=dtype,
        )
        self._set_sequence_options(batch_first, checkpoint_every)

    def forward(self, input, state=None, lengths=None, return_trace=False):
        """
        Args:
            input: see above.
            state: :class:`~sysgen.ops.NTMState`, or None for the initial one.
            lengths: [B] int64 or None: a sample ends after its first steps: its outputs are 0 then, its state stays.
            return_trace: return an :class:`NTMOutput` with every distribution, gate and word of every step, for looking
                at (slow, without gradients); names and shapes: :class:`sysgen.nn.ntm_trace.NTMTrace`.

        Returns:
            (output, state), or an :class:`NTMOutput`.
        """

        def run(x, state, lengths):
            trace = NTMTrace() if return_trace else None
            hidden, reads, last = self._sequence(x, state, lengths, trace)
            return self._output(hidden, reads, x.dtype), last, trace

        y, last, trace = run_sequence(self, NTMState, input, state, lengths, run)
        return NTMOutput(y, last, trace.stacked()) if return_trace else (y, last)

    def _fused(self, x, state, lengths):
        weights = *self._controller_weights(), self.interface.weight, self.interface.bias
        options = {"max_shift": self.max_shift, "checkpoint_every": self.checkpoint_every}
        return ntm_sequence(x, state, *weights, lengths=lengths, **options)
