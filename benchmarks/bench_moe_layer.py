"""One σ-MoE layer against the dense layer of equal parameters (Csordás 2023, Fig. 7.2, F.5 and F.6) and other ways to
compute it."""

import peers
import pytest
import torch
from curve import Series

import sysgen

K = 4
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def tolerance(dtype, routes, expert_size):
    """Allowed error of the output and of the gradients: its norm relative to that of the right result.

    float32: sums of n <= 4096 random terms in two orders differ by about √n/2 units of 2⁻²⁴; allowed is eight times
    that. bfloat16: about ten roundings of 2⁻⁹ (hidden rows, their gradients, k partial sums), all the same way.
    Gradients: of N hidden units, those within rounding of 0, a fraction of about √512·2⁻²⁴, may fall on either side of
    the ReLU. If n do, the gradients differ by about √(2n/N), because half of the units are active. Allowed are three
    times the n to be expected, or eight.
    """
    rounding = 4 * 4096**0.5 * 2**-24 if dtype == "float32" else 10 * 2**-9
    units = routes * expert_size
    flips = max(3 * units * 512**0.5 * 2**-24, 8)
    return rounding, rounding + (2 * flips / units) ** 0.5


class Layer:
    """A σ-MoE layer's parameters, one batch, and all ways to compute it."""

    def __init__(self, tokens, d_model, num_experts, expert_size, dtype, device, backward):
        self.moe = sysgen.nn.SigmaMoE(d_model, num_experts, expert_size, K, device=device, dtype=dtype)
        self.shape = (tokens, d_model, num_experts, expert_size)
        self.backward = backward
        d_ff = num_experts * expert_size
        self.x = torch.randn(tokens, d_model, device=device, dtype=dtype).requires_grad_(backward)
        self.dy = torch.randn(tokens, d_model, device=device, dtype=dtype)
        self.dense = self._weights(d_model, d_ff)
        self.equivalent = self._weights(d_model, K * expert_size)

    def _weights(self, d_model, d_ff):
        up = torch.randn(d_model, d_ff, device=self.x.device, dtype=self.x.dtype) / d_model**0.5
        down = torch.randn(d_ff, d_model, device=self.x.device, dtype=self.x.dtype) / d_ff**0.5
        return up.requires_grad_(), down.requires_grad_()

    def _step(self, forward, parameters):
        if not self.backward:
            with torch.no_grad():
                return (forward(),)
        y = forward()
        return (y, *torch.autograd.grad(y, [self.x, *parameters], self.dy))

    def _mixture(self, ffn):
        experts, gate = peers.topk_selection(self.x, self.moe.expert_sel, K)
        return ffn(self.x, experts, gate, self.moe.keys, self.moe.values)

    def run(self, ffn):
        """A step of the mixture of experts whose experts ``ffn`` computes."""
        return self._step(lambda: self._mixture(ffn), self.moe.parameters())

    def series(self, names):
        """The series of a figure: sysgen, the dense layers, and the named peers."""
        tokens, d_model, num_experts, expert_size = self.shape
        dtype, device = self.x.dtype, self.x.device
        passes = 3 if self.backward else 1

        def cost(d_ff):
            flops = 4 * tokens * d_model * d_ff
            values = 2 * tokens * d_model + 2 * num_experts * d_model * expert_size
            return passes * flops, passes * values * dtype.itemsize

        def dense(weights):
            return lambda: self._step(lambda: peers.dense_ffn(self.x, *weights), weights)

        active = cost(K * expert_size)
        series = {
            "sysgen": Series(lambda: self._step(lambda: self.moe(self.x), self.moe.parameters()), *active),
            "dense MLP": Series(dense(self.dense), *cost(num_experts * expert_size), False),
            "dense-equivalent": Series(dense(self.equivalent), *active, False),
        }
        for name in names:
            peer = peers.PEERS[name]
            reason = peer.unusable(device, dtype, (d_model, expert_size))
            series[name] = reason or Series(lambda p=peer: self.run(p.ffn), *active)
        return series


def measure(curve, device, figure, x_name, dtype, passes, names, tokens, d_model, num_experts, expert_size):
    layer = Layer(tokens, d_model, num_experts, expert_size, DTYPES[dtype], device, passes != "forward")
    expected = layer.run(sysgen.reference.moe_ffn)
    sizes = {"tokens": tokens, "d_model": d_model, "num_experts": num_experts, "expert_size": expert_size, "k": K}
    x = sizes.pop(x_name)
    curve(
        layer.series(names),
        figure=figure,
        x_name=x_name,
        x=x,
        dtype=dtype,
        passes=passes,
        sizes=sizes,
        expected=expected,
        tolerance=tolerance(dtype, tokens * K, expert_size),
    )


every_pass = pytest.mark.parametrize("passes", ["forward", "forward+backward"])
every_dtype = pytest.mark.parametrize("dtype", list(DTYPES))


@pytest.mark.parametrize("num_experts", [4, 8, 16, 32, 64, 128])
@every_pass
@every_dtype
def test_num_experts(curve, device, tokens, dtype, passes, num_experts):
    """Fig. 7.2: at equal width of an expert the dense layer grows with N_E, the mixture hardly."""
    measure(
        curve, device, "moe_layer_num_experts", "num_experts", dtype, passes, peers.PEERS,
        tokens=tokens, d_model=512, num_experts=num_experts, expert_size=128,
    )  # fmt: skip


@pytest.mark.parametrize("expert_size", [32, 64, 128, 256])
@every_pass
@every_dtype
def test_expert_size(curve, device, tokens, dtype, passes, expert_size):
    """Fig. F.5."""
    measure(
        curve, device, "moe_layer_expert_size", "expert_size", dtype, passes, ["sort + grouped_mm"],
        tokens=tokens, d_model=512, num_experts=32, expert_size=expert_size,
    )  # fmt: skip


@pytest.mark.parametrize("d_model", [128, 256, 512, 1024])
@every_pass
@every_dtype
def test_d_model(curve, device, tokens, dtype, passes, d_model):
    """Fig. F.6."""
    measure(
        curve, device, "moe_layer_d_model", "d_model", dtype, passes, ["sort + grouped_mm"],
        tokens=tokens, d_model=d_model, num_experts=32, expert_size=128,
    )  # fmt: skip


@every_pass
def test_scaled_thesis_shape(curve, device, scaled, passes):
    """The thesis' layer at 4096 tokens, N_E = 32."""
    measure(
        curve, device, "moe_layer_4096", "num_experts", "float32", passes, peers.PEERS,
        tokens=scaled(4096), d_model=512, num_experts=32, expert_size=128,
    )  # fmt: skip
