"""Geometric attention against the reference in float64: values, gradients, memory layouts, and its errors."""

import itertools
import math

import pytest
import torch
from geometric_attention_checks import accumulator, check, make_inputs
from support import HALF, values

from sysgen import ops, reference
from sysgen._load import core
from sysgen._memory import peak_memory
from sysgen.ops import _geometric_attention_ops as raw
from sysgen.testing import check_gradients

BOOLEANS = (False, True)
F32 = torch.float32
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# (B, H, L, S, D): ones, primes, both sides of tile edges, more keys than queries and the reverse
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 3, 5, 5, 4),
    (1, 1, 2, 2, 16),
    (3, 2, 13, 17, 8),
    (1, 2, 7, 3, 33),
    (1, 1, 63, 64, 9),
    (2, 1, 65, 63, 16),
    (1, 1, 127, 129, 5),
    (1, 1, 3, 260, 64),
    (1, 1, 150, 2, 7),
    (1, 1, 9, 11, 129),
]
EMPTY = [(0, 2, 3, 3, 4), (2, 0, 3, 3, 4), (2, 2, 0, 3, 4), (2, 2, 3, 0, 4), (2, 2, 3, 3, 0)]
OPTIONS = [
    {"normalize": n, "include_self": s, "is_causal": c, "q_offset": o}
    for (n, s, c), o in zip(itertools.product(BOOLEANS, repeat=3), (0, 1, 0, -2, 2, 0, 5, 0))
]
FEATURES = [
    {"bias": False, "padding": None, "mask": None},
    {"bias": True, "padding": "bool", "mask": None},
    {"bias": True, "padding": None, "mask": "bool"},
    {"bias": False, "padding": "float", "mask": None},
    {"bias": False, "padding": "bool", "mask": "float"},
    {"bias": True, "padding": "float", "mask": "bool"},
    {"bias": True, "padding": "float", "mask": "float"},
    {"bias": True, "padding": None, "mask": None},
]


def dtype_id(dtype):
    return str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(backend, shape, dtype):
    if dtype not in backend.dtypes:
        pytest.skip(f"the {backend.name} backend leaves {dtype} to the kernels")
    start = sum(shape) + DTYPES.index(dtype)  # which features meet which options changes from case to case
    for n, options in enumerate(OPTIONS):
        if backend.slow and n % 4 != start % 4:
            continue
        features = FEATURES[(start + n) % len(FEATURES)]
        inputs = make_inputs(shape, dtype, backend.device, **features, seed=n)
        check(backend.ops, inputs, f"{options} {features}", **options)


@pytest.mark.parametrize("features", FEATURES, ids=str)
def test_every_option_with_every_feature(compiled, features):
    for n, options in enumerate(OPTIONS):
        if not compiled.slow or n in (0, 7):
            check(ops, make_inputs((2, 2, 7, 9, 4), F32, compiled.device, **features), str(options), **options)


@pytest.mark.parametrize("shape", EMPTY, ids=str)
def test_empty(backend, shape):
    for features in (FEATURES[0], FEATURES[4], FEATURES[6]):
        inputs = make_inputs(shape, F32, backend.device, **features)
        check(backend.ops, inputs, str(features))
        if shape[3] == 0:
            out, remainder = backend.ops.geometric_attention(**inputs, return_remainder=True)
            assert not out.any() and (remainder == 1).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_smallest(compiled, dtype):
    """Launches every kernel once, for tools that make each launch slow."""
    for shape in ((1, 2, 5, 5, 8), (1, 1, 5, 140, 8)):
        check(ops, make_inputs(shape, dtype, compiled.device))


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided", "offset"])
def test_strides(compiled, layout, dtype):
    for shape in ((2, 3, 5, 7, 8), (1, 2, 66, 70, 16)):
        if not (compiled.slow and shape[3] > 7):
            check(ops, make_inputs(shape, dtype, compiled.device, layout=layout), layout)


def test_expanded_tensors(compiled):
    """Broadcast heads, batches and masks are views with strides of 0."""
    device = compiled.device
    full = make_inputs((2, 3, 5, 7, 4), F32, device, mask=None)
    inputs = {n: t.detach()[:1].expand_as(t) for n, t in full.items()}
    inputs["query"] = full["query"].detach()[:, :1].expand(2, 3, 5, 4)
    for shape in ((7,), (5, 1), (1, 5, 7), (3, 1, 7), (2, 1, 1, 7), (2, 3, 5, 7), (1, 1, 1, 1)):
        mask = values(torch.Generator().manual_seed(0), shape, F32, device)
        for attn_mask in (mask, mask > 0):
            leaves = {n: t.detach().requires_grad_(t.is_floating_point()) for n, t in inputs.items()}
            leaves["attn_mask"] = attn_mask.requires_grad_(attn_mask.is_floating_point())
            check(ops, leaves, str(shape))


