"""One step of the Neural Turing Machine as a layer."""

from ..ops import NTMState
from ._ntm import NTMBase
from ._recurrent import run_step


class NTMCell(NTMBase):
    """One step of an :class:`NTM`, for loops over time that do something between two steps.

    Made of the memory's single operations (:mod:`sysgen.ops`), where the layer is one for the whole sequence: stepping
    the cell gives the layer's results up to rounding, several times slower. Parameters have the layer's names, so that
    either loads the other's ``state_dict``; states go from one to the other.

    Args:
        all: as of :class:`NTM`.

    Shapes: input [B, input_size] or [input_size]; output likewise.
    """

    def forward(self, input, state=None):
        """(output, state): ``state`` is an :class:`~sysgen.ops.NTMState`, or None for the initial one."""

        def run(x, state):
            self._check_state(x, state)
            state, _ = self._step(x, state)
            return self._output(state.hidden, state.reads, x.dtype), state

        return run_step(self, NTMState, input, state, run)
