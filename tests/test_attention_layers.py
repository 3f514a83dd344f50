"""Geometric, relative and softmax attention as layers: the formula, the interface, initial values, torch's features."""

import copy
import math

import layer_oracles as oracle
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from sysgen.nn import (
    GeometricMultiheadAttention,
    RelativeMultiheadAttention,
    SoftmaxMultiheadAttention,
    collect_maps,
)
from sysgen.nn._dropout import dropout

LAYERS = {
    "geometric": (GeometricMultiheadAttention, {}),
    "geometric ctlpp": (GeometricMultiheadAttention, {"bias": True, "content_bias": False, "init": "ctlpp"}),
    "geometric all": (GeometricMultiheadAttention, {"bias": True, "normalize": True, "include_self": True}),
    "geometric plain": (GeometricMultiheadAttention, {"direction": False, "content_bias": False}),
    "relative": (RelativeMultiheadAttention, {}),
    "relative bias": (RelativeMultiheadAttention, {"bias": True, "learned_scale": False, "init": "seq2seq"}),
    "abs_rel": (RelativeMultiheadAttention, {"absolute_gate": True}),
    "softmax": (SoftmaxMultiheadAttention, {}),
    "softmax bias": (SoftmaxMultiheadAttention, {"bias": True, "init": "seq2seq"}),
}
ONE_EACH = ("geometric", "abs_rel", "softmax")


def make(kind, embed_dim=8, num_heads=2, dtype=torch.float64, **kwargs):
    cls, options = LAYERS[kind]
    return oracle.randomize(cls(embed_dim, num_heads, **options, **kwargs, dtype=dtype))


def tokens(*shape, seed=1, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


PADDING = torch.tensor([[False] * 5, [False, False, False, True, True]])


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("padded, causal", [(False, False), (True, False), (False, True), (True, True)])
def test_self_attention_is_its_formula(kind, padded, causal):
    layer, x = make(kind), tokens(2, 5, 8)
    padding = PADDING if padded else None
    y, weights = layer(x, x, x, padding, is_causal=causal, average_attn_weights=False)
    expected, expected_weights = oracle.attention(layer, x, x, x, padding, causal)
    torch.testing.assert_close(weights, expected_weights)
    oracle.assert_same(y, expected, layer, x)
    lean = layer(x, x, x, padding, need_weights=False, is_causal=causal)[0]
    oracle.assert_same(lean, expected, layer, x)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    "queries, keys, offset, causal",
    [(1, 4, 3, True), (1, 1, 0, False), (3, 6, 2, True), (6, 3, -2, False), (2, 5, -7, False), (4, 3, 9, False)],
)
def test_cross_attention_is_its_formula(kind, queries, keys, offset, causal):
    layer = make(kind)
    q, k, v = tokens(2, queries, 8), tokens(2, keys, 8, seed=2), tokens(2, keys, 8, seed=3)
    expected = oracle.attention(layer, q, k, v, causal=causal, offset=offset)[0]
    y = layer(q, k, v, need_weights=False, is_causal=causal, q_offset=offset)[0]
    oracle.assert_same(y, expected, layer, q, k, v)
    same = oracle.attention(layer, q, k, k, causal=causal, offset=offset)[0]
    oracle.assert_same(layer(q, k, k, is_causal=causal, q_offset=offset)[0], same, layer, q, k)