def test_packed_projections_and_orders_of_memory(compiled):
    """Heads that are split from one projection are used where they lie; results come in the orders promised."""
    packed = values(torch.Generator().manual_seed(0), (2, 5, 3, 4, 8), F32, compiled.device).requires_grad_()
    query, key, value = packed.permute(2, 0, 3, 1, 4)
    y = ops.geometric_attention(query, key, value)
    assert y.shape == (2, 4, 5, 8) and y.transpose(1, 2).is_contiguous()
    assert torch.equal(y, ops.geometric_attention(*(t.contiguous() for t in (query, key, value))))
    plain = query.detach().contiguous()
    options = raw.Options(0.5, False, 1e-12, False, False, 0)
    gradients = raw.geometric_attention_bwd(
        query.detach(), plain, plain, *(None,) * 3, y.detach(), None, *options, False, False
    )
    assert gradients[0].transpose(1, 2).is_contiguous(), "the order of a sequence-major input"
    assert gradients[1].is_contiguous() and gradients[2].is_contiguous()
    torch.autograd.grad(y.sum(), packed)


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16], ids=dtype_id)
def test_every_subset_of_gradients(compiled, dtype):
    names = ("query", "key", "value", "direction_bias", "attn_mask")
    for needed in itertools.product(BOOLEANS, repeat=len(names)):
        if compiled.slow and sum(needed) not in (1, 4):
            continue
        inputs = make_inputs((1, 2, 6, 7, 4), dtype, compiled.device, padding="bool")
        for name, need in zip(names, needed):
            inputs[name].requires_grad_(need)
        check(ops, inputs, f"needed={needed}")


def test_without_remainder_nothing_changes(compiled):
    inputs = make_inputs((2, 2, 6, 7, 4), F32, compiled.device)
    leaves = [t for t in inputs.values() if t.requires_grad]
    with_remainder, remainder = ops.geometric_attention(**inputs, return_remainder=True)
    y = ops.geometric_attention(**inputs)
    assert torch.equal(y, with_remainder) and remainder.dtype == F32
    direction = torch.randn_like(y)
    for a, b in zip(*(torch.autograd.grad(t, leaves, direction) for t in (y, with_remainder))):
        assert torch.equal(a, b)
    alone = torch.autograd.grad(ops.geometric_attention(**inputs, return_remainder=True)[1].sum(), leaves)
    remainder = reference.geometric_attention(**inputs, return_remainder=True)[1]
    exact = torch.autograd.grad(remainder.sum(), leaves, materialize_grads=True)
    for a, b in zip(alone, exact):
        torch.testing.assert_close(a, b)


def test_backward_twice_over_one_graph(compiled):
    inputs = make_inputs((1, 2, 6, 70, 4), F32, compiled.device)
    leaves = [t for t in inputs.values() if t.requires_grad]
    before = [t.detach().clone() for t in inputs.values()]
    y = ops.geometric_attention(**inputs)
    first = torch.autograd.grad(y, leaves, torch.ones_like(y), retain_graph=True)
    second = torch.autograd.grad(y, leaves, torch.ones_like(y))
    for a, b in zip(first, second):
        assert torch.equal(a, b)
    for a, b in zip(inputs.values(), before):
        assert torch.equal(a.detach(), b), "an input was written to"


@pytest.mark.parametrize("normalize", BOOLEANS)
def test_derivatives_of_first_and_second_order(backend, normalize):
    inputs = make_inputs((1, 2, 7, 7, 1), torch.float64, backend.device, mask=None)
    hidden = inputs.pop("key_padding_mask")
    assert hidden.any()

    def call(query, key, value, direction_bias=None):
        return backend.ops.geometric_attention(
            query,
            key,
            value,
            direction_bias=direction_bias,
            key_padding_mask=hidden,
            normalize=normalize,
            return_remainder=direction_bias is not None,
        )

    leaves = [t.detach().clone().requires_grad_() for t in inputs.values()]
    check_gradients(call, tuple(leaves))
    check_gradients(call, tuple(leaves[:3]), second=False)


