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


# Functions of a layer and its input
LAYER = {
    "sysgen": lambda layer, x: layer(x),
    "eager formulas": baselines.ndr_layer,
    "released formulas": lambda layer, x: baselines.ndr_layer(layer, x, baselines.released_attention),
}
ATTENTION = {
    "sysgen": lambda attention, x: attention(x, x, x, need_weights=False)[0],
    "eager formulas": baselines.dense_attention,
    "released formulas": baselines.released_attention,
}


def step(forward, layer, x, dy, backward):
    if not backward:
        with torch.no_grad():
            return (forward(layer, x),)
    y = forward(layer, x)
    return (y, *torch.autograd.grad(y, [x, *layer.parameters()], dy))


def check(layer, x, dy, peers):
    """Without dropout all compute the same: the output in float32; the gradients in float64, where no hidden unit
    falls on the other side of the ReLU by rounding.

    peers: functions of the layer and x. Sums of n <= 1024 random terms in two orders differ by about √n/2 units of
    2⁻²⁴ (2⁻⁵³; the gradients of weights sum n <= 512 · 25 of them). About ten such results follow one another; allowed
    is eight times ten of them, in the norm.
    """
    layer.eval()
    double = copy.deepcopy(layer).double()
    for module, unit, n, backward in ((layer, 2**-24, 1024, False), (double, 2**-53, 512 * 25, True)):
        dtype = next(module.parameters()).dtype
        inputs = x.detach().to(dtype).requires_grad_(), dy.to(dtype), backward
        ours = step(peers[0], module, *inputs)
        for peer in peers[1:]:
            for a, b in zip(ours, step(peer, module, *inputs)):
                assert (a - b).norm() <= 40 * n**0.5 * unit * b.norm()
    layer.train()


@pytest.mark.parametrize("part", ["layer", "attention"])
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("passes", ["forward", "forward+backward"])
def test_ndr_layer(curve, request, device, passes, name, part):
    """The whole layer, and its attention alone: from x to the output projection."""
    batch, positions, d_model, nhead, dim_feedforward, rates = SIZES[name]
    if request.config.getoption("benchmark_disable"):
        batch = 8
    elif "ListOps" in name and device.type == "cpu" and not request.config.getoption("--full"):
        pytest.skip("takes long on a CPU: --full measures it")
    layer = sysgen.nn.NDREncoderLayer(d_model, nhead, dim_feedforward, *rates, device=device)
    if part == "attention":
        layer = layer.self_attn
    peers = LAYER if part == "layer" else ATTENTION
    x = torch.randn(batch, positions, d_model, device=device).requires_grad_()
    dy = torch.randn(batch, positions, d_model, device=device)
    check(layer, x, dy, list(peers.values()))
    backward = passes != "forward"
    weights = sum(p.numel() for p in layer.parameters() if p.dim() == 2)
    times = 3 if backward else 1
    flops = times * batch * positions * (2 * weights + 4 * positions * d_model)
    moved = times * 4 * (2 * x.numel() + weights)
    curve(
        {peer: Series(lambda f=f: step(f, layer, x, dy, backward), flops, moved, False) for peer, f in peers.items()},
        figure="ndr_layer" if part == "layer" else "ndr_attention",
        x_name="shape",
        x=name,
        dtype="float32",
        passes=passes,
    )
