"""The memory operations against cases with known results, and their reference against finite differences."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from sysgen.reference import dnc


class OnCpu:
    """The operations of a backend over tensors on the CPU."""

    def __init__(self, backend):
        self.backend = backend

    def __getattr__(self, name):
        def call(*arguments, **options):
            moved = (a.to(self.backend.device) if isinstance(a, torch.Tensor) else a for a in arguments)
            result = getattr(self.backend.ops, name)(*moved, **options)
            return tuple(t.cpu() for t in result) if isinstance(result, tuple) else result.cpu()

        return call


@pytest.fixture
def ops(backend):
    return OnCpu(backend)


def rand(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.rand(*shape, dtype=torch.float64, generator=generator)


def distribution(*shape, seed=0):
    w = rand(*shape, seed=seed)
    return w / (w.sum(-1, keepdim=True) + 1)


def one_hot(index, n):
    return torch.eye(n, dtype=torch.float64)[index]


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(actual, expected, atol=1e-12):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def test_content_is_the_softmax_of_cosines():
    memory, key, strength = rand(5, 10, 2) - 0.5, rand(5, 4, 2, seed=1) - 0.5, 5 * rand(5, 4)
    memory[0, :3] = torch.tensor([[1, 2], [3, 4], [5, 6]])
    key[0] = torch.tensor([[5, 6], [1, 2], [5, 6], [3, 4]])
    cosine = torch.cosine_similarity(key[:, :, None], memory[:, None], dim=3)
    close(dnc.content_address(memory, key, strength, eps=0), (strength[..., None] * cosine).softmax(2))
    close(dnc.content_address(memory, key, 0 * strength), torch.full((5, 4, 10), 0.1, dtype=torch.float64))


def test_a_masked_word_does_not_matter():
    memory, key, mask = rand(2, 6, 4), rand(2, 3, 4, seed=1), rand(2, 3, 4, seed=2)
    strength = 1 + rand(2, 3)
    close(dnc.content_address(memory, key, strength, torch.ones_like(mask)), dnc.content_address(memory, key, strength))
    mask[..., 1] = 0
    before = dnc.content_address(memory, key, strength, mask)
    memory[..., 1] += 100
    close(dnc.content_address(memory, key, strength, mask), before)
    explicit = (mask[:, :, None] * memory[:, None], mask * key)
    cosine = (explicit[0] * explicit[1][:, :, None]).sum(3) / (
        explicit[0].norm(dim=3) * explicit[1].norm(dim=2)[..., None] + 1e-6
    )
    close(before, (strength[..., None] * cosine).softmax(2))


def test_empty_memory_is_read_evenly_with_finite_gradients():
    memory, key, strength = torch.zeros(1, 5, 3), torch.zeros(1, 2, 3), torch.full((1, 2), 1e4)
    memory[0, 0] = 1
    key[0, 0] = 1
    inputs = [x.double().requires_grad_() for x in (memory, key, strength)]
    weights = dnc.content_address(*inputs)
    close(weights[0, 0].detach(), one_hot(0, 5))
    close(weights[0, 1].detach(), torch.full((5,), 0.2, dtype=torch.float64))
    for grad in torch.autograd.grad(weights[..., 0].sum(), inputs):
        assert grad.isfinite().all()


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (t(0, 0, 0, 0), (1 - 1e-6) * t(1, 1e-6, 1e-12, 1e-18)),
        (t(1, 1, 1), t(0, 0, 0)),
        (t(0.5, 0.5, 0.2, 0.2), t(0.02, 0.01, 0.8, 0.16)),
        (t(0, 1, 0, 1), t(1, 0, 0, 0)),
        (t(0.3), t(0.7)),
    ],
)
def test_allocation(ops, usage, expected):
    close(ops.allocation(usage[None])[0], expected, atol=2e-6 if usage.sum() else 1e-18)


def test_allocation_follows_usage(ops):
    usage = rand(7, 13)
    a = ops.allocation(usage)
    assert (a.argmax(1) == usage.argmin(1)).all() and (a.argmin(1) == usage.argmax(1)).all()
    product = (usage * (1 - 1e-6) + 1e-6).prod(1)
    close(a.sum(1), 1 - product)


def test_usage_rises_where_written_and_falls_where_freed(ops):
    read, write = distribution(5, 3, 11), distribution(5, 11, seed=1)
    free, usage = rand(5, 3), rand(5, 11, seed=2)
    write[1] = one_hot(3, 11)
    read[1, :, 3] = 0
    read[2, 0] = one_hot(4, 11)
    free[2, 0] = 1
    updated = ops.usage_update(usage, write, ops.retention(read, free))
    assert ((updated >= 0) & (updated <= 1)).all()
    assert updated[1, 3] == 1 and updated[2, 4] == 0


def test_links_follow_the_order_of_writing(ops):
    n = 4
    link, precedence = torch.zeros(1, n, n, dtype=torch.float64), torch.zeros(1, n, dtype=torch.float64)
    for cell in (0, 1, 2):
        link, precedence = ops.link_update(link, precedence, one_hot(cell, n)[None])
    expected = torch.zeros(n, n, dtype=torch.float64)
    expected[1, 0] = expected[2, 1] = 1
    close(link[0], expected)
    forward, backward = ops.link_read(link, one_hot(1, n)[None, None])
    close(forward[0, 0], one_hot(2, n))
    close(backward[0, 0], one_hot(0, n))
    link, precedence = ops.link_update(link, precedence, one_hot(1, n)[None])
    expected = torch.zeros(n, n, dtype=torch.float64)
    expected[1, 2] = 1
    close(link[0], expected)
    close(precedence[0], one_hot(1, n))


def test_links_stay_substochastic(ops):
    link, precedence = torch.zeros(3, 6, 6, dtype=torch.float64), torch.zeros(3, 6, dtype=torch.float64)
    for step in range(50 if ops.backend.slow else 1000):
        link, precedence = ops.link_update(link, precedence, distribution(3, 6, seed=step))
    assert (link.diagonal(dim1=1, dim2=2) == 0).all()
    assert link.min() >= 0 and link.sum(1).max() <= 1 + 1e-6 and link.sum(2).max() <= 1 + 1e-6


def test_precedence_is_kept_or_replaced(ops):
    precedence, w = distribution(3, 5, seed=1), distribution(3, 5)
    w[0], w[1] = 0, w[1] / w[1].sum()
    link, updated = ops.link_update(torch.zeros(3, 5, 5, dtype=torch.float64), precedence, w)
    assert updated.min() >= 0 and updated.sum(1).max() <= 1 + 1e-15
    assert torch.equal(updated[0], precedence[0]) and (link[0] == 0).all()
    close(updated[1], w[1], atol=1e-15)


def test_links_after_a_history_still_name_the_last_two_writes_exactly(ops):
    """Random writes, then cell 0 and cell 1 (sample 0), 3 and 2 (sample 1): the other links of these are gone."""
    link, precedence = torch.zeros(2, 4, 4, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64)
    writes = [distribution(2, 4, seed=s) for s in range(3)] + [one_hot([0, 3], 4), one_hot([1, 2], 4)]
    for w in writes:
        link, precedence = ops.link_update(link, precedence, w)
    assert torch.equal(link[0, :, 0], one_hot(1, 4)) and torch.equal(link[1, :, 3], one_hot(2, 4))
    forward, backward = ops.link_read(link, torch.stack([one_hot([0], 4), one_hot([2], 4)]))
    assert torch.equal(forward[0, 0], one_hot(1, 4)) and torch.equal(backward[1, 0], one_hot(3, 4))


def test_an_unused_and_a_hardly_used_cell_are_allocated_one_after_the_other(ops):
    usage = 0.1 + 0.9 * rand(1, 23)
    usage[0, 4], usage[0, 3] = 0, 1e-4
    first = ops.allocation(usage)
    close(first, one_hot([4], 23), atol=1e-3)
    close(ops.allocation(usage + (1 - usage) * first), one_hot([3], 23), atol=1e-3)


def test_sharpening_by_one_leaves_distributions_as_they_are(ops):
    """On a vector that sums to 1 − N ε the result is d + ε."""
    d = rand(1, 1, 5)
    d *= (1 - 5e-6) / d.sum()
    link = torch.zeros(1, 5, 5, dtype=torch.float64)
    link[0, :, 2] = d[0, 0]  # the reader of cell 2 sees d; its own entry is not a link, but a number like others
    sharp, _ = ops.link_read(link, one_hot([2], 5)[None], torch.ones(1, 1).double(), torch.ones(1, 1).double())
    close(sharp, d + 1e-6)


def test_sharpening_is_a_normalised_power(ops):
    link, read = 0.2 * rand(2, 5, 5), distribution(2, 3, 5)
    forward, backward = (1 + 3 * rand(2, 3, seed=s) for s in (1, 2))
    plain = ops.link_read(link, read)
    for sharp, d, s in zip(ops.link_read(link, read, forward, backward), plain, (forward, backward)):
        power = (d + 1e-6) ** s[..., None]
        close(sharp, power / power.sum(2, keepdim=True))
    uniform = ops.link_read(link, read, 0 * forward, 0 * backward)
    close(uniform[0], torch.full_like(uniform[0], 0.2))


def test_sharpening_survives_extremes(ops):
    link, read = torch.zeros(1, 3, 3), torch.full((1, 1, 3), 0.3)
    link[0, 0] = torch.tensor([-3e-4, 0.1, 0.2])  # as rounding may leave it
    for s in (0.0, 200.0, 1e4):
        sharp = ops.link_read(link, read, torch.full((1, 1), s), torch.full((1, 1), s))
        for weights in sharp:
            assert weights.isfinite().all() and abs(weights.sum() - 1) < 1e-6


def test_memory_is_erased_written_and_read():
    memory, everything, nothing = t(1, 0, 0, 0).view(1, 1, 4), torch.ones(1, 4).double(), torch.zeros(1, 4).double()
    w = torch.ones(1, 1, dtype=torch.float64)
    written = dnc.memory_write(memory, w, t(0, 1, 1, 1)[None], t(0, 1, 1, 1)[None])
    close(written[0, 0], t(1, 1, 1, 1))
    close(dnc.memory_write(memory, w, nothing, nothing), memory)
    close(dnc.memory_write(memory, w, t(0.5, 0, 0, 0)[None], t(0.2, 0, 0, 0)[None])[0, 0], t(0.7, 0, 0, 0))
    two, half = torch.stack([t(1, 0, 1, 0), t(0, 1, 1, 1)])[None], t(0.5, 0.5)[None]
    halved = dnc.memory_write(two, half, everything, nothing)
    close(dnc.memory_read(halved, half[None])[0, 0], t(0.25, 0.25, 0.5, 0.25))
    close(dnc.memory_write(memory, 0 * w, everything, everything, retention=0 * w), 0 * memory)
    close(dnc.memory_read(torch.stack([t(1, 0), t(0, 2)])[None], t(0.5, 0.5).view(1, 1, 2))[0, 0], t(0.5, 1))


def test_ntm_addressing():
    memory, key = torch.eye(4, dtype=torch.float64)[None], one_hot(0, 4).view(1, 1, 4)
    one = torch.ones(1, 1, dtype=torch.float64)
    shifts = torch.eye(3, dtype=torch.float64)[:, None, None]
    for shift, focus in zip(shifts, (1, 0, 3)):  # entry 0 moves the focus one cell on
        w = dnc.ntm_address(memory, key, 100 * one, one, shift, 100 * one, torch.zeros(1, 1, 4, dtype=torch.float64))
        close(w[0, 0], one_hot(focus, 4))
    nothing = torch.zeros(1, 1, 4, dtype=torch.float64)
    assert (dnc.ntm_address(memory, key, one, 0 * one, shifts[1], one, nothing) == 0).all()
    small = dnc.ntm_address(memory, key, one, 0 * one, shifts[1], 8 * one, nothing + 1e-60)
    close(small, torch.full_like(small, 0.25))  # its 8th power underflows


CASES = {
    "content": (dnc.content_address, rand(2, 4, 3), rand(2, 2, 3, seed=1), 1 + rand(2, 2), rand(2, 2, 3, seed=2)),
    "retention": (dnc.retention, distribution(2, 3, 4), rand(2, 3)),
    "usage": (lambda u, w, p: dnc.usage_update(u, w, p, False), rand(2, 4), distribution(2, 4), rand(2, 4, seed=1)),
    "allocation": (dnc.allocation, rand(2, 5)),
    "write": (dnc.memory_write, rand(2, 4, 3), distribution(2, 4), rand(2, 3), rand(2, 3, seed=1), rand(2, 4, seed=2)),
    "link update": (dnc.link_update, rand(2, 4, 4), distribution(2, 4), distribution(2, 4, seed=1)),
    "link read": (dnc.link_read, rand(2, 4, 4), distribution(2, 2, 4), 1 + rand(2, 2), 1 + rand(2, 2, seed=1)),
    "read": (dnc.memory_read, rand(2, 4, 3), distribution(2, 2, 4)),
    "ntm": (
        dnc.ntm_address,
        rand(2, 4, 3),
        rand(2, 2, 3, seed=1),
        1 + rand(2, 2),
        rand(2, 2, seed=1),
        rand(2, 2, 3, seed=2).softmax(2),
        1 + rand(2, 2, seed=3),
        distribution(2, 2, 4),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_derivatives(case):
    function, *inputs = CASES[case]
    inputs = [x.clone().requires_grad_() for x in inputs]
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


def test_write_weights_are_detached_by_default(ops):
    usage, w, psi = rand(1, 3), distribution(1, 3).requires_grad_(), rand(1, 3, seed=1).requires_grad_()
    updated = ops.usage_update(usage, w, psi)
    assert torch.autograd.grad(updated.sum(), w, allow_unused=True) == (None,)
