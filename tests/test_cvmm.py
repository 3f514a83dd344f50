"""CVMM against the reference in float64: values, gradients, derivatives of higher order, and its errors."""

import itertools

import pytest
import torch
from support import DTYPES, HALF, check_cvmm, dtype_id, longest, place, routes, values

from sysgen import ops, reference
from sysgen.testing import check_gradients, check_op

BOOLEANS = (False, True)

# lead shape, k, d, h, E: ragged primes, ones, zeros, more than one tile and block in each direction
SHAPES = [
    ((13,), 2, 5, 7, 3),
    ((1,), 1, 1, 1, 1),
    ((4, 3), 3, 17, 33, 11),
    ((37,), 5, 67, 129, 7),
    ((101,), 1, 131, 31, 5),
    ((67,), 4, 64, 48, 16),
    ((23,), 2, 523, 19, 3),
    ((257,), 3, 9, 11, 2),
    ((3,), 2, 6, 1031, 4),
    ((5,), 24, 4, 3, 24),
    ((0,), 2, 5, 7, 3),
    ((5,), 0, 3, 2, 4),
    ((9,), 2, 0, 4, 3),
    ((9,), 2, 4, 0, 3),
    ((6,), 2, 3, 3, 0),
]


def make_inputs(
    lead, k, d, h, num_experts, dtypes, device="cpu", *, routed, reduce, gate, bias, layout="sliced", seed=0
):
    """Keyword arguments of cvmm; every floating one requires a gradient and is a view of a larger buffer."""
    g = torch.Generator().manual_seed(seed)
    rows, weights = dtypes
    accumulator = torch.float64 if rows == torch.float64 else torch.float32
    inputs = {
        "x": values(g, (*lead, k, d) if routed else (*lead, d), rows, device),
        "weight": values(g, (num_experts, d, h), weights, device, scale=max(d, 1) ** -0.5),
        "gate": values(g, (*lead, k), accumulator, device) if gate else None,
        "bias": values(g, (num_experts, h), accumulator, device) if bias else None,
    }
    inputs = {n: None if t is None else place(t, layout).requires_grad_() for n, t in inputs.items()}
    return {**inputs, "experts": place(routes(g, lead, k, num_experts, device), layout), "reduce": reduce}


@pytest.mark.parametrize("dtypes", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(backend, shape, dtypes):
    if dtypes[0] not in backend.dtypes:
        pytest.skip(f"the {backend.name} backend leaves {dtypes[0]} to the kernels")
    for routed, reduce, gate, bias in itertools.product(BOOLEANS, repeat=4):
        if backend.slow and routed ^ reduce ^ gate ^ bias:
            continue  # half of the combinations still hold every one of three options
        options = {"routed": routed, "reduce": reduce, "gate": gate, "bias": bias}
        check_cvmm(backend.ops, make_inputs(*shape, dtypes, backend.device, **options), what=str(options))


@pytest.mark.parametrize("dtypes", DTYPES, ids=dtype_id)
def test_smallest(compiled, dtypes):
    """Launches every kernel once, for tools that make each launch slow."""
    for routed, reduce in ((False, True), (True, False)):
        inputs = make_inputs(
            (5,), 2, 9, 7, 3, dtypes, compiled.device, routed=routed, reduce=reduce, gate=True, bias=False
        )
        check_cvmm(ops, inputs, what=f"routed={routed}")


def test_the_reference_is_the_definition():
    inputs = make_inputs((5,), 3, 4, 6, 3, DTYPES[0], routed=False, reduce=False, gate=True, bias=True)
    x, ids, w, gate, bias = (inputs[n].detach() for n in ("x", "experts", "weight", "gate", "bias"))
    y = torch.zeros(5, 3, 6, dtype=torch.float64)
    for t, j in itertools.product(range(5), range(3)):
        if ids[t, j] >= 0:
            y[t, j] = gate[t, j] * (x[t] @ w[ids[t, j]] + bias[ids[t, j]])
    assert (ids < 0).any()
    torch.testing.assert_close(reference.cvmm(x, ids, w, gate=gate, bias=bias), y)
    torch.testing.assert_close(reference.cvmm(x, ids, w, gate=gate, bias=bias, reduce=True), y.sum(1))
    rows = x[:, None].expand(5, 3, 4)
    torch.testing.assert_close(reference.cvmm(rows, ids, w, gate=gate, bias=bias), y)


@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[2]], ids=dtype_id)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided", "offset"])
def test_strides(compiled, layout, dtypes):
    for routed, reduce in itertools.product(BOOLEANS, repeat=2):
        inputs = make_inputs(
            (19,),
            3,
            37,
            21,
            4,
            dtypes,
            compiled.device,
            routed=routed,
            reduce=reduce,
            gate=True,
            bias=True,
            layout=layout,
        )
        check_cvmm(ops, inputs, what=f"{layout} routed={routed} reduce={reduce}")


