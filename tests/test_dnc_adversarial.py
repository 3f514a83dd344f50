"""The DNC's recurrence where it may break: exact zeros and ones, NaN and infinity, odd sizes, odd callers.

A state is chosen and all weights are zero but the interface's bias, so that a single step does what the test says.
"""

import copy
import itertools

import pytest
import torch
from test_dnc_sequence import assert_close, problem, run
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence
from torch.utils.checkpoint import checkpoint

from sysgen import nn, reference
from sysgen.ops import DNCState, dnc_sequence
from sysgen.ops._dnc_ops import interface_size

EPS = 1e-6
HIGH = 100.0  # with clip=100 a gate of sigmoid(100) is 1 in float64, one of sigmoid(-100) is 4e-44


def interface(width, reads, masked=False, sharpen=False, **entries):
    """The interface's bias, 0 but for ``entries``."""
    w, r = width, reads
    sizes = {"write_mask": w} if masked else {}
    sizes |= {"write_key": w, "erase": w, "value": w, "free": r, "write_strength": 1}
    sizes |= {"allocation_gate": 1, "write_gate": 1}
    sizes |= {"read_mask": r * w} if masked else {}
    sizes |= {"read_key": r * w, "read_strength": r, "mode": 3 * r}
    sizes |= {"sharp_forward": r, "sharp_backward": r} if sharpen else {}
    parts = {name: torch.zeros(n, dtype=torch.float64) for name, n in sizes.items()}
    for name, value in entries.items():
        parts[name] += torch.as_tensor(value, dtype=torch.float64)
    bias = torch.cat(list(parts.values()))
    assert len(bias) == interface_size(r, w, masked, sharpen)
    return bias


def step(bias, cells, width, reads, masked=False, sharpen=False, dealloc=False, clip=HIGH, dtype=None, **state):
    """The state after one step with this interface from an empty state, but for ``state``."""
    dtype = dtype or torch.float64
    empty = DNCState.zeros(1, 1, cells, width, reads, dtype=dtype)
    empty = empty._replace(**{k: torch.as_tensor(v, dtype=dtype)[None] for k, v in state.items()})
    shapes = (4, 1), (4, 1), (4, reads * width), (4,), (len(bias), 1)
    weights = [torch.zeros(shape, dtype=dtype) for shape in shapes]
    options = {"masked": masked, "sharpen": sharpen, "dealloc": dealloc, "clip": clip}
    x = torch.zeros(1, 1, 1, dtype=dtype)
    *_, last = dnc_sequence(x, empty, *weights, bias.to(dtype), **options)
    return DNCState(*(t[0] for t in last))


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(actual, expected, atol=1e-12):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


