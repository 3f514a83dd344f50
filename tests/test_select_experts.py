"""``ops.select_experts`` against its definition in float64, at its edges, and inside torch."""

import math

import pytest
import torch
from support import LAYOUTS, place, regulariser

from sysgen import ops, reference
from sysgen.ops._router_ops import SELECTIONS, select_experts_fwd
from sysgen.reference.router import drawn

DTYPES = (torch.float64, torch.float32)


def logits_of(tokens, num_experts, dtype=torch.float64, kind="random", seed=0):
    g = torch.Generator().manual_seed(seed)
    z = 3 * torch.randn(tokens, num_experts, generator=g, dtype=torch.float64)
    if kind == "ties":
        z = (z / 4).round()  # -0 among the zeros
    if kind == "far":  # probabilities below the smallest float
        z[:, ::3] -= 200
    if kind == "shifted":
        z += 1e4
    return z.to(dtype)


def relative_error(z, u, k):
    """Of e^(z − top − log Σ e^(z − top)), top the largest z. The first difference, which is off by u of its size, is up
    to the spread of the logits; so is the weighted mean of those in the sum; the second one and the logarithm, up to
    log n, make it three times both. A sum of n positive terms is off by at most n u; an exponential, a quotient and a
    product by a few u. What is added to all logits changes nothing."""
    spread = z.double().amax(-1) - z.double().amin(-1)
    return u * (3 * (spread + math.log(z.shape[-1])) + z.shape[-1] + k + 16)


def magnitude(z, selection, experts, gate, log_sum, dgate, dlog_sum):
    """Sum of the absolute values of the terms of each element of the gradient."""
    log_p = z.log_softmax(-1)
    p, of_sum = log_p.exp(), (log_p - log_sum).exp() * dlog_sum.abs()
    of_gate = (dgate * gate).abs()
    inner = of_gate.sum(-1, keepdim=True)
    m = of_sum + p * of_sum.sum(-1, keepdim=True) + (p * inner if selection == "softmax" else 0)
    of_gate = of_gate + (gate * inner if selection == "softmax_after_topk" else 0)
    return m.scatter_add(-1, experts.clamp(min=0), of_gate)


def check(z, k, device="cpu", layout="contiguous", **options):
    """All results and the gradients of both together and of each, against the reference in float64."""
    u, tokens = torch.finfo(z.dtype).eps / 2, len(z)
    ours = place(z.to(device), layout).requires_grad_()
    exact = z.double().requires_grad_()
    seed = torch.tensor([7])
    found = ops.select_experts(ours, k, seed=seed.to(device), return_log_sum=True, **options)
    expected = reference.select_experts(exact, k, seed=seed, return_log_sum=True, **options)
    experts, gate, log_sum = (t.cpu() for t in found)
    assert experts.dtype == torch.int64 and gate.dtype == log_sum.dtype == z.dtype
    assert torch.equal(experts, expected[0])
    error = relative_error(z, u, k)
    tiny = 8 * torch.finfo(z.dtype).tiny  # what is smaller may be 0, or the smallest sigmoid
    assert ((gate - expected[1]).abs() <= error[:, None] * expected[1] + tiny).all()
    of_sum = (error.max() if tokens else 0) + u * (tokens + 16)
    finite = expected[2].isfinite()
    assert torch.equal(log_sum[~finite].double(), expected[2][~finite].detach())
    assert ((log_sum - expected[2]).abs() <= of_sum + 4 * u * expected[2].abs())[finite].all()

    g = torch.Generator().manual_seed(1)
    dgate, dlog_sum = (torch.randn(t.shape, generator=g, dtype=torch.float64) for t in expected[1:])
    for with_gate, with_sum in ((1, 1), (1, 0), (0, 1)):
        if not tokens and not with_sum:
            continue
        incoming = [d for d, wanted in ((dgate, with_gate), (dlog_sum, with_sum)) if wanted]

        def gradient(results, z, with_gate=with_gate, with_sum=with_sum, incoming=incoming):
            results = [t for t, wanted in zip(results[1:], (with_gate, with_sum)) if wanted]
            incoming = [d.to(t.device, t.dtype) for d, t in zip(incoming, results)]
            return torch.autograd.grad(results, z, incoming, retain_graph=True)[0].cpu()

        actual, right = gradient(found, ours), gradient(expected, exact)
        terms = magnitude(
            exact.detach(), options.get("selection"), *(t.detach() for t in expected), dgate * with_gate,
            dlog_sum * with_sum,
        )  # fmt: skip
        # The given gradients and gates are rounded, and the log-sums enter an exponential.
        size = expected[2].detach().nan_to_num(0, 0, 0).abs().max()
        bound = terms * (2 * error[:, None] + 2 * of_sum + u * (4 * size + 16)) + tiny
        assert ((actual - right).abs() <= bound).all(), (with_gate, with_sum)


