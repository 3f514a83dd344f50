"""The DNC's recurrence in one operation against the reference: outputs, every gradient, all eight variants."""

import itertools

import pytest
import torch

from sysgen import reference
from sysgen.ops import DNCState, dnc_sequence
from sysgen.ops._dnc_ops import interface_size

# T, B, X, H, N, W, R: ragged, one of everything, more cells than a vector has lanes, more heads than share a pass
SIZES = [
    (7, 3, 5, 6, 9, 4, 2),
    (5, 2, 3, 8, 17, 5, 1),
    (4, 5, 3, 7, 5, 3, 6),
    (1, 1, 1, 1, 1, 1, 1),
    (3, 1, 2, 5, 33, 2, 4),
]
VARIANTS = list(itertools.product([False, True], repeat=3))


def problem(sizes, masked, sharpen, dtype=torch.float64, empty=False, device="cpu"):
    """input, a state that a recurrence could be in, weights."""
    steps, b, x, h, n, w, r = sizes
    generator = torch.Generator().manual_seed(sum(sizes))

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    def distribution(*shape):
        weights = rand(*shape)
        return weights / (weights.sum(-1, keepdim=True) + 1)

    interface = interface_size(r, w, masked, sharpen)
    state = DNCState(
        hidden=randn(b, h) / 3,
        cell=randn(b, h) / 3,
        memory=randn(b, n, w) / 2,
        usage=rand(b, n),
        link=rand(b, n, n) / n * (1 - torch.eye(n, dtype=dtype, device=device)),
        precedence=distribution(b, n),
        write_weights=distribution(b, n),
        read_weights=distribution(b, r, n),
        reads=randn(b, r, w) / 3,
    )
    if empty:
        state = DNCState.zeros(b, h, n, w, r, device, dtype)
    weights = (
        randn(4 * h, x) / x**0.5,
        randn(4 * h, h) / h**0.5,
        randn(4 * h, r * w) / (r * w) ** 0.5,
        randn(4 * h) / 10,
        randn(interface, h) * 2 / h**0.5,
        randn(interface) / 3,
    )
    return randn(steps, b, x), state, weights


def run(function, sizes, masked, sharpen, dtype=torch.float64, device="cpu", **options):
    """Outputs, and the gradients of a random projection of all of them by all inputs."""
    x, state, weights = problem(sizes, masked, sharpen, dtype, device=device)
    leaves = [t.clone().requires_grad_() for t in (x, *state, *weights)]
    hidden, reads, last = function(
        leaves[0], DNCState(*leaves[1:10]), *leaves[10:], masked=masked, sharpen=sharpen, **options
    )
    outputs = [hidden, reads, *last]
    generator = torch.Generator().manual_seed(1)
    loss = sum((y * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(dtype)).sum() for y in outputs)
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return [y.detach() for y in outputs], gradients


def assert_close(actual, expected, bound):
    """Largest error of each tensor relative to its largest element."""
    for a, e in zip(itertools.chain(*actual), itertools.chain(*expected)):
        assert a.shape == e.shape
        if a.numel():
            assert (a - e).abs().max() <= bound * (e.abs().max() + 1e-3)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "".join(n for n, on in zip("MDS", v) if on) or "plain")
def test_variants(compiled, variant, sizes):
    """float64: a few thousand operations of 2⁻⁵³ a step, and slopes up to some hundreds where links are sharpened."""
    masked, dealloc, sharpen = variant
    if compiled.slow and sizes != SIZES[0] and variant not in (VARIANTS[0], VARIANTS[-1]):
        pytest.skip("sizes and variants meet on the other backends")
    options = {"dealloc": dealloc, "mask_min": 0.1 if dealloc else 0.0, "detach_write": masked}
    lengths = torch.randint(0, sizes[0] + 1, (sizes[1],), generator=torch.Generator().manual_seed(0))
    options |= {"lengths": lengths.to(compiled.device), "device": compiled.device}
    actual = run(dnc_sequence, sizes, masked, sharpen, **options)
    assert_close(actual, run(reference.dnc_sequence, sizes, masked, sharpen, **options), 1e-10)


def test_float32(compiled):
    """As float64, with 2⁻²⁴ in the place of 2⁻⁵³: 1e-10 · 2²⁹ would allow 5 %; 1e-3 is what 1e4 roundings give."""
    actual = run(dnc_sequence, SIZES[0], True, True, dtype=torch.float32, device=compiled.device)
    expected = run(reference.dnc_sequence, SIZES[0], True, True, device=compiled.device)
    assert_close(([t.double() for t in part] for part in actual), expected, 1e-3)