ALLOCATE = {"write_gate": HIGH, "allocation_gate": HIGH}
MODE = {"backward": [HIGH, -HIGH, -HIGH], "content": [-HIGH, HIGH, -HIGH], "forward": [-HIGH, -HIGH, HIGH]}


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ([0, 0, 0, 0], (1 - EPS) * t(1, EPS, EPS**2, EPS**3)),
        ([1, 1, 1, 1], t(0, 0, 0, 0)),
        ([0.5, 0.5, 0.2, 0.2], t(0.02, 0.01, 0.8, 0.16)),
        ([0, 1, 0, 1], t(1, 0, EPS, 0)),
        ([0.3], t(0.7)),
    ],
    ids=str,
)
def test_allocation(isa, usage, expected):
    """Ties go to the lower index; the rescaling by ε moves a weight by less than 2 ε."""
    state = step(interface(3, 1, **ALLOCATE), len(usage), 3, 1, usage=usage)
    close(state.write_weights, expected, atol=1e-15 if sum(usage) == 0 else 2 * EPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("usage", [0.0, 0.25, 1.0])
def test_ties_keep_their_order(isa, usage, dtype):
    """However many cells: a sort that is not stable begins to differ at some size."""
    for cells in (17, 33, 200):
        state = step(interface(1, 1, **ALLOCATE), cells, 1, 1, usage=[usage] * cells, dtype=dtype)
        u = usage * (1 - EPS) + EPS
        expected = (1 - u) * torch.tensor(u, dtype=torch.float64) ** torch.arange(cells)
        # in float32 u is rounded relative to 1 - u by 2⁻²⁴, and its n-th power n times
        close(state.write_weights.double(), expected, atol=1e-12 if dtype == torch.float64 else 2e-6)


def test_a_full_memory_is_written_by_content_only(isa):
    """a = 0, so the write weights sum to write_gate (1 − allocation_gate)."""
    state = step(interface(3, 1, write_gate=0.4, allocation_gate=-0.7), 5, 3, 1, usage=[1] * 5)
    assert abs(state.write_weights.sum() - t(0.4).sigmoid() * (1 - t(-0.7).sigmoid())) < 1e-14


@pytest.mark.parametrize("strength", [0.0, 50.0])
@pytest.mark.parametrize("key", [0.0, 3.0])
def test_an_empty_memory_is_read_evenly(isa, key, strength):
    bias = interface(3, 2, write_gate=-HIGH, read_key=key, read_strength=strength, mode=MODE["content"] * 2)
    close(step(bias, 7, 3, 2).read_weights, torch.full((2, 7), 1 / 7, dtype=torch.float64))


def test_a_huge_strength_finds_one_cell_and_splits_equal_ones(isa):
    memory = torch.eye(3, dtype=torch.float64)[[0, 1, 1, 2]]
    bias = interface(3, 1, write_gate=-1e5, read_key=t(0, 1, 0), read_strength=1e4, mode=MODE["content"])
    close(step(bias, 4, 3, 1, memory=memory, clip=1e5).read_weights, t(0, 0.5, 0.5, 0)[None])


@pytest.mark.parametrize("strength", [-HIGH, 200.0, 1e4])
def test_sharpening(isa, strength):
    """softmax(s · log(d + ε)), where the power itself would be 0 / 0 in float32."""
    link = torch.zeros(4, 4)
    link[0, 3], link[1, 3], link[2, 3] = 0.1, 0.3, 0.2
    bias = interface(2, 1, sharpen=True, write_gate=-1e5, sharp_forward=strength, mode=t(*MODE["forward"]) * 100)
    arguments = {"clip": 1e5, "dtype": torch.float32, "link": link, "read_weights": t(0, 0, 0, 1)[None]}
    state = step(bias, 4, 2, 1, sharpen=True, **arguments)
    expected = t(0, 1, 0, 0) if strength > 0 else (t(0.1, 0.3, 0.2, 0) + EPS) / (0.6 + 4 * EPS)
    close(state.read_weights[0].double(), expected, atol=1e-6)


def test_a_negative_link_from_rounding_counts_as_none(isa):
    link = torch.full((3, 3), -3e-4)
    bias = interface(2, 1, sharpen=True, write_gate=-HIGH, mode=MODE["forward"])
    state = step(bias, 3, 2, 1, sharpen=True, dtype=torch.float32, link=link, read_weights=[[0, 1, 0]])
    close(state.read_weights.double(), torch.full((1, 3), 1 / 3, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("sharpen", [False, True])
def test_no_links_yet(isa, sharpen):
    """Forward and backward are uniform where they are sharpened, else 0; gradients are steep but finite."""
    bias = interface(2, 1, sharpen=sharpen, write_gate=-HIGH, mode=MODE["backward"])
    state = step(bias, 3, 2, 1, sharpen=sharpen, read_weights=[[0, 1, 0]])
    close(state.read_weights, torch.full((1, 3), 1 / 3 if sharpen else 0.0, dtype=torch.float64))
    options = {"lengths": torch.tensor([3, 3])}
    for function in (dnc_sequence, reference.dnc_sequence):
        x, state, weights = problem((3, 2, 3, 4, 5, 2, 2), True, sharpen, torch.float32, empty=True)
        leaves = [w.requires_grad_() for w in weights]
        *_, last = function(x, state, *leaves, sharpen=sharpen, **options)
        assert all(g.isfinite().all() for g in torch.autograd.grad(last.reads.sum() + last.link.sum(), leaves))


def test_a_free_gate_of_one_empties_what_was_read(isa):
    """σ(20) is 1 in float32: retention, usage and, with de-allocation, the cell are 0 exactly."""
    bias = interface(2, 1, free=HIGH, write_gate=-HIGH)
    arguments = {"usage": [0.9, 0.9, 0.9], "memory": torch.ones(3, 2), "read_weights": [[0, 1, 0]]}
    state = step(bias, 3, 2, 1, dealloc=True, clip=20.0, dtype=torch.float32, **arguments)
    assert state.usage[1] == 0 and state.usage[0] > 0.8
    assert (state.memory[1].abs() <= 3e-9).all() and (state.memory[0] > 0.9).all()  # written with a gate of σ(−20)


def test_writing_a_cell_again_clears_its_links(isa):
    link = t([0, 0.5, 0], [0.5, 0, 0.5], [0.2, 0.5, 0])
    state = step(interface(2, 1, **ALLOCATE), 3, 2, 1, usage=[1, 0, 1], link=link, precedence=[0, 0, 1])
    w = t(0, 1, 0)  # up to ε
    close(state.write_weights, w, atol=2 * EPS)
    close(state.link, t([0, 0, 0], [0, 0, 1], [0.2, 0, 0]), atol=4 * EPS)
    assert (state.link.diagonal() == 0).all()
    close(state.precedence, w, atol=4 * EPS)


@pytest.mark.parametrize("sharpen", [False, True])
def test_one_cell(isa, sharpen):
    bias = interface(2, 1, sharpen=sharpen, mode=MODE["forward"], **ALLOCATE)
    state = step(bias, 1, 2, 1, sharpen=sharpen, usage=[0.3], link=[[0.0]], read_weights=[[1.0]])
    assert state.link.item() == 0
    close(state.read_weights, torch.full((1, 1), float(sharpen), dtype=torch.float64))
    close(state.write_weights, 1 - (t(0.15) * (1 - EPS) + EPS))  # half of it is freed


def test_the_least_used_cell_is_written_and_the_nearest_read(isa):
    """The write weights sum to the write gate; a key equal to a cell, content mode and a strength of 100 read it."""
    generator = torch.Generator().manual_seed(0)
    memory = 10 * (torch.rand(20, 6, generator=generator, dtype=torch.float64) - 0.5)
    usage = 0.1 + 0.9 * torch.rand(20, generator=generator, dtype=torch.float64)
    usage[3] = 0
    state = step(interface(6, 1, allocation_gate=HIGH, write_gate=0.3), 20, 6, 1, usage=usage, memory=memory)
    gate = t(0.3).sigmoid()[0]
    close(state.write_weights, gate * torch.eye(20, dtype=torch.float64)[3], atol=2 * EPS)
    bias = interface(6, 1, write_gate=-HIGH, read_key=memory[3], read_strength=HIGH, mode=MODE["content"])
    close(step(bias, 20, 6, 1, memory=memory).read_weights[0], torch.eye(20, dtype=torch.float64)[3], atol=1e-3)


def test_long_runs_stay_in_range():
    """1 000 steps: links in [0, 1] with a diagonal of 0 and rows and columns of at most 1, weights that sum to 1."""
    for sharpen in (False, True):
        _, state, weights = problem((1, 2, 3, 4, 9, 4, 2), True, sharpen, torch.float32, empty=True)
        x = torch.randn(1000, 2, 3, generator=torch.Generator().manual_seed(0))
        *_, last = dnc_sequence(x, state, *weights, sharpen=sharpen)
        rounding = 1e-6
        assert (last.link.diagonal(dim1=1, dim2=2) == 0).all()
        assert last.link.min() >= -rounding and max(last.link.sum(1).max(), last.link.sum(2).max()) <= 1 + rounding
        assert last.usage.min() >= 0 and last.usage.max() <= 1 + rounding
        total = last.read_weights.sum(2)
        assert (total <= 1 + rounding).all() and (not sharpen or (total >= 1 - rounding).all())


SIZES = [(3, 2, 4, 9, 7, 5, 8), (2, 2, 1, 1, 31, 13, 5), (2, 1, 3, 3, 2, 1, 3), (1, 1, 2, 4, 130, 3, 1)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_odd_sizes(isa, sizes):
    lengths = torch.arange(sizes[1]) + sizes[0] - 1 if sizes[1] == 2 else None
    actual = run(dnc_sequence, sizes, True, True, lengths=lengths)
    assert_close(actual, run(reference.dnc_sequence, sizes, True, True, lengths=lengths), 1e-10)


def test_many_cells():
    """N = 1000: the matrix of links of a sample has a million elements; the sort has ten rounds."""
    sizes = (2, 1, 2, 3, 1000, 2, 1)
    actual = run(dnc_sequence, sizes, False, True)
    assert_close(actual, run(reference.dnc_sequence, sizes, False, True), 1e-10)


def test_strided_and_expanded_arguments():
    x, state, weights = problem((4, 3, 3, 5, 6, 4, 2), True, True)
    one = DNCState(*(s[:1].expand_as(s) for s in state))
    strided = [w.t().contiguous().t() if w.dim() == 2 else w for w in weights]
    lengths = torch.tensor([4, 9, 0, 9, 3, 9])[::2]
    x = x[:, :1].expand_as(x)
    actual = dnc_sequence(x, one, *strided, lengths=lengths)
    expected = dnc_sequence(x.clone(), DNCState(*(s.clone() for s in one)), *weights, lengths=lengths.clone())
    for a, e in zip((*actual[:2], *actual[2]), (*expected[:2], *expected[2])):
        close(a, e)
    assert dnc_sequence(x, one, *weights, lengths=torch.tensor(2).expand(3))[0][2:].eq(0).all()


def test_clip_is_inclusive(isa):
    """At ±clip the gradient passes, beyond it does not; infinity is clamped, NaN is not."""
    x, state, weights = problem((1, 1, 2, 3, 4, 2, 1), True, True)
    weights[4].zero_()
    for value, passes in ((2.0, True), (2.0 + 1e-9, False), (float("inf"), False)):
        for sign in (1, -1):
            bias = torch.full_like(weights[5], sign * value).requires_grad_()
            arguments = (*weights[:5], bias)
            *_, last = dnc_sequence(x, state, *arguments, clip=2.0)
            *_, expected = reference.dnc_sequence(x, state, *arguments, clip=2.0)
            loss = last.memory.square().sum() + last.reads.sum()
            (gradient,) = torch.autograd.grad(loss, bias)
            (wanted,) = torch.autograd.grad(expected.memory.square().sum() + expected.reads.sum(), bias)
            close(gradient, wanted)
            assert (gradient != 0).any() == passes


def nan_of(outputs):
    return [y.isnan() for y in (*outputs[:2], *outputs[2])]


@pytest.mark.parametrize("sharpen", [False, True])
def test_a_nan_in_any_entry_of_the_interface_shows(isa, sharpen):
    x, state, weights = problem((3, 1, 2, 5, 9, 2, 2), True, sharpen)
    for i in range(len(weights[5])):
        bias = weights[5].clone()
        bias[i] = float("nan")
        arguments = x, state, *weights[:5], bias
        actual = nan_of(dnc_sequence(*arguments, sharpen=sharpen))
        for a, e in zip(actual, nan_of(reference.dnc_sequence(*arguments, sharpen=sharpen))):
            assert torch.equal(a, e), i


@pytest.mark.parametrize("sharpen", [False, True])
@pytest.mark.parametrize("field", DNCState._fields)
def test_a_nan_in_the_state_shows(isa, field, sharpen):
    x, state, weights = problem((2, 1, 2, 5, 9, 2, 2), True, sharpen)
    getattr(state, field).view(-1)[1] = float("nan")
    actual = nan_of(dnc_sequence(x, state, *weights, sharpen=sharpen))
    for a, e in zip(actual, nan_of(reference.dnc_sequence(x, state, *weights, sharpen=sharpen))):
        assert torch.equal(a, e)


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 0x7FC00001), (torch.float64, 0x7FF80000000007A2)])
def test_a_nan_with_a_payload_stays_one(isa, dtype, bits):
    """Its low bits must not end up in the exponent of e^x."""
    x, state, weights = problem((2, 1, 2, 5, 4, 2, 1), True, True, dtype)
    integers = torch.int32 if dtype == torch.float32 else torch.int64
    x[0, 0, 0] = torch.tensor(bits, dtype=integers).view(dtype)
    assert dnc_sequence(x, state, *weights)[0].isnan().all()


def test_a_mask_of_nothing_reads_evenly():
    memory = torch.arange(6.0).view(3, 2)
    for mask, clip in ((-700.0, 700.0), (-20.0, 20.0)):  # 0 (its square underflows), and too small against ε
        bias = interface(2, 1, masked=True, write_gate=-clip, read_mask=mask, read_key=1.0, mode=MODE["content"])
        state = step(bias, 3, 2, 1, masked=True, clip=clip, memory=memory)
        close(state.read_weights, torch.full((1, 3), 1 / 3, dtype=torch.float64), atol=1e-8)


def test_any_distance_of_checkpoints_is_allowed():
    x, state, weights = problem((4, 2, 3, 5, 6, 4, 2), True, True)
    x.requires_grad_()
    gradients = []
    for chunk in (1, 2**63 - 1, 2**70):
        hidden, _, _ = dnc_sequence(x, state, *weights, checkpoint_every=chunk)
        gradients += torch.autograd.grad(hidden.sum(), x)
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])


