"""The Neural Turing Machine's recurrence in one operation: the definition against formulas of its own, the operation
against the definition, and single steps with known results.
"""

import functools
import itertools

import pytest
import torch
from test_dnc_sequence import assert_close

from sysgen import reference
from sysgen.ops import NTMState, ntm_sequence
from sysgen.ops._ntm_ops import interface_size

# T, B, X, H, N, W, P, S: ragged; more cells than a vector has lanes; fewer cells than shifts; one of everything
SIZES = [
    (7, 3, 5, 6, 9, 4, 2, 1),
    (5, 2, 3, 8, 17, 5, 1, 2),
    (4, 3, 3, 7, 2, 3, 3, 1),
    (3, 2, 2, 5, 1, 2, 2, 1),
    (1, 1, 1, 1, 1, 1, 1, 0),
    (3, 1, 2, 3, 33, 3, 1, 5),
]
HIGH = 1e4  # a gate of exactly 1, a one-hot shift


def problem(sizes, dtype=torch.float64, device="cpu"):
    """input, a state that a recurrence could be in, weights."""
    steps, b, x, h, n, w, p, s = sizes
    generator = torch.Generator().manual_seed(sum(sizes))

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    def distribution(*shape):
        weights = torch.rand(*shape, generator=generator, dtype=torch.float64)
        return (weights / weights.sum(-1, keepdim=True)).to(device, dtype)

    state = NTMState(
        hidden=randn(b, h) / 3,
        cell=randn(b, h) / 3,
        memory=randn(b, n, w) / 2,
        read_weights=distribution(b, p, n),
        write_weights=distribution(b, p, n),
        reads=randn(b, p, w) / 3,
    )
    interface = interface_size(p, w, s)
    weights = (
        randn(4 * h, x) / x**0.5,
        randn(4 * h, h) / h**0.5,
        randn(4 * h, p * w) / (p * w) ** 0.5,
        randn(4 * h) / 10,
        randn(interface, h) * 2 / h**0.5,
        randn(interface) / 3,
    )
    return randn(steps, b, x), state, weights


def run(function, sizes, dtype=torch.float64, device="cpu", **options):
    """Outputs, and the gradients of a random projection of all of them by all inputs."""
    x, state, weights = problem(sizes, dtype, device)
    leaves = [t.clone().requires_grad_() for t in (x, *state, *weights)]
    hidden, reads, last = function(leaves[0], NTMState(*leaves[1:7]), *leaves[7:], max_shift=sizes[-1], **options)
    outputs = [hidden, reads, *last]
    generator = torch.Generator().manual_seed(1)
    along = (torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y) for y in outputs)
    loss = sum((y * direction).sum() for y, direction in zip(outputs, along))
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return [y.detach() for y in outputs], gradients


