"""Every instruction-set level that this machine has: same routing, results within the bounds, selectable by name."""

import itertools

import pytest
import torch
from support import DTYPES, HALF, check_cvmm, dtype_id, python, routes, values

from sysgen import ops
from sysgen._load import core

# One below, at and above the widths of vectors, register tiles and cache blocks of any level.
WIDTHS = [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 95, 96, 97, 127, 128, 129]


def inputs_of(tokens, k, d, h, num_experts, dtypes, **options):
    g = torch.Generator().manual_seed(d * 1000 + h)
    return {
        "x": values(g, (tokens, d), dtypes[0]).requires_grad_(),
        "experts": routes(g, (tokens,), k, num_experts),
        "weight": values(g, (num_experts, d, h), dtypes[1], scale=max(d, 1) ** -0.5).requires_grad_(),
        **options,
    }


@pytest.mark.parametrize("dtypes", DTYPES, ids=dtype_id)
def test_every_edge_of_every_tile(isa, dtypes):
    for width, h in itertools.chain(zip(WIDTHS, [33] * len(WIDTHS)), zip([33] * len(WIDTHS), WIDTHS)):
        check_cvmm(ops, inputs_of(23, 2, width, h, 3, dtypes), what=f"d={width} h={h}")
    for rows in range(1, 34):  # rows of the only expert
        inputs = {**inputs_of(rows, 1, 19, 21, 1, dtypes), "experts": torch.zeros(rows, 1, dtype=torch.int64)}
        check_cvmm(ops, inputs, what=f"rows={rows}")


@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[2]], ids=dtype_id)
@pytest.mark.parametrize(
    "tokens, k, d, h, num_experts",
    [(512, 4, 512, 128, 16), (256, 12, 412, 128, 155), (700, 1, 1031, 300, 2), (2500, 1, 40, 24, 1)],
)
def test_more_than_one_cache_block(isa, tokens, k, d, h, num_experts, dtypes):
    check_cvmm(ops, inputs_of(tokens, k, d, h, num_experts, dtypes, reduce=True))


@pytest.mark.parametrize("dtypes", [DTYPES[1], *((t, t) for t in HALF)], ids=dtype_id)
def test_few_rows_an_expert(isa, dtypes):
    """Weights are multiplied where they lie; a gradient of more than 8 MiB is written past the caches."""
    inputs = inputs_of(90, 2, 210, 160, 128, dtypes)
    inputs["weight"] = inputs["weight"].detach().requires_grad_()  # contiguous, so that its gradient is
    assert inputs["weight"].nbytes > 8 << 20
    check_cvmm(ops, inputs, what="shared rows")
    long = inputs_of(7, 1, 5, 1031, 2, dtypes, reduce=True)
    long["experts"] = torch.tensor([[0], [1], [1], [1], [0], [1], [1]])
    check_cvmm(ops, long, what="long products")


def test_the_level_is_the_one_that_was_set(isa):
    assert core.cpu_isa() == isa


def test_the_bound_of_float32_is_the_promised_one(isa):
    """|error| <= 4·√d·2⁻²⁴·Σ|x||w|, without the constant terms that the general bound allows."""
    for d in (64, 512, 4096):
        inputs = inputs_of(128, 2, d, 64, 4, DTYPES[1])
        x, ids, w = inputs["x"].detach(), inputs["experts"], inputs["weight"].detach()
        error = (ops.cvmm(x, ids, w).double() - ops.cvmm(x.double(), ids, w.double())).abs()
        size = ops.cvmm(x.double().abs(), ids, w.double().abs())
        assert (error <= 4 * d**0.5 * 2**-24 * size).all()


def test_routing_does_not_depend_on_the_level():
    experts = routes(torch.Generator().manual_seed(0), (50000,), 3, 77)
    results = []
    previous = core.cpu_isa()
    for name in core.cpu_isas():
        core.set_cpu_isa(name)
        results.append(ops.route(experts, 77))
    core.set_cpu_isa(previous)
    for r in results[1:]:
        for a, b in zip(r[:3], results[0][:3]):
            assert torch.equal(a, b)


def flushed(t, isa):
    """The numbers that vdpbf16ps takes and gives as zero: those subnormal in bfloat16 and float32, below 1.2e-38."""
    return (t.abs() < 2.0**-126) & (t != 0) & (isa == "avx512_bf16") & (t.dtype != torch.float16)


@pytest.mark.parametrize("dtype", HALF)
def test_every_half_number_is_read_and_written_exactly(isa, dtype):
    """Conversions by integer arithmetic and by instructions agree: subnormals, infinities, NaN, both zeros."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    one = torch.ones(1, 1, 1, dtype=dtype)
    ids = torch.zeros(2**16, 1, dtype=torch.int64)
    y = ops.cvmm(every[:, None], ids, one).flatten()
    # The accumulation starts at +0, so −0 may become +0; a NaN may change its payload but stays one.
    numbers = ~every.isnan() & (every != 0) & ~flushed(every, isa)
    assert torch.equal(y[numbers].view(torch.int16), every[numbers].view(torch.int16))
    assert y[every.isnan()].isnan().all() and not y[every == 0].any()


@pytest.mark.parametrize("dtype", HALF)
def test_results_are_rounded_to_nearest_even(isa, dtype):
    """Sums of two half numbers, exact in float32, hit ties and the overflow to infinity."""
    g = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**15), 2**15, (2, 40000), generator=g, dtype=torch.int32).to(torch.int16)
    a, b = bits.view(dtype)
    near = (b.view(torch.int16) & 0x3FF) | (a.view(torch.int16) & 0x7C00)  # about a's exponent: many ties
    x = torch.stack([torch.cat([a, a]), torch.cat([b, near.view(dtype)])], 1)
    x = x[x.float().isfinite().all(1) & ~flushed(x, isa).any(1)]
    exact = x.float().sum(1)
    one_addition = (exact.double() == x.double().sum(1)) & ~flushed(exact, isa)
    y = ops.cvmm(x, torch.zeros(len(x), 1, dtype=torch.int64), torch.ones(1, 2, 1, dtype=dtype)).flatten()
    assert one_addition.sum() > 1000
    assert torch.equal(y[one_addition], exact[one_addition].to(dtype))


# ---- the environment variable


def test_the_environment_chooses_the_level():
    level = core.cpu_isas()[0]
    result = python("-c", "from sysgen._load import core; print(core.cpu_isa())", SYSGEN_CPU_ISA=level)
    assert result.stdout.strip() == level
    result = python("-c", "from sysgen._load import core; print(core.cpu_isa())", SYSGEN_CPU_ISA="")
    assert result.stdout.strip() == core.cpu_isas()[-1]


def test_an_unknown_level_is_an_error():
    result = python("-c", "import sysgen", check=False, SYSGEN_CPU_ISA="sse9")
    assert result.returncode and "ValueError: SYSGEN_CPU_ISA must be one of base" in result.stderr
    with pytest.raises(ValueError, match=r"base.*got sse9"):
        core.set_cpu_isa("sse9")