@pytest.mark.parametrize("kind", LAYERS)
def test_masks(kind):
    """A mask for each head, of -inf or of bool, with another for the padding; the two meanings agree."""
    layer, x = make(kind), tokens(2, 5, 8)
    hidden = torch.rand(4, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.3
    hidden[:, :, 0] = False  # a softmax over no key is another test
    y, weights = layer(x, x, x, PADDING, attn_mask=hidden, average_attn_weights=False)
    assert not weights[hidden.view(2, 2, 5, 5) | PADDING[:, None, None]].any()
    infinite = torch.zeros(4, 5, 5, dtype=torch.float64).masked_fill(hidden, -math.inf)
    also = layer(x, x, x, torch.zeros(2, 5).double().masked_fill(PADDING, -math.inf), attn_mask=infinite)[0]
    torch.testing.assert_close(also, y)
    torch.testing.assert_close(
        layer(x, x, x, attn_mask=hidden[0])[0], layer(x, x, x, attn_mask=hidden[:1].expand(4, 5, 5))[0]
    )
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    torch.testing.assert_close(layer(x, x, x, attn_mask=causal)[0], layer(x, x, x, is_causal=True)[0])
    shift = torch.randn(5, 5, dtype=torch.float64)  # finite values are added to the scores
    changed = layer(x, x, x, attn_mask=shift)[0]
    assert not torch.allclose(changed, layer(x, x, x)[0])
    constant = layer(x, x, x, attn_mask=torch.full((5, 5), 3.0).double())[0]
    assert torch.allclose(constant, layer(x, x, x)[0]) == (not kind.startswith("geometric"))


@pytest.mark.parametrize("kind", LAYERS)
def test_rows_without_keys(kind):
    """Nothing to attend to: the output is 0, and so are the gradients; no NaN."""
    layer, x = make(kind), tokens(2, 5, 8)
    y = layer(x, x, x, torch.tensor([[True] * 5, [False] * 5]), need_weights=False)[0]
    assert not y[0].any()
    grad = torch.autograd.grad(y.square().sum(), (x, *layer.parameters()), materialize_grads=True)
    assert not grad[0][0].any() and all(g.isfinite().all() for g in grad)


@pytest.mark.parametrize("kind", ["geometric", "geometric all"])
def test_padding_may_hold_anything(kind):
    layer, x = make(kind), tokens(2, 5, 8)
    y = layer(x, x, x, PADDING)[0]
    nan = torch.where(PADDING.unsqueeze(-1), math.nan, x)
    assert torch.equal(layer(nan, nan, nan, PADDING, need_weights=False)[0][~PADDING], y[~PADDING])


@pytest.mark.parametrize("kind", LAYERS)
def test_layouts(kind):
    """Unbatched input, and the length first, as ``torch.nn.MultiheadAttention`` has them."""
    layer, x = make(kind), tokens(2, 5, 8)
    y, w = layer(x, x, x, PADDING)
    assert w.shape == (2, 5, 5)
    one, w_one = layer(x[1], x[1], x[1], PADDING[1])
    torch.testing.assert_close(one, y[1])
    torch.testing.assert_close(w_one, w[1])
    layer.batch_first = False
    t = x.transpose(0, 1)
    y_first, w_first = layer(t, t, t, PADDING)
    torch.testing.assert_close(y_first.transpose(0, 1), y)
    torch.testing.assert_close(w_first, w)
    torch.testing.assert_close(layer(x[1], x[1], x[1], PADDING[1])[0], y[1])


def test_softmax_is_torch_multihead_attention():
    layer, x = make("softmax bias"), tokens(2, 5, 8)
    other = torch.nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight"):
            other.get_parameter(name).copy_(layer.get_parameter(name))
        other.out_proj.bias.zero_()
    for a, b in zip(layer(x, x, x, PADDING), other(x, x, x, PADDING)):
        torch.testing.assert_close(a, b)


# Initial values


def test_geometric_initial_values():
    """Uniform within ±√(6 / (fan_in + fan_out)) of one head: the bound is met, and nearly reached by 10⁴ values."""
    e, h = 96, 4
    torch.manual_seed(0)
    layer = GeometricMultiheadAttention(e, h, bias=True)
    narrow, wide = math.sqrt(6 / (e + e // h)), math.sqrt(6 / (2 * e))
    for w in (*layer.in_proj_weight.chunk(3), layer.out_proj.weight):
        assert 0.99 * narrow < w.abs().max() <= narrow
        assert abs(w.var() / (narrow**2 / 3) - 1) < 0.1  # of 9216 values, the variance scatters by 1 %
    layer = GeometricMultiheadAttention(e, h, init="ctlpp")
    q, k, v = (w.view(h, -1) for w in layer.in_proj_weight.chunk(3))
    assert 0.99 * narrow < q.abs().max() <= narrow and 0.99 * wide < layer.out_proj.weight.abs().max() <= wide
    for w in (k, v):  # the first half of the heads, the second half
        assert 0.99 * narrow < w[: h // 2].abs().max() and 0.99 * wide < w[h // 2 :].abs().max() <= wide
    assert layer.alpha.item() == pytest.approx((e // h) ** -0.5)
    assert layer.beta.item() == 1 and layer.gamma.item() == 0 and not layer.content_bias.any()
    assert 0 < layer.direction.bias.abs().max() <= e**-0.5


@pytest.mark.parametrize("init", ["ndr", "seq2seq"])
def test_softmax_and_relative_initial_values(init):
    e = 96
    torch.manual_seed(0)

    def assert_bound(w, bound):
        assert 0.99 * bound < w.abs().max() <= bound * (1 + 1e-6)

    layer = SoftmaxMultiheadAttention(e, 4, init=init)
    q, k, v = layer.in_proj_weight.chunk(3)
    assert_bound(q, math.sqrt(6 / (2 * e)))
    for w in (k, v):
        assert_bound(w, math.sqrt(6 / (3 * e if init == "ndr" else 2 * e)))
    assert_bound(layer.out_proj.weight, e**-0.5 if init == "ndr" else math.sqrt(6 / (2 * e)))
    layer = RelativeMultiheadAttention(e, 4, init=init)
    q, k, v = layer.in_proj_weight.chunk(3)
    bounds = (6 / (2 * e), 6 / (3 * e), 6 / (2 * e)) if init == "ndr" else (1 / e,) * 3
    for w, bound in zip((q, k, layer.position_proj.weight), bounds):
        assert_bound(w, math.sqrt(bound))
    assert not layer.content_bias.any() and not layer.position_bias.any()
    assert layer.alpha.item() == pytest.approx((e // 4) ** -0.5)


@pytest.mark.parametrize("kind", LAYERS)
def test_factory_arguments_and_reset(kind):
    cls, options = LAYERS[kind]
    layer = cls(8, 2, **options, device="meta", dtype=torch.float64)
    assert all(p.is_meta and p.dtype == torch.float64 for p in layer.parameters())
    layer.to_empty(device="cpu")
    torch.manual_seed(3)
    layer.reset_parameters()
    other = oracle.randomize(cls(8, 2, **options, dtype=torch.float64))
    torch.manual_seed(3)
    other.reset_parameters()
    expected = other.state_dict()
    assert all(torch.equal(p, expected[name]) for name, p in layer.state_dict().items())
    assert "embed_dim=8, num_heads=2" in repr(layer)


# Dropout


@pytest.mark.parametrize("dropout_on", ["key", "query"])
def test_geometric_dropout(dropout_on):
    """At rate 1 no content is left: every key has the same score, and α and the keys' projection no gradient."""
    layer, x = make("geometric", dropout=1.0, dropout_on=dropout_on, direction=False), tokens(2, 5, 8)
    y, w = layer(x, x, x)
    halves = torch.tensor([1 / 16, 1 / 4, 0, 1 / 2, 1 / 8], dtype=torch.float64)  # of the query in the middle
    torch.testing.assert_close(w[:, 2], halves.expand(2, 5))
    y.sum().backward()
    assert not layer.alpha.grad.any() and not layer.in_proj_weight.grad[8:16].any()
    assert layer.in_proj_weight.grad[16:].any()
    assert not torch.allclose(layer.eval()(x, x, x)[1], w)


@pytest.mark.parametrize("dropout_on", ["key", "query"])
def test_what_geometric_dropout_drops(dropout_on):
    """With equal columns, a match depends on the key alone or on the query alone, as that loses channels."""
    layer = make("geometric", num_heads=1, dropout=0.5, dropout_on=dropout_on, direction=False)
    x = tokens(1, 1, 8).expand(1, 9, 8)
    torch.manual_seed(0)
    w = layer(x, x, x)[1][0].detach()
    i = torch.arange(1, 8)  # queries with both neighbours
    right = w[i, i + 1]
    left = w[i, i - 1] / (1 - right)
    if dropout_on == "key":  # right of i is left of i + 2
        torch.testing.assert_close(right[:-2], left[2:])
        assert not torch.allclose(right, left)
    else:
        torch.testing.assert_close(right, left)
        assert not torch.allclose(right[:-2], left[2:])


@pytest.mark.parametrize("dropout_on", ["key", "weight"])
def test_relative_dropout(dropout_on):
    layer, x = make("abs_rel", dropout=1.0, dropout_on=dropout_on), tokens(2, 5, 8)
    y, w = layer(x, x, x)
    if dropout_on == "key":  # neither content nor positions are left
        torch.testing.assert_close(w, torch.full_like(w, 0.2))
        assert y.any()
    else:
        assert not y.any()


def test_dropout_statistics():
    n, p = 1 << 18, 0.3
    torch.manual_seed(0)
    x = torch.ones(n, requires_grad=True)
    y = dropout(x, p, True)
    kept = y != 0
    # A count of n draws scatters by √(n p (1 − p)).
    assert abs(kept.sum() - n * (1 - p)) < 5 * math.sqrt(n * p * (1 - p))
    factor = 1 / (1 - round(p * 2**16) / 2**16)
    assert torch.equal(y[kept], torch.full_like(y[kept], factor)) and factor == pytest.approx(1 / (1 - p), rel=1e-4)
    for lag in (1, 2, 3, 4, 64):  # draws from the same random number are independent
        both = (kept[lag:] & kept[:-lag]).sum()
        expected = (n - lag) * (1 - p) ** 2
        assert abs(both - expected) < 8 * math.sqrt(expected)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    torch.manual_seed(0)
    assert torch.equal(dropout(x, p, True), y)
    assert dropout(x, p, False) is x and dropout(x, 0.0, True) is x
    assert not dropout(x, 1.0, True).any()
    assert dropout(torch.ones(3, 0, 5), p, True).shape == (3, 0, 5)
    assert dropout(torch.ones(3, 5).T, 1e-9, True).tolist() == torch.ones(5, 3).tolist()


# Life inside torch


@pytest.mark.parametrize("kind", ONE_EACH)
def test_compiles_whole(kind):
    layer, x = make(kind, dtype=torch.float32), tokens(2, 5, 8, dtype=torch.float32)
    call = torch.compile(lambda x: layer(x, x, x, PADDING, need_weights=False)[0], fullgraph=True, backend="aot_eager")
    y = call(x)
    expected = layer(x, x, x, PADDING)[0]
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(oracle.gradients(y, layer, x), oracle.gradients(expected, layer, x))


@pytest.mark.parametrize("kind", LAYERS)
def test_autocast(kind):
    """Each of the sums in bfloat16 is off by 2⁻⁸ of terms up to 4; the weights are made in float32 from such scores."""
    layer, x = make(kind, dtype=torch.float32), tokens(2, 5, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, w = layer(x, x, x, PADDING)
    assert y.dtype == torch.bfloat16
    expected, w_expected = layer(x, x, x, PADDING)
    torch.testing.assert_close(y.float(), expected, atol=0.1, rtol=0.1)
    torch.testing.assert_close(w.float(), w_expected, atol=0.05, rtol=0)
    y.sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", LAYERS)
def test_half_parameters(kind, dtype):
    layer, x = make(kind, dtype=dtype), tokens(2, 5, 8, dtype=dtype)
    y = layer(x, x, x, PADDING)[0]
    assert y.dtype == dtype and y.isfinite().all()
    wide = copy.deepcopy(layer).double()
    torch.testing.assert_close(y.double(), wide(x.double(), x.double(), x.double(), PADDING)[0], atol=0.15, rtol=0.1)


@pytest.mark.parametrize("kind", ONE_EACH)
def test_checkpoint_repeats_dropout(kind):
    layer, x = make(kind, dropout=0.5), tokens(2, 5, 8)
    torch.manual_seed(0)
    expected = oracle.gradients(layer(x, x, x)[0], layer, x)
    torch.manual_seed(0)
    y = checkpoint(lambda x: layer(x, x, x)[0], x, use_reentrant=False)
    torch.testing.assert_close(oracle.gradients(y, layer, x), expected)


@pytest.mark.parametrize("kind", ONE_EACH)
def test_maps(kind):
    layer, x = make(kind), tokens(2, 5, 8)
    holder = torch.nn.ModuleDict({"a": layer, "b": make(kind)})
    layer(x, x, x, PADDING, need_weights=False)
    with collect_maps(holder) as maps:
        layer(x, x, x, PADDING, need_weights=False)
        with collect_maps(holder.b) as inner:
            holder.b(x, x, x)
        make(kind)(x, x, x)  # in no model
    layer(x, x, x)
    with collect_maps(layer) as outer:
        with collect_maps(layer) as within:
            layer(x, x, x)
        layer(x, x, x)
    layer(x, x, x)
    assert [len(m[""]["attention"]) for m in (outer, within)] == [2, 1], "one model, collected twice"
    assert list(maps) == ["a", "b"] and [len(m["attention"]) for m in maps.values()] == [1, 1]
    assert list(inner) == [""] and torch.equal(inner[""]["attention"][0], maps["b"]["attention"][0])
    torch.testing.assert_close(maps["a"]["attention"][0], layer(x, x, x, PADDING, average_attn_weights=False)[1])
    assert not maps["a"]["attention"][0].requires_grad


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("batch, queries, keys", [(0, 3, 5), (2, 0, 5), (2, 3, 0), (2, 0, 0)])
def test_empty(kind, batch, queries, keys):
    layer, q, k = make(kind), tokens(batch, queries, 8), tokens(batch, keys, 8)
    y, weights = layer(q, k, k)
    assert y.shape == q.shape and weights.shape == (batch, queries, keys) and not y.any()
    torch.autograd.grad(y.sum(), (q, k))


# Bad input


@pytest.mark.parametrize(
    "error, words, kwargs",
    [
        (ValueError, "embed_dim must be divisible by num_heads, got 8 and 3", {"num_heads": 3}),
        (ValueError, "num_heads must be at least 1, got 0", {"num_heads": 0}),
        (TypeError, "embed_dim must be an int, got 8.0", {"embed_dim": 8.0}),
        (ValueError, r"dropout must be in \[0, 1\], got 1.5", {"dropout": 1.5}),
        (TypeError, "dropout must be a number, got 'high'", {"dropout": "high"}),
        (ValueError, "dropout_on must be one of .* got 'value'", {"dropout_on": "value"}),
        (ValueError, "init must be one of .* got 'xavier'", {"init": "xavier"}),
    ],
)
@pytest.mark.parametrize("cls", [GeometricMultiheadAttention, RelativeMultiheadAttention])
def test_bad_arguments(cls, error, words, kwargs):
    with pytest.raises(error, match=f"{cls.__name__}: {words}"):
        cls(**{"embed_dim": 8, "num_heads": 2, **kwargs})


def test_odd_width():
    with pytest.raises(ValueError, match="embed_dim must be even, got 9"):
        RelativeMultiheadAttention(9, 3)


@pytest.mark.parametrize("kind", ONE_EACH)
def test_bad_input(kind):
    layer, x = make(kind), tokens(2, 5, 8)
    cases = [
        (TypeError, "query must be a floating-point tensor, got torch.int64", (x.long(), x, x), {}),
        (TypeError, "key must be a floating-point tensor, got list", (x, [1], x), {}),
        (ValueError, r"value must have shape \[B, N, 8\] or \[N, 8\], got \[2, 5, 7\]", (x, x, x[..., :7]), {}),
        (ValueError, "key must have shape", (x, x[0], x[0]), {}),
        (ValueError, "must agree in batch", (x, x[:1], x[:1]), {}),
        (ValueError, "key and value in length", (x, x, x[:, :4]), {}),
        (ValueError, r"key_padding_mask must have shape \[2, 5\]", (x, x, x), {"key_padding_mask": PADDING.T}),
        (TypeError, "key_padding_mask must be a bool", (x, x, x), {"key_padding_mask": PADDING.int()}),
        (
            ValueError,
            r"attn_mask must have shape \[5, 5\] or \[4, 5, 5\]",
            (x, x, x),
            {"attn_mask": x.new_ones(2, 5, 5)},
        ),
        (TypeError, "attn_mask must be a bool", (x, x, x), {"attn_mask": torch.ones(5, 5).long()}),
        (TypeError, "attn_mask must be a bool or .* tensor, got list", (x, x, x), {"attn_mask": [0]}),
        (TypeError, "key_padding_mask must be .* got list", (x[0], x[0], x[0]), {"key_padding_mask": [0]}),
        (TypeError, "is_causal must be a bool, got 'no'", (x, x, x), {"is_causal": "no"}),
        (TypeError, "q_offset must be an int, got float", (x, x, x), {"q_offset": 1.5}),
    ]
    for error, words, args, kwargs in cases:
        with pytest.raises(error, match=words):
            layer(*args, **kwargs)
