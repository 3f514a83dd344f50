"""Dynamic allocation and temporal links, each operation by itself, against the definition in float64.

What these operations mean is tested in test_dnc_reference.py, on all backends.
"""

import pytest
import torch
from support import LAYOUTS, place

from sysgen import ops, reference
from sysgen.testing import check_gradients

F32, F64 = torch.float32, torch.float64
NAMES = ("retention", "usage_update", "allocation", "link_update", "link_read")

# (B, N, R): ones, both sides of vectors, warps and tiles, more heads than share a pass
SHAPES = [(2, 5, 2), (1, 1, 1), (3, 2, 8), (2, 31, 3), (1, 32, 4), (2, 33, 8), (1, 70, 9)]
LARGE = [(1, 132, 3), (2, 300, 5), (1, 1000, 2)]  # several tiles or blocks of rows
EMPTY = [(0, 5, 2), (2, 4, 0), (2, 0, 3)]


def make_inputs(name, shape, dtype=F64, device="cpu", layout="sliced", seed=0):
    """Arguments that a step of a recurrence could bring; every one requires a gradient and lies in a larger buffer."""
    b, n, r = shape
    g = torch.Generator().manual_seed(seed + n)

    def rand(*shape):
        return torch.rand(*shape, generator=g, dtype=F64)

    def distribution(*shape):
        weights = rand(*shape)
        return weights / (weights.sum(-1, keepdim=True) + 0.1)

    made = {
        "retention": lambda: {"read_weights": distribution(b, r, n), "free_gate": rand(b, r)},
        "usage_update": lambda: {
            "usage": rand(b, n),
            "write_weights": distribution(b, n),
            "retention": rand(b, n),
        },
        "allocation": lambda: {"usage": rand(b, n)},
        "link_update": lambda: {
            "link": rand(b, n, n) / max(n, 1),
            "precedence": distribution(b, n),
            "write_weights": distribution(b, n),
        },
        "link_read": lambda: {
            "link": rand(b, n, n) / max(n, 1),
            "read_weights": distribution(b, r, n),
            "sharp_forward": 1 + 2 * rand(b, r),
            "sharp_backward": 1 + 2 * rand(b, r),
        },
    }[name]()
    return {k: place(t.to(device, dtype), layout).requires_grad_() for k, t in made.items()}


