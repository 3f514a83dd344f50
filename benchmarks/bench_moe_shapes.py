"""CVMM and the mixture-of-experts layer at the sizes of published models, against the two-pass floor, the matrix
product of the same size, and the peers.

On a CPU, tokens and experts are divided by 16, so that an expert keeps its number of rows, and the widths of the
largest layers by 2, 4 or 8 (``moe_shapes.scaled``; the sizes are in the results); ``--full`` takes the sizes as they
are.
"""

import statistics

import moe_shapes
import peers
import pytest
import torch
import torch.nn.functional as F
from curve import Series
from measure import timed

import sysgen

BUDGET = 0.25  # seconds of rounds a point: there are many
PEERS = ["sorted loop", "sort + grouped_mm", "numba prange", "ScatterMoE"]


@pytest.fixture
def fit(request, device):
    """The shape at the size that is measured here."""
    if request.config.getoption("benchmark_disable"):
        return moe_shapes.tiny
    full = device.type == "cuda" or request.config.getoption("--full")
    return lambda shape: shape if full else moe_shapes.scaled(shape)


@pytest.fixture
def dtype(device):
    return torch.bfloat16 if device.type == "cuda" else torch.float32


@pytest.fixture(scope="module")
def ceilings(request):
    """Medians over repetitions that take some tenths of a second."""
    device = request.config.curve_device
    gpu = device.type == "cuda"
    dtype = torch.bfloat16 if gpu else torch.float32
    n = 64 if request.config.getoption("benchmark_disable") else 8192 if gpu else 2048
    a, b = torch.randn(2, n, n, device=device, dtype=dtype).unbind()
    memory = torch.empty(64 * n * n, device=device, dtype=torch.uint8)
    out = torch.empty_like(memory)
    table = torch.randn(n, 512, device=device)
    rows = torch.randint(n, (8 * n,), device=device)
    gathered = torch.empty(8 * n, 512, device=device)

    def median(run, times):
        return statistics.median(timed(run)[0] for _ in range(times))

    return moe_shapes.Ceilings(
        2 * n**3 / median(lambda: torch.mm(a, b, out=a.new_empty(n, n)), 7),
        2 * len(memory) / median(lambda: out.copy_(memory), 7),
        gathered.nbytes / median(lambda: torch.index_select(table, 0, rows, out=gathered), 7),
    )


def tolerance(dtype):
    """Relative errors of the output and of the gradients: sums of n <= 4096 terms in two orders differ by about √n/2
    units of 2⁻²⁴; allowed is eight times that. Half types round the routes' rows and their sums, about ten times."""
    return (4 * 4096**0.5 * 2**-24,) * 2 if dtype == torch.float32 else (10 * 2**-9,) * 2


def weighted(cvmm):
    """The gated sum of a routed product, by a function that knows neither: x [T, k, d] -> [T, h]."""

    def run(x, experts, w, gate):
        y = cvmm(x.flatten(0, 1), experts.view(-1, 1), w).view(*experts.shape, w.shape[2])
        return (gate.unsqueeze(1) @ y).squeeze(1)

    return run


class Problem:
    """One projection: its operands, and its passes one by one."""

    def __init__(self, shape, device, dtype):
        s = self.shape = shape
        rows = (s.tokens, s.k, s.d) if s.weighted else (s.tokens, s.d)
        self.experts = torch.rand(s.tokens, s.num_experts, device=device).topk(s.k).indices
        self.x = torch.randn(rows, device=device, dtype=dtype)
        self.w = torch.randn(s.num_experts, s.d, s.h, device=device, dtype=dtype) / s.d**0.5
        self.gate = torch.rand(s.tokens, s.k, device=device, dtype=dtype) if s.weighted else None
        self.dy = torch.randn((s.tokens, s.h) if s.weighted else (s.tokens, s.k, s.h), device=device, dtype=dtype)
        self.dense = torch.randn(s.k * s.d if s.weighted else s.d, s.h if s.weighted else s.k * s.h, device=device)
        self.dense = self.dense.to(dtype) / s.d**0.5

    def product(self, cvmm):
        """``f(x, w, gate)``; the experts are sorted in it, as they are in a model."""
        if not self.shape.weighted:
            return lambda x, w, gate: cvmm(x, self.experts, w)
        if cvmm in (sysgen.ops.cvmm, sysgen.reference.cvmm):
            return lambda x, w, gate: cvmm(x, self.experts, w, gate=gate, reduce=True)
        return lambda x, w, gate: weighted(cvmm)(x, self.experts, w, gate)

    def run(self, f, passes):
        """A function without arguments that runs one pass. A backward pass finds its forward done."""
        if passes == "forward":
            return lambda: (f(self.x, self.w, self.gate),)
        x, w, gate = (None if t is None else t.detach() for t in (self.x, self.w, self.gate))
        inputs = [w] if passes == "dW" else [t for t in (x, gate) if t is not None]
        for t in inputs:
            t.requires_grad_()
        y = f(x, w, gate)
        return lambda: torch.autograd.grad(y, inputs, self.dy.view_as(y), retain_graph=True)

    def equivalent(self, passes):
        """One dense product with the multiplications of the pass."""
        x, dy, w = self.x.flatten(1), self.dy.flatten(1), self.dense
        run = {"forward": lambda: x @ w, "dX": lambda: dy @ w.t(), "dW": lambda: x.t() @ dy}[passes]
        return lambda: (run(),)


