"""The Differentiable Neural Computer as a layer."""

from typing import NamedTuple

import torch

from ..ops import DNCState, dnc_sequence
from ._dnc import DNCBase
from ._memory_sequence import MemorySequence
from ._recurrent import run_sequence
from .dnc_trace import Trace


class DNCOutput(NamedTuple):
    """What :class:`DNC` returns with ``return_trace=True``."""

    output: torch.Tensor
    state: DNCState
    trace: dict


class DNC(MemorySequence, DNCBase):
    """Differentiable Neural Computer (Graves et al. 2016) with masked content addressing, de-allocation of freed cells
    and sharpened temporal links (Csordás 2023, chapter 2 and App. A).

    ``DNC(…, masked=False, dealloc=False, sharpen=False)`` is the original model, :meth:`variant` knows all by name. The
    whole sequence is one operation, :func:`sysgen.ops.dnc_sequence`; state, memory and links are float32 (float64 for
    float64) whatever the input is.

    Args:
        input_size, output_size, hidden_size: widths of input, output and controller.
        num_cells, word_size, num_reads: of the memory: N cells of W words, R read heads. N may change after training:
            ``state=dnc.initial_state(batch, num_cells=…)``.
        masked, dealloc, sharpen: the three corrections.
        mask_min: smallest value of a mask (released: 0, and .1 for associative recall).
        mask_bias: first value of the masks' biases, before the sigmoid (released: 0).
        clip: bound of the interface's absolute values.
        controller: None: an LSTM, inside the one operation. Or a module, which is stepped in Python, several times
            slower. With x [B, input_size + R · W] (input and last reads), hidden [B, hidden_size] it is called as

            - ``nn.LSTMCell``: (x, (hidden, cell)) -> (hidden, cell);
            - ``nn.GRUCell``, ``nn.RNNCell``: (x, hidden) -> hidden;
            - any other with an attribute ``state_size`` of S > 0: (x, state [B, S]) -> (hidden, state [B, S]);
            - any other: (x) -> hidden, such as an MLP.

            hidden and cell or state travel in the :class:`~sysgen.ops.DNCState`, as ``hidden`` and ``cell`` (a width of
            0 where there is none), and start as zeros. The module keeps its parameters, device and dtype.
        batch_first: input and output are [B, T, ·] instead of [T, B, ·]. The state has the batch first in any case.
        checkpoint_every: see :func:`sysgen.ops.dnc_sequence`; without effect if ``controller`` is a module.

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
            num_reads,
            masked=masked,
            dealloc=dealloc,
            sharpen=sharpen,
            mask_min=mask_min,
            mask_bias=mask_bias,
            clip=clip,
            controller=controller,
            device=device,
            dtype=dtype,
        )
        self._set_sequence_options(batch_first, checkpoint_every)

    def forward(self, input, state=None, lengths=None, return_trace=False):
        """
        Args:
            input: see above.
            state: :class:`~sysgen.ops.DNCState`, or None for an empty memory.
            lengths: [B] int64 or None: a sample ends after its first steps: its outputs are 0 then, its state stays.
            return_trace: return a :class:`DNCOutput` with every distribution, gate and mask of every step, for looking
                at and for :func:`sysgen.analysis.plot_memory_trace` (slow, without gradients); names and shapes:
                :class:`sysgen.nn.dnc_trace.Trace`.

        Returns:
            (output, state), or a :class:`DNCOutput`.
        """

        def run(x, state, lengths):
            trace = Trace() if return_trace else None
            hidden, reads, last = self._sequence(x, state, lengths, trace)
            return self._output(hidden, reads, x.dtype), last, trace

        y, last, trace = run_sequence(self, DNCState, input, state, lengths, run)
        return DNCOutput(y, last, trace.stacked()) if return_trace else (y, last)

    def _fused(self, x, state, lengths):
        options = {"masked": self.masked, "dealloc": self.dealloc, "sharpen": self.sharpen}
        options |= {"mask_min": self.mask_min, "clip": self.clip, "checkpoint_every": self.checkpoint_every}
        weights = *self._controller_weights(), self.interface.weight, self.interface.bias
        return dnc_sequence(x, state, *weights, lengths=lengths, **options)