# ---- against the definition

SIZES = [(1, 1, 1), (5, 3, 2), (70, 7, 3), (130, 33, 4), (67, 128, 9), (21, 155, 12), (9, 300, 8), (3, 1030, 5)]


@pytest.mark.parametrize("rate", [0.0, 0.4, 0.97])
@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_is_its_definition(compiled, dtype, selection, rate):
    for i, (tokens, num_experts, k) in enumerate(SIZES[i] for i in ((2, 3, 7) if compiled.slow else range(len(SIZES)))):
        for kind in ("random", "ties", "far", "shifted"):
            z = logits_of(tokens, num_experts, dtype, kind)
            check(z, k, compiled.device, LAYOUTS[i % len(LAYOUTS)], selection=selection, expert_dropout=rate)


@pytest.mark.parametrize("selection", SELECTIONS[1:])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_added_to_all_logits_changes_no_bit(compiled, dtype, selection):
    z = (logits_of(70, 33, dtype) * 1024).round() / 1024  # adding 10⁴ to multiples of 2⁻¹⁰ rounds nothing
    results = []
    for shift in (0, 1e4, -1e4):
        shifted = (z + shift).to(compiled.device).requires_grad_()
        assert torch.equal(shifted.cpu() - shift, z)
        experts, gate, log_sum = ops.select_experts(shifted, 33, selection=selection, return_log_sum=True)
        (first,) = torch.autograd.grad(gate.square().sum() + log_sum.square().sum(), shifted, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), shifted)
        results.append((experts, gate, log_sum, first, second))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0]))


@pytest.mark.parametrize("num_experts", [1, 16, 131])
def test_all_experts(compiled, num_experts):
    for selection in SELECTIONS:
        check(logits_of(6, num_experts), num_experts, compiled.device, selection=selection, expert_dropout=0.3)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_no_tokens(compiled, selection):
    check(logits_of(0, 5), 2, compiled.device, selection=selection, expert_dropout=0.5)


@pytest.mark.parametrize("num_experts, k", [(1, 1), (5, 2), (5, 5), (64, 4), (513, 8), (4097, 3)])
@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_go_to_the_lowest_index(device, num_experts, k, levels, dtype):
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (40, num_experts), generator=generator).to(dtype) - levels // 2
    scores[3] *= -1  # -0.0 among the zeros
    scores[5::7, ::3] = -torch.inf
    scores[6::7, ::3] = torch.inf
    expected = scores.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(ops.select_experts(scores.to(device), k)[0].cpu(), expected)


def test_equal_logits_give_the_first_experts(compiled):
    for num_experts, k in ((4, 4), (40, 3), (1100, 9)):
        experts, gate = ops.select_experts(torch.zeros(2, num_experts, device=compiled.device), k, selection="softmax")
        assert experts.tolist() == [list(range(k))] * 2
        torch.testing.assert_close(gate.cpu(), torch.full((2, k), 1 / num_experts))


