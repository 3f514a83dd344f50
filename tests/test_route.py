"""Routing against a stable sort."""

import pytest
import torch
from support import place, routes

from sysgen import ops


def expected(experts, num_experts):
    """(order, inverse, offsets) as documented, by a stable sort with the dropped routes last."""
    ids = experts.flatten().long().cpu()
    kept = (ids >= 0) & (ids < num_experts)
    key = torch.where(kept, ids, num_experts)
    order = torch.sort(key, stable=True).indices
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel())
    inverse[~kept] = -1
    offsets = torch.zeros(num_experts + 1, dtype=torch.int64)
    offsets[1:] = ids[kept].bincount(minlength=num_experts).cumsum(0)
    return order, inverse.view(experts.shape), offsets


def assert_route(r, experts, num_experts):
    for name, value in zip(("order", "inverse", "offsets"), expected(experts, num_experts)):
        actual = getattr(r, name)
        assert actual.dtype == torch.int32 and actual.device == experts.device
        assert torch.equal(actual.cpu().long(), value), name
    assert r.num_experts == num_experts
    assert (*r.lead_shape, r.k) == tuple(experts.shape)


SHAPES = [
    ((13, 2), 3),
    ((1, 1), 1),
    ((0, 2), 3),
    ((5, 0), 4),
    ((0,), 2),
    ((7,), 3),
    ((4, 3, 5), 11),
    ((2, 0, 3), 5),
    ((6, 2), 0),
    ((300, 7), 1),
    ((1023, 3), 257),
    ((1000, 2), 65536),
    ((40000, 3), 155),  # large enough for several threads
    ((9000, 8), 70000),  # more experts than routes a thread
]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape, num_experts", SHAPES)
def test_order_inverse_offsets(backend, shape, num_experts, dtype):
    generator = torch.Generator().manual_seed(0)
    for dropped in (0.0, 0.2, 1.0):
        experts = routes(generator, shape[:-1], shape[-1], num_experts, backend.device, dropped).to(dtype)
        assert_route(backend.ops.route(experts, num_experts), experts, num_experts)


@pytest.mark.parametrize("layout", ["sliced", "transposed", "strided", "offset"])
@pytest.mark.parametrize("shape", [(31, 3), (1, 31, 1), (4, 7, 3)], ids=str)
def test_strides(compiled, shape, layout):
    experts = routes(torch.Generator().manual_seed(1), shape[:-1], shape[-1], 5, compiled.device)
    assert_route(ops.route(place(experts, layout), 5), experts, 5)


def test_expanded(compiled):
    experts = torch.tensor([2, -1, 0], device=compiled.device).expand(4, 5, 3)
    assert_route(ops.route(experts, 3), experts, 3)


def test_ties_keep_the_order_of_routes(compiled):
    r = ops.route(torch.zeros(50000, 2, dtype=torch.int64, device=compiled.device), 3)
    assert torch.equal(r.order.cpu(), torch.arange(100000, dtype=torch.int32))


BAD_IDS = [5, 6, -2, -(2**31), 2**31, 2**32, 2**32 + 1, -(2**32), 2**63 - 1, -(2**63)]


@pytest.mark.parametrize("bad", BAD_IDS)
@pytest.mark.parametrize("num_tokens", [7, 60000])
def test_an_id_out_of_range_is_an_error(bad, num_tokens):
    experts = torch.zeros(num_tokens, 2, dtype=torch.int64)
    experts[num_tokens // 2, 1] = bad
    position = num_tokens // 2 * 2 + 1
    with pytest.raises(ValueError, match=rf"^route: expert id {bad} at position {position} .* 5 experts"):
        ops.route(experts, 5)


def test_the_first_bad_id_is_named_whatever_the_threads():
    experts = torch.zeros(60000, 2, dtype=torch.int64)
    experts[10, 0], experts[59999, 1] = 8, 9
    with pytest.raises(ValueError, match=r"expert id 8 at position 20 "):
        ops.route(experts, 5)


@pytest.mark.parametrize("bad", BAD_IDS)
def test_an_id_out_of_range_drops_its_route_on_cuda(cuda_kernels, bad, monkeypatch):
    monkeypatch.delenv("SYSGEN_DEBUG", raising=False)
    experts = torch.zeros(3000, 2, dtype=torch.int64, device=cuda_kernels.device)
    experts[1000, 1] = bad
    assert_route(ops.route(experts, 5), experts, 5)


@pytest.mark.cuda
def test_an_id_out_of_range_is_an_error_on_cuda_in_debug_mode(monkeypatch):
    monkeypatch.setenv("SYSGEN_DEBUG", "1")
    experts = torch.zeros(3000, 2, dtype=torch.int64, device="cuda")
    experts[1000, 1] = 5
    with pytest.raises(ValueError, match=r"route: expert id 5 at position 2001 .*SYSGEN_DEBUG"):
        ops.route(experts, 5)


@pytest.mark.cuda
def test_the_same_order_on_both_devices():
    experts = routes(torch.Generator().manual_seed(2), (70000,), 4, 1000)
    for here, there in zip(ops.route(experts, 1000)[:3], ops.route(experts.cuda(), 1000)[:3]):
        assert torch.equal(here, there.cpu())


@pytest.mark.parametrize(
    "experts, num_experts, error, message",
    [
        ([[0, 1]], 2, TypeError, r"route: experts must be a torch.Tensor, got list"),
        (torch.zeros(3, 2), 2, TypeError, r"route: experts must be int64 or int32, got float32"),
        (torch.zeros(3, 2, dtype=torch.int16), 2, TypeError, r"route: experts must be .* got int16"),
        (torch.zeros(3, 2, dtype=torch.bool), 2, TypeError, r"route: experts must be .* got bool"),
        (torch.tensor(1), 2, ValueError, r"route: experts must have at least one dimension"),
        (torch.zeros(3, 2, dtype=torch.int64), -1, ValueError, r"route: num_experts must be in .* got -1"),
        (torch.zeros(3, 2, dtype=torch.int64), 2**31, ValueError, r"route: num_experts must be in .* got 2147483648"),
        (torch.zeros(3, 2, dtype=torch.int64), 2.0, TypeError, r"route: num_experts must be an int, got float"),
        (torch.zeros(3, 2, dtype=torch.int64), True, TypeError, r"route: num_experts must be an int, got bool"),
        (torch.zeros(3, 2, dtype=torch.int64), "2", TypeError, r"route: num_experts must be an int, got str"),
        (torch.zeros(3, 2, dtype=torch.int64), None, TypeError, r"route: num_experts must be an int, got NoneType"),
        (torch.zeros(3, 2, dtype=torch.int64), torch.tensor(2), TypeError, r"route: num_experts must be an int"),
    ],
)
def test_wrong_arguments(experts, num_experts, error, message):
    with pytest.raises(error, match=message):
        ops.route(experts, num_experts)
