"""Content addressing, writing and reading of a memory against the reference in float64: values, gradients, memory
layouts, known results, and errors."""

import itertools

import pytest
import torch
from content_checks import EMITTED, check, make_inputs, results_of
from support import LAYOUTS

from sysgen import ops, reference
from sysgen.testing import check_gradients

F32, F64 = torch.float32, torch.float64
OPS = ("content_address", "ntm_address", "memory_write", "memory_read")

# (B, N, W, R): one cell, one word, both sides of vectors, tiles and groups of heads
SIZES = [(1, 1, 1, 1), (2, 2, 3, 8), (3, 31, 20, 1), (2, 33, 3, 5), (1, 33, 20, 8)]
LARGE = (1, 300, 33, 5)  # more than one launch, and more than one block of rows for a thread


@pytest.mark.parametrize("dtype", [F64, F32], ids=("float64", "float32"))
@pytest.mark.parametrize("op", OPS)
def test_values_and_gradients(backend, op, dtype):
    for n, sizes in enumerate([*SIZES, LARGE]):
        if backend.slow and sizes == LARGE and dtype == F64:
            continue
        options = {"optional": n % 2 == 0, "shifts": 2 * (n % 3) + 1, "layout": LAYOUTS[n % len(LAYOUTS)], "seed": n}
        check(backend.ops, op, make_inputs(op, sizes, dtype, backend.device, **options), f"{sizes} {options}")


@pytest.mark.parametrize("op", OPS)
def test_optional_arguments_and_layouts(compiled, op):
    for optional, layout in itertools.product((False, True), LAYOUTS):
        if not compiled.slow or layout in ("sliced", "transposed"):
            inputs = make_inputs(op, (2, 5, 6, 2), F32, compiled.device, optional=optional, layout=layout)
            check(ops, op, inputs, f"optional={optional} {layout}")


@pytest.mark.parametrize("op", OPS)
def test_expanded_tensors(compiled, op):
    inputs = make_inputs(op, (1, 5, 6, 2), F32, compiled.device)
    expanded = {n: t.detach().expand(3, *t.shape[1:]).requires_grad_() for n, t in inputs.items()}
    check(ops, op, expanded)


@pytest.mark.parametrize("sizes", [(0, 3, 4, 2), (2, 0, 4, 2), (2, 3, 0, 2), (2, 3, 4, 0)], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_empty(backend, op, sizes):
    check(backend.ops, op, make_inputs(op, sizes, F32, backend.device))


@pytest.mark.parametrize("op", OPS)
def test_derivatives_of_first_and_second_order(compiled, op):
    for optional in (True, False):
        inputs = make_inputs(op, (1, 3, 2, 2), F64, compiled.device, optional=optional)
        names = list(inputs)
        check_gradients(lambda *t, names=names: getattr(ops, op)(**dict(zip(names, t))), tuple(inputs.values()))


@pytest.mark.parametrize("op", OPS)
def test_derivatives_on_the_meta_device(op):
    inputs = {n: t.detach().to("meta").requires_grad_() for n, t in make_inputs(op, (2, 5, 3, 2), F32, "cpu").items()}
    leaves = list(inputs.values())
    first = torch.autograd.grad(getattr(ops, op)(**inputs).sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    assert [g.shape for g in second] == [t.shape for t in leaves]


@pytest.mark.parametrize("op", OPS)
def test_every_gradient_alone(compiled, op):
    inputs = make_inputs(op, (2, 5, 3, 2), F32, compiled.device)
    together, direction = results_of(getattr(ops, op), inputs)
    for name, t in inputs.items():
        others = {n: o.detach() for n, o in inputs.items()}
        (alone,) = torch.autograd.grad(getattr(ops, op)(**{**others, name: t}), t, direction)
        assert torch.equal(alone, together[name])


@pytest.mark.parametrize("op", OPS)
def test_the_number_of_threads_changes_no_bit(isa, op):
    before = torch.get_num_threads()
    for sizes in (LARGE, (3, 700, 20, 3)):
        inputs, found = make_inputs(op, sizes, F32), []
        try:
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                found.append(results_of(getattr(ops, op), inputs)[0])
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(found[0][n], other[n]) for other in found[1:] for n in found[0])


@pytest.mark.parametrize("op", OPS)
def test_only_inputs_are_saved(op):
    """Nothing of size R · N · W, and nothing that is not an input."""
    inputs, saved = make_inputs(op, (2, 7, 5, 3), F32), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        getattr(ops, op)(**inputs)
    assert sorted(saved) == sorted(t.data_ptr() for t in inputs.values())


# ---- dtypes


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=("bfloat16", "float16"))
@pytest.mark.parametrize("op", OPS)
def test_what_a_network_emits_may_be_half(compiled, op, half):
    """It is cast, and its gradient comes back in its dtype; autocast changes nothing."""
    inputs = make_inputs(op, (2, 5, 6, 2), F32, compiled.device)
    mixed = {n: (t.detach().to(half) if n in EMITTED else t.detach()).requires_grad_() for n, t in inputs.items()}
    wide = {n: t.detach().float().requires_grad_() for n, t in mixed.items()}
    expected, direction = results_of(getattr(ops, op), wide)
    for enabled in (False, True):
        with torch.autocast(compiled.device, half, enabled=enabled):
            found, _ = results_of(getattr(ops, op), mixed, direction)
        assert found["output"].dtype == F32 and torch.equal(found["output"], expected["output"])
        for n, t in mixed.items():
            assert found[n].dtype == t.dtype and torch.equal(found[n], expected[n].to(t.dtype)), n


