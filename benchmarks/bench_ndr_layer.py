"""A layer of the Neural Data Router in training, against eager formulas. Sizes: Csordás 2023, tables D.3 to D.5."""

import copy

import baselines
import pytest
import torch
from curve import Series

import sysgen

# batch, positions with B and E (CTL: a long batch, others: the mean length), d_model, nhead, dim_feedforward, and the
# rates of dropout, attention_dropout and gate_dropout
SIZES = {
    "CTL B=512 N=12 d=256 H=1": (512, 12, 256, 1, 512, (0.5, 0.1, 0.1)),
    "arithmetic B=512 N=20 d=256 H=4": (512, 20, 256, 4, 1024, (0.5, 0.1, 0.1)),
    "ListOps B=512 N=25 d=512 H=16": (512, 25, 512, 16, 1024, (0.1, 0.1, 0.05)),
}


def step(forward, layer, x, dy, backward):
    if not backward:
        with torch.no_grad():
            return (forward(x),)
    y = forward(x)
    return (y, *torch.autograd.grad(y, [x, *layer.parameters()], dy))


def check(layer, x, dy):
    """Without dropout both compute the same: the output in float32; the gradients in float64, where no hidden unit
    falls on the other side of the ReLU by rounding.

    Sums of n <= 1024 random terms in two orders differ by about √n/2 units of 2⁻²⁴ (2⁻⁵³; the gradients of weights sum
    n <= 512 · 25 of them). About ten such results follow one another; allowed is eight times ten of them, in the norm.
    """
    layer.eval()
    double = copy.deepcopy(layer).double()
    for module, unit, n, backward in ((layer, 2**-24, 1024, False), (double, 2**-53, 512 * 25, True)):
        dtype = module.linear1.weight.dtype
        inputs = x.detach().to(dtype).requires_grad_(), dy.to(dtype), backward
        ours = step(module, module, *inputs)
        eager = step(lambda x, module=module: baselines.ndr_layer(module, x), module, *inputs)
        for a, b in zip(ours, eager):
            assert (a - b).norm() <= 40 * n**0.5 * unit * b.norm()
    layer.train()


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("passes", ["forward", "forward+backward"])
def test_ndr_layer(curve, request, device, passes, name):
    batch, positions, d_model, nhead, dim_feedforward, rates = SIZES[name]
    if request.config.getoption("benchmark_disable"):
        batch = 8
    elif "ListOps" in name and device.type == "cpu" and not request.config.getoption("--full"):
        pytest.skip("takes long on a CPU: --full measures it")
    layer = sysgen.nn.NDREncoderLayer(d_model, nhead, dim_feedforward, *rates, device=device)
    x = torch.randn(batch, positions, d_model, device=device).requires_grad_()
    dy = torch.randn(batch, positions, d_model, device=device)
    check(layer, x, dy)
    backward = passes != "forward"
    weights = sum(p.numel() for p in layer.parameters() if p.dim() == 2)
    times = 3 if backward else 1
    flops = times * batch * positions * (2 * weights + 4 * positions * d_model)
    moved = times * 4 * (2 * x.numel() + weights)
    curve(
        {
            "sysgen": Series(lambda: step(layer, layer, x, dy, backward), flops, moved, False),
            "eager formulas": Series(
                lambda: step(lambda x: baselines.ndr_layer(layer, x), layer, x, dy, backward), flops, moved, False
            ),
        },
        figure="ndr_layer",
        x_name="shape",
        x=name,
        dtype="float32",
        passes=passes,
    )
