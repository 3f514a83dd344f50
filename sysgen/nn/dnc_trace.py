"""What a Differentiable Neural Computer did, step by step, for looking at."""

import torch

from ..ops._dnc_ops import STATE, without_autocast
from ..reference.dnc import dnc_step

TRACED = ("usage", "precedence", "write_weights", "read_weights", "memory")


@torch.no_grad()
def trace(input, state, weights, *, masked, dealloc, sharpen, mask_min, clip, checkpoint_every=None):
    """Repeats the steps by the formulas of the reference: name -> [T, B, ...]; the links, N² a step, are left out.

    - Of the state after each step: usage, precedence, write_weights [T, B, N], read_weights [T, B, R, N], memory
      [T, B, N, W].
    - Of the step itself: write_content, allocation, retention [T, B, N]; read_content, forward, backward [T, B, R, N];
      read_mode [T, B, R, 3] (backward, content, forward); allocation_gate, write_gate, write_strength [T, B];
      free_gates, read_strength, sharp_forward, sharp_backward [T, B, R]; write_key, write_mask, erase, value [T, B, W];
      read_key, read_mask [T, B, R, W]. Those that the variant lacks are missing.

    Rows after the end of a sample mean nothing.
    """
    seen = {}
    dtype = state[0].dtype
    weights = [w.to(dtype) for w in weights]
    for x in input.to(dtype):
        with without_autocast(x.device):
            state, computed = dnc_step(x, state, weights, masked, dealloc, sharpen, True, mask_min, clip, 1e-6)
        after = dict(zip(STATE, state))
        computed.update((name, after[name]) for name in TRACED)
        for name, t in computed.items():
            if t is not None:
                seen.setdefault(name, []).append(t)
    return {name: torch.stack(steps) for name, steps in seen.items()}
