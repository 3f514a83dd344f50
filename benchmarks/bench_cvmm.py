"""CVMM alone, at the sizes of real models, against the matrix product of the same size and against the peers."""

import peers
import pytest
import torch
from curve import Series

import sysgen

# (tokens, d, h, num_experts, k): the thesis' models, and the smallest of MoEUT
SHAPES = [(4096, 512, 128, 16, 4), (4096, 512, 128, 32, 4), (4096, 512, 128, 128, 4), (2048, 412, 128, 155, 12)]


class Problem:
    def __init__(self, tokens, d, h, num_experts, k, device, backward):
        self.experts = torch.rand(tokens, num_experts, device=device).topk(k).indices
        self.x = torch.randn(tokens, d, device=device).requires_grad_(backward)
        self.weight = (torch.randn(num_experts, d, h, device=device) / d**0.5).requires_grad_(backward)
        self.equivalent = (torch.randn(d, k * h, device=device) / d**0.5).requires_grad_(backward)
        self.dy = torch.randn(tokens, k, h, device=device)
        self.backward = backward

    def step(self, product, weight):
        y = product(weight)
        if not self.backward:
            return (y,)
        return (y, *torch.autograd.grad(y, [self.x, weight], self.dy.view_as(y)))

    def run(self, cvmm):
        return lambda: self.step(lambda w: cvmm(self.x, self.experts, w), self.weight)

    def run_equivalent(self):
        return lambda: self.step(lambda w: peers.dense_equivalent_cvmm(self.x, w), self.equivalent)

    @torch.no_grad()
    def largest_error(self):
        """Largest |error| of a float32 product as a fraction of 4·√d·2⁻²⁴·Σ|x||w|."""
        x, w = self.x.double(), self.weight.double()
        exact = sysgen.reference.cvmm(x, self.experts, w)
        magnitude = sysgen.reference.cvmm(x.abs(), self.experts, w.abs())
        error = (sysgen.ops.cvmm(self.x, self.experts, self.weight).double() - exact).abs()
        return float((error / (4 * x.shape[1] ** 0.5 * 2**-24 * magnitude)).max())


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "T{}-d{}-h{}-E{}-k{}".format(*s))
@pytest.mark.parametrize("passes", ["forward", "forward+backward"])
def test_cvmm(curve, device, scaled, passes, shape):
    tokens, d, h, num_experts, k = shape
    tokens = scaled(tokens)
    problem = Problem(tokens, d, h, num_experts, k, device, passes != "forward")
    times = 3 if problem.backward else 1
    flops = times * 2 * tokens * k * d * h
    moved = times * 4 * (tokens * d + num_experts * d * h + tokens * k * h)
    dense_moved = times * 4 * (tokens * d + d * k * h + tokens * k * h)
    series = {
        "sysgen": Series(problem.run(sysgen.ops.cvmm), flops, moved),
        "dense-equivalent": Series(problem.run_equivalent(), flops, dense_moved, False),
    }
    for name, peer in peers.PEERS.items():
        reason = peer.unusable(device, torch.float32, (d, h))
        series[name] = reason or Series(problem.run(peer.cvmm), flops, moved)
    error = problem.largest_error()
    assert error <= 1, f"float32 error is {error:.2f} times its bound"
    curve(
        series,
        figure="cvmm",
        x_name="shape",
        x=f"T={tokens} d={d} h={h} E={num_experts} k={k}",
        dtype="float32",
        passes=passes,
        expected=problem.run(sysgen.reference.cvmm)(),
        tolerance=(4 * 4096**0.5 * 2**-24,) * 2,  # see bench_moe_layer.py
        notes={"error_over_bound": error},
    )