def unrolled(input, state, w_input, w_hidden, w_reads, bias, w_interface, b_interface, max_shift):
    """Graves et al. 2014, Eq. 2 to 9, one sample and one cell at a time: powers, quotients and indices modulo N."""
    eps = 1e-6
    (_, n, w), p, k = state.memory.shape, state.reads.shape[1], 2 * max_shift + 1

    def address(memory, before, key, strength, gate, shift, sharpness):
        cosines = [key @ cell / (key.norm() * cell.norm() + eps) for cell in memory]
        content = torch.stack(cosines).mul(torch.log1p(strength.exp())).exp()
        content = content / content.sum()
        mixed = torch.sigmoid(gate) * content + (1 - torch.sigmoid(gate)) * before
        shift = shift.exp() / shift.exp().sum()
        turned = [sum(shift[j] * mixed[(i + j - max_shift) % n] for j in range(k)) for i in range(n)]
        power = torch.stack(turned) ** (1 + torch.log1p(sharpness.exp()))
        return power / power.sum()

    hidden_out, reads_out, states = [], [], [list(s) for s in zip(*state)]
    for x in input:
        for b, (h, c, memory, reading, writing, reads) in enumerate(states):
            gates = w_input @ x[b] + bias + w_hidden @ h + w_reads @ reads.flatten()
            i, f, g, o = gates.chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            sizes = [2 * p * w, p * w, p * w, 2 * p, 2 * p, 2 * p, 2 * p * k]
            keys, erase, add, strength, gate, sharpness, shift = (w_interface @ h + b_interface).split(sizes)
            keys, shift = keys.view(p, 2, w), shift.view(p, 2, k)
            scalars = torch.stack([strength, gate, sharpness]).view(3, p, 2)
            new = [[], [], []]
            for j in range(p):
                heads = []
                for side, before in enumerate((reading, writing)):
                    beta, gamma = scalars[0, j, side], scalars[2, j, side]
                    head = keys[j, side], beta, scalars[1, j, side], shift[j, side], gamma
                    heads.append(address(memory, before[j], *head))
                new[0].append(heads[0])
                new[1].append(heads[1])
                new[2].append(heads[0] @ memory)
                e, a = erase.view(p, w)[j].sigmoid(), add.view(p, w)[j]
                memory = memory * (1 - torch.outer(heads[1], e)) + torch.outer(heads[1], a)
            states[b] = [h, c, memory, *(torch.stack(t) for t in new)]
        hidden_out.append(torch.stack([s[0] for s in states]))
        reads_out.append(torch.stack([s[5] for s in states]))
    return torch.stack(hidden_out), torch.stack(reads_out), NTMState(*(torch.stack(t) for t in zip(*states)))


@pytest.mark.parametrize("sizes", [(3, 2, 3, 5, 5, 3, 2, 1), (2, 1, 2, 4, 2, 2, 1, 2)], ids=str)
def test_definition(sizes):
    """Some thousand roundings of 2⁻⁵³ on the way, and slopes of some tens."""
    assert_close(run(reference.ntm_sequence, sizes), run(unrolled, sizes), 1e-10)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_operation(compiled, sizes):
    """float64: as above."""
    lengths = torch.randint(0, sizes[0] + 1, (sizes[1],), generator=torch.Generator().manual_seed(0))
    lengths = lengths.to(compiled.device)
    for options in ({}, {"lengths": lengths, "eps": 1e-3}):
        actual = run(ntm_sequence, sizes, device=compiled.device, **options)
        assert_close(actual, run(reference.ntm_sequence, sizes, device=compiled.device, **options), 1e-10)


def test_float32(compiled):
    """As float64, with 2⁻²⁴ in the place of 2⁻⁵³: 1e-10 · 2²⁹ would allow 5 %; 1e-3 is what 1e4 roundings give."""
    actual = run(ntm_sequence, SIZES[0], dtype=torch.float32, device=compiled.device)
    expected = run(reference.ntm_sequence, SIZES[0], device=compiled.device)
    assert_close(([t.double() for t in part] for part in actual), expected, 1e-3)


@pytest.mark.parametrize("chunk", [2, 3, 7, 2**70])
def test_any_distance_of_checkpoints_gives_the_same_bits(compiled, chunk):
    expected = run(ntm_sequence, SIZES[0], device=compiled.device, checkpoint_every=1)
    actual = run(ntm_sequence, SIZES[0], device=compiled.device, checkpoint_every=chunk)
    if compiled.device == "cuda":  # a compiler may contract the same operations of two kernels differently
        return assert_close(actual, expected, 1e-10)
    for a, e in zip(itertools.chain(*actual), itertools.chain(*expected)):
        assert torch.equal(a, e)


def test_the_number_of_threads_does_not_matter():
    """Of the gradients only those that the recurrence itself computes; those of the weights are products of torch."""
    x, state, weights = problem((6, 8, 16, 64, 64, 16, 2, 1), torch.float32)  # enough work for three threads
    previous, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaves = [t.clone().requires_grad_() for t in state]
            hidden, reads, last = ntm_sequence(x, NTMState(*leaves), *weights)
            loss = hidden.square().sum() + reads.square().sum()
            results.append((hidden, reads, *last, *torch.autograd.grad(loss, leaves)))
    finally:
        torch.set_num_threads(previous)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_two_calls_are_one(compiled):
    x, state, weights = problem(SIZES[0], device=compiled.device)
    hidden, reads, last = ntm_sequence(x, state, *weights)
    hidden1, reads1, middle = ntm_sequence(x[:3], state, *weights)
    hidden2, reads2, end = ntm_sequence(x[3:], middle, *weights)
    close((hidden, reads, *last), (torch.cat([hidden1, hidden2]), torch.cat([reads1, reads2]), *end))


