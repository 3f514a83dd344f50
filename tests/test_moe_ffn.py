"""The fused pair of projections against the reference in float64 and against two calls of cvmm."""

import itertools

import pytest
import torch
from support import DTYPES, HALF, check_moe_ffn, dtype_id, place, routes, values

from sysgen import ops
from sysgen._memory import peak_memory
from sysgen.testing import check_gradients

ACTIVATIONS = ("relu", "gelu", "silu", "tanh", "identity")
BOOLEANS = (False, True)

# lead shape, k, d, G, d_out, E
SHAPES = [
    ((13,), 2, 5, 7, 3, 3),
    ((1,), 1, 1, 1, 1, 1),
    ((4, 3), 3, 17, 33, 17, 11),
    ((53,), 4, 67, 41, 67, 6),
    ((35,), 2, 37, 70, 11, 2),  # of the fused CUDA kernel
    ((0,), 2, 5, 7, 5, 3),
    ((5,), 0, 3, 2, 3, 4),
    ((9,), 2, 0, 4, 3, 3),
    ((9,), 2, 4, 0, 3, 3),
    ((9,), 2, 4, 5, 0, 3),
    ((6,), 2, 3, 3, 3, 0),
]


def make_inputs(lead, k, d, hidden, d_out, num_experts, dtypes, device="cpu", *, bias=True, layout="sliced", seed=0):
    """Keyword arguments of moe_ffn; every floating one requires a gradient and is a view of a larger buffer."""
    g = torch.Generator().manual_seed(seed)
    rows, weights = dtypes
    accumulator = torch.float64 if rows == torch.float64 else torch.float32
    inputs = {
        "x": values(g, (*lead, d), rows, device),
        "gate": values(g, (*lead, k), accumulator, device),
        "w_up": values(g, (num_experts, d, hidden), weights, device, scale=max(d, 1) ** -0.5),
        "w_down": values(g, (num_experts, hidden, d_out), weights, device, scale=max(hidden, 1) ** -0.5),
        "b_up": values(g, (num_experts, hidden), accumulator, device) if bias else None,
    }
    inputs = {n: None if t is None else place(t, layout).requires_grad_() for n, t in inputs.items()}
    return {**inputs, "experts": place(routes(g, lead, k, num_experts, device), layout)}


@pytest.mark.parametrize("dtypes", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(backend, shape, dtypes):
    if dtypes[0] not in backend.dtypes:
        pytest.skip(f"the {backend.name} backend leaves {dtypes[0]} to the kernels")
    for bias in BOOLEANS:
        check_moe_ffn(backend.ops, make_inputs(*shape, dtypes, backend.device, bias=bias), what=f"bias={bias}")


@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[2]], ids=dtype_id)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_kept_or_recomputed(compiled, activation, dtypes):
    for hidden in (13, 70):  # without and with a fused CUDA kernel for half types
        inputs = make_inputs((19,), 3, 11, hidden, 7, 4, dtypes, compiled.device)
        inputs["activation"] = activation
        leaves = [t for t in inputs.values() if isinstance(t, torch.Tensor) and t.requires_grad]
        results = []
        for recompute in BOOLEANS:
            call = {**inputs, "recompute": recompute}
            check_moe_ffn(ops, call, what=f"recompute={recompute}")
            y = ops.moe_ffn(**call)
            results.append([y, *torch.autograd.grad(y.sum(), leaves)])
        for kept, recomputed in zip(*results):
            assert torch.equal(kept, recomputed), "recomputing must not change a bit"


def test_equals_two_calls_of_cvmm(compiled):
    inputs = make_inputs((31,), 3, 19, 23, 11, 5, DTYPES[1], compiled.device)
    x, gate, w_up, w_down, b_up, experts = inputs.values()
    r = ops.route(experts, 5)
    hidden = ops.cvmm(x, r, w_up, bias=b_up).relu()
    expected = ops.cvmm(hidden, r, w_down, gate=gate, reduce=True)
    assert torch.equal(ops.moe_ffn(**inputs), expected)