@pytest.mark.parametrize("chunk", [2, 3, 7, 100])
def test_any_distance_of_checkpoints_gives_the_same_bits(compiled, chunk):
    expected = run(dnc_sequence, SIZES[0], True, True, device=compiled.device, checkpoint_every=1)
    actual = run(dnc_sequence, SIZES[0], True, True, device=compiled.device, checkpoint_every=chunk)
    if compiled.device == "cuda":  # a compiler may contract the same operations of two kernels differently
        return assert_close(actual, expected, 1e-10)
    for a, e in zip(itertools.chain(*actual), itertools.chain(*expected)):
        assert torch.equal(a, e)


def test_many_cells(compiled):
    """Links of several blocks of rows, repeated over two updates; samples that go back one after the other."""
    if compiled.slow:
        pytest.skip("the memory is too large for the emulator, which meets blocks of rows elsewhere")
    sizes = (3, 2, 2, 4, 600, 3, 2)
    actual = run(dnc_sequence, sizes, True, True, device=compiled.device, checkpoint_every=3)
    assert_close(actual, run(reference.dnc_sequence, sizes, True, True, device=compiled.device), 1e-10)


def test_half_inputs_and_weights(compiled):
    """The state, and with it everything that is computed, stays float32."""
    x, state, weights = problem(SIZES[0], True, True, torch.float32, device=compiled.device)
    x, *weights = (t.bfloat16() for t in (x, *weights))
    hidden, reads, last = dnc_sequence(x, state, *weights)
    expected = dnc_sequence(x.float(), state, *(w.float() for w in weights))
    assert torch.equal(hidden, expected[0].bfloat16()) and torch.equal(reads, expected[1].bfloat16())
    for a, e in zip(last, expected[2]):
        assert a.dtype == torch.float32 and torch.equal(a, e)


@pytest.mark.parametrize(
    "sizes",
    [
        (6, 8, 16, 64, 64, 16, 2),  # enough work for two threads, which share the samples
        # or the passes over one sample, and over two; blocks of cells with a rest. An input of one number: torch's own
        # product of a wider one depends on the threads.
        (3, 1, 1, 80, 197, 17, 3),
        (3, 2, 1, 80, 197, 17, 5),
    ],
)
def test_the_number_of_threads_does_not_matter(sizes):
    previous = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            x, state, weights = problem(sizes, True, True, torch.float32)
            hidden, reads, last = dnc_sequence(x, state, *weights)
            gradients = _memory_gradients(x, state, weights)
            results.append((hidden, reads, *last, *gradients))
    finally:
        torch.set_num_threads(previous)
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert torch.equal(a, b)


def _memory_gradients(x, state, weights):
    """The gradients that the recurrence itself computes; those of the weights are products of torch."""
    leaves = [t.clone().requires_grad_() for t in state]
    hidden, reads, _ = dnc_sequence(x, DNCState(*leaves), *weights)
    return torch.autograd.grad(hidden.square().sum() + reads.square().sum(), leaves, materialize_grads=True)


