"""What a Neural Turing Machine did, step by step, for looking at."""

from .dnc_trace import Trace


class NTMTrace(Trace):
    """Collects what the steps computed, without gradients: name -> [T, B, ...].

    - Of the state after each step: read_weights and write_weights [T, B, P, N], memory [T, B, N, W], reads
      [T, B, P, W].
    - Of the step itself, with ``read_`` and with ``write_`` before the name: key [T, B, P, W]; strength, gate,
      sharpness [T, B, P]; shift [T, B, P, 2 S + 1], whose entry k moves the focus by S − k cells. And erase, add
      [T, B, P, W].

    Rows after the end of a sample mean nothing. Without a step there is nothing.
    """

    of_state = ("read_weights", "write_weights", "memory", "reads")