@pytest.fixture
def threads():
    """Sets the number of threads, which a test may change."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_blocks_of_tokens(isa, activation, threads):
    """2200 routes to two experts: by the number of threads four or three blocks, or one that all threads share."""
    for dtypes in (DTYPES[1], DTYPES[3]):
        inputs = make_inputs((1100,), 2, 5, 7, 6, 2, dtypes)
        inputs["experts"][300:500] = 1  # one expert twice for a token, and a block without the other one
        leaves = [t for t in inputs.values() if t.requires_grad]
        results = []
        for number in (1, 2, 3, 5):
            for recompute in BOOLEANS:
                threads(number)
                y = ops.moe_ffn(**inputs, activation=activation, recompute=recompute)
                results.append([y, *torch.autograd.grad(y, leaves, torch.ones_like(y))])
        for other in results[1:]:
            for a, b in zip(results[0], other):
                assert torch.equal(a, b)
        check_moe_ffn(ops, {**inputs, "activation": activation})


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_peak_memory(activation):
    """No tensor of routes by d, forward or backward; without gradients only the hidden rows of the block in work."""
    tokens, k, d, hidden, num_experts = 2048, 8, 128, 16, 2
    inputs = make_inputs((tokens,), k, d, hidden, d, num_experts, DTYPES[1], bias=False, layout="contiguous")
    inputs["experts"] = ops.route(inputs["experts"], num_experts)
    leaves = [t for t in inputs.values() if isinstance(t, torch.Tensor) and t.requires_grad]
    weights = sum(t.nbytes for t in leaves[2:])
    hidden_bytes, rows_bytes, small = tokens * k * hidden * 4, tokens * d * 4, 3 * tokens * k * 4

    def forward():
        return ops.moe_ffn(**inputs, activation=activation)

    with torch.no_grad():
        _, peak = peak_memory(forward, torch.device("cpu"))
    assert peak <= rows_bytes + hidden_bytes // 4 + small

    def step():
        return torch.autograd.grad(forward(), leaves, torch.ones(tokens, d))

    _, peak = peak_memory(step, torch.device("cpu"))
    # y, dy and dx; what is kept, dz, and activated rows where those are not what is kept
    rows_of_hidden = 3 if activation == "gelu" else 2
    assert peak <= 3 * rows_bytes + rows_of_hidden * hidden_bytes + weights + small
    assert peak < k * rows_bytes


@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[2]], ids=dtype_id)
def test_every_subset_of_gradients(compiled, dtypes):
    names = ("x", "gate", "w_up", "w_down", "b_up")
    for needed in itertools.product(BOOLEANS, repeat=5):
        for recompute in BOOLEANS:
            inputs = make_inputs((11,), 2, 13, 9, 5, 4, dtypes, compiled.device)
            inputs["recompute"] = recompute
            for name, need in zip(names, needed):
                inputs[name].requires_grad_(need)
            check_moe_ffn(ops, inputs, what=f"needed={dict(zip(names, needed))} recompute={recompute}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_infinite_gradients_end_at_relu(compiled, dtype):
    """Where relu gave 0 the gradient is 0, whatever arrives there, by result or gate: 0 · infinity would be a NaN."""
    infinity = float("inf")
    x, w_up, w_down, dy = (
        torch.tensor(v, dtype=dtype, device=compiled.device)
        for v in ([[1.0], [1.0]], [[[-1.0, 1.0]]], [[[1.0], [1.0]]], [[infinity], [1.0]])
    )
    experts = torch.zeros(2, 1, dtype=torch.int64, device=compiled.device)
    gate, b_up = torch.ones(2, 1, device=compiled.device), torch.zeros(1, 2, device=compiled.device)
    leaves = [t.requires_grad_() for t in (x, w_up, b_up)]
    infinite = torch.where(dy.isinf(), infinity, gate)
    for recompute, (by, d) in itertools.product(BOOLEANS, ((gate, dy), (infinite, torch.ones_like(dy)))):
        y = ops.moe_ffn(x, experts, by, w_up, w_down, b_up=b_up, recompute=recompute)
        dx, dw_up, db_up = torch.autograd.grad(y, leaves, d)
        assert dx.tolist() == [[infinity], [1]]
        assert dw_up.tolist() == [[[0, infinity]]] and db_up.tolist() == [[0, infinity]]


@pytest.mark.parametrize("recompute", BOOLEANS)
def test_backward_twice_over_one_graph(compiled, recompute):
    inputs = make_inputs((17,), 3, 11, 5, 7, 4, DTYPES[1], compiled.device)
    leaves = [inputs[n] for n in ("x", "gate", "w_up", "w_down", "b_up")]
    before = [t.detach().clone() for t in leaves]
    y = ops.moe_ffn(**inputs, recompute=recompute)
    first = torch.autograd.grad(y, leaves, torch.ones_like(y), retain_graph=True)
    second = torch.autograd.grad(y, leaves, torch.ones_like(y))
    for a, b in zip(first, second):
        assert torch.equal(a, b)
    for a, b in zip(leaves, before):
        assert torch.equal(a.detach(), b), "an input was written to"


@pytest.mark.parametrize("recompute", BOOLEANS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivatives_of_first_and_second_order(device, activation, recompute):
    inputs = make_inputs((3,), 2, 3, 2, 2, 3, DTYPES[0], device)
    experts = torch.tensor([[0, 0], [2, -1], [0, 2]], device=device)  # expert 1 is empty

    def call(x, gate, w_up, w_down, b_up=None):
        return ops.moe_ffn(x, experts, gate, w_up, w_down, b_up=b_up, activation=activation, recompute=recompute)

    leaves = tuple(inputs[n] for n in ("x", "gate", "w_up", "w_down", "b_up"))
    check_gradients(call, leaves)
    check_gradients(call, leaves[:4], second=False)


@pytest.mark.parametrize("recompute", BOOLEANS)
@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_saves_no_more_than_it_says(activation, recompute):
    """Beyond the arguments and the route: the hidden rows, or nothing with recompute."""
    lead, k, d, hidden, num_experts = (32,), 4, 16, 24, 5
    inputs = make_inputs(lead, k, d, hidden, d, num_experts, DTYPES[1], layout="contiguous")
    r = ops.route(inputs["experts"], num_experts)
    known = {t.untyped_storage().data_ptr() for t in (*inputs.values(), *r[:3]) if isinstance(t, torch.Tensor)}
    saved = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in known:
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = ops.moe_ffn(**{**inputs, "experts": r}, activation=activation, recompute=recompute)
    assert y.requires_grad
    assert sum(saved.values()) == (0 if recompute else 32 * k * hidden * 4)


@pytest.mark.parametrize("dtype", HALF)
def test_autocast(compiled, dtype):
    inputs = make_inputs((9,), 3, 5, 4, 6, 3, DTYPES[1], compiled.device)
    seen = {**inputs, "x": inputs["x"].detach().to(dtype).requires_grad_()}
    with torch.autocast(compiled.device, dtype):
        y = ops.moe_ffn(**inputs)
    expected = ops.moe_ffn(**seen)
    assert y.dtype == dtype and torch.equal(y, expected)
    names = ("x", "gate", "w_up", "w_down", "b_up")
    gradients = torch.autograd.grad(y.sum(), [inputs[n] for n in names])
    same = torch.autograd.grad(expected.sum(), [seen[n] for n in names])
    for name, a, b in zip(names, gradients, same):
        assert a.dtype == torch.float32 and torch.equal(a, b.float()), name


X, IDS, GATE = torch.zeros(5, 4), torch.zeros(5, 2, dtype=torch.int64), torch.zeros(5, 2)
UP, DOWN = torch.zeros(3, 4, 6), torch.zeros(3, 6, 7)
WRONG = [
    ({"x": None}, TypeError, r"moe_ffn: x must be a torch.Tensor, got NoneType"),
    ({"x": X.int()}, TypeError, r"moe_ffn: x must be float32, .* got int32"),
    ({"x": torch.zeros(4, 4)}, ValueError, r"moe_ffn: x must have shape \[5, 4\] .* got \[4, 4\]"),
    ({"x": torch.zeros(5, 2, 4)}, ValueError, r"moe_ffn: x must have shape \[5, 4\] .* got \[5, 2, 4\]"),
    ({"experts": 3}, TypeError, r"moe_ffn: experts must be a tensor of expert ids or a Route, got int"),
    ({"experts": IDS - 2}, ValueError, r"expert id -2 at position 0 is out of range for 3 experts"),
    ({"experts": ops.route(IDS, 2)}, ValueError, r"moe_ffn: the Route is for 2 experts, weight has 3"),
    ({"gate": None}, TypeError, r"moe_ffn: gate must be a torch.Tensor, got NoneType"),
    ({"gate": IDS}, TypeError, r"moe_ffn: gate must be floating point, got int64"),
    ({"gate": GATE[:4]}, ValueError, r"moe_ffn: gate must have shape \[5, 2\], got \[4, 2\]"),
    ({"w_up": UP.double()}, TypeError, r"moe_ffn: w_up must have x's dtype float32 .* got float64"),
    ({"w_up": UP[0]}, ValueError, r"moe_ffn: w_up must have 3 dimensions \[E, d, G\], got \[4, 6\]"),
    ({"w_down": DOWN.half()}, TypeError, r"moe_ffn: w_down must have x's dtype float32 .* got float16"),
    ({"w_down": DOWN[0]}, ValueError, r"moe_ffn: w_down must have 3 dimensions \[E, G, d_out\], got \[6, 7\]"),
    ({"w_down": DOWN.mT}, ValueError, r"moe_ffn: w_down must have shape \[3, 6, d_out\] .* got \[3, 7, 6\]"),
    ({"w_down": DOWN[:2]}, ValueError, r"moe_ffn: w_down must have shape \[3, 6, d_out\] .* got \[2, 6, 7\]"),
    ({"b_up": torch.zeros(3, 7)}, ValueError, r"moe_ffn: b_up must have shape \[3, 6\], got \[3, 7\]"),
    ({"b_up": torch.zeros(3, 6).int()}, TypeError, r"moe_ffn: b_up must be floating point, got int32"),
    ({"activation": "swish"}, ValueError, r"moe_ffn: activation must be one of relu, gelu, .* got 'swish'"),
    ({"activation": torch.relu}, ValueError, r"moe_ffn: activation must be one of relu, gelu"),
    ({"recompute": "no"}, TypeError, r"moe_ffn: recompute must be a bool, got 'no'"),
    ({"precision": "half"}, ValueError, r"moe_ffn: precision must be one of ieee, tf32, tf32x3, got 'half'"),
    ({"w_down": DOWN.to("meta")}, ValueError, r"moe_ffn: w_down is on meta, x on cpu"),
]


@pytest.mark.parametrize("change, error, message", WRONG, ids=[w[2] for w in WRONG])
def test_wrong_arguments(change, error, message):
    arguments = {"x": X, "experts": IDS, "gate": GATE, "w_up": UP, "w_down": DOWN, **change}
    with pytest.raises(error, match=message):
        ops.moe_ffn(**arguments)