@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[2]], ids=dtype_id)
def test_every_subset_of_gradients(compiled, dtypes):
    names = ("x", "weight", "gate", "bias")
    for needed in itertools.product(BOOLEANS, repeat=4):
        for routed, reduce, bias in itertools.product(BOOLEANS, repeat=3):
            inputs = make_inputs(
                (11,), 2, 13, 9, 4, dtypes, compiled.device, routed=routed, reduce=reduce, gate=True, bias=bias
            )
            for name, need in zip(names, needed):
                if inputs[name] is not None:
                    inputs[name].requires_grad_(need)
            check_cvmm(ops, inputs, what=f"needed={needed} routed={routed} reduce={reduce} bias={bias}")


def test_backward_twice_over_one_graph(compiled):
    inputs = make_inputs(
        (17,), 3, 11, 5, 4, DTYPES[1], compiled.device, routed=False, reduce=True, gate=True, bias=True
    )
    leaves = [inputs[n] for n in ("x", "weight", "gate", "bias")]
    before = [t.detach().clone() for t in leaves]
    y = ops.cvmm(**inputs)
    first = torch.autograd.grad(y, leaves, torch.ones_like(y), retain_graph=True)
    second = torch.autograd.grad(y, leaves, torch.ones_like(y))
    for a, b in zip(first, second):
        assert torch.equal(a, b)
    for a, b in zip(leaves, before):
        assert torch.equal(a.detach(), b), "an input was written to"


@pytest.mark.parametrize("reduce", BOOLEANS)
@pytest.mark.parametrize("routed", BOOLEANS)
def test_derivatives_of_first_and_second_order(backend, routed, reduce):
    inputs = make_inputs(
        (4,), 2, 3, 2, 3, DTYPES[0], backend.device, routed=routed, reduce=reduce, gate=True, bias=True
    )
    inputs["experts"] = torch.tensor([[0, 0], [2, -1], [-1, -1], [0, 2]], device=backend.device)  # expert 1 is empty

    def call(x, weight, gate=None, bias=None):
        return backend.ops.cvmm(x, inputs["experts"], weight, gate=gate, bias=bias, reduce=reduce)

    x, weight, gate, bias = (inputs[n] for n in ("x", "weight", "gate", "bias"))
    check_gradients(call, (x, weight, gate, bias))
    check_gradients(call, (x, weight, gate))
    check_gradients(call, (x, weight))


def test_derivatives_of_third_order(backend):
    inputs = make_inputs((2,), 2, 2, 2, 2, DTYPES[0], backend.device, routed=False, reduce=True, gate=True, bias=True)

    def gradients(x, weight, gate, bias):
        y = backend.ops.cvmm(x, inputs["experts"], weight, gate=gate, bias=bias, reduce=True)
        return torch.autograd.grad(y.square().sum(), (x, weight, gate, bias), create_graph=True)

    check_gradients(gradients, tuple(inputs[n] for n in ("x", "weight", "gate", "bias")))


@pytest.mark.parametrize("dtypes", DTYPES, ids=dtype_id)
def test_second_derivatives_in_every_dtype(compiled, dtypes):
    """Each gradient is linear in the other arguments, so that it is checked like a product of its own."""
    for routed, reduce in itertools.product(BOOLEANS, repeat=2):
        inputs = make_inputs(
            (31,), 2, 13, 9, 4, dtypes, compiled.device, routed=routed, reduce=reduce, gate=True, bias=False
        )
        n, half = longest(inputs["experts"]), dtypes[0] in HALF
        y = ops.cvmm(**inputs)
        inputs["dy"] = values(torch.Generator().manual_seed(1), y.shape, y.dtype, y.device).requires_grad_()
        lengths = {"x": (9, 2), "weight": (n,), "gate": (13, 9), "dy": (13, 2)}
        roundings = {"weight": 1} if half else {}

        def gradient(function, name):
            def call(dy, **arguments):
                leaf = arguments[name].detach().requires_grad_()  # its own gradient does not depend on it
                return torch.autograd.grad(function(**{**arguments, name: leaf}), leaf, dy, create_graph=True)[0]

            return call

        for name in ("x", "weight", "gate"):
            size = inputs[name].shape
            direction = values(torch.Generator().manual_seed(2), size, dtypes[0], y.device).to(inputs[name].dtype)
            check_op(
                gradient(ops.cvmm, name),
                gradient(reference.cvmm, name),
                {**inputs, name: inputs[name].detach()},
                lengths={**lengths, "output": lengths[name]},
                roundings={**roundings, "output": roundings.get(name, 0)},
                intermediate=dtypes[0],
                as_seen={"weight": inputs["weight"].detach().to(dtypes[0])},
                direction=direction,
                what=f"gradient by {name}, routed={routed} reduce={reduce},",
            )