# ---- known results


def test_content_is_the_softmax_of_cosines(backend):
    """A3 of deepmind/dnc's tests; A1: with keys that meet each cell alike, the plain softmax."""
    inputs = make_inputs("content_address", (5, 10, 2, 4), F64, backend.device, optional=False)
    memory, key, strength = (t.detach() for t in inputs.values())
    memory[0, :3] = torch.tensor([[1, 2], [3, 4], [5, 6]])
    key[0] = torch.tensor([[5, 6], [1, 2], [5, 6], [3, 4]])
    cosine = torch.cosine_similarity(key[:, :, None], memory[:, None], dim=3)
    weights = backend.ops.content_address(memory, key, strength, eps=1e-12)
    torch.testing.assert_close(weights, (strength[..., None] * cosine).softmax(2), atol=1e-9, rtol=0)
    assert weights.shape == (5, 4, 10)


@pytest.mark.parametrize("dtype", [F64, F32], ids=("float64", "float32"))
def test_empty_cells_and_keys(backend, dtype):
    """A4, adversarial cases 5 and 6: a zero row or key has cosine 0; gradients are finite, and 0 where the norm is; a
    huge strength is one-hot and splits evenly between equal cells; a strength of 0 and no mask at all are uniform."""
    memory = torch.zeros(1, 5, 3, dtype=dtype, device=backend.device)
    memory[0, :2] = 1
    key = torch.zeros(1, 3, 3, dtype=dtype, device=backend.device)
    key[0, ::2] = 1
    strength = torch.tensor([[1e4, 1e4, 0.0]], dtype=dtype, device=backend.device)
    leaves = [t.requires_grad_() for t in (memory, key, strength, torch.ones_like(key))]
    weights = backend.ops.content_address(*leaves)
    expected = [[0.5, 0.5, 0, 0, 0], [0.2] * 5, [0.2] * 5]
    torch.testing.assert_close(weights[0].double().cpu(), torch.tensor(expected, dtype=F64), atol=1e-6, rtol=0)
    for gradient in torch.autograd.grad(weights[..., 0].sum(), leaves):
        assert gradient.isfinite().all()
    for mask in (0.0, 1e-20):  # case 19: masks that hide every word, and that underflow
        masked = backend.ops.content_address(leaves[0], leaves[1], strength + 3, torch.full_like(key, mask))
        torch.testing.assert_close(masked, torch.full_like(masked, 0.2), atol=1e-6, rtol=0)


def test_a_masked_word_does_not_matter(backend):
    memory, key, strength, mask = make_inputs("content_address", (2, 6, 4, 3), F64, backend.device).values()
    address, ones = backend.ops.content_address, torch.ones_like(key)
    torch.testing.assert_close(address(memory, key, strength, ones), address(memory, key, strength), atol=0, rtol=1e-14)
    mask = mask.detach().clone()
    mask[..., 1] = 0
    changed = memory.detach().clone()
    changed[..., 1] += 100
    torch.testing.assert_close(
        address(changed, key, strength, mask), address(memory, key, strength, mask), atol=0, rtol=1e-14
    )


