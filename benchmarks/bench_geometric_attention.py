"""Geometric attention against its eager formulas, their compiled form, and torch's softmax attention."""

import functools

import baselines
import pytest
import torch
from curve import Series

import sysgen

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# CPU: as the issue of speed was posed; CUDA: enough heads to fill a GPU
BATCH_HEADS = {"cpu": (2, 4), "cuda": (16, 16)}
WIDTH = 64
# Above this many positions the peers that hold N² tensors need gigabytes.
LARGEST_DENSE = 2048
# The routers' sizes (Csordás et al. 2022, tables D.3 to D.5) with B and E; CTL: a long batch, others: the mean length.
ROUTERS = {
    "CTL B=512 H=1 N=12 D=256": (512, 1, 12, 256),
    "arithmetic B=512 H=4 N=20 D=64": (512, 4, 20, 64),
    "ListOps B=512 H=16 N=25 D=32": (512, 16, 25, 32),
}


def tolerance(dtype, positions):
    """Allowed error of the output and of the gradients: its norm relative to that of the right result.

    float32: dot products of n random terms in two orders differ by about √n/2 units of 2⁻²⁴. The exponent of a weight
    that matters is above -20 and has about 30 terms that matter, so that its sum is off by about 20·√30 units. Allowed
    is four times both. bfloat16: about ten roundings of 2⁻⁹, all the same way.
    """
    if dtype == "bfloat16":
        return (10 * 2**-9,) * 2
    return (4 * (positions**0.5 + 20 * 30**0.5) * 2**-24,) * 2


class Problem:
    """``bias``: added to all scores; None for none."""

    def __init__(self, shape, dtype, device, backward, bias=None):
        def heads():  # as a projection gives them
            b, h, n, d = shape
            t = torch.randn(b, n, h, d, device=device, dtype=DTYPES[dtype])
            return t.transpose(1, 2).requires_grad_(backward)

        self.inputs = heads(), heads(), heads()
        self.dy = heads().detach()
        self.backward = backward
        b, h, n, _ = shape
        self.bias = None if bias is None else torch.full((b, h, n, 2), float(bias), device=device)

    def ours(self, q, k, v):
        return sysgen.ops.geometric_attention(q, k, v, direction_bias=self.bias)

    def dense(self, q, k, v):
        return baselines.dense(q, k, v, self.bias)

    def run(self, attention):
        if not self.backward:
            with torch.no_grad():
                return (attention(*self.inputs),)
        y = attention(*self.inputs)
        return (y, *torch.autograd.grad(y, self.inputs, self.dy))

    def released_error(self, expected):
        error = self.run(baselines.released)[0].detach().double() - expected[0].detach().double()
        return float(error.abs().max())

    def series(self, compiled):
        b, h, n, d = self.inputs[0].shape
        size = self.inputs[0].element_size()
        flops = (12 if self.backward else 4) * b * h * n * n * d
        moved = (11 if self.backward else 4) * b * h * n * d * size

        def series(f, comparable=True):
            return Series(functools.partial(self.run, f), flops, moved, comparable)

        peers = {
            "dense eager": series(baselines.dense),
            # its difference of two long sums loses digits, which the notes of the record tell
            "released formula": series(baselines.released, False),
            "torch.compile": series(compiled) if compiled else "not compiled where nothing is measured",
        }
        if n > LARGEST_DENSE:
            peers = dict.fromkeys(peers, f"needs several tensors of {b}·{h}·{n}² elements")
        ours, softmax = series(self.ours), series(baselines.softmax, False)
        if self.bias is not None:
            return {"sysgen": ours, "dense eager": series(self.dense), "softmax (SDPA)": softmax}
        return {"sysgen": ours, **peers, "softmax (SDPA)": softmax}


@pytest.fixture(scope="module")
def compiled(request):
    """One compilation for all sizes: the first call of a benchmark is not timed."""
    if request.config.getoption("benchmark_disable"):
        return None
    return torch.compile(baselines.dense, dynamic=True)


def measure(curve, figure, x_name, x, shape, dtype, passes, compiled, **sizes):
    problem = Problem(shape, dtype, curve.device, passes != "forward")
    notes = {}
    expected = None
    if shape[2] <= LARGEST_DENSE:
        expected = problem.run(baselines.dense)
        notes = {"released_error": problem.released_error(expected)}
    curve(
        problem.series(compiled),
        figure=figure,
        x_name=x_name,
        x=x,
        dtype=dtype,
        passes=passes,
        sizes=sizes,
        expected=expected,
        tolerance=tolerance(dtype, shape[2]),
        notes=notes,
    )


every_pass = pytest.mark.parametrize("passes", ["forward", "forward+backward"])


@pytest.mark.parametrize("positions", [16, 64, 256, 512, 1024, 2048, 4096])
@every_pass
@pytest.mark.parametrize("dtype", DTYPES)
def test_positions(curve, request, compiled, dtype, passes, positions):
    full = request.config.getoption("--full") or curve.device.type == "cuda"
    if positions > 2048 and not full:
        pytest.skip("4096 positions take minutes on a CPU: --full measures them")
    if dtype == "bfloat16" and positions > 1024 and not full:
        pytest.skip("the longest bfloat16 sizes: --full measures them")
    if curve.benchmark.disabled:
        positions //= 16
    batch, heads = BATCH_HEADS[curve.device.type]
    measure(
        curve, "geometric_attention", "positions", positions, (batch, heads, positions, WIDTH), dtype, passes, compiled,
        batch=batch, heads=heads, width=WIDTH,
    )  # fmt: skip


@pytest.mark.parametrize("positions", [512, 2048])
@every_pass
def test_hardly_any_match(curve, passes, positions):
    """Scores N(-9, 1): every query looks at every key. With the N(0, 1) of the other benchmarks a row has used up its
    weight after some dozens of keys, and what lies beyond is skipped."""
    if curve.benchmark.disabled:
        positions //= 16
    batch, heads = BATCH_HEADS[curve.device.type]
    problem = Problem((batch, heads, positions, WIDTH), "float32", curve.device, passes != "forward", bias=-9)
    curve(
        problem.series(None),
        figure="geometric_attention_unmatched",
        x_name="positions",
        x=positions,
        dtype="float32",
        passes=passes,
        sizes={"batch": batch, "heads": heads, "width": WIDTH},
        expected=problem.run(problem.dense),
        tolerance=tolerance("float32", positions),
    )


@pytest.mark.parametrize("name", ROUTERS)
@every_pass
def test_router_sizes(curve, compiled, passes, name):
    """The attention of a Neural Data Router."""
    batch, heads, positions, width = ROUTERS[name]
    if curve.benchmark.disabled:
        batch = 8
    shape = (batch, heads, positions, width)
    measure(curve, "geometric_attention_routers", "shape", name, shape, "float32", passes, compiled)