@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[2], DTYPES[4]], ids=dtype_id)
def test_a_route_serves_several_calls(compiled, dtypes):
    inputs = make_inputs((19,), 3, 8, 6, 5, dtypes, compiled.device, routed=False, reduce=False, gate=True, bias=False)
    r = ops.route(inputs["experts"], 5)
    for reduce in BOOLEANS:
        inputs["reduce"] = reduce
        assert torch.equal(ops.cvmm(**inputs), ops.cvmm(**{**inputs, "experts": r}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_gate_and_bias_of_another_dtype(compiled, dtype):
    """They are converted to the accumulator's dtype, and their gradients come back in their own."""
    inputs = make_inputs((9,), 2, 5, 7, 3, DTYPES[1], compiled.device, routed=False, reduce=True, gate=True, bias=True)
    for name in ("gate", "bias"):
        inputs[name] = inputs[name].detach().to(dtype).requires_grad_()
    as_float = {n: inputs[n].detach().float() for n in ("gate", "bias")}
    y = ops.cvmm(**inputs)
    assert y.dtype == torch.float32 and torch.equal(y, ops.cvmm(**{**inputs, **as_float}))
    gradients = torch.autograd.grad(y.sum(), [inputs["gate"], inputs["bias"]])
    assert [g.dtype for g in gradients] == [dtype, dtype]


def test_dropped_routes_are_zero_and_have_no_gradient(compiled):
    inputs = make_inputs((9,), 3, 5, 4, 3, DTYPES[1], compiled.device, routed=True, reduce=False, gate=True, bias=True)
    dropped = inputs["experts"] < 0
    y = ops.cvmm(**inputs)
    dx, dgate = torch.autograd.grad(y.sum(), [inputs["x"], inputs["gate"]])
    assert dropped.any() and not dropped.all()
    for t in (y, dx, dgate):
        assert not t[dropped].any()
        assert t[~dropped].all()


def test_every_precision_is_ieee_on_the_cpu():
    inputs = make_inputs((9,), 3, 65, 40, 3, DTYPES[1], routed=False, reduce=True, gate=True, bias=True)
    y = ops.cvmm(**inputs)
    for precision in ("tf32", "tf32x3"):
        assert torch.equal(y, ops.cvmm(**inputs, precision=precision))


def test_precisions_on_cuda(cuda_kernels):
    """tf32 has 10 mantissa bits: two operands rounded with 2⁻¹¹. Three such products recover all but about 2⁻²¹."""
    inputs = make_inputs(
        (100,), 3, 257, 131, 3, DTYPES[1], cuda_kernels.device, routed=False, reduce=False, gate=False, bias=False
    )
    double = {n: inputs[n].detach().double() if n in ("x", "weight") else inputs[n] for n in inputs}
    exact = ops.cvmm(**double)
    size = ops.cvmm(**{n: t.abs() if n in ("x", "weight") else t for n, t in double.items()})
    accumulated = 4 * 257**0.5 * 2**-24
    for precision, rounding in (("ieee", 0), ("tf32", 2.01 * 2**-11), ("tf32x3", 2**-20)):
        y = ops.cvmm(**inputs, precision=precision)
        assert ((y - exact).abs() <= (rounding + accumulated + 2**-24) * size).all(), precision
    assert not torch.equal(ops.cvmm(**inputs), ops.cvmm(**inputs, precision="tf32"))


@pytest.mark.parametrize("dtype", HALF)
def test_autocast(compiled, dtype):
    inputs = make_inputs((9,), 3, 5, 4, 3, DTYPES[1], compiled.device, routed=False, reduce=True, gate=True, bias=True)
    seen = {**inputs, "x": inputs["x"].detach().to(dtype).requires_grad_()}
    with torch.autocast(compiled.device, dtype):
        y = ops.cvmm(**inputs)
    expected = ops.cvmm(**seen)
    assert y.dtype == dtype and torch.equal(y, expected)
    names = ("x", "weight", "gate", "bias")
    gradients = torch.autograd.grad(y.sum(), [inputs[n] for n in names])
    same = torch.autograd.grad(expected.sum(), [seen[n] for n in names])
    for name, a, b in zip(names, gradients, same):
        assert a.dtype == torch.float32 and torch.equal(a, b.float()), name


def test_float64_stays_under_autocast():
    inputs = make_inputs((9,), 3, 5, 4, 3, DTYPES[0], routed=False, reduce=True, gate=True, bias=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.cvmm(**inputs), ops.cvmm(**inputs))
        assert ops.cvmm(**inputs).dtype == torch.float64


X, IDS, W = torch.zeros(5, 4), torch.zeros(5, 2, dtype=torch.int64), torch.zeros(3, 4, 6)
WRONG = [
    ({"x": [1.0]}, TypeError, r"cvmm: x must be a torch.Tensor, got list"),
    ({"x": X.long()}, TypeError, r"cvmm: x must be float32, .* got int64"),
    ({"x": X.to(torch.complex64)}, TypeError, r"cvmm: x must be float32, .* got complex64"),
    ({"x": torch.zeros(4, 4)}, ValueError, r"cvmm: x must have shape \[5, 4\] or \[5, 2, 4\].* got \[4, 4\]"),
    ({"x": torch.zeros(5, 3)}, ValueError, r"cvmm: x must have shape .* got \[5, 3\]"),
    ({"x": torch.zeros(5, 3, 4)}, ValueError, r"cvmm: x must have shape .* got \[5, 3, 4\]"),
    ({"x": torch.zeros(4)}, ValueError, r"cvmm: x must have shape .* got \[4\]"),
    ({"x": torch.tensor(1.0)}, ValueError, r"cvmm: x must have shape .* got \[\]"),
    ({"experts": [[0]]}, TypeError, r"cvmm: experts must be a tensor of expert ids or a Route, got list"),
    ({"experts": IDS.float()}, TypeError, r"experts must be int64 or int32, got float32"),
    ({"experts": IDS + 3}, ValueError, r"expert id 3 at position 0 is out of range for 3 experts"),
    ({"experts": IDS[:4]}, ValueError, r"cvmm: x must have shape \[4, 4\] or \[4, 2, 4\]"),
    ({"experts": ops.route(IDS, 4)}, ValueError, r"cvmm: the Route is for 4 experts, weight has 3"),
    ({"weight": None}, TypeError, r"cvmm: weight must be a torch.Tensor, got NoneType"),
    ({"weight": W.double()}, TypeError, r"cvmm: weight must have x's dtype float32 .* got float64"),
    ({"weight": W.bfloat16()}, TypeError, r"cvmm: weight must have x's dtype float32 .* got bfloat16"),
    ({"x": X.bfloat16(), "weight": W.half()}, TypeError, r"cvmm: weight must have x's dtype bfloat16 .* got float16"),
    ({"weight": W[0]}, ValueError, r"cvmm: weight must have 3 dimensions \[E, d, h\], got \[4, 6\]"),
    ({"weight": W.mT}, ValueError, r"cvmm: x must have shape \[5, 6\].* weight \[3, 6, 4\], got \[5, 4\]"),
    ({"gate": 0.5}, TypeError, r"cvmm: gate must be a torch.Tensor, got float"),
    ({"gate": IDS}, TypeError, r"cvmm: gate must be floating point, got int64"),
    ({"gate": torch.zeros(5)}, ValueError, r"cvmm: gate must have shape \[5, 2\], got \[5\]"),
    ({"gate": torch.zeros(2, 5)}, ValueError, r"cvmm: gate must have shape \[5, 2\], got \[2, 5\]"),
    ({"bias": 1.0}, TypeError, r"cvmm: bias must be a torch.Tensor, got float"),
    ({"bias": torch.zeros(3, 6).long()}, TypeError, r"cvmm: bias must be floating point, got int64"),
    ({"bias": torch.zeros(6)}, ValueError, r"cvmm: bias must have shape \[3, 6\], got \[6\]"),
    ({"bias": torch.zeros(3, 4)}, ValueError, r"cvmm: bias must have shape \[3, 6\], got \[3, 4\]"),
    ({"precision": "fast"}, ValueError, r"cvmm: precision must be one of ieee, tf32, tf32x3, got 'fast'"),
    ({"weight": W.to("meta")}, ValueError, r"cvmm: weight is on meta, x on cpu"),
    ({"gate": torch.zeros(5, 2, device="meta")}, ValueError, r"cvmm: gate is on meta, x on cpu"),
    ({"bias": torch.zeros(3, 6, device="meta")}, ValueError, r"cvmm: bias is on meta, x on cpu"),
    ({"experts": IDS.to("meta")}, ValueError, r"cvmm: experts is on meta, x on cpu"),
]


@pytest.mark.parametrize("change, error, message", WRONG, ids=[w[2] for w in WRONG])
def test_wrong_arguments(change, error, message):
    with pytest.raises(error, match=message):
        ops.cvmm(**{"x": X, "experts": IDS, "weight": W, **change})