def test_memory_of_the_turing_machine(backend):
    """The cases of pytorch-ntm's tests, exact in float32."""

    def row(*numbers):
        return torch.tensor([numbers], dtype=F32, device=backend.device)

    memory = torch.zeros(1, 4, 4, device=backend.device)
    ones, none = row(1, 1, 1, 1), row(0, 0, 0, 0)
    cases = [
        (row(1, 0, 0, 0), ones, row(1, 0, 0, 0), 0, row(1, 0, 0, 0)),
        (row(0, 1, 0, 0), ones, row(0, 1, 0, 0), 1, row(0, 1, 0, 0)),
        (row(0, 0, 1, 0), ones, row(0, 0, 1, 0), 2, row(0, 0, 1, 0)),
        (row(0, 0, 0, 1), ones, row(0, 0, 0, 1), 3, row(0, 0, 0, 1)),
        (row(1, 0, 0, 0), row(0, 1, 1, 1), row(0, 1, 1, 1), 0, row(1, 1, 1, 1)),
        (row(0, 1, 0, 0), none, row(0, 0, 1, 0), 1, row(0, 1, 1, 0)),
        (row(0, 0, 1, 0), none, none, 2, row(0, 0, 1, 0)),
        (row(0, 0, 0, 1), row(0, 0, 0, 0.5), row(0, 0, 0, 0.2), 3, row(0, 0, 0, 0.7)),
    ]
    for weights, erase, value, cell, expected in cases:
        memory = backend.ops.memory_write(memory, weights, erase, value)
        assert torch.equal(memory[:, cell], expected)
        assert torch.equal(backend.ops.memory_read(memory, weights[:, None]), memory[:, cell : cell + 1])
    memory = backend.ops.memory_write(memory, row(0.5, 0.5, 0, 0), ones, none)
    assert torch.equal(backend.ops.memory_read(memory, row(0.5, 0.5, 0, 0)[:, None])[0], row(0.25, 0.5, 0.5, 0.25))


def address_ntm(ops, cells, focus, shift, *, sharpness=1.0, gate=0.0, dtype=F64, device="cpu"):
    """Weights for an identity memory, a key equal to cell 0, and the given weights of the step before."""
    memory = torch.eye(cells, dtype=dtype, device=device)[None]
    numbers = [torch.full((1, 1), x, dtype=dtype, device=device) for x in (100.0, gate, sharpness)]
    previous, shift = (torch.tensor([[x]], dtype=dtype, device=device) for x in (focus, shift))
    return ops.ntm_address(memory, memory[:, :1], numbers[0], numbers[1], shift, numbers[2], previous)[0, 0].cpu()


@pytest.mark.parametrize("dtype", [F64, F32], ids=("float64", "float32"))
def test_addressing_of_the_turing_machine(backend, dtype):
    def address(*arguments, **options):
        return address_ntm(backend.ops, *arguments, dtype=dtype, device=backend.device, **options).tolist()

    assert address(4, [0.0] * 4, [0.0, 1, 0], sharpness=100.0, gate=1.0) == [1, 0, 0, 0]
    # Entry 0 moves the focus by +1, and the cells are a ring: of one cell all entries meet, of two the outer ones.
    assert address(4, [0.0, 0, 0, 1], [1.0, 0, 0]) == [1, 0, 0, 0]
    assert address(4, [1.0, 0, 0, 0], [0.0, 0, 1]) == [0, 0, 0, 1]
    assert address(3, [1.0, 0, 0], [0.0, 1, 0, 0, 0]) == [0, 1, 0]
    assert address(1, [0.5], [0.25, 0.5, 0.25]) == [1]
    assert address(2, [1.0, 0], [0.25, 0.5, 0.25]) == [0.5, 0.5]
    assert address(2, [1.0, 0], [0.0, 0, 0, 0.25, 0.75]) == pytest.approx([0.75, 0.25], rel=1e-6)
    # Exact zeros, also all of them, and a power under which float32 has no number left for any weight.
    assert address(4, [0.0] * 4, [0.25, 0.5, 0.25]) == [0, 0, 0, 0]
    assert address(3, [0.0, 1, 0], [0.0, 1, 0], sharpness=1e4) == [0, 1, 0]
    assert address(2, [1e-30, 5e-31], [0.0, 1, 0], sharpness=8.0) == pytest.approx([256 / 257, 1 / 257], rel=1e-4)
    assert address(3, [0.2, 0, 0.1], [0.0, 1, 0], sharpness=0.0) == [0.5, 0, 0.5]


