"""Ten cases that break implementations of mixture-of-experts kernels, each with the result it must have."""

import itertools

import pytest
import torch
from support import DTYPES, check_cvmm, dtype_id, place, routes, values

import sysgen
from sysgen import ops, reference
from sysgen.testing import assert_within, error_bound

F32, BF16 = DTYPES[1], DTYPES[2]


def leaf(t, layout="contiguous"):
    return place(t, layout).requires_grad_()


def cvmm_inputs(shape, dtypes=F32, device="cpu", layout="contiguous", **options):
    """x, weight and gate that require gradients; shape is (tokens, k, d, h, E)."""
    tokens, k, d, h, num_experts = shape
    g = torch.Generator().manual_seed(0)
    return {
        "x": leaf(values(g, (tokens, d), dtypes[0], device), layout),
        "experts": routes(g, (tokens,), k, num_experts, device),
        "weight": leaf(values(g, (num_experts, d, h), dtypes[1], device, scale=max(d, 1) ** -0.5), layout),
        "gate": leaf(values(g, (tokens, k), device=device), layout),
        **options,
    }


def gradients(y, inputs, *names):
    return torch.autograd.grad(y, [inputs[n] for n in names], torch.ones_like(y))


# ---- 1. empty experts, and memory that is not zero by luck


@pytest.mark.parametrize("dtypes", [F32, BF16], ids=dtype_id)
def test_1_empty_experts_in_poisoned_memory(compiled, dtypes):
    inputs = cvmm_inputs((50, 2, 9, 7, 64), dtypes, compiled.device, reduce=True)
    inputs["experts"] = torch.tensor([3, 61], device=compiled.device).repeat(50, 1)
    y = ops.cvmm(**inputs)
    dx, dw = gradients(y, inputs, "x", "weight")
    used = torch.zeros(64, dtype=torch.bool)
    used[[3, 61]] = True
    assert y.isfinite().all() and dx.isfinite().all() and dw.isfinite().all()
    assert not dw[~used].any(), "an unused expert has a gradient"
    assert dw[used].all()


# ---- 2. all routes to one expert


@pytest.mark.parametrize("dtypes", [F32, BF16], ids=dtype_id)
def test_2_one_expert_takes_all(compiled, dtypes):
    tokens = 16384 if compiled.slow else 131072
    inputs = cvmm_inputs((tokens, 1, 11, 6, 512), dtypes, compiled.device, reduce=True)
    inputs["experts"] = torch.full((tokens, 1), 511, device=compiled.device)
    check_cvmm(ops, inputs)
    first, second = (gradients(ops.cvmm(**inputs), inputs, "x", "weight", "gate") for _ in range(2))
    for a, b in zip(first, second):
        assert torch.equal(a, b)


# ---- 3. ugly sizes, bases that are aligned to one element


@pytest.mark.parametrize("dtypes", [F32, BF16], ids=dtype_id)
@pytest.mark.parametrize(
    "shape",
    [
        (7, 3, 1, 1, 4097),
        (7, 24, 3, 5, 565),
        (5, 1, 410, 127, 155),
        (9, 7, 412, 129, 7),
        (11, 3, 2053, 1, 7),
        (3, 1, 2053, 127, 1),
        (4, 155, 1, 129, 155),
        (2, 565, 3, 1, 565),
    ],
    ids=str,
)
def test_3_ugly_sizes(compiled, shape, dtypes):
    for reduce in (False, True):
        check_cvmm(ops, cvmm_inputs(shape, dtypes, compiled.device, "offset", reduce=reduce), what=f"reduce={reduce}")


# ---- 4. nothing to do


@pytest.mark.parametrize(
    "shape, dropped",
    [
        ((0, 2, 3, 4, 5), False),
        ((6, 0, 3, 4, 5), False),
        ((6, 2, 0, 4, 5), False),
        ((6, 2, 3, 0, 5), False),
        ((6, 2, 3, 4, 5), True),
        ((6, 2, 3, 4, 0), True),
        ((0, 0, 0, 0, 0), False),
    ],
    ids=str,
)
def test_4_zero_sizes(compiled, shape, dropped):
    tokens, k, _, h, _ = shape
    for reduce in (False, True):
        inputs = cvmm_inputs(shape, device=compiled.device, reduce=reduce)
        if dropped:
            inputs["experts"] = torch.full_like(inputs["experts"], -1)
        y = ops.cvmm(**inputs)
        assert y.shape == ((tokens, h) if reduce else (tokens, k, h))
        assert not y.any()
        for name, g in zip(("x", "weight", "gate"), gradients(y, inputs, "x", "weight", "gate")):
            assert g.shape == inputs[name].shape and not g.any(), name


# ---- 5. offsets past 2^31 elements
#
# On the CPU the large tensor is memory that the system has promised but not yet given: only what is touched exists.


