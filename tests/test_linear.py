"""Dense products by CVMM's kernels against torch's, in the layers that use them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sysgen.nn import _linear
from sysgen.ops import _products
from sysgen.testing import assert_within, error_bound


def assert_close(result, first, second):
    """Against the product of the two factors in float64."""
    first, second = first.double(), second.double()
    value = first @ second
    bound = error_bound(value, first.abs() @ second.abs(), torch.float32, (first.shape[1],))
    assert result.dtype == torch.float32
    assert_within(result, value, bound)


@pytest.mark.parametrize("rows, d, h", [(0, 5, 3), (1, 1, 1), (7, 33, 20), (200, 64, 129)])
def test_products(isa, rows, d, h):
    x, w, y = torch.randn(rows, d + 3)[:, 3:], torch.randn(h, d).t(), torch.randn(rows, h + 2)[:, :h]
    route = _products.one_expert(rows)
    assert_close(_products.product(x, w, route), x, w)
    out = torch.full((rows, h), torch.nan)
    assert _products.product(x, w, route, out) is out
    assert_close(out, x, w)
    wide = torch.full((rows, h + 1), torch.nan)
    _products.product(x, w, route, wide[:, :h])
    assert_close(wide[:, :h], x, w)
    assert wide[:, h].isnan().all()
    assert_close(_products.outer(x, y, route), x.t(), y)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("lead", [(), (6,), (2, 3), (0, 3)], ids=str)
def test_linear_and_its_derivatives(isa, lead, bias):
    """Of the first and the second order, against those of F.linear in float64."""
    module = nn.Linear(7, 5, bias=bias)
    x, dy = torch.randn(*lead, 7), torch.randn(*lead, 5)

    def results(linear, dtype):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, *module.parameters())]
        y = linear(*leaves)
        first = torch.autograd.grad(y, leaves, dy.to(dtype).requires_grad_(), create_graph=True)
        second = torch.autograd.grad([g.square().sum() for g in first], leaves, allow_unused=True)
        return [y, *first, *(torch.zeros(()).to(dtype) if g is None else g for g in second)]

    for ours, exact in zip(results(_linear.linear, torch.float32), results(F.linear, torch.float64), strict=True):
        # Three sums of at most 7 terms follow one another, and a square: 4 · √7 units each, in the norm.
        assert ours.shape == exact.shape and (ours.double() - exact).norm() <= 64 * 2**-24 * exact.norm()


def test_linear_leaves_transforms_and_other_dtypes_to_torch():
    x, w = torch.randn(3, 7), torch.randn(5, 7)
    assert torch.equal(torch.vmap(lambda t: _linear.linear(t, w))(x[None])[0], F.linear(x, w))
    gradient = torch.func.grad(lambda t: _linear.linear(t, w).sum())(x)
    torch.testing.assert_close(gradient, w.sum(0).expand(3, 7))
    with torch.autocast("cpu", torch.bfloat16):
        assert _linear.linear(x, w).dtype == torch.bfloat16
    assert torch.equal(_linear.linear(x.double(), w.double()), F.linear(x.double(), w.double()))
    module = nn.Linear(7, 5)
    seen = []
    module.register_forward_hook(lambda *a: seen.append(a))
    _linear.apply(module, x)
    assert len(seen) == 1