def test_close_logits_are_not_ties(compiled):
    one = torch.ones(4, dtype=torch.float64, device=compiled.device)
    z = torch.stack([-one * 5e-324, one - 2**-53, one, one + 2**-52], 1)
    assert ops.select_experts(z, 4)[0].tolist() == [[3, 2, 1, 0]] * 4


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_logits_are_chosen_and_show(compiled, selection, dtype):
    nan, inf = torch.nan, torch.inf
    z = torch.tensor([[1.0, inf, nan, 3.0], [nan, 1.0, 2.0, -nan], [4.0, 3.0, 2.0, 1.0]], dtype=dtype)
    experts, gate, log_sum = ops.select_experts(z.to(compiled.device), 2, selection=selection, return_log_sum=True)
    assert experts.tolist() == [[2, 1], [0, 3], [0, 1]]
    assert gate[:2, 0].isnan().all() and gate[2].isfinite().all() and log_sum.isnan().all()


def test_logits_without_any_probability(compiled):
    """An expert that no token can choose: its log-sum is −∞, and the gradients of the others are those without it."""
    z = logits_of(9, 5)
    with_it = torch.cat([z, torch.full((9, 1), -torch.inf, dtype=z.dtype)], 1)
    results = []
    for t in (z, with_it):
        t = t.to(compiled.device).requires_grad_()
        log_sum = ops.select_experts(t, 1, return_log_sum=True)[2]
        results.append((log_sum[:5], torch.autograd.grad(log_sum[:5].square().sum(), t)[0][:, :5]))
    assert log_sum[5] == -torch.inf
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_derivatives(selection):
    z, seed = logits_of(4, 5).requires_grad_(), torch.tensor([3])

    def function(z):
        return ops.select_experts(z, 3, selection=selection, expert_dropout=0.6, seed=seed, return_log_sum=True)[1:]

    assert (function(z)[0] == 0).any()  # some token has lost experts
    assert torch.autograd.gradcheck(function, z)
    assert torch.autograd.gradgradcheck(function, z)
    assert torch.autograd.gradgradcheck(lambda z: function(z)[0], z)
    assert torch.autograd.gradgradcheck(lambda z: function(z)[1], z)


# ---- expert dropout


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("rate", [0.99, 1.0])
def test_nearly_all_experts_dropped(compiled, selection, rate):
    z = logits_of(40, 5, torch.float32).to(compiled.device).requires_grad_()
    torch.manual_seed(0)
    experts, gate = ops.select_experts(z, 5, selection=selection, expert_dropout=rate)
    none = experts == -1
    assert none.all(1).any() and (rate == 1 or not none.all())
    assert not gate[none].any() and (gate[~none] > 0).all()
    (gradient,) = torch.autograd.grad(gate.square().sum(), z)
    assert gradient.isfinite().all() and not gradient[none.all(1)].any()


def test_dropout_is_independent_of_token_and_expert(compiled):
    tokens, num_experts, rate = 400 if compiled.slow else 40_000, 7, 0.3
    z = torch.zeros(tokens, num_experts, device=compiled.device)
    seed = torch.tensor([1], device=compiled.device)
    experts, _ = ops.select_experts(z, num_experts, expert_dropout=rate, seed=seed)
    kept = torch.zeros(tokens, num_experts + 1).scatter_(1, experts.cpu() % (num_experts + 1), 1)[:, :num_experts]
    assert torch.equal(kept == 0, drawn(seed.cpu(), kept, rate))
    # 5 standard deviations of shares, and of their covariances, under independence.
    variance = rate * (1 - rate)
    assert ((kept.mean(0) - (1 - rate)).abs() < 5 * math.sqrt(variance / tokens)).all()
    assert (
        (torch.cov(kept.T) - variance * torch.eye(num_experts)).abs() < 5 * math.sqrt(2 * variance**2 / tokens)
    ).all()
    neighbours = (kept[1:] - kept.mean()) * (kept[:-1] - kept.mean())
    assert abs(neighbours.mean()) < 5 * variance / math.sqrt(neighbours.numel())


def test_seeds(compiled):
    z = torch.zeros(50, 9, device=compiled.device)

    def experts(**options):
        return ops.select_experts(z, 4, expert_dropout=0.5, **options)[0]

    torch.manual_seed(3)
    first, second = experts(), experts()
    torch.manual_seed(3)
    assert torch.equal(experts(), first) and not torch.equal(first, second)
    given = [experts(seed=torch.tensor([s], device=compiled.device)) for s in (5, 5, 6)]
    assert torch.equal(given[0], given[1]) and not torch.equal(given[0], given[2])
    state = torch.get_rng_state()
    ops.select_experts(z, 4)
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn without dropout