def test_second_derivatives_by_masks_and_for_some_inputs(compiled):
    inputs = make_inputs((1, 1, 3, 4, 2), torch.float64, compiled.device, bias=False, padding="float")
    names, leaves = zip(*((n, t.detach().clone()) for n, t in inputs.items()))
    for needed in ((0, 3, 4), (1,), (4,), (2,)):
        for i, t in enumerate(leaves):
            t.requires_grad_(i in needed)

        def call(*tracked, needed=needed):
            arguments = dict(zip(names, leaves)) | dict(zip((names[i] for i in needed), tracked))
            return ops.geometric_attention(**arguments)

        check_gradients(call, tuple(leaves[i] for i in needed))


def test_derivatives_of_third_order(compiled):
    inputs = make_inputs((1, 1, 2, 3, 1), torch.float64, compiled.device, padding=None, mask=None)

    def gradients(*leaves):
        y = ops.geometric_attention(**dict(zip(inputs, leaves)))
        return torch.autograd.grad(y.square().sum(), leaves, create_graph=True)

    check_gradients(gradients, tuple(t.detach().clone().requires_grad_() for t in inputs.values()))


def test_second_derivatives_in_half(compiled):
    """Computed in float32 from the same inputs, so as close as two roundings of half precision: 2⁻⁸ of the largest."""
    inputs = make_inputs((1, 2, 5, 6, 4), torch.bfloat16, compiled.device)
    seen = {n: t.detach().float().requires_grad_() if t.requires_grad else t for n, t in inputs.items()}

    def second(inputs):
        leaves = [t for t in inputs.values() if t.requires_grad]
        first = torch.autograd.grad(ops.geometric_attention(**inputs).float().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.float().sum() for g in first), leaves)

    for a, b in zip(second(inputs), second(seen)):
        assert (a.float() - b).abs().max() <= 2**-7 * b.abs().max()


# ---- dtypes


@pytest.mark.parametrize("dtype", HALF, ids=dtype_id)
def test_autocast(compiled, dtype):
    inputs = make_inputs((2, 2, 6, 7, 8), F32, compiled.device)
    seen = {
        n: t.detach().to(dtype).requires_grad_() if n in ("query", "key", "value") else t for n, t in inputs.items()
    }
    with torch.autocast(compiled.device, dtype):
        y, remainder = ops.geometric_attention(**inputs, return_remainder=True)
        scores = ops.geometric_attention_scores(inputs["query"], inputs["key"])
    expected = ops.geometric_attention(**seen)
    assert y.dtype == dtype and torch.equal(y, expected) and remainder.dtype == F32
    assert torch.equal(scores, ops.geometric_attention_scores(seen["query"], seen["key"])) and scores.dtype == F32
    leaves = [[t for t in given.values() if t.requires_grad] for given in (inputs, seen)]
    for a, b in zip(torch.autograd.grad(y.sum(), leaves[0]), torch.autograd.grad(expected.sum(), leaves[1])):
        assert a.dtype == F32 and torch.equal(a, b.float())


def test_autocast_takes_mixed_dtypes_and_leaves_float64(compiled):
    inputs = make_inputs((1, 2, 4, 5, 8), F32, compiled.device)
    mixed = {**inputs, "key": inputs["key"].detach().bfloat16()}
    double = make_inputs((1, 2, 4, 5, 8), torch.float64, compiled.device)
    expected = ops.geometric_attention(**double)
    with torch.autocast(compiled.device, torch.bfloat16):
        assert torch.equal(ops.geometric_attention(**mixed), ops.geometric_attention(**inputs))
        y = ops.geometric_attention(**double)
        second = torch.autograd.grad(y.sum(), double["query"], create_graph=True)[0]
        third = torch.autograd.grad(second.sum(), double["query"])[0]
    assert torch.equal(y, expected) and third.dtype == torch.float64


def test_second_derivatives_do_not_depend_on_autocast(compiled):
    inputs = make_inputs((1, 2, 4, 5, 8), F32, compiled.device)
    y = ops.geometric_attention(**inputs)
    first = torch.autograd.grad(y.sum(), inputs["query"], create_graph=True)[0]
    expected = torch.autograd.grad(first.sum(), inputs["key"], retain_graph=True)[0]
    with torch.autocast(compiled.device, torch.bfloat16):
        assert torch.equal(torch.autograd.grad(first.sum(), inputs["key"])[0], expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=dtype_id)