@pytest.mark.parametrize("shape", moe_shapes.PROJECTIONS, ids=lambda s: s.name)
@pytest.mark.parametrize("passes", ["forward", "dX", "dW"])
def test_projection(curve, device, dtype, fit, ceilings, passes, shape):
    shape = fit(shape)
    problem = Problem(shape, device, dtype)
    floor = ceilings.two_pass(shape, passes, dtype.itemsize)
    moved = dtype.itemsize * sum(moved for _, moved, _ in shape.traffic(passes))
    series = {
        "sysgen": Series(problem.run(problem.product(sysgen.ops.cvmm), passes), shape.flops, moved),
        "dense-equivalent": Series(problem.equivalent(passes), shape.flops, moved, False),
    }
    for name in PEERS:
        peer = peers.PEERS[name]
        reason = peer.unusable(device, dtype, (shape.d, shape.h))
        series[name] = reason or Series(problem.run(problem.product(peer.cvmm), passes), shape.flops, moved)
    curve(
        series,
        figure="moe_shapes",
        x_name="projection",
        x=moe_shapes.describe(shape),
        dtype=str(dtype).removeprefix("torch."),
        passes=passes,
        expected=problem.run(problem.product(sysgen.reference.cvmm), passes)(),
        tolerance=tolerance(dtype),
        floor=floor,
        budget=BUDGET,
    )


def swiglu(z):
    a, b = z.chunk(2, -1)
    return F.silu(a) * b


ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "swiglu": swiglu}


class Layer:
    """One stack: router and experts, of which only the experts differ between the series."""

    def __init__(self, shape, device, dtype):
        s = self.shape = shape
        self.activation = ACTIVATIONS[s.activation]
        glu = 2 if s.activation == "swiglu" else 1
        self.x = torch.randn(s.tokens, s.d, device=device, dtype=dtype)
        self.dy = torch.randn_like(self.x)
        self.router = torch.randn(s.num_experts, s.d, device=device, dtype=dtype) / s.d**0.5
        self.up = torch.randn(s.num_experts, s.d, glu * s.h, device=device, dtype=dtype) / s.d**0.5
        self.down = torch.randn(s.num_experts, s.h, s.d, device=device, dtype=dtype) / (s.h * s.k) ** 0.5
        self.inputs = [self.x, self.router, self.up, self.down]

    def sysgen(self, experts, gate, module=sysgen.ops):
        if self.shape.activation != "swiglu":
            return module.moe_ffn(self.x, experts, gate, self.up, self.down, activation=self.shape.activation)
        plan = module.route(experts, self.shape.num_experts)
        hidden = swiglu(module.cvmm(self.x, plan, self.up))
        return module.cvmm(hidden, plan, self.down, gate=gate, reduce=True)

    def peer(self, ffn):
        return lambda experts, gate: ffn(self.x, experts, gate, self.up, self.down, self.activation)

    def run(self, experts_of, passes):
        def forward():
            logits = (self.x @ self.router.t()).float()
            scores = logits.softmax(-1) if self.shape.selection == "softmax" else logits.sigmoid()
            gate, experts = scores.topk(self.shape.k, dim=-1)
            return experts_of(experts, gate.to(self.x.dtype))

        def step():
            if passes == "forward":
                with torch.no_grad():
                    return (forward(),)
            y = forward()
            return (y, *torch.autograd.grad(y, self.inputs, self.dy))

        for t in self.inputs:
            t.requires_grad_(passes != "forward")
        return step


@pytest.mark.parametrize(
    "shape",
    moe_shapes.FFN_STACKS + moe_shapes.SONIC + moe_shapes.MOEUT + moe_shapes.THESIS,
    ids=lambda s: s.name,
)
@pytest.mark.parametrize("passes", ["forward", "forward+backward"])
def test_stack(curve, device, dtype, fit, ceilings, passes, shape):
    shape = fit(shape)
    layer = Layer(shape, device, dtype)
    times = 1 if passes == "forward" else 3
    parts = ["forward"] if passes == "forward" else ["forward", "dX", "dW"]
    both = shape.projections()
    floor = sum(ceilings.two_pass(p, part, dtype.itemsize) for p in both for part in parts)
    moved = dtype.itemsize * sum(m for p in both for part in parts for _, m, _ in p.traffic(part))
    series = {"sysgen": Series(layer.run(layer.sysgen, passes), times * shape.flops, moved)}
    for name in PEERS:
        peer = peers.PEERS[name]
        reason = peer.unusable(device, dtype, (shape.d, shape.h))
        series[name] = reason or Series(layer.run(layer.peer(peer.ffn), passes), times * shape.flops, moved)
    curve(
        series,
        figure="moe_stacks",
        x_name="layer",
        x=moe_shapes.describe(shape),
        dtype=str(dtype).removeprefix("torch."),
        passes=passes,
        expected=layer.run(lambda e, g: layer.sysgen(e, g, sysgen.reference), passes)(),
        tolerance=layer_tolerance(dtype, shape),
        floor=floor,
        budget=BUDGET,
    )


def layer_tolerance(dtype, shape):
    """As in bench_moe_layer.py: hidden units within rounding of 0 may fall on either side of a ReLU."""
    if shape.activation != "relu":
        return tolerance(dtype)
    units = shape.tokens * shape.k * shape.h
    flips = max(3 * units * shape.d**0.5 * (2**-24 if dtype == torch.float32 else 2**-9), 8)
    return tolerance(dtype)[0], tolerance(dtype)[1] + (2 * flips / units) ** 0.5