def test_lengths_are_those_of_each_sample_alone(compiled):
    x, state, weights = problem(SIZES[0], device=compiled.device)
    lengths = torch.tensor([4, 0, 7], device=compiled.device)
    hidden, reads, last = ntm_sequence(x, state, *weights, lengths=lengths)
    for b, n in enumerate(lengths.tolist()):
        h, r, end = ntm_sequence(x[:n, b : b + 1], NTMState(*(t[b : b + 1] for t in state)), *weights)
        close((hidden[:n, b : b + 1], reads[:n, b : b + 1]), (h, r))
        assert (hidden[n:, b] == 0).all() and (reads[n:, b] == 0).all()
        close(tuple(t[b : b + 1] for t in last), tuple(end))


def test_empty(compiled):
    for sizes in ((0, 2, 3, 4, 5, 2, 2, 1), (3, 0, 3, 4, 5, 2, 2, 1)):
        actual = run(ntm_sequence, sizes, device=compiled.device)
        assert_close(actual, run(reference.ntm_sequence, sizes, device=compiled.device), 0)
        assert actual[0][1].shape == (*sizes[:2], 2, 2)


def test_strided_and_half_arguments(compiled):
    x, state, weights = problem((4, 3, 3, 5, 6, 4, 2, 1), torch.float32, compiled.device)
    one = NTMState(*(s[:1].expand_as(s) for s in state))
    strided = [w.t().contiguous().t() if w.dim() == 2 else w for w in weights]
    lengths = torch.tensor([4, 9, 0, 9, 3, 9], device=compiled.device)[::2]
    actual = ntm_sequence(x[:, :1].expand_as(x), one, *strided, lengths=lengths)
    copies = NTMState(*(s.clone() for s in one))
    expected = ntm_sequence(x[:, :1].expand_as(x).clone(), copies, *weights, lengths=lengths.clone())
    torch.testing.assert_close(actual, expected)  # torch's product of the input sums in another order
    hidden, reads, last = ntm_sequence(x.bfloat16(), state, *(w.bfloat16() for w in weights))
    exact = ntm_sequence(x.bfloat16().float(), state, *(w.bfloat16().float() for w in weights))
    assert hidden.dtype == reads.dtype == torch.bfloat16
    assert torch.equal(last.memory, exact[2].memory) and torch.equal(reads, exact[1].bfloat16())


def test_only_some_states_need_gradients():
    x, state, weights = problem(SIZES[0])
    for first in (0, 1):
        some = [s.requires_grad_(i % 2 == first) for i, s in enumerate(state) if i % 2 == first]
        gradients = []
        for function in (ntm_sequence, reference.ntm_sequence):
            *_, last = function(x, state, *weights)
            gradients.append(torch.autograd.grad(last.memory.sum() + last.read_weights[..., 0].sum(), some))
        assert_close(gradients[:1], gradients[1:], 1e-10)
        for s in state:
            s.requires_grad_(False)


def test_second_derivatives_are_refused():
    x, state, weights = problem(SIZES[0])
    hidden, _, _ = ntm_sequence(x.requires_grad_(), state, *weights)
    (gradient,) = torch.autograd.grad(hidden.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="ntm_sequence has no second derivative"):
        gradient.sum().backward()