def test_bias_and_masks_of_another_dtype(compiled, dtype):
    """They are converted to the accumulator's dtype, and their gradients come back in their own."""
    inputs = make_inputs((1, 2, 6, 7, 4), F32, compiled.device, padding="float")
    names = ("direction_bias", "key_padding_mask", "attn_mask")
    for name in names:
        inputs[name] = inputs[name].detach().to(dtype).requires_grad_()
    y = ops.geometric_attention(**inputs)
    assert torch.equal(y, ops.geometric_attention(**{**inputs, **{n: inputs[n].detach().float() for n in names}}))
    gradients = torch.autograd.grad(y.sum(), [inputs[n] for n in names])
    assert [g.dtype for g in gradients] == [dtype] * 3
    assert [g.shape for g in gradients] == [inputs[n].shape for n in names]


# ---- which result, exactly


def raw_results(inputs, early_stop=True, rows=slice(None), **change):
    """Everything that both registered operations return, for some rows of the batch."""
    query, key, value, bias, padding, mask = (
        inputs.get(n) for n in ("query", "key", "value", "direction_bias", *MASKS)
    )
    if mask is not None:
        mask = mask.expand(*query.shape[:3], key.shape[2])
    options = raw.Options(query.shape[3] ** -0.5, False, 1e-12, False, False, 0, early_stop)._replace(**change)
    g = torch.Generator().manual_seed(1)
    dout = values(g, query.shape, query.dtype, query.device)
    drem = values(g, query.shape[:3], accumulator(query.dtype), query.device)
    given = [None if t is None else t.detach()[rows] for t in (query, key, value, bias, padding, mask)]
    dout, drem = dout[rows], drem[rows]
    out, remainder = raw.geometric_attention_fwd(*given, *options, True)
    wanted = bias is not None, mask is not None and mask.is_floating_point()
    return [out, remainder, *raw.geometric_attention_bwd(*given, dout, drem, *options, *wanted)]


MASKS = ("key_padding_mask", "attn_mask")


def assert_equal(first, second):
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_the_early_stop_changes_no_bit(compiled, dtype):
    """Also where weights underflow to subnormal numbers just before they are 0, which scores from 0 to 60 bring."""
    n = 90 if compiled.slow else 400
    for strength in (3, 60):
        inputs = make_inputs((1, 2, n, n, 16), dtype, compiled.device)
        inputs["attn_mask"] = strength * torch.rand(n, n, generator=torch.Generator().manual_seed(0)).to(
            compiled.device, accumulator(dtype)
        )
        for normalize in BOOLEANS:
            stopped, whole = (raw_results(inputs, early, normalize=normalize) for early in (True, False))
            assert_equal(stopped, whole)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_the_number_of_threads_changes_no_bit(isa, dtype):
    before = torch.get_num_threads()
    inputs = make_inputs((2, 3, 130, 150, 16), dtype)
    try:
        torch.set_num_threads(1)
        one = raw_results(inputs)
        for threads in (2, 3, 7):
            torch.set_num_threads(threads)
            assert_equal(raw_results(inputs), one)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("padding", [None, "bool"])
@pytest.mark.parametrize("dtype, width", [(F32, 256), (F32, 250), (torch.float64, 128), (torch.bfloat16, 512)])
def test_large_batches_of_short_sequences(isa, dtype, width, padding):
    """From 3 MiB a tensor on, rows are fetched ahead and results written past the caches: the same bits as in parts,
    whose values the other tests check."""
    inputs = make_inputs((270, 1, 12, 13, width), dtype, padding=padding, mask=None, layout="contiguous")
    whole = raw_results(inputs)
    parts = [raw_results(inputs, rows=slice(i, i + 90)) for i in (0, 90, 180)]
    assert_equal(whole, [torch.cat(p) for p in zip(*parts, strict=True)])


def test_repeats_are_equal(compiled):
    inputs = make_inputs((1, 2, 70, 140, 8), F32, compiled.device)
    first = raw_results(inputs)
    for _ in range(1 if compiled.slow else 20):
        assert_equal(raw_results(inputs), first)