def test_log_sum_ignores_dropout(compiled):
    z = logits_of(30, 6).to(compiled.device)
    sums = [ops.select_experts(z, 2, expert_dropout=rate, return_log_sum=True)[2] for rate in (0.0, 0.7)]
    assert torch.equal(*sums)


# ---- repeatable


@pytest.mark.parametrize("num_experts, k", [(32, 4), (300, 12)])
def test_threads_change_no_bit(isa, num_experts, k):
    z, before = logits_of(5000, num_experts, torch.float32).requires_grad_(), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            options = {"selection": "softmax", "expert_dropout": 0.2, "seed": torch.tensor([1])}
            experts, gate, log_sum = ops.select_experts(z, k, return_log_sum=True, **options)
            results.append((experts, gate, log_sum, *torch.autograd.grad(gate.sum() + log_sum.square().sum(), z)))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0]))


def test_many_tokens(compiled):
    """More segments of the sums than one, each of several rounds."""
    z = logits_of(2500 if compiled.slow else 70_000, 4, torch.float32)
    log_sum = ops.select_experts(z.to(compiled.device), 1, return_log_sum=True)[2].cpu()
    # A relative error of the sum is an error of its logarithm. n terms of one sign, added in m > 10 parts, err by about
    # (√(n/m) + √m) u, a fraction of √n u = 1.6e-5 for n = 70,000; the logarithm, about 10, rounds to 10 u.
    torch.testing.assert_close(log_sum.double(), z.double().log_softmax(-1).logsumexp(0), atol=1e-5, rtol=0)


# ---- inside torch


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_are_computed_in_float32(dtype):
    z = logits_of(20, 6, dtype).requires_grad_()
    experts, gate = ops.select_experts(z, 3, selection="softmax")
    wide = z.detach().float().requires_grad_()
    expected = ops.select_experts(wide, 3, selection="softmax")
    assert torch.equal(experts, expected[0]) and torch.equal(gate, expected[1]) and gate.dtype == torch.float32
    (gradient,) = torch.autograd.grad(gate.square().sum(), z)
    assert torch.equal(gradient, torch.autograd.grad(expected[1].square().sum(), wide)[0].to(dtype))


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (2, 0, 4)])
def test_shapes(shape):
    z = torch.randn(shape)
    experts, gate, log_sum = ops.select_experts(z, 2, return_log_sum=True)
    assert experts.shape == gate.shape == (*shape[:-1], 2) and log_sum.shape == (4,)
    flat = ops.select_experts(z.reshape(-1, 4), 2)
    assert torch.equal(experts.reshape(-1, 2), flat[0]) and torch.equal(gate.reshape(-1, 2), flat[1])


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    torch._dynamo.reset()

    def step(function, z):
        torch.manual_seed(1)
        return function(z)

    def forward(z):
        return ops.select_experts(z, 2, selection="softmax", expert_dropout=0.5, return_log_sum=True)

    compiled = torch.compile(forward, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for tokens in (5, 9):
        z = torch.randn(tokens, 6, requires_grad=True)
        expected, actual = step(forward, z), step(compiled, z)
        for a, b in zip(actual, expected):
            assert torch.equal(a, b)
        loss = [(r[1].sum() + r[2].square().sum()) for r in (expected, actual)]
        torch.testing.assert_close(*(torch.autograd.grad(v, z)[0] for v in loss))


def test_meta_tensors_give_shapes():
    experts, gate, log_sum = ops.select_experts(
        torch.empty(3, 7, 5, device="meta"), 2, expert_dropout=0.5, return_log_sum=True
    )
    assert experts.shape == gate.shape == (3, 7, 2) and log_sum.shape == (5,) and experts.dtype == torch.int64


def test_memory_of_backward():
    """Logits, choice and gates, two numbers a token and one an expert: nothing else of the size of the logits."""
    z = torch.randn(50, 64, requires_grad=True)
    gate = ops.select_experts(z, 2, selection="softmax", return_log_sum=True)[1]
    saved = gate.grad_fn.next_functions[0][0].saved_tensors
    assert sum(t.numel() for t in saved) == 50 * 64 + 2 * 50 * 2 + 2 * 50 + 64


# ---- the regulariser (Eq. 7.19-7.20)


def direct_regulariser(logits):
    p = logits.double().softmax(-1).reshape(-1, logits.shape[-1]).mean(0)
    return torch.special.xlogy(p, p).sum()


@pytest.mark.parametrize("shape", [(9, 7), (2, 5, 3), (4,), (6, 1)])
def test_regulariser_is_its_formula(shape):
    logits = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    value, expected = regulariser(logits), direct_regulariser(logits)
    # Float64: u = 1e-16, a hundred operations at the most, and terms of size 1 that cancel in the gradient.
    torch.testing.assert_close(value, expected, atol=1e-14, rtol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(v, logits)[0] for v in (value, expected)), atol=1e-14, rtol=1e-12)
    assert torch.autograd.gradgradcheck(regulariser, logits)