def test_saved_memory():
    """What is saved does not grow with N · W a step: gates, outputs and a state every √T steps."""
    steps, b, x_size, h, n, w, p = 64, 2, 3, 8, 64, 16, 2
    x, state, weights = problem((steps, b, x_size, h, n, w, p, 1), torch.float32)
    saved = {}

    def pack(t):
        saved[t.data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        ntm_sequence(x.requires_grad_(), state, *weights)
    one_state, padding = sum(t.numel() for t in state), 2  # rows of a checkpoint are padded to whole vectors
    allowed = steps * b * (x_size + 5 * h + p * w) + (8 * padding + 1) * one_state + sum(t.numel() for t in weights)
    assert sum(saved.values()) <= allowed < steps * b * n * w


# ---- single steps: all weights are zero but the interface's bias, so that a step does what the test says


def interface(width, heads=1, max_shift=1, **entries):
    """The interface's bias: what ``entries`` say of all heads; else no shift, and 0."""
    shift = torch.full((2 * max_shift + 1,), -HIGH)
    shift[max_shift] = HIGH
    parts = {}
    for name, size in (("key", width), ("strength", 1), ("gate", 1), ("sharpness", 1), ("shift", 2 * max_shift + 1)):
        given = [entries.get(f"{side}_{name}", shift if name == "shift" else 0.0) for side in ("read", "write")]
        given = [torch.as_tensor(t, dtype=torch.float64).expand(heads, size) for t in given]
        parts[name] = torch.stack(given, 1)
    for name in ("erase", "add"):
        parts[name] = torch.as_tensor(entries.get(name, 0.0), dtype=torch.float64).expand(heads, width)
    order = "key", "erase", "add", "strength", "gate", "sharpness", "shift"
    return torch.cat([parts[name].flatten() for name in order])


def step(function, device, bias, memory, read_weights, write_weights, max_shift=1, dtype=torch.float32):
    """The state after one step with this interface, without the batch."""
    kwargs = {"dtype": dtype, "device": device}
    memory, read_weights, write_weights = (
        torch.as_tensor(t, **kwargs)[None] for t in (memory, read_weights, write_weights)
    )
    _, p, n = read_weights.shape
    w = memory.shape[2]
    state = NTMState.initial(1, 1, n, w, p, **kwargs)
    state = state._replace(memory=memory, read_weights=read_weights, write_weights=write_weights)
    shapes = (4, 1), (4, 1), (4, p * w), (4,), (len(bias), 1)
    weights = [torch.zeros(shape, **kwargs) for shape in shapes]
    *_, last = function(torch.zeros(1, 1, 1, **kwargs), state, *weights, bias.to(**kwargs), max_shift=max_shift)
    return NTMState(*(t[0].cpu() for t in last))


def one_hot(i, n=4):
    return torch.eye(n)[i]


STAY = {"read_gate": -HIGH, "write_gate": -HIGH, "read_sharpness": HIGH, "write_sharpness": HIGH}


@pytest.mark.parametrize("function", [ntm_sequence, reference.ntm_sequence])
def test_memory_cases(compiled, function):
    """Written with given weights and read again: exact in float32."""
    a = torch.tensor([[1, 0, 0, 0], [0.25, -3, 2, 1], [0, 1, 0, 0], [0, 0, 0, 1]])
    memory = torch.full((4, 4), 7.0)

    def write(memory, weights, erase, add):
        logits = torch.tensor(erase, dtype=torch.float64).expand(4).logit().clamp(-HIGH, HIGH)
        entries = {**STAY, "erase": logits, "add": torch.as_tensor(add)}
        return step(function, compiled.device, interface(4, **entries), memory, [weights], [weights])

    for cell in range(4):
        memory = write(memory, one_hot(cell).tolist(), 1.0, a[cell]).memory
    assert torch.equal(memory, a)
    for cell in range(4):  # reads see what was there before the write
        state = write(memory, one_hot(cell).tolist(), 1.0, [0.0] * 4)
        assert torch.equal(state.reads[0], a[cell]) and (state.memory[cell] == 0).all()
        assert torch.equal(state.read_weights[0], one_hot(cell)) and torch.equal(state.write_weights[0], one_hot(cell))
    memory = write(memory, [1, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1.0]).memory
    assert torch.equal(memory[0], torch.ones(4))
    memory = write(memory, [0, 0, 1, 0], 0.0, [0, 0, 1, 0.0]).memory
    assert torch.equal(memory[2], torch.tensor([0, 1, 1, 0.0]))
    assert torch.equal(write(memory, [0, 0, 1, 0], 0.0, [0.0] * 4).memory, memory)
    memory = write(memory, [0, 0, 0, 1], [0, 0, 0, 0.5], [0, 0, 0, 0.2]).memory
    assert torch.equal(memory[3], torch.tensor([0, 0, 0, 0.7]))
    memory[1] = memory[2]
    memory = write(memory, [0.5, 0.5, 0, 0], 1.0, [0.0] * 4).memory
    assert torch.equal(write(memory, [0.5, 0.5, 0, 0], 0.0, [0.0] * 4).reads[0], torch.tensor([0.25, 0.5, 0.5, 0.25]))


def place(function, device, cells, entries, before, dtype=torch.float32):
    """Weights of the read head over an identity of words; the write head gets the same shift."""
    shift = entries.get("read_shift", torch.tensor([-HIGH, HIGH, -HIGH]))
    reach = len(shift) // 2
    bias = interface(cells, max_shift=reach, **{**entries, "read_shift": shift, "write_shift": shift})
    return step(function, device, bias, torch.eye(cells), [before], [before], reach, dtype).read_weights[0]


@pytest.mark.parametrize("function", [ntm_sequence, reference.ntm_sequence])
def test_addressing(compiled, function):
    """Exact in float32."""
    at = functools.partial(place, function, compiled.device)
    here = {"read_strength": 100.0, "read_gate": HIGH, "read_sharpness": 100.0}
    assert torch.equal(at(4, {**here, "read_key": one_hot(0)}, [0.0] * 4), one_hot(0))
    for k, focus in ((0, 2), (1, 1), (2, 0)):  # entry 0 moves the focus one cell on
        shift = torch.full((3,), -HIGH)
        shift[k] = HIGH
        entries = {"read_gate": -HIGH, "read_shift": shift, "read_sharpness": 100.0}
        assert torch.equal(at(4, entries, one_hot(1).tolist()), one_hot(focus))
        assert torch.equal(at(1, entries, [1.0]), torch.ones(1))
        other = one_hot(0, 2) if k == 1 else one_hot(1, 2)  # of two cells, both neighbours are the other one
        assert torch.equal(at(2, entries, [1.0, 0.0]), other)
    both = {"read_gate": -HIGH, "read_shift": torch.tensor([0, -HIGH, 0]), "read_sharpness": HIGH}
    assert torch.equal(at(2, both, [0.0, 1.0]), one_hot(0, 2))
    assert torch.equal(at(5, both, one_hot(0, 5).tolist()), torch.tensor([0, 0.5, 0, 0, 0.5]))
    far = {"read_gate": -HIGH, "read_shift": torch.tensor([-HIGH] * 4 + [HIGH]), "read_sharpness": HIGH}
    assert torch.equal(at(3, far, [0.0, 1.0, 0.0]), one_hot(2, 3))  # two cells back, around the end


@pytest.mark.parametrize("function", [ntm_sequence, reference.ntm_sequence])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_addressing_survives_extremes(compiled, function, dtype):
    at = functools.partial(place, function, compiled.device)
    stay = {"read_gate": -HIGH, "read_sharpness": HIGH}
    assert (at(4, stay, [0.0] * 4, dtype) == 0).all()  # no weights stay no weights
    assert torch.equal(at(4, stay, [0.2, 0.2, 0.6, 0.0], dtype), one_hot(2).to(dtype))
    tiny = torch.finfo(dtype).tiny
    for value in (1e-30, tiny / 1024):  # its power underflows, and then it is subnormal itself
        w = at(4, stay, [value, 0.0, value, 0.0], dtype)
        assert torch.equal(w, torch.tensor([0.5, 0, 0.5, 0], dtype=dtype))
    plain = {"read_gate": -HIGH, "read_sharpness": -HIGH}  # sharpness 1
    for scale in (0.1, tiny / 1024):  # the sum of subnormal weights is that of their small integers
        w = at(4, plain, [scale, 2 * scale, 3 * scale, 0.0], dtype)
        torch.testing.assert_close(w, torch.tensor([1, 2, 3, 0], dtype=dtype) / 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_empty_memory_and_absent_weights_have_finite_gradients(compiled, dtype):
    """Zero words, one-hot weights and a one-hot shift; the slope of a cosine at 0 is at most that of 1 / eps."""
    x, state, weights = problem((3, 2, 3, 5, 6, 4, 2, 1), dtype, compiled.device)
    hot = torch.eye(6, dtype=dtype)[torch.tensor([[0, 1], [2, 2]])].to(compiled.device)
    state = state._replace(memory=torch.zeros_like(state.memory), read_weights=hot, write_weights=hot)
    *others, bias = weights
    bias[-12:] = torch.tensor([0, HIGH, -HIGH] * 4).to(bias)
    leaves = [t.clone().requires_grad_() for t in (*state, *others, bias)]
    results = []
    for function in (ntm_sequence, reference.ntm_sequence):
        _, reads, last = function(x, NTMState(*leaves[:6]), *leaves[6:])
        results.append(torch.autograd.grad(reads.square().sum() + last.memory.square().sum(), leaves))
    assert all(g.isfinite().all() for g in results[0])
    if dtype == torch.float64:
        assert_close(results[:1], results[1:], 1e-8)  # slopes of 1e6 multiply the roundings


def nan_of(outputs):
    return [y.isnan() for y in (*outputs[:2], *outputs[2])]


def test_a_nan_shows(compiled):
    """In any entry of the interface and of the state, as in the definition; and it stays with its sample."""
    x, state, weights = problem((2, 2, 2, 5, 9, 2, 2, 1), device=compiled.device)

    def check(*arguments):
        actual, expected = (nan_of(f(*arguments)) for f in (ntm_sequence, reference.ntm_sequence))
        assert all(torch.equal(a, e) for a, e in zip(actual, expected))

    for i in range(len(weights[5])):
        bias = weights[5].clone()
        bias[i] = float("nan")
        check(x, state, *weights[:5], bias)
    for i, t in enumerate(state):
        poisoned = t.clone()
        poisoned[1].view(-1)[1] = float("nan")
        check(x, NTMState(*state[:i], poisoned, *state[i + 1 :]), *weights)


ERRORS = [
    (lambda a: a.update(input=a["input"][0]), "input"),
    (lambda a: a.update(input=a["input"].half()), "input"),
    (lambda a: a.update(weight_reads=a["weight_reads"][:, :-1]), "weight_reads"),
    (lambda a: a.update(weight_interface=a["weight_interface"][:-1]), "weight_interface"),
    (lambda a: a.update(max_shift=2), "weight_interface"),
    (lambda a: a.update(max_shift=-1), "max_shift"),
    (lambda a: a.update(max_shift=1.0), "max_shift"),
    (lambda a: a.update(state=a["state"]._replace(memory=a["state"].memory[0])), "memory"),
    (lambda a: a.update(state=a["state"]._replace(write_weights=a["state"].write_weights[:, :1])), "write_weights"),
    (lambda a: a.update(state=a["state"]._replace(reads=a["state"].reads.float())), "reads"),
    (lambda a: a.update(state=tuple(a["state"])[:-1]), "NTMState of 6"),
    (lambda a: a.update(lengths=torch.tensor([1, 2, 8])), "lengths"),
    (lambda a: a.update(checkpoint_every=0), "checkpoint_every"),
    (lambda a: a.update(eps=0.0), "eps"),
    (lambda a: a.update(eps=1e-310), "eps must be at least 2.23e-308"),  # of zero words it would make NaNs
]


@pytest.mark.parametrize(("change", "name"), ERRORS)
def test_errors_name_the_argument(change, name):
    x, state, weights = problem(SIZES[0])
    names = ("weight_input", "weight_hidden", "weight_reads", "bias", "weight_interface", "bias_interface")
    arguments = {"input": x, "state": state, **dict(zip(names, weights))}
    change(arguments)
    with pytest.raises((TypeError, ValueError), match=name):
        ntm_sequence(**arguments)