def test_batches_and_heads_are_independent(compiled):
    """A permutation of them permutes the results and changes no bit, and so does computing one at a time."""
    inputs = make_inputs((3, 2, 9, 70, 8), F32, compiled.device, padding=None, mask=None)
    whole = raw_results(inputs)
    swapped = raw_results({n: t.detach()[[2, 0, 1]][:, [1, 0]] for n, t in inputs.items()})
    single = raw_results({n: t.detach()[:1] for n, t in inputs.items()})
    y = ops.geometric_attention(**{n: t.detach()[1:2, 1:] for n, t in inputs.items()})
    assert torch.equal(swapped[0], whole[0][[2, 0, 1]][:, [1, 0]])
    assert torch.equal(swapped[1], whole[1][[2, 0, 1]][:, [1, 0]])
    assert torch.equal(single[0], whole[0][:1]) and torch.equal(y, whole[0][1:2, 1:])


def test_memory_is_linear(compiled):
    """Out, its gradient and the gradients of query, key and value, with some slack: ten tensors of their size. One
    matrix of scores would be 2048 / (10 · 16) = 12 times all of that."""
    if compiled.slow:
        pytest.skip("takes a minute on the emulator; its host code is that of cuda")
    n, d = 2048, 16
    inputs = make_inputs((1, 2, n, n, d), F32, compiled.device, mask=None, layout="contiguous")
    leaves = [t for t in inputs.values() if t.requires_grad]

    def step():
        y = ops.geometric_attention(**inputs)
        torch.autograd.grad(y, leaves, torch.ones_like(y))

    step()
    _, peak = peak_memory(step, torch.device(compiled.device))
    assert peak <= 10 * leaves[0].numel() * leaves[0].element_size()


def test_results_do_not_alias(compiled):
    inputs = make_inputs((1, 2, 5, 6, 4), F32, compiled.device)
    before = {n: t.detach().clone() for n, t in inputs.items()}
    outputs = raw_results(inputs)
    copies = [t.clone() for t in outputs]
    for i, t in enumerate(outputs):
        t.fill_(0)
        for a, b in zip(outputs[i + 1 :], copies[i + 1 :]):
            assert torch.equal(a, b)
    for n, t in inputs.items():
        assert torch.equal(t.detach(), before[n])


@pytest.mark.parametrize("return_remainder", BOOLEANS)
def test_results_may_be_changed_in_place(compiled, return_remainder):
    inputs = make_inputs((1, 2, 5, 6, 4), F32, compiled.device)
    leaves = [t for t in inputs.values() if t.requires_grad]

    def gradients(change):
        y = ops.geometric_attention(**inputs, return_remainder=return_remainder)
        changed = [change(t) for t in (y if return_remainder else (y,))]
        return torch.autograd.grad(sum(t.sum() for t in changed), leaves)

    for a, b in zip(gradients(lambda t: t.mul_(2)), gradients(lambda t: t * 2)):
        assert torch.equal(a, b)


def test_dense_functions_agree_with_the_kernels(compiled):
    inputs = make_inputs((2, 2, 6, 7, 4), F32, compiled.device, padding="float")
    options = {"q_offset": 1, "include_self": True}
    scores = ops.geometric_attention_scores(
        inputs["query"], inputs["key"], direction_bias=inputs["direction_bias"], q_offset=1
    )
    masks = {n: inputs[n] for n in MASKS}
    for normalize in BOOLEANS:
        weights = ops.geometric_attention_weights(scores, **masks, normalize=normalize, **options)
        y = ops.geometric_attention(**inputs, normalize=normalize, **options)
        torch.testing.assert_close(weights @ inputs["value"], y)
    assert ops.geometric_attention_weights(torch.zeros(5, 6).half()).dtype == F32


# ---- errors

