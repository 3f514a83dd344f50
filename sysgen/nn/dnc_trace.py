"""What a Differentiable Neural Computer did, step by step, for looking at."""

import torch


class Trace:
    """Collects what the steps computed, without gradients: name -> [T, B, ...]; the links, N² a step, are left out.

    - Of the state after each step: usage, precedence, write_weights [T, B, N], read_weights [T, B, R, N], memory
      [T, B, N, W].
    - Of the step itself: write_content, allocation, retention [T, B, N]; read_content, forward, backward [T, B, R, N];
      read_mode [T, B, R, 3] (backward, content, forward); allocation_gate, write_gate, write_strength [T, B];
      free_gates, read_strength, sharp_forward, sharp_backward [T, B, R]; write_key, write_mask, erase, value [T, B, W];
      read_key, read_mask [T, B, R, W]. Those that the variant lacks are missing.

    T is first and B second whatever the form of the input, and B is 1 where it has no batch. Rows after the end of a
    sample mean nothing. Without a step there is nothing.
    """

    of_state = ("usage", "precedence", "write_weights", "read_weights", "memory")

    def __init__(self):
        self.steps = {}

    def add(self, state, computed):
        computed = {**computed, **{name: getattr(state, name) for name in self.of_state}}
        for name, t in computed.items():
            if t is not None:
                self.steps.setdefault(name, []).append(t.detach())

    def stacked(self):
        return {name: torch.stack(steps) for name, steps in self.steps.items()}