def results_of(ops, name, inputs, **options):
    """Outputs and the gradients of the inputs that require one, by name."""
    if name == "usage_update":
        options = {"detach_write": False, **options}
    outputs = getattr(ops, name)(**inputs, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    names = [k for k, t in inputs.items() if t is not None and t.requires_grad]
    directions = []
    for i, y in enumerate(outputs):
        g = torch.Generator().manual_seed(i)
        directions.append(torch.randn(y.shape, generator=g, dtype=F64).to(y))
    tracked = [(y, d) for y, d in zip(outputs, directions) if y.requires_grad]
    leaves = [inputs[k] for k in names]
    gradients = torch.autograd.grad([y for y, _ in tracked], leaves, [d for _, d in tracked], materialize_grads=True)
    return {f"output {i}": y.detach() for i, y in enumerate(outputs)} | dict(zip(names, gradients))


def check(ops, name, inputs, what="", **options):
    """Every result within 8 (N + R + 16) (1 + s) u of the largest element of its exact value.

    Each is made of sums of at most N terms and products of at most N or R factors; a sum or product of n is off by n u
    of the sum of its absolute terms, which the random inputs keep within a small multiple of the result. Sharpening by
    s multiplies a relative error by s.
    """
    given = {k: t for k, t in inputs.items() if t is not None}
    seen = {k: t.detach().cpu().double().requires_grad_(t.requires_grad) for k, t in given.items()}
    exact = results_of(reference, name, seen, **options)
    first = next(iter(inputs.values()))
    sharp = max((t.detach().max().item() for k, t in seen.items() if "sharp" in k and t.numel()), default=0)
    sizes = sum(first.shape[1:])
    for key, actual in results_of(ops, name, inputs, **options).items():
        value = exact[key]
        assert actual.dtype == (inputs[key].dtype if key in inputs else first.dtype) and actual.shape == value.shape
        if not value.numel():
            continue
        limit = 8 * (sizes + 16) * (1 + sharp) * torch.finfo(first.dtype).eps / 2 * value.abs().max()
        error = (actual.cpu().double() - value).abs().max()
        assert error <= limit, f"{name} {what}: {key} is off by {error:.3g}, allowed are {limit:.3g}"


@pytest.mark.parametrize("dtype", [F64, F32], ids=("float64", "float32"))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients(compiled, name, shape, dtype):
    layout = LAYOUTS[SHAPES.index(shape) % len(LAYOUTS)]
    check(ops, name, make_inputs(name, shape, dtype, compiled.device, layout), f"{shape} {layout}")


@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_many_cells(compiled, name, shape):
    if not compiled.slow or shape == LARGE[0]:
        check(ops, name, make_inputs(name, shape, F32, compiled.device, "contiguous"), str(shape))


@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_empty(compiled, name, shape):
    if shape[2] == 0 and name == "link_read":  # softmax has no reference of no heads: there is nothing to compare
        inputs = make_inputs(name, shape, F32, compiled.device)
        outputs = ops.link_read(**inputs)
        gradient = torch.autograd.grad([y.sum() for y in outputs], inputs["link"])[0]
        assert outputs[0].shape == outputs[1].shape == (2, 0, 4) and not gradient.any()
        return
    check(ops, name, make_inputs(name, shape, F32, compiled.device), str(shape))


@pytest.mark.parametrize("sharp", [(False, False), (True, False), (False, True)], ids=str)
def test_sharpening_of_one_direction_or_none(compiled, sharp):
    for shape in ((2, 6, 3), (1, 33, 1)):
        inputs = make_inputs("link_read", shape, F32, compiled.device)
        for argument, wanted in zip(("sharp_forward", "sharp_backward"), sharp):
            if not wanted:
                inputs[argument] = None
        check(ops, "link_read", inputs, str(sharp))


@pytest.mark.parametrize("name", ["link_update", "link_read"])
def test_a_gradient_of_one_output_only(compiled, name):
    for i in (0, 1):
        inputs = make_inputs(name, (2, 6, 3), F64, compiled.device)
        leaves = list(inputs.values())
        gradients = []
        for module in (ops, reference):
            y = getattr(module, name)(**inputs)[i].square().sum()
            gradients.append(torch.autograd.grad(y, leaves, materialize_grads=True))
        for a, b in zip(*gradients):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_expanded_and_partly_tracked_arguments(compiled, name):
    """Views with strides of 0; and gradients for some of the inputs only."""
    inputs = make_inputs(name, (1, 6, 2), F32, compiled.device)
    expanded = {k: t.detach().expand(3, *t.shape[1:]).requires_grad_() for k, t in inputs.items()}
    check(ops, name, expanded, "expanded")
    for wanted in inputs:
        check(ops, name, {k: t.detach().requires_grad_(k == wanted) for k, t in inputs.items()}, wanted)
    assert not any(t.requires_grad for t in _outputs(name, {k: t.detach() for k, t in inputs.items()}))


def _outputs(name, inputs):
    outputs = getattr(ops, name)(**inputs)
    return outputs if isinstance(outputs, tuple) else (outputs,)


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_of_first_and_second_order(compiled, name):
    inputs = make_inputs(name, (1, 3, 2), F64, compiled.device)

    def call(*leaves):
        options = {"detach_write": False} if name == "usage_update" else {}
        return getattr(ops, name)(**dict(zip(inputs, leaves)), **options)

    check_gradients(call, tuple(t.detach().clone().requires_grad_() for t in inputs.values()))


# ---- where it may break


@pytest.mark.parametrize("dtype", [F64, F32], ids=("float64", "float32"))
@pytest.mark.parametrize("usage", [0.0, 0.25, 1.0])
def test_ties_go_to_the_lower_index(compiled, usage, dtype):
    """However many cells: a sort that is not stable begins to differ at some size."""
    for cells in (17, 65, 600) if compiled.slow else (17, 33, 200, 600, 2000):
        a = ops.allocation(torch.full((2, cells), usage, dtype=dtype, device=compiled.device))
        u = usage * (1 - 1e-6) + 1e-6
        expected = (1 - u) * torch.tensor(u, dtype=F64) ** torch.arange(cells)
        # in float32 u is rounded relative to 1 - u by 2⁻²⁴, and its n-th power n times
        torch.testing.assert_close(
            a.cpu().double(), expected.expand(2, cells), atol=1e-12 if dtype == F64 else 2e-6, rtol=0
        )
        if usage == 0:
            assert (a[:, 0] == a.max()).all()


def test_allocation_of_cells_that_are_free_or_full(compiled):
    """Exact zeros and ones: the gradient is exact too, since nothing is divided."""
    usage = torch.tensor([[0, 1, 0, 1, 0.5], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=F64, device=compiled.device)
    check(ops, "allocation", {"usage": usage.requires_grad_()})
    full, gradient = usage[1:2].detach().requires_grad_(), None
    a = ops.allocation(full)
    gradient = torch.autograd.grad(a.sum(), full)[0]
    assert not a.any() and gradient.isfinite().all() and (gradient < 0).any()


def test_allocation_of_nan(compiled):
    """It counts as used most: no other weight changes, and its own shows it."""
    for cells in (5, 70, 600):
        usage = torch.rand(1, cells, dtype=F64, generator=torch.Generator().manual_seed(0)).to(compiled.device)
        usage[0, 2] = float("nan")
        a, others = ops.allocation(usage), torch.arange(cells, device=compiled.device) != 2
        assert a[0, 2].isnan()
        torch.testing.assert_close(a[:, others], ops.allocation(usage[:, others]))


def test_a_nan_shows(compiled):
    for name in ("retention", "usage_update", "link_update", "link_read"):
        inputs = make_inputs(name, (1, 5, 2), F32, compiled.device)
        for argument in inputs:
            changed = {k: t.detach().clone() for k, t in inputs.items()}
            changed[argument].view(-1)[1] = float("nan")
            assert any(y.isnan().any() for y in _outputs(name, changed)), (name, argument)


@pytest.mark.parametrize("strength", [0.0, 1.0, 200.0, 1e4])
def test_sharpening_where_the_power_underflows(compiled, strength):
    """d ** 200 is 0 in float32 for d <= 0.3, and 0 / 0 when it is normalised."""
    link = torch.zeros(1, 4, 4, device=compiled.device)
    link[0, :3, 3] = torch.tensor([0.1, 0.3, 0.2])
    read = torch.tensor([[[0.0, 0, 0, 1]]], device=compiled.device)
    s = torch.full((1, 1), strength, device=compiled.device)
    forward, _ = ops.link_read(link, read, s, s)
    powers = (link[0, :, 3].double() + 1e-6).log().mul(strength).softmax(0)
    # log is off by a unit in the last place of at most 14, times the strength
    torch.testing.assert_close(
        forward[0, 0].double(), powers, atol=1e-6 * max(strength, 1) if strength < 1e3 else 1e-6, rtol=0
    )


def test_sharpening_of_no_links(compiled):
    """Uniform; the gradients are steep, s / (N eps), but finite and right."""
    inputs = make_inputs("link_read", (1, 3, 2), F32, compiled.device)
    inputs["link"] = torch.zeros(1, 3, 3, device=compiled.device).requires_grad_()
    for argument in ("sharp_forward", "sharp_backward"):  # all that is left of their gradient, 0, is rounding
        inputs[argument] = inputs[argument].detach()
    check(ops, "link_read", inputs)
    for weights in ops.link_read(**inputs):
        torch.testing.assert_close(weights, torch.full_like(weights, 1 / 3))


def test_negative_projections_count_as_none(compiled):
    link = torch.full((1, 3, 3), -3e-4, device=compiled.device).requires_grad_()
    read, s = torch.full((1, 1, 3), 0.3, device=compiled.device), torch.full((1, 1), 2.0, device=compiled.device)
    outputs = ops.link_read(link, read, s, s)
    for weights in outputs:
        torch.testing.assert_close(weights, torch.full_like(weights, 1 / 3))
    assert not torch.autograd.grad(outputs[0][..., 0].sum(), link)[0].any()


def test_a_free_gate_of_one_empties_what_was_read(compiled):
    """σ(20) is 1 in float32; the product of the other heads is exact where this one's is 0."""
    gate = torch.full((1, 2), 20.0, device=compiled.device).sigmoid()
    read = torch.tensor([[[0.0, 1, 0], [0, 1, 0.5]]], device=compiled.device)
    kept = ops.retention(read, gate)
    assert torch.equal(kept.cpu(), torch.tensor([[1.0, 0.0, 0.5]]))
    assert ops.usage_update(torch.ones_like(kept), torch.ones_like(kept), kept)[0, 1] == 0
    check(ops, "retention", {"read_weights": read.requires_grad_(), "free_gate": gate.requires_grad_()})


def test_one_cell(compiled):
    one = torch.ones(1, 1, device=compiled.device)
    link, precedence = ops.link_update(one[None] / 2, one / 4, one / 2)
    assert link == 0 and precedence == 0.625
    plain, sharp = ops.link_read(link, one[None]), ops.link_read(link, one[None], one, one)
    assert not plain[0].any() and not plain[1].any() and sharp[0] == 1 and sharp[1] == 1
    torch.testing.assert_close(ops.allocation(one / 2), one / 2, atol=1e-6, rtol=0)


def test_the_diagonal_of_the_links_is_zero_whatever_it_was(compiled):
    inputs = make_inputs("link_update", (2, 40, 1), F32, compiled.device)
    link, _ = ops.link_update(**inputs)
    assert (link.diagonal(dim1=1, dim2=2) == 0).all()
    gradient = torch.autograd.grad(link.sum(), inputs["link"])[0]
    assert (gradient.diagonal(dim1=1, dim2=2) == 0).all()


# ---- dtypes and errors


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["retention", "link_read"])
def test_gates_in_half_precision(compiled, name, half):
    """As if they had been cast; their gradients come back in their own dtype. Autocast changes nothing."""
    inputs = make_inputs(name, (2, 5, 3), F32, compiled.device)
    gates = [k for k in inputs if "gate" in k or "sharp" in k]
    small = {**inputs, **{k: inputs[k].detach().to(half).requires_grad_() for k in gates}}
    cast = {**inputs, **{k: small[k].detach().float().requires_grad_() for k in gates}}
    with torch.autocast(compiled.device, half):
        results = results_of(ops, name, small)
    for key, expected in results_of(ops, name, cast).items():
        assert results[key].dtype == (half if key in gates else F32)
        assert torch.equal(results[key], expected.to(results[key].dtype))


def test_autocast_changes_nothing(compiled):
    for name in NAMES:
        inputs = make_inputs(name, (2, 5, 3), F32, compiled.device)
        expected = results_of(ops, name, inputs)
        with torch.autocast(compiled.device, torch.bfloat16):
            for key, actual in results_of(ops, name, inputs).items():
                assert actual.dtype == F32 and torch.equal(actual, expected[key])


@pytest.mark.parametrize("name", NAMES)
def test_state_in_half_precision_is_refused(name):
    inputs = make_inputs(name, (2, 5, 3), torch.bfloat16)
    with pytest.raises(TypeError, match=f"{name}: .* must be float32 or float64, got bfloat16; keep state in float32"):
        getattr(ops, name)(**inputs)


def test_what_does_not_fit_is_refused():
    t = torch.zeros
    with pytest.raises(TypeError, match=r"usage must be a torch\.Tensor, got list"):
        ops.allocation([0.5])
    with pytest.raises(TypeError, match=r"retention must be a torch\.Tensor, got NoneType"):
        ops.usage_update(t(1, 3), t(1, 3), None)
    with pytest.raises(ValueError, match=r"usage must have 2 dimensions \[B, N\], got shape \[3\]"):
        ops.allocation(t(3))
    with pytest.raises(ValueError, match=r"eps must be at least .*, got 0"):
        ops.allocation(t(1, 3), eps=0)
    with pytest.raises(ValueError, match="precedence"):
        ops.link_update(t(1, 3, 3), t(1, 4), t(1, 3))
    with pytest.raises(ValueError, match="link"):
        ops.link_update(t(1, 3, 4), t(1, 3), t(1, 3))
    with pytest.raises(TypeError, match="write_weights must be float32"):
        ops.link_update(t(1, 3, 3), t(1, 3), t(1, 3, dtype=F64))
    with pytest.raises(ValueError, match="sharp_forward"):
        ops.link_read(t(1, 3, 3), t(1, 2, 3), t(1, 3))
    with pytest.raises(TypeError, match="detach_write must be a bool"):
        ops.usage_update(t(1, 3), t(1, 3), t(1, 3), 1)
    with pytest.raises(ValueError, match="free_gate"):
        ops.retention(t(1, 2, 3), t(1, 3))


# ---- inside torch


def test_compile_forward_and_backward(device):
    """One graph without breaks, for any number of cells."""
    torch._dynamo.reset()

    def step(link, precedence, write_weights, read_weights, free_gate, usage, sharpness):
        kept = ops.retention(read_weights, free_gate)
        allocated = ops.allocation(ops.usage_update(usage, write_weights, kept, False))
        link, precedence = ops.link_update(link, precedence, allocated / 2)
        forward, backward = ops.link_read(link, read_weights, sharpness)
        return (forward * backward).sum() + precedence.square().sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (5, 9):
        g = torch.Generator().manual_seed(n)
        shapes = (2, n, n), (2, n), (2, n), (2, 3, n), (2, 3), (2, n), (2, 3)
        leaves = [(torch.rand(shape, generator=g) / n).to(device).requires_grad_() for shape in shapes]
        y, expected = compiled(*leaves), step(*leaves)
        torch.testing.assert_close(y, expected)
        for a, b in zip(torch.autograd.grad(y, leaves), torch.autograd.grad(expected, leaves)):
            torch.testing.assert_close(a, b)


# ---- repeatability


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_threads_changes_no_bit(isa, name):
    before = torch.get_num_threads()
    inputs = make_inputs(name, (2, 300, 3), F32, layout="contiguous")
    try:
        torch.set_num_threads(1)
        one = results_of(ops, name, inputs)
        for threads in (2, 5):
            torch.set_num_threads(threads)
            for key, actual in results_of(ops, name, inputs).items():
                assert torch.equal(actual, one[key]), (threads, key)
    finally:
        torch.set_num_threads(before)


def test_nothing_but_the_projections_is_saved(compiled):
    """Of the size of the links, forward allocates its result and saves its input."""
    saved = []
    inputs = make_inputs("link_read", (2, 6, 3), F32, compiled.device, "contiguous")
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.link_read(**inputs)
    assert sorted(t.numel() for t in saved) == sorted([2 * 6 * 6, *[2 * 3 * 6] * 3, 2 * 3, 2 * 3])