Q, K = torch.zeros(2, 3, 5, 4), torch.zeros(2, 3, 6, 4)
BIAS, PADDING, MASK = torch.zeros(2, 3, 5, 2), torch.zeros(2, 6, dtype=torch.bool), torch.zeros(5, 6)
OP = "geometric_attention: "
WRONG = [
    ({"query": [1.0]}, TypeError, "query must be a torch.Tensor, got list"),
    ({"query": Q.long()}, TypeError, "query must be float32, bfloat16, float16 or float64, got int64"),
    ({"query": Q[0]}, ValueError, r"query must have 4 dimensions \[B, H, L, D\], got shape \[3, 5, 4\]"),
    ({"query": Q.to_sparse()}, TypeError, "query must be a dense tensor"),
    ({"key": K[0]}, ValueError, r"key must have 4 dimensions \[B, H, S, D\], got shape \[3, 6, 4\]"),
    ({"key": K.double()}, TypeError, "key must have query's dtype float32, got float64"),
    ({"key": K[:1]}, ValueError, r"key must have shape \[2, 3, 'S', 4\] to match query \[2, 3, 5, 4\], got \[1, 3"),
    ({"key": K[:, :1]}, ValueError, r"key must have shape \[2, 3, 'S', 4\]"),
    ({"key": K[..., :3]}, ValueError, r"key must have shape \[2, 3, 'S', 4\]"),
    ({"key": K.to("meta")}, ValueError, "key is on meta, query on cpu"),
    ({"value": K[:, :, :5]}, ValueError, r"value must have key's shape \[2, 3, 6, 4\], got \[2, 3, 5, 4\]"),
    ({"value": K.bfloat16()}, TypeError, "value must have query's dtype float32, got bfloat16"),
    ({"value": None}, TypeError, "value must be a torch.Tensor, got NoneType"),
    ({"direction_bias": 1.0}, TypeError, "direction_bias must be a torch.Tensor, got float"),
    ({"direction_bias": BIAS.long()}, TypeError, "direction_bias must be floating point, got int64"),
    ({"direction_bias": BIAS[..., :1]}, ValueError, r"direction_bias must have shape \[2, 3, 5, 2\], got \[2, 3, 5, 1"),
    ({"direction_bias": BIAS.to("meta")}, ValueError, "direction_bias is on meta, query on cpu"),
    ({"key_padding_mask": PADDING.int()}, TypeError, r"key_padding_mask must be bool \(True.* got int32"),
    ({"key_padding_mask": PADDING[:, :5]}, ValueError, r"key_padding_mask must have shape \[2, 6\].* got \[2, 5\]"),
    ({"key_padding_mask": PADDING[0]}, ValueError, r"key_padding_mask must have shape \[2, 6\].* got \[6\]"),
    ({"key_padding_mask": PADDING.to("meta")}, ValueError, "key_padding_mask is on meta, query on cpu"),
    ({"attn_mask": [0]}, TypeError, "attn_mask must be a torch.Tensor, got list"),
    ({"attn_mask": MASK.to(torch.uint8)}, TypeError, "attn_mask must be bool .* got uint8"),
    ({"attn_mask": MASK.mT}, ValueError, r"attn_mask must .* broadcasts to \[2, 3, 5, 6\] .* got \[6, 5\]"),
    ({"attn_mask": MASK.expand(6, 5, 6)}, ValueError, r"attn_mask must .* broadcasts .* got \[6, 5, 6\]"),
    ({"attn_mask": MASK.expand(1, 1, 1, 5, 6)}, ValueError, r"attn_mask must .* got \[1, 1, 1, 5, 6\]"),
    ({"attn_mask": MASK.to("meta")}, ValueError, "attn_mask is on meta, query on cpu"),
    ({"scale": math.nan}, ValueError, "scale must be finite .* got nan"),
    ({"scale": math.inf}, ValueError, "scale must be finite .* got inf"),
    ({"scale": 1e39}, ValueError, "scale must be finite .* got 1e\\+39"),
    ({"scale": "1"}, TypeError, "scale must be a number, got str"),
    ({"scale": True}, TypeError, "scale must be a number, got bool"),
    ({"scale": torch.tensor(1.0)}, TypeError, "scale must be a number, got Tensor"),
    ({"eps": 0.0}, ValueError, "eps must be at least 1.18e-38 and finite, got 0.0"),
    ({"eps": -1}, ValueError, "eps must be at least .* got -1"),
    ({"eps": math.nan}, ValueError, "eps must be at least .* got nan"),
    ({"eps": None}, TypeError, "eps must be a number, got NoneType"),
    ({"normalize": 1}, TypeError, "normalize must be a bool, got 1"),
    ({"include_self": None}, TypeError, "include_self must be a bool, got None"),
    ({"is_causal": "yes"}, TypeError, "is_causal must be a bool, got 'yes'"),
    ({"return_remainder": 0}, TypeError, "return_remainder must be a bool, got 0"),
    ({"q_offset": 1.0}, TypeError, "q_offset must be an int, got float"),
    ({"q_offset": True}, TypeError, "q_offset must be an int, got bool"),
    ({"q_offset": torch.tensor(1)}, TypeError, "q_offset must be an int, got Tensor"),
    ({"q_offset": 2**63}, ValueError, r"q_offset must be between -2\^62 and 2\^62, got 9223372036854775808"),
]