def test_the_returned_state_is_the_callers():
    """Writing into a returned or given state does not change a gradient; where it would, torch says so."""
    x, state, weights = problem((4, 2, 3, 5, 6, 4, 2), True, True)
    x.requires_grad_()
    hidden, reads, last = dnc_sequence(x, state, *weights)
    loss = hidden.sum() + reads.sum() + sum(s.sum() for s in last)
    (expected,) = torch.autograd.grad(loss, x, retain_graph=True)
    with torch.no_grad():
        for s in (*last, state.memory, state.link, state.usage):
            s.fill_(float("nan"))
    assert torch.equal(torch.autograd.grad(loss, x, retain_graph=True)[0], expected)
    hidden.detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    *_, unchanged = dnc_sequence(x[:0], state, *weights)
    assert all(a.data_ptr() != s.data_ptr() for a, s in zip(unchanged, state))


def test_only_some_states_need_gradients():
    x, state, weights = problem((3, 2, 3, 5, 6, 4, 2), True, True)
    state = DNCState(*(s.requires_grad_(i % 2 == 0) for i, s in enumerate(state)))
    some = [s for s in state if s.requires_grad]
    gradients = []
    for function in (dnc_sequence, reference.dnc_sequence):
        *_, last = function(x, state, *weights)
        gradients.append(torch.autograd.grad(last.memory.sum() + last.link.sum(), some, materialize_grads=True))
    assert_close(gradients[:1], gradients[1:], 1e-10)