def untouched(*shape):
    return torch.empty(shape, dtype=torch.bfloat16)


def test_5_rows_past_2_31():
    tokens, d = 1_100_000, 2048
    x = untouched(tokens, d)
    assert x.numel() > 2**31
    g = torch.Generator().manual_seed(0)
    last = torch.arange(tokens - 5, tokens)
    x[last] = values(g, (5, d), torch.bfloat16)
    weight = leaf(values(g, (3, d, 2), torch.bfloat16, scale=d**-0.5))
    experts = torch.full((tokens, 1), -1)
    experts[last, 0] = torch.tensor([0, 2, 2, 0, 2])
    y = ops.cvmm(x, experts, weight)
    small = {"x": x[last].clone(), "experts": experts[last], "weight": weight}
    expected = ops.cvmm(**small)
    check_cvmm(ops, small)
    assert torch.equal(y[last], expected) and not y[: tokens - 5].any()
    dw, small_dw = (torch.autograd.grad(t.float().square().sum(), weight)[0] for t in (y, expected))
    assert torch.equal(dw, small_dw)


def test_5_weights_past_2_31():
    num_experts, d, h = 1100, 2048, 1024
    weight = untouched(num_experts, d, h)
    assert weight.numel() > 2**31
    g = torch.Generator().manual_seed(0)
    x = values(g, (3, d), torch.bfloat16)
    for e in (0, num_experts - 1):
        weight[e] = values(g, (d, h), torch.bfloat16, scale=d**-0.5)
    experts = torch.tensor([[num_experts - 1], [0], [num_experts - 1]])
    small = {"x": x, "experts": experts.clamp(max=1), "weight": weight[[0, -1]]}
    check_cvmm(ops, small)
    assert torch.equal(ops.cvmm(x, experts, weight), ops.cvmm(**small))