@pytest.mark.parametrize("change, error, message", WRONG, ids=[w[2] for w in WRONG])
def test_wrong_arguments(change, error, message):
    with pytest.raises(error, match=OP + message):
        ops.geometric_attention(**{"query": Q, "key": K, "value": K, **change})


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"scores": [1]}, TypeError, "scores must be a torch.Tensor, got list"),
        ({"scores": MASK.long()}, TypeError, "scores must be floating point, got int64"),
        ({"scores": MASK[0]}, ValueError, r"scores must have at least 2 dimensions \[L, S\], got shape \[6\]"),
        ({"key_padding_mask": PADDING}, ValueError, r"at least 3 dimensions \[B, L, S\], got shape \[5, 6\]"),
        ({"scores": Q, "key_padding_mask": PADDING}, ValueError, r"key_padding_mask must have shape \[2, 4\]"),
        ({"attn_mask": PADDING}, ValueError, r"attn_mask must .* broadcasts to \[5, 6\] .* got \[2, 6\]"),
        ({"attn_mask": MASK.to("meta")}, ValueError, "attn_mask is on meta, scores on cpu"),
        ({"q_offset": 0.5}, TypeError, "q_offset must be an int, got float"),
        ({"eps": 0}, ValueError, "eps must be at least"),
    ],
)
def test_wrong_arguments_of_weights(change, error, message):
    with pytest.raises(error, match=f"geometric_attention_weights: .*{message}"):
        ops.geometric_attention_weights(**{"scores": MASK, **change})


def call_core(**change):
    given = {
        **dict.fromkeys(("query", "key", "value", "direction_bias", "key_mask", "mask", "out", "remainder", "scratch")),
        **{"query": Q, "key": K, "value": K, "out": torch.empty(2, 3, 5, 4)},
        **{"scale": 0.5, "normalize": False, "eps": 1e-12, "include_self": False, "is_causal": False, "q_offset": 0},
        **{"early_stop": True, "num_threads": 1, "stream": 0, **change},
    }
    core.geometric_attention_fwd(*given.values())
    return given["out"]


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"query": Q.long()}, TypeError, "query must be float64, float32, bfloat16, float16, got int64"),
        ({"query": Q[0]}, ValueError, r"query must have 4 dimensions \[B, H, L, D\], got shape \[3, 5, 4\]"),
        ({"key": K[..., :3]}, ValueError, r"key must have shape \[2, 3, 6, 4\], got \[2, 3, 6, 3\]"),
        ({"value": K.half()}, TypeError, "value must be float32, got float16"),
        ({"query": Q.mT.contiguous().mT}, ValueError, "query must have an inner stride of 1"),
        ({"direction_bias": BIAS.half()}, TypeError, "direction_bias must be float32, got float16"),
        ({"direction_bias": BIAS[..., :1].expand(2, 3, 5, 2)}, ValueError, "direction_bias must have an inner stride"),
        ({"key_mask": PADDING.int()}, TypeError, "key_mask must be bool, uint8, got int32"),
        ({"key_mask": PADDING.mT.contiguous().mT}, ValueError, "key_mask must have an inner stride of 1"),
        ({"mask": MASK}, ValueError, r"mask must have shape \[2, 3, 5, 6\], got \[5, 6\]"),
        ({"mask": MASK.double().expand(2, 3, 5, 6)}, TypeError, "mask must be float32, bool, uint8, got float64"),
        ({"remainder": torch.empty(2, 3, 5).mT}, ValueError, "remainder must have shape"),
        ({"scale": math.inf}, ValueError, "scale must be finite, got inf"),
        ({"eps": 0.0}, ValueError, "eps must be positive, got 0"),
        ({"out": torch.empty(2, 3, 5, 4).double()}, TypeError, "out must be float32, got float64"),
    ],
)
def test_what_the_core_cannot_take(change, error, message):
    with pytest.raises(error, match=OP + message):
        call_core(**change)


def test_the_core_takes_numpy_arrays():
    value = values(torch.Generator().manual_seed(0), K.shape)
    expected = ops.geometric_attention(Q, K, value)
    arrays = {"query": Q.numpy(), "key": K.numpy(), "value": value.numpy(), "out": torch.empty(2, 3, 5, 4).numpy()}
    assert torch.equal(torch.from_numpy(call_core(**arrays)), expected)