def layer(**options):
    torch.manual_seed(0)
    return nn.DNC(5, 4, 8, 6, 3, 2, **options)


def test_checkpointing_and_copies():
    dnc, x = layer(), torch.randn(5, 2, 5)
    plain = x.clone().requires_grad_()
    dnc(plain)[0].sum().backward()
    again = x.clone().requires_grad_()
    checkpoint(lambda z: copy.deepcopy(dnc)(z)[0], again, use_reentrant=False).sum().backward()
    assert torch.equal(plain.grad, again.grad)


def test_autocast_leaves_the_recurrence_in_float32():
    dnc, x = layer(), torch.randn(5, 2, 5)
    _, expected, seen = dnc(x, return_trace=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state, traced = dnc(x, return_trace=True)
        (inside,) = torch.autograd.grad(state.memory.sum(), dnc.weight_hidden)
    (outside,) = torch.autograd.grad(expected.memory.sum(), dnc.weight_hidden)
    assert y.dtype == torch.bfloat16 and torch.equal(inside, outside)
    for a, e in zip((*state, *traced.values()), (*expected, *seen.values())):
        assert torch.equal(a, e)


@pytest.mark.parametrize("batch_first", [False, True])
def test_packed_in_any_order(batch_first):
    """Samples of one length may be packed in any order, and are handed back in it."""
    dnc = layer(batch_first=batch_first)
    samples = [torch.randn(n, 5) for n in (3, 5, 3, 5, 1)]
    order = torch.tensor([3, 1, 2, 0, 4])
    rows = pack_sequence([samples[i] for i in order])
    packed = PackedSequence(rows.data, rows.batch_sizes, order, order.argsort())
    y, state = dnc(packed)
    for b, (actual, sample) in enumerate(zip(unpack_sequence(y), samples)):
        alone, last = dnc(sample)
        torch.testing.assert_close(actual, alone, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(state.memory[b], last.memory, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("controller", [None, torch.nn.GRUCell(5 + 6, 8)])
def test_what_stands_in_the_padding_does_not_matter(controller):
    """Not even a NaN, whose product with a gradient of 0 is a NaN."""
    dnc, x, lengths = layer(controller=controller), torch.randn(5, 3, 5), torch.tensor([3, 5, 0])
    results = []
    for padding in (0.0, float("nan")):
        padded = x.masked_fill((torch.arange(5)[:, None] >= lengths)[..., None], padding).requires_grad_()
        y, state = dnc(padded, lengths=lengths)
        gradients = torch.autograd.grad(y.sum() + state.memory.sum(), [padded, *dnc.parameters()])
        results.append((y, *state, *gradients))
    for a, b in zip(*results):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled(dynamic):
    dnc = layer()
    compiled = torch.compile(dnc, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for steps, lengths in ((4, None), (5, None), (7, torch.tensor([7, 0]))):
        x = torch.randn(steps, 2, 5)
        gradients = []
        for f in (dnc, compiled):
            y, _ = f(x, lengths=lengths)
            gradients.append(torch.autograd.grad(y.square().sum(), dnc.parameters()))
        assert_close(gradients[:1], gradients[1:], 1e-5)


def test_fake_tensors_have_the_shapes():
    with torch._subclasses.FakeTensorMode():
        dnc = layer()
        y, state = dnc(torch.randn(7, 3, 5), lengths=torch.tensor([1, 2, 3]))
        y.sum().backward()
        assert y.shape == (7, 3, 4) and state.link.shape == (3, 6, 6)
        assert all(p.grad.shape == p.shape for p in dnc.parameters())
    y, state = layer(device="meta")(torch.empty(7, 3, 5, device="meta"))
    assert y.shape == (7, 3, 4) and state.link.is_meta


@pytest.mark.parametrize(("steps", "batch"), list(itertools.product((0, 2), repeat=2))[:3])
def test_nothing_to_do(steps, batch):
    dnc = layer()
    y, state = dnc(torch.randn(steps, batch, 5))
    (y.sum() + state.memory.sum()).backward()
    assert y.shape == (steps, batch, 4) and all((p.grad == 0).all() for p in dnc.parameters())


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: layer().initial_state(2, num_cells=0), "num_cells"),
        (lambda: layer()(torch.randn(3, 5), state=3), "state"),
        (lambda: layer()(torch.randn(3, 5), state=(1,) * 9), "state"),
    ],
)
def test_errors_name_the_argument(call, name):
    with pytest.raises((TypeError, ValueError), match=name):
        call()
