"""The Neural Turing Machine's recurrence over a whole sequence against its formulas in torch, step by step."""

import pytest
import torch
from bench_dnc import step
from curve import Series

import sysgen

# steps, batch, input, hidden units, cells, words, pairs of heads: the copy tasks of its usual implementation
SIZES = {
    "copy H=100 N=128 W=20 P=1 B=1 T=41": (41, 1, 9, 100, 128, 20, 1),
    "copy H=100 N=128 W=20 P=1 B=16 T=41": (41, 16, 9, 100, 128, 20, 1),
    "repeat copy H=100 N=128 W=20 P=2 B=16 T=101": (101, 16, 10, 100, 128, 20, 2),
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("passes", ["forward", "forward+backward"])
def test_ntm_sequence(curve, request, device, passes, name):
    """From the initial state, shifts of at most one cell."""
    steps, batch, inputs, hidden, cells, words, heads = SIZES[name]
    if request.config.getoption("benchmark_disable"):
        steps, batch, cells = 3, 2, 8
    ntm = sysgen.nn.NTM(inputs, 1, hidden, cells, words, heads, device=device)
    weights = ntm.weight_input, ntm.weight_hidden, ntm.weight_reads, ntm.bias, ntm.interface.weight, ntm.interface.bias
    x, state = torch.randn(steps, batch, inputs, device=device).requires_grad_(), ntm.initial_state(batch)
    backward = passes != "forward"
    # Of a pair of heads: two dot products and norms with every cell, a read, and a write of three operations.
    products = sum(w.numel() for w in weights[:3]) + ntm.interface.weight.numel() + heads * cells * words * 8
    flops = (3 if backward else 1) * 2 * steps * batch * products
    moved = (3 if backward else 1) * 4 * steps * batch * heads * 3 * cells * words

    def series(function):
        return Series(lambda: step(function, x, state, weights, weights, backward), flops, moved)

    curve(
        {"sysgen": series(sysgen.ops.ntm_sequence), "eager formulas": series(sysgen.reference.ntm_sequence)},
        figure="ntm_sequence",
        x_name="shape",
        x=name,
        dtype="float32",
        passes=passes,
        # Rounding grows through 41 to 101 steps of a recurrence with slopes of some tens: 1e-3 is 2⁻²⁴ times 1.7e4.
        tolerance=(1e-3, 1e-2),
        expected=step(sysgen.reference.ntm_sequence, x, state, weights, weights, backward),
    )