def test_two_calls_are_one(compiled):
    x, state, weights = problem(SIZES[0], True, True, device=compiled.device)
    hidden, reads, last = dnc_sequence(x, state, *weights)
    hidden1, reads1, middle = dnc_sequence(x[:3], state, *weights)
    hidden2, reads2, end = dnc_sequence(x[3:], middle, *weights)
    # torch's product of the input may sum in another order for another number of rows
    for a, b in ((hidden, torch.cat([hidden1, hidden2])), (reads, torch.cat([reads1, reads2])), *zip(last, end)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("batch", [1, 2, 9])
def test_steps_alone_have_the_bits_of_the_sequence(batch, dtype):
    """However the weights of the controller are read: packed for many steps, as they lie for few. An input of one
    number, since torch's product of a wider one depends on the number of rows."""
    x, state, weights = problem((6, batch, 1, 37, 19, 5, 2), True, True, dtype)
    hidden, reads, last = dnc_sequence(x, state, *weights)
    for t in range(len(x)):
        h, r, state = dnc_sequence(x[t : t + 1], state, *weights)
        assert torch.equal(h[0], hidden[t]) and torch.equal(r[0], reads[t])
    for a, b in zip(last, state):
        assert torch.equal(a, b)


def test_lengths_are_those_of_each_sample_alone(compiled):
    x, state, weights = problem(SIZES[0], True, True, device=compiled.device)
    lengths = torch.tensor([4, 0, 7], device=compiled.device)
    hidden, reads, last = dnc_sequence(x, state, *weights, lengths=lengths)
    for b, n in enumerate(lengths.tolist()):
        alone = DNCState(*(t[b : b + 1] for t in state))
        h, r, end = dnc_sequence(x[:n, b : b + 1], alone, *weights)
        torch.testing.assert_close(hidden[:n, b : b + 1], h, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(reads[:n, b : b + 1], r, rtol=1e-10, atol=1e-12)
        assert (hidden[n:, b] == 0).all() and (reads[n:, b] == 0).all()
        for a, e in zip(last, end):
            torch.testing.assert_close(a[b : b + 1], e, rtol=1e-10, atol=1e-12)


def test_empty(compiled):
    x, state, weights = problem((0, 2, 3, 4, 5, 2, 1), True, True, device=compiled.device)
    hidden, reads, last = dnc_sequence(x, state, *weights)
    assert hidden.shape == (0, 2, 4) and reads.shape == (0, 2, 1, 2)
    for a, b in zip(last, state):
        assert torch.equal(a, b)
    x, state, weights = problem((3, 0, 3, 4, 5, 2, 1), True, True, device=compiled.device)
    hidden, reads, last = dnc_sequence(x, state, *weights)
    assert hidden.shape == (3, 0, 4) and last.link.shape == (0, 5, 5)


def test_saturated_interface(compiled):
    """Gates of exactly 0 and 1, strengths of 21: finite, and no gradient where the interface is clamped."""
    x, state, weights = problem(SIZES[0], True, True, torch.float32, empty=True, device=compiled.device)
    weights = [w.requires_grad_() for w in weights]
    *others, interface_bias = weights
    bias = (1e4 * interface_bias.detach().sign()).requires_grad_()
    hidden, reads, last = dnc_sequence(x, state, *others, bias)
    (gradient,) = torch.autograd.grad(hidden.square().sum() + reads.square().sum(), bias)
    assert all(t.isfinite().all() for t in (hidden, reads, *last))
    assert (gradient == 0).all()


def test_a_nan_stays_with_its_sample(compiled):
    x, state, weights = problem(SIZES[0], True, True, device=compiled.device)
    expected = dnc_sequence(x, state, *weights)[0]
    x[2, 1] = float("nan")
    hidden = dnc_sequence(x, state, *weights)[0]
    assert hidden[2:, 1].isnan().all()
    assert torch.equal(hidden[:, [0, 2]], expected[:, [0, 2]]) and torch.equal(hidden[:2, 1], expected[:2, 1])


def test_second_derivatives_are_refused():
    x, state, weights = problem(SIZES[0], True, True)
    hidden, _, _ = dnc_sequence(x.requires_grad_(), state, *weights)
    (gradient,) = torch.autograd.grad(hidden.square().sum(), x, create_graph=True)
    assert gradient.isfinite().all()
    with pytest.raises(RuntimeError, match="second derivative"):
        gradient.sum().backward()


def test_saved_memory():
    """What is saved does not grow with N² a step: gates, outputs and a state every √T steps."""
    steps, b, h, n, w, r = 64, 2, 8, 32, 8, 2
    x, state, weights = problem((steps, b, 3, h, n, w, r), True, True, torch.float32)
    saved = {}

    def pack(t):
        saved[t.data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        dnc_sequence(x.requires_grad_(), state, *weights)
    one_state = sum(t.numel() for t in state)
    weights_numel = sum(t.numel() for t in weights)
    padding = 2  # rows of a checkpoint are padded to whole vectors
    allowed = steps * b * (3 + 5 * h + r * w) + 8 * padding * one_state + weights_numel + sum(t.numel() for t in state)
    assert sum(saved.values()) <= allowed < steps * b * n * n


ERRORS = [
    (lambda a: a.update(input=a["input"][0]), "input"),
    (lambda a: a.update(input=a["input"].half()), "input"),
    (lambda a: a.update(weight_hidden=a["weight_hidden"][:, :-1]), "weight_hidden"),
    (lambda a: a.update(weight_interface=a["weight_interface"][:-1]), "weight_interface"),
    (lambda a: a.update(state=a["state"]._replace(link=a["state"].link[:, :-1])), "link"),
    (lambda a: a.update(state=a["state"]._replace(usage=a["state"].usage.float())), "usage"),
    (lambda a: a.update(lengths=torch.tensor([1, 2])), "lengths"),
    (lambda a: a.update(lengths=torch.tensor([1, 2, 8])), "lengths"),
    (lambda a: a.update(lengths=torch.tensor([1.0, 2.0, 3.0])), "lengths"),
    (lambda a: a.update(checkpoint_every=0), "checkpoint_every"),
    (lambda a: a.update(eps=-1.0), "eps"),
    (lambda a: a.update(eps=1e-310), "eps must be at least 2.23e-308"),  # of zero words it would make NaNs
    (lambda a: a.update(mask_min=1.5), "mask_min"),
    (lambda a: a.update(clip=0.0), "clip"),
]


@pytest.mark.parametrize(("change", "name"), ERRORS)
def test_errors_name_the_argument(change, name):
    x, state, weights = problem(SIZES[0], True, True)
    names = ("weight_input", "weight_hidden", "weight_reads", "bias", "weight_interface", "bias_interface")
    arguments = {"input": x, "state": state, **dict(zip(names, weights))}
    change(arguments)
    with pytest.raises((TypeError, ValueError), match=name):
        dnc_sequence(**arguments)
