"""One step of the Differentiable Neural Computer as a layer."""

from ..ops import DNCState
from ._dnc import DNCBase
from ._recurrent import run_step


class DNCCell(DNCBase):
    """One step of a :class:`DNC`, for loops over time that do something between two steps.

    Made of the memory's single operations (:mod:`sysgen.ops`), where the layer is one for the whole sequence: stepping
    the cell gives the layer's results up to rounding, several times slower. Parameters have the layer's names, so that
    either loads the other's ``state_dict``; states go from one to the other.

    Args:
        all: as of :class:`DNC`.

    Shapes: input [B, input_size] or [input_size]; output likewise.
    """

    def forward(self, input, state=None):
        """(output, state): ``state`` is a :class:`~sysgen.ops.DNCState`, or None for an empty memory."""

        def run(x, state):
            self._check_state(x, state)
            state, _ = self._step(x, state)
            return self._output(state.hidden, state.reads, x.dtype), state

        return run_step(self, DNCState, input, state, run)