def test_gradients_at_exact_zeros(backend):
    """A weight of exactly 0 has no gradient, and none is NaN."""
    for focus in ([0.0, 0.5, 0.0, 0.25], [0.0] * 4):
        memory = torch.zeros(1, 4, 2, dtype=F64, device=backend.device)
        named = {"strength": 2.0, "gate": 0.0, "sharpness": 3.0}
        tensors = {n: torch.full((1, 1), x, dtype=F64, device=backend.device) for n, x in named.items()}
        tensors |= {"memory": memory, "key": memory[:, :1].clone(), "previous": memory.new_tensor([[focus]])}
        tensors["shift"] = memory.new_tensor([[[0.0, 1, 0]]])
        leaves = {n: t.requires_grad_() for n, t in tensors.items()}
        found, direction = results_of(backend.ops.ntm_address, leaves)
        leaves = {n: t.detach().cpu().requires_grad_() for n, t in leaves.items()}
        expected, _ = results_of(reference.ntm_address, leaves, direction.cpu())
        for n, g in found.items():
            torch.testing.assert_close(g.cpu(), expected[n], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("op", OPS)
def test_a_nan_shows(backend, op):
    """In the output at the same places as in the definition."""
    names = list(make_inputs(op, (1, 5, 3, 2)))
    for name in names:
        inputs = {n: t.detach().clone() for n, t in make_inputs(op, (1, 5, 3, 2), F32, backend.device).items()}
        inputs[name].view(-1)[-1] = float("nan")
        expected = getattr(reference, op)(**{n: t.cpu() for n, t in inputs.items()}).isnan()
        assert expected.any() and torch.equal(getattr(backend.ops, op)(**inputs).isnan().cpu(), expected), name


# ---- inside torch


@pytest.mark.parametrize("op", OPS)
def test_compiled(op):
    torch._dynamo.reset()
    function = torch.compile(getattr(ops, op), fullgraph=True, dynamic=True, backend="aot_eager")
    for sizes in ((2, 5, 7, 4), (9, 11, 8, 6)):  # equal sizes of one call would be taken for the same one
        inputs = make_inputs(op, sizes, F32)
        expected, direction = results_of(getattr(ops, op), inputs)
        with torch._dynamo.config.patch(error_on_recompile=True):
            found, _ = results_of(function, inputs, direction)
        assert all(torch.equal(found[n], expected[n]) for n in expected)


def test_one_tensor_for_several_arguments():
    torch._dynamo.reset()
    inputs = make_inputs("memory_write", (2, 5, 3, 1), F32)
    leaves = [inputs[n] for n in ("memory", "write_weights", "erase")]

    def write(memory, weights, words):
        return ops.memory_write(memory, weights, words, words, weights).square().sum()

    expected = torch.autograd.grad(reference.memory_write(*leaves, leaves[2], leaves[1]).square().sum(), leaves)
    for function in (write, torch.compile(write, fullgraph=True, backend="aot_eager")):
        torch.testing.assert_close(torch.autograd.grad(function(*leaves), leaves), expected)


# ---- errors


@pytest.mark.parametrize(
    ("op", "change", "error", "message"),
    [
        ("content_address", {"memory": 3}, TypeError, "memory must be a torch.Tensor, got int"),
        ("content_address", {"memory": lambda t: t.bfloat16()}, TypeError, "memory .* keep state in float32"),
        ("memory_read", {"read_weights": lambda t: t.half()}, TypeError, "read_weights .* keep state in float32"),
        ("memory_read", {"read_weights": lambda t: t.double()}, TypeError, "read_weights must be float32 as memory"),
        ("content_address", {"key": lambda t: t.double()}, TypeError, "key must be float32 as memory, or bfloat16"),
        ("memory_write", {"erase": lambda t: t.long()}, TypeError, "erase must be float32 as memory"),
        ("content_address", {"memory": lambda t: t[0]}, ValueError, r"memory must have 3 dimensions \[B, N, W\]"),
        ("content_address", {"key": lambda t: t[..., :2]}, ValueError, r"key must have shape \[2, R, 3\]"),
        ("content_address", {"strength": lambda t: t[:, :1]}, ValueError, r"strength must have shape \[2, 2\]"),
        ("content_address", {"mask": lambda t: t.to("meta")}, ValueError, "mask is on meta, memory on cpu"),
        ("content_address", {"key": None}, TypeError, "key must be a torch.Tensor, got NoneType"),
        ("memory_write", {"write_weights": None}, TypeError, "write_weights must be a torch.Tensor, got NoneType"),
        ("content_address", {"eps": 0}, ValueError, "eps must be at least"),
        ("content_address", {"eps": "1"}, TypeError, "eps must be a number, got str"),
        ("ntm_address", {"shift": lambda t: t[..., :2]}, ValueError, "shift must have an odd number of entries"),
        ("ntm_address", {"previous": lambda t: t[:, :, 1:]}, ValueError, r"previous must have shape \[2, R, 5\]"),
        ("memory_write", {"retention": lambda t: t[..., None]}, ValueError, "retention must have 2 dimensions"),
    ],
)
def test_errors_name_the_argument(op, change, error, message):
    inputs = {n: t.detach() for n, t in make_inputs(op, (2, 5, 3, 2), F32).items()}
    for name, to in change.items():
        inputs[name] = to(inputs[name]) if callable(to) else to
    with pytest.raises(error, match=f"^{op}: {message}"):
        getattr(ops, op)(**inputs)