@pytest.mark.cuda
def test_5_past_2_31_on_cuda(tokens=1_100_000, d=2048, num_experts=550, device="cuda"):
    if torch.cuda.mem_get_info()[0] < 32 * 2**30:
        pytest.skip("needs 32 GiB of free GPU memory")
    assert tokens * d > 2**31 and num_experts * d * d > 2**31
    g = torch.Generator(device).manual_seed(0)
    x = torch.randn(tokens, d, dtype=torch.bfloat16, device=device, generator=g).requires_grad_()
    weight = torch.randn(num_experts, d, d, dtype=torch.bfloat16, device=device, generator=g).requires_grad_()
    experts = torch.randint(num_experts, (tokens, 1), device=device, generator=g)
    y = ops.cvmm(x, experts, weight, reduce=True)
    dx, dw = torch.autograd.grad(y, (x, weight), x.detach())
    sample = torch.tensor([0, 1, tokens // 2, tokens - 2, tokens - 1], device=device)
    rows, matrices = x.detach()[sample, None].double(), weight.detach()[experts[sample, 0]].double()
    for name, result, w in (("y", y, matrices), ("dx", dx, matrices.mT)):
        exact, size = (rows @ w).squeeze(1), (rows.abs() @ w.abs()).squeeze(1)
        assert_within(result[sample], exact, error_bound(exact, size, torch.bfloat16, (d,)), name)
    for expert in (0, num_experts - 1):
        mine = x.detach()[experts[:, 0] == expert].double()
        exact, size = mine.mT @ mine, mine.abs().mT @ mine.abs()
        assert_within(dw[expert], exact, error_bound(exact, size, torch.bfloat16, (len(mine),)), "dw")


# ---- 6. NaN and infinity stay with their token and their expert


@pytest.mark.parametrize("dtypes", [F32, BF16], ids=dtype_id)
def test_6_nan_and_infinity_stay_where_they_are(compiled, dtypes):
    inputs = cvmm_inputs((200, 2, 67, 19, 6), dtypes, compiled.device)
    with torch.no_grad():
        inputs["weight"][3] = float("nan")
        inputs["x"][17] = float("inf")
    ids = inputs["experts"]
    ids[17] = torch.tensor([0, 5])
    token_17 = torch.zeros_like(ids, dtype=torch.bool)
    token_17[17] = True
    of_3 = ids == 3
    for reduce in (False, True):
        y = ops.cvmm(**inputs, reduce=reduce)
        dx, dw, dgate = gradients(y, inputs, "x", "weight", "gate")
        tainted = of_3 | token_17
        assert torch.equal(~y.isfinite().all(-1), tainted.any(1) if reduce else tainted)
        assert torch.equal(~dx.isfinite().all(-1), of_3.any(1))
        assert torch.equal(~dgate.isfinite(), tainted)
        assert (~dw.isfinite().flatten(1).all(1)).nonzero().flatten().tolist() == [0, 5]


@pytest.mark.parametrize("dtypes", [F32, BF16], ids=dtype_id)
def test_6_nothing_leaks_from_dropped_routes(compiled, dtypes):
    """A row, a gate and an expert without any route may hold NaN."""
    for routed, reduce in itertools.product((False, True), repeat=2):
        inputs = cvmm_inputs((40, 2, 33, 9, 4), dtypes, compiled.device, reduce=reduce)
        inputs["experts"].clamp_(max=2)
        inputs["experts"][5:9] = -1
        inputs["gate"] = inputs["gate"].detach().masked_fill(inputs["experts"] < 0, float("nan")).requires_grad_()
        x = inputs["x"].detach()[:, None].repeat(1, 2, 1)
        x[inputs["experts"] < 0] = float("nan")
        if not routed:
            x = inputs["x"].detach().clone()
            x[5:9] = float("nan")
        inputs["x"] = x.requires_grad_()
        with torch.no_grad():
            inputs["weight"][3] = float("nan")
        y = ops.cvmm(**inputs)
        for t in (y, *gradients(y, inputs, "x", "weight", "gate")):
            assert t.isfinite().all(), f"routed={routed} reduce={reduce}"


# ---- 7. duplicates and invalid ids


def test_7_duplicate_ids_are_summed(compiled):
    inputs = cvmm_inputs((9, 2, 5, 7, 3), device=compiled.device, reduce=True)
    inputs["experts"] = torch.ones_like(inputs["experts"])
    inputs["gate"] = torch.tensor([0.3, 0.7], device=compiled.device).repeat(9, 1).requires_grad_()
    check_cvmm(ops, inputs)
    plain = inputs["x"] @ inputs["weight"][1]
    torch.testing.assert_close(ops.cvmm(**inputs), plain, rtol=2**-21, atol=2**-21)


def test_7_an_invalid_id_is_an_error_on_the_cpu():
    inputs = cvmm_inputs((9, 2, 5, 7, 3))
    inputs["experts"][4, 1] = 8
    with pytest.raises(ValueError, match="expert id 8 at position 9"):
        ops.cvmm(**inputs)


def test_7_an_invalid_id_is_dropped_on_cuda(cuda_kernels, monkeypatch):
    monkeypatch.delenv("SYSGEN_DEBUG", raising=False)
    inputs = cvmm_inputs((9, 2, 5, 7, 3), device=cuda_kernels.device, reduce=True)
    inputs["experts"][4, 1], inputs["experts"][7, 0] = 8, -1
    y = ops.cvmm(**inputs)
    results = y, *gradients(y, inputs, "x", "weight", "gate")
    assert results[3][4, 1] == 0 and results[3][7, 0] == 0
    inputs["experts"][4, 1] = -1
    y = ops.cvmm(**inputs)
    for a, b in zip(results, (y, *gradients(y, inputs, "x", "weight", "gate"))):
        assert torch.equal(a, b)


# ---- 8. strides, aliasing, frozen inputs


@pytest.mark.parametrize("dtypes", [F32, BF16], ids=dtype_id)
@pytest.mark.parametrize("x_layout", ["expanded", "transposed", "sliced", "strided"])
def test_8_strides_and_frozen_inputs(compiled, x_layout, dtypes):
    for needed in itertools.product((False, True), repeat=3):
        inputs = cvmm_inputs((31, 2, 13, 7, 4), dtypes, compiled.device, reduce=True)
        x = inputs["x"].detach()
        x = x[:1].expand(31, 13) if x_layout == "expanded" else place(x, x_layout)
        inputs.update(
            x=x.requires_grad_(needed[0]),
            weight=inputs["weight"].detach().mT.contiguous().mT.requires_grad_(needed[1]),
            gate=place(inputs["gate"].detach(), "strided").requires_grad_(needed[2]),
        )
        assert not inputs["weight"].is_contiguous()
        stride_0 = torch.full((), 0.5, dtype=dtypes[0], device=compiled.device).expand(31, 7)
        check_cvmm(ops, inputs, f"needed={needed}", direction=stride_0)


@pytest.mark.parametrize("dtypes", [F32, BF16], ids=dtype_id)
def test_8_an_input_that_is_used_twice(compiled, dtypes):
    """The same tensor as input of both projections, and as weight of both, gets the sum of its gradients."""
    g = torch.Generator().manual_seed(0)
    square = leaf(values(g, (4, 16, 16), dtypes[1], compiled.device, scale=0.25))
    x = leaf(values(g, (20, 16), dtypes[0], compiled.device))
    experts = routes(g, (20,), 2, 4, compiled.device)
    r = ops.route(experts, 4)
    twice = ops.cvmm(ops.cvmm(x, r, square, reduce=True), r, square, reduce=True)
    together = torch.autograd.grad(twice.sum(), square)[0]
    apart = [square.detach().clone().requires_grad_() for _ in range(2)]
    y = ops.cvmm(ops.cvmm(x, r, apart[0], reduce=True), r, apart[1], reduce=True)
    assert torch.equal(together, sum(torch.autograd.grad(y.sum(), apart)))


# ---- 9. CUDA graphs and streams


def graph_inputs():
    inputs = cvmm_inputs((512, 2, 65, 33, 8), BF16, "cuda")
    w_down = leaf(values(torch.Generator().manual_seed(1), (8, 33, 65), torch.bfloat16, "cuda", scale=0.2))
    arguments = [inputs["x"], inputs["experts"], inputs["gate"], inputs["weight"], w_down]
    leaves = [arguments[i] for i in (0, 2, 3, 4)]

    def run():
        y = ops.moe_ffn(*arguments)
        return [y, *torch.autograd.grad(y, leaves, torch.ones_like(y))]

    return arguments[1], run


@pytest.mark.cuda
def test_9_graph_replay_with_another_routing():
    experts, run = graph_inputs()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for ids in (torch.randint(8, (512, 2)), torch.full((512, 2), 7), torch.full((512, 2), -1), experts.cpu() % 3):
        experts.copy_(ids)
        graph.replay()
        replayed = [t.clone() for t in captured]
        for a, b in zip(replayed, run()):
            assert torch.equal(a, b)


@pytest.mark.cuda
def test_9_two_streams():
    layers = [cvmm_inputs((4096, 4, 128, h, 16), BF16, "cuda", reduce=True) for h in (64, 200)]
    expected = [[ops.cvmm(**i), *gradients(ops.cvmm(**i), i, "x", "weight", "gate")] for i in layers]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    results = []
    for _ in range(10):
        for inputs, stream in zip(layers, streams):
            with torch.cuda.stream(stream):
                y = ops.cvmm(**inputs)
                results.append([y, *gradients(y, inputs, "x", "weight", "gate")])
    torch.cuda.synchronize()
    for i, result in enumerate(results):
        for a, b in zip(result, expected[i % 2]):
            assert torch.equal(a, b)


# ---- 10. numerics (derivatives: test_cvmm.py, test_moe_ffn.py)


def test_10_bfloat16_is_rounded_once(compiled):
    """Positive terms do not cancel, so that the sum of 8192 in float32 is exact to 2⁻¹⁵: one bfloat16 away at most."""
    d = 8192
    inputs = cvmm_inputs((16, 1, d, 8, 2), BF16, compiled.device)
    x, weight = inputs["x"].detach().abs(), inputs["weight"].detach().abs()
    ids = inputs["experts"].clamp(min=0)
    y = ops.cvmm(x, ids, weight)
    exact = reference.cvmm(x.double(), ids, weight.double()).bfloat16()
    steps = (y.view(torch.int16).int() - exact.view(torch.int16).int()).abs()
    assert steps.max() <= 1


@pytest.mark.parametrize("dtypes", [F32, BF16], ids=dtype_id)
def test_10_a_hundred_repeats_are_equal(compiled, dtypes):
    inputs = cvmm_inputs((300, 3, 65, 41, 5), dtypes, compiled.device, reduce=True)
    first = None
    for _ in range(10 if compiled.slow else 100):
        y = ops.cvmm(**inputs)
        results = [y.detach(), *gradients(y, inputs, "x", "weight", "gate")]
        first = first or results
        for a, b in zip(results, first):
            assert torch.equal(a, b)


def test_10_expert_dropout_of_nearly_all_experts(device):
    torch.manual_seed(0)
    layer = sysgen.nn.SigmaMoE(12, num_experts=8, expert_size=5, k=8, expert_dropout=0.99, device=device)
    x = torch.randn(64, 12, device=device, requires_grad=True)
    y, aux = layer(x, return_aux=True)
    (y.square().sum() + aux).backward()
    for t in (y, aux, x.grad, *(p.grad for p in layer.parameters())):
        assert t.isfinite().all()


@pytest.mark.parametrize("selection", ["sigmoid", "softmax", "softmax_after_topk"])
def test_10_ties_go_to_the_lowest_index(device, selection):
    """All logits are equal for a zero input: the experts 0 to k − 1 serve it, and only they."""
    layer = sysgen.nn.SigmaMoE(12, num_experts=16, expert_size=5, k=3, bias=True, selection=selection, device=device)
    experts = []
    with pytest.MonkeyPatch.context() as patch:
        original = ops.moe_ffn
        patch.setattr(ops, "moe_ffn", lambda x, ids, *a, **k: experts.append(ids) or original(x, ids, *a, **k))
        layer.eval()(torch.zeros(7, 12, device=device))
    ids = experts[0].order % 3 if isinstance(experts[0], ops.Route) else experts[0]
    assert ids.view(7, 3).sort(-1).values.tolist() == [[0, 1, 2]] * 7
