"""The DNC's recurrence over a whole sequence against its formulas in torch, step by step."""

import dnc_baselines
import pytest
import torch
from curve import Series
from measure import saved_for_backward

import sysgen
from sysgen.ops import DNCState

# steps, batch, input, hidden units, cells, words, read heads: the thesis' copy task, bAbI, and a large memory
SIZES = {
    "copy H=32 N=16 W=16 R=1 B=16 T=64": (64, 16, 9, 32, 16, 16, 1),
    "bAbI-like H=256 N=256 W=64 R=4 B=2 T=100": (100, 2, 256, 256, 256, 64, 4),
    "large H=256 N=512 W=64 R=4 B=8 T=64": (64, 8, 64, 256, 512, 64, 4),
}


def step(function, x, state, weights, parameters, backward):
    if not backward:
        with torch.no_grad():
            hidden, reads, _ = function(x, state, *weights)
        return hidden, reads
    hidden, reads, _ = function(x, state, *weights)
    gradients = torch.autograd.grad(hidden.square().mean() + reads.square().mean(), [x, *parameters])
    return hidden, *gradients


def floor(controller, x, backward):
    """What no memory at all costs: not comparable in its results."""
    parameters = list(controller.parameters())

    def run():
        if not backward:
            with torch.no_grad():
                return controller(x)
        hidden, interface = controller(x)
        return torch.autograd.grad(hidden.square().mean() + interface.square().mean(), [x, *parameters])

    saved = (lambda: saved_for_backward(lambda: controller(x), [x, *parameters])) if backward else None
    return Series(run, 0.0, 0.0, False, saved)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("passes", ["forward", "forward+backward"])
def test_dnc_sequence(curve, request, device, passes, name):
    """Masked, with de-allocation and sharpening, from an empty memory."""
    steps, batch, inputs, hidden, cells, words, heads = SIZES[name]
    if request.config.getoption("benchmark_disable"):
        steps, batch, cells = 3, 2, 8
    elif "large" in name and not request.config.getoption("--full"):
        pytest.skip("takes gigabytes and minutes: --full measures it")
    dnc = sysgen.nn.DNC(inputs, 1, hidden, cells, words, heads, device=device)
    weights = dnc.weight_input, dnc.weight_hidden, dnc.weight_reads, dnc.bias, dnc.interface.weight, dnc.interface.bias
    x = torch.randn(steps, batch, inputs, device=device, requires_grad=True)
    state = DNCState.zeros(batch, hidden, cells, words, heads, device)
    backward = passes != "forward"
    interface = dnc.interface.weight.numel()
    products = (
        sum(w.numel() for w in weights[:3]) + interface + cells**2 * (2 + 2 * heads) + cells * words * (4 + 3 * heads)
    )
    flops = (3 if backward else 1) * 2 * steps * batch * products
    moved = (3 if backward else 1) * 4 * steps * batch * (2 * cells**2 + 4 * cells * words)

    controller = dnc_baselines.Controller(inputs, hidden, words * heads, len(dnc.interface.bias)).to(device)

    def series(function, comparable=True):
        def saved():
            return saved_for_backward(lambda: function(x, state, *weights), [x, *weights, *state])

        def run():
            return step(function, x, state, weights, weights, backward)

        return Series(run, flops, moved, comparable, saved if backward else None)

    curve(
        {
            "sysgen": series(sysgen.ops.dnc_sequence),
            "well-written eager": series(sysgen.reference.dnc_sequence),
            "released formulas": series(dnc_baselines.released),
            "LSTM + interface": floor(controller, x, backward),
        },
        figure="dnc_sequence",
        x_name="shape",
        x=name,
        dtype="float32",
        passes=passes,
        # Rounding grows through 64 to 100 steps of a recurrence with slopes of some tens: 1e-3 is 2⁻²⁴ times 1.7e4.
        tolerance=(1e-3, 1e-2),
        expected=step(sysgen.reference.dnc_sequence, x, state, weights, weights, backward),
    )