def test_regulariser_bounds():
    # Eight terms of float32 (u = 6e-8), each of a few roundings and a log.
    uniform = regulariser(torch.zeros(5, 8))
    torch.testing.assert_close(float(uniform), -math.log(8), rtol=1e-6, atol=0)
    balanced = regulariser(100 * torch.eye(8))  # each token sure of another expert
    torch.testing.assert_close(float(balanced), -math.log(8), rtol=1e-6, atol=0)
    collapsed = 1000 * torch.eye(8)[:1].expand(5, 8)
    collapsed.requires_grad_()
    value = regulariser(collapsed)
    assert value == 0
    assert torch.autograd.grad(value, collapsed)[0].isfinite().all()


def test_regulariser_below_the_smallest_float():
    # p[1] = e⁻¹⁰⁵ is 0 in float32, yet its gradient p·log p must be neither NaN nor infinite. The others are as in
    # float64 but for some ten roundings of 6e-8, and terms of size 1 that cancel in the gradient.
    logits = torch.tensor([[0.0, -105.0, -1.0]], requires_grad=True)
    value = regulariser(logits)
    expected = direct_regulariser(logits)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    gradient = torch.autograd.grad(value, logits)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0], rtol=1e-5, atol=1e-7)


# ---- errors


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"logits": [1.0]}, TypeError, "logits must be a torch.Tensor"),
        ({"logits": torch.zeros(3, 4, dtype=torch.int64)}, TypeError, "logits must be float32"),
        ({"logits": torch.zeros(())}, ValueError, "logits must have shape"),
        ({"logits": torch.zeros(3, 0)}, ValueError, "at least one expert"),
        ({"k": 2.0}, TypeError, "k must be an int"),
        ({"k": True}, TypeError, "k must be an int"),
        ({"k": 0}, ValueError, r"k must be in \[1, 4\]"),
        ({"k": 5}, ValueError, r"k must be in \[1, 4\]"),
        ({"selection": "sinkhorn"}, ValueError, "selection must be one of sigmoid, softmax"),
        ({"expert_dropout": "0.1"}, TypeError, "expert_dropout must be a number"),
        ({"expert_dropout": 1.1}, ValueError, "expert_dropout must be in"),
        ({"expert_dropout": math.nan}, ValueError, "expert_dropout must be in"),
        ({"seed": 3}, TypeError, "seed must be a torch.Tensor"),
        ({"seed": torch.zeros(1)}, TypeError, "seed must be int64"),
        ({"seed": torch.zeros(2, dtype=torch.int64)}, ValueError, r"seed must have shape \[1\]"),
        ({"return_log_sum": 1}, TypeError, "return_log_sum must be a bool"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"logits": torch.zeros(3, 4), "k": 2, "expert_dropout": 0.5, **change}
    with pytest.raises(error, match=f"select_experts: .*{message}"):
        ops.select_experts(**arguments)


def test_the_core_asks_for_a_seed(compiled):
    with pytest.raises(ValueError, match="seed must be given"):
        select_experts_fwd(torch.zeros(3, 4, device=compiled.device), None, 2, 0, 0.5, False)
