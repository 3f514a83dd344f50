"""The reference against the bare formulas, route by route, and its derivatives against finite differences."""

import pytest
import torch

from sysgen.reference import cvmm, moe_ffn, route
from sysgen.testing import check_gradients

SHAPES = [  # lead, k, E, d, h
    ((7,), 3, 5, 4, 6),
    ((2, 3), 2, 1, 1, 1),
    ((), 2, 4, 3, 2),
    ((0,), 2, 3, 4, 5),
    ((5,), 0, 3, 4, 5),
    ((4,), 2, 0, 4, 5),
    ((4,), 2, 3, 0, 5),
    ((4,), 2, 3, 5, 0),
]


def inputs(lead, k, num_experts, d, h, routed=False, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    experts = torch.full((*lead, k), -1)
    if num_experts:
        experts = torch.randint(-1, num_experts, (*lead, k), generator=generator)
    x = randn(*lead, *([k] if routed else []), d)
    return x, experts, randn(num_experts, d, h), randn(*lead, k), randn(num_experts, h)


def route_by_route(x, experts, weight, gate, bias, routed):
    y = x.new_zeros(*experts.shape, weight.shape[2])
    for at in torch.cartesian_prod(*(torch.arange(n) for n in experts.shape)).reshape(-1, experts.dim()).tolist():
        e = int(experts[tuple(at)])
        if e >= 0:
            row = x[tuple(at if routed else at[:-1])]
            y[tuple(at)] = gate[tuple(at)] * (row @ weight[e] + bias[e])
    return y


@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cvmm_is_its_formula(shape, routed):
    x, experts, weight, gate, bias = inputs(*shape, routed)
    expected = route_by_route(x, experts, weight, gate, bias, routed)
    torch.testing.assert_close(cvmm(x, experts, weight, gate=gate, bias=bias), expected)
    given_route = route(experts, weight.shape[0])
    torch.testing.assert_close(cvmm(x, given_route, weight, gate=gate, bias=bias, reduce=True), expected.sum(-2))


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh", "identity"])
def test_moe_ffn_is_its_formula(activation):
    x, experts, w_up, gate, b_up = inputs((7,), 3, 5, 4, 6)
    w_down = inputs((7,), 3, 5, 6, 2, seed=1)[2]
    act = getattr(torch.nn.functional, activation, lambda z: z)
    expected = x.new_zeros(7, 2)
    for t in range(7):
        for j in range(3):
            e = int(experts[t, j])
            if e >= 0:
                expected[t] = expected[t] + gate[t, j] * (act(x[t] @ w_up[e] + b_up[e]) @ w_down[e])
    torch.testing.assert_close(moe_ffn(x, experts, gate, w_up, w_down, b_up=b_up, activation=activation), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_route_sorts_stably(shape):
    lead, k, num_experts = shape[:3]
    experts = inputs(*shape)[1]
    r = route(experts, num_experts)
    ids = experts.flatten().tolist()
    kept = sorted((e, i) for i, e in enumerate(ids) if e >= 0)
    dropped = [i for i, e in enumerate(ids) if e < 0]
    assert r.order.tolist() == [i for _, i in kept] + dropped
    assert r.offsets.tolist() == [sum(e < bound for e, _ in kept) for bound in range(num_experts + 1)]
    place = {i: p for p, (_, i) in enumerate(kept)}
    assert r.inverse.flatten().tolist() == [place.get(i, -1) for i in range(len(ids))]
    assert {r.order.dtype, r.inverse.dtype, r.offsets.dtype} == {torch.int32}
    assert (r.lead_shape, r.k, r.num_experts, tuple(r.inverse.shape)) == (lead, k, num_experts, (*lead, k))


@pytest.mark.parametrize("bad", [-2, 5])
def test_route_refuses_ids_out_of_range(bad):
    with pytest.raises(ValueError, match="experts"):
        route(torch.tensor([0, bad, 4]), 5)


@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("reduce", [False, True])
def test_cvmm_derivatives(routed, reduce):
    x, experts, weight, gate, bias = inputs((3,), 2, 3, 2, 2, routed)
    check_gradients(
        lambda x, weight, gate, bias: cvmm(x, experts, weight, gate=gate, bias=bias, reduce=reduce),
        (x, weight, gate, bias),
    )


@pytest.mark.parametrize("activation", ["gelu", "silu", "tanh"])
def test_moe_ffn_derivatives(activation):
    x, experts, w_up, gate, b_up = inputs((3,), 2, 3, 2, 2)
    w_down = inputs((3,), 2, 3, 2, 3, seed=1)[2]
    check_gradients(
        lambda x, gate, w_up, w_down, b_up: moe_ffn(x, experts, gate, w_up, w_down, b_up=b_up, activation=activation),
        (x, gate, w_up, w_down, b_up),
    )


def test_without_routes_all_gradients_are_zero():
    x, experts, weight, gate, bias = inputs((4,), 2, 3, 2, 5)
    y = cvmm(x, torch.full_like(experts, -1), weight, gate=gate, bias=bias, reduce=True)
    assert not y.any()
    for gradient in torch.autograd.grad(y.sum(), (x, weight, gate, bias)):
        assert not gradient.any()


def test_nan_stays_with_its_token_and_expert():
    x, experts, weight, gate, bias = inputs((50,), 2, 6, 3, 4)
    with torch.no_grad():
        weight[2] = torch.nan
        x[7] = torch.inf
        gate[experts == -1] = torch.nan
    y = cvmm(x, experts, weight, gate=gate, bias=bias)
    hit = ((experts == 2) | (torch.arange(50) == 7)[:, None]) & (experts >= 0)
    assert torch.equal(~y.isfinite().all(-1), hit)
    assert not y[experts == -1].any()
    dx, dweight, dgate = torch.autograd.grad(y.sum(), (x, weight, gate))
    assert torch.equal(~dx.isfinite().all(-1), (experts == 2).any(-1))
    assert torch.equal(~dgate.isfinite(), hit)
    visited = torch.zeros(6, dtype=torch.bool)
    visited[experts[7][experts[7] >= 0]] = True
    assert torch.equal(~dweight.isfinite().flatten(1).all(-1), visited)
