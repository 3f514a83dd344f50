"""NDR, Transformer and ACT encoders: the equations, gates, padding, depth, initial values, torch's features."""

import copy
import math

import layer_oracles as oracle
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from sysgen.nn import (
    ACTEncoder,
    NDREncoderLayer,
    SharedEncoder,
    StackedEncoder,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
    collect_maps,
)

CTLPP = {
    "update": "residual_norm",
    "activation": "gelu",
    "feedforward_dropout": 0.0,
    "attention_kwargs": {"bias": True, "content_bias": False, "init": "ctlpp"},
}
NDR = {
    "ndr": {},
    "rel+gate": {"update": "tanh", "attention": "relative"},
    "abs/rel+gate": {"update": "tanh", "attention": "abs_rel"},
    "ctl++": CTLPP,
    "gelu, normalized": {"activation": "gelu", "attention_kwargs": {"normalize": True}},
    "scalar gate": {"scalar_gate": True, "gate_size": 5, "update": "residual_norm"},
}
TRANSFORMER = {
    "transformer": {},
    "+rel": {"attention": "relative"},
    "+geom": {"attention": "geometric"},
    "gelu": {"activation": "gelu", "attention_kwargs": {"bias": True}},
}
LAYERS = {
    **{k: (NDREncoderLayer, v) for k, v in NDR.items()},
    **{k: (TransformerEncoderLayer, v) for k, v in TRANSFORMER.items()},
}
PADDING = torch.tensor([[False] * 5, [False, False, False, True, True]])


def make(kind, dtype=torch.float64, dropout=0.0, **kwargs):
    cls, options = LAYERS[kind]
    return oracle.randomize(cls(8, 2, dim_feedforward=12, dropout=dropout, **{**options, **kwargs}, dtype=dtype))


def tokens(*shape, seed=1, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


# The function


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("padded, causal", [(False, False), (True, False), (True, True)])
def test_is_its_formula(kind, padded, causal):
    layer, x, padding = make(kind), tokens(2, 5, 8), PADDING if padded else None
    formula = oracle.ndr if kind in NDR else oracle.encoder_layer
    y = layer(x, src_key_padding_mask=padding, is_causal=causal)
    oracle.assert_same(y, formula(layer, x, padding, causal), layer, x)
    if causal:
        mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
        torch.testing.assert_close(layer(x, mask, padding), y)


def test_geometric_baseline_has_normalized_weights():
    assert make("+geom").self_attn.normalize and not make("ndr").self_attn.normalize


@pytest.mark.parametrize("attention", ["softmax", "relative"])
def test_decoder_layer_is_its_formula(attention):
    layer = oracle.randomize(TransformerDecoderLayer(8, 2, 12, attention=attention, dropout=0, dtype=torch.float64))
    x, memory = tokens(2, 4, 8), tokens(2, 5, 8, seed=2)
    y = layer(x, memory, PADDING)
    oracle.assert_same(y, oracle.decoder_layer(layer, x, memory, PADDING), layer, x, memory)
    torch.testing.assert_close(layer(x[:, 3:], memory, PADDING, past=x[:, :3]), y[:, 3:])


@pytest.mark.parametrize("kind", LAYERS)
def test_layouts(kind):
    layer, x = make(kind), tokens(2, 5, 8)
    y = layer(x, src_key_padding_mask=PADDING)
    torch.testing.assert_close(layer(x[1], src_key_padding_mask=PADDING[1]), y[1])
    first = make(kind, batch_first=False)
    torch.testing.assert_close(first(x.transpose(0, 1), src_key_padding_mask=PADDING).transpose(0, 1), y)
    assert layer(x[:0]).shape == (0, 5, 8)


@pytest.mark.parametrize("kind", LAYERS)
def test_padding_is_independent(kind):
    layer, x = make(kind), tokens(2, 5, 8)
    y = layer(x, src_key_padding_mask=PADDING)
    other = torch.where(PADDING.unsqueeze(-1), 100 * tokens(2, 5, 8, seed=5), x)
    torch.testing.assert_close(layer(other, src_key_padding_mask=PADDING)[~PADDING], y[~PADDING])
    torch.testing.assert_close(layer(x[1:, :3]), y[1:, :3])
    if "attention" not in LAYERS[kind][1] and kind in NDR:  # geometric: even NaN
        nan = torch.where(PADDING.unsqueeze(-1), math.nan, x)
        torch.testing.assert_close(layer(nan, src_key_padding_mask=PADDING)[~PADDING], y[~PADDING])


@pytest.mark.parametrize("kind", LAYERS)
def test_causal_layers_do_not_look_ahead(kind):
    layer, x = make(kind), tokens(1, 5, 8)
    (grad,) = torch.autograd.grad(layer(x, is_causal=True)[0, 2].square().sum(), x)
    assert grad[0, :3].any() and not grad[0, 3:].any()


# Gates and dropout


def test_closed_gates_keep_columns():
    layer, x = make("ndr"), tokens(2, 5, 8)
    torch.nn.init.zeros_(layer.gate2.weight)
    torch.nn.init.constant_(layer.gate2.bias, -1000.0)
    assert torch.equal(layer(x), x)


@pytest.mark.parametrize("kind", NDR)
def test_gates_start_almost_closed(kind):
    torch.manual_seed(0)
    layer = NDREncoderLayer(8, 2, **NDR[kind])
    assert torch.equal(layer.gate2.bias, torch.full_like(layer.gate2.bias, -3.0))
    layer.gate2.weight.data.zero_()
    with collect_maps(layer) as maps:
        layer(tokens(2, 5, 8, dtype=torch.float32))
    gate = maps[""]["gate"][0]
    assert gate.shape == (2, 5, 1 if "scalar_gate" in NDR[kind] else 8)
    torch.testing.assert_close(gate, torch.full_like(gate, 1 / (1 + math.exp(3))))


@pytest.mark.parametrize("kind", NDR)
def test_gate_dropout_closes_columns(kind):
    """Whole columns stay what they were, about as many as the rate says; the others are not rescaled."""
    p, n = 0.3, 600
    layer, x = make(kind, gate_dropout=p), tokens(3, n // 3, 8)
    torch.manual_seed(0)
    y = layer(x)
    closed = (y == x).all(-1)
    assert not (y == x)[~closed].any()
    assert abs(closed.sum() - p * n) < 5 * math.sqrt(n * p * (1 - p))
    expected = layer.eval()(x)
    torch.testing.assert_close(y[~closed], expected[~closed])
    for g in torch.autograd.grad(y[closed].sum(), (x, *layer.parameters()), retain_graph=True, allow_unused=True)[1:]:
        assert g is None or not g.any()  # no gradient but the identity's
    assert torch.equal(torch.autograd.grad(y[closed].sum(), x)[0], closed.unsqueeze(-1).expand_as(x).double())


@pytest.mark.parametrize("kind", NDR)
def test_where_dropout_applies(kind):
    """At rate 1 nothing of the attention and of the feedforwards' hidden layers is left, but their biases."""
    layer, x = make(kind, dropout=1.0), tokens(2, 5, 8)
    a = oracle._norm(layer.norm1, x)
    if kind == "ctl++":  # none within the feedforwards
        u = oracle._norm(layer.norm2, layer.linear2(oracle._activation(layer, layer.linear1(a))) + a)
        gate = layer.gate2(oracle._activation(layer, layer.gate1(a))).sigmoid()
    else:
        u, gate = layer.linear2.bias.expand_as(x), layer.gate2.bias.sigmoid()
        if layer.update == "tanh":
            u = u.tanh()
        else:
            u = oracle._norm(layer.norm2, u + a if layer.update == "residual_norm" else u)
    torch.testing.assert_close(layer(x), (1 - gate) * x + gate * u)
    torch.testing.assert_close(layer.eval()(x), oracle.ndr(layer, x))


def test_transformer_dropout():
    layer, x = make("+geom", dropout=1.0), tokens(2, 5, 8)
    torch.testing.assert_close(layer(x), oracle._norm(layer.norm2, oracle._norm(layer.norm1, x)))


@pytest.mark.parametrize("kind", LAYERS)
def test_relu_and_dropout_in_place(kind):
    """The factors that a layer draws are those of its backward: finite differences through a fixed seed."""
    layer, x = make(kind, dropout=0.4), tokens(1, 3, 8)

    def function(x):
        torch.manual_seed(7)
        return layer(x)

    assert torch.autograd.gradcheck(function, (x,), fast_mode=True)


# Initial values


@pytest.mark.parametrize("kind", LAYERS)
def test_initial_values(kind):
    """Xavier uniform, ±gain · √(6 / (fan_in + fan_out)): the bound is met, and nearly reached by 10⁴ values."""
    cls, options = LAYERS[kind]
    torch.manual_seed(0)
    layer = cls(96, 2, dim_feedforward=200, **options)
    update, relu = getattr(layer, "update", None), layer.activation == "relu" or kind in NDR
    gains = {
        "linear1": math.sqrt(2) if relu else 1,
        "linear2": {None: 1, "norm": 5 / 3, "residual_norm": 1}.get(update),
    }
    if kind in NDR:
        gains |= {"gate1": math.sqrt(2), "gate2": 1}
    for name, gain in gains.items():
        w = getattr(layer, name).weight
        bound = w.shape[1] ** -0.5 if gain is None else gain * math.sqrt(6 / sum(w.shape))  # None: as nn.Linear
        assert w.abs().max() <= bound * (1 + 1e-6), name
        assert w.abs().max() > 0.97 * bound or w.numel() < 100, name
        if name != "gate2" and w.numel() > 1000:
            bias = getattr(layer, name).bias
            assert 0.8 * w.shape[1] ** -0.5 < bias.abs().max() <= w.shape[1] ** -0.5


@pytest.mark.parametrize("kind", LAYERS)
def test_factory_arguments_and_reset(kind):
    cls, options = LAYERS[kind]
    layer = cls(8, 2, dim_feedforward=12, **options, device="meta", dtype=torch.float64)
    assert all(p.is_meta and p.dtype == torch.float64 for p in layer.parameters())
    layer.to_empty(device="cpu")
    torch.manual_seed(3)
    layer.reset_parameters()
    other = make(kind)
    torch.manual_seed(3)
    other.reset_parameters()
    expected = other.state_dict()
    assert all(torch.equal(p, expected[name]) for name, p in layer.state_dict().items())
    assert cls.__name__ in repr(layer)


def test_default_width():
    assert NDREncoderLayer(8, 2).linear1.out_features == 32


# Stacks


@pytest.mark.parametrize("kind", LAYERS)
def test_shared_encoder(kind):
    layer, x = make(kind), tokens(2, 5, 8)
    encoder = SharedEncoder(layer, 2, num_eval_layers=4)

    def steps(n):
        y = x
        for _ in range(n):
            y = layer(y, src_key_padding_mask=PADDING)
        return y

    torch.testing.assert_close(encoder(x, src_key_padding_mask=PADDING), steps(2))
    encoder.eval()
    torch.testing.assert_close(encoder(x, src_key_padding_mask=PADDING), steps(4))
    encoder.set_num_layers(3)
    torch.testing.assert_close(encoder(x, None, PADDING), steps(3))
    assert list(encoder.state_dict()) == [f"layer.{name}" for name in layer.state_dict()]
    torch.testing.assert_close(SharedEncoder(layer, 1)(x, is_causal=True), layer(x, is_causal=True))


def test_shared_encoder_takes_any_layer():
    class Layer(torch.nn.Module):
        def forward(self, src, src_mask=None, src_key_padding_mask=None):
            return src + 1

    assert torch.equal(SharedEncoder(Layer(), 3)(torch.zeros(2)), torch.full((2,), 3.0))
    theirs = torch.nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0, dtype=torch.float64)
    x = tokens(2, 5, 8)
    torch.testing.assert_close(SharedEncoder(theirs, 2)(x), theirs(theirs(x)))


def test_stacked_encoder():
    encoder, x = StackedEncoder(make("transformer"), 3), tokens(2, 5, 8)
    assert len({id(p) for p in encoder.parameters()}) == 3 * len(list(encoder.layers[0].parameters()))
    weights = [layer.linear1.weight for layer in encoder.layers]
    assert not torch.equal(weights[1], weights[2])
    expected = x
    for layer in encoder.layers:
        expected = layer(expected, src_key_padding_mask=PADDING)
    torch.testing.assert_close(encoder(x, src_key_padding_mask=PADDING), expected)
    encoder.reset_parameters()
    assert weights[0].abs().max() < math.sqrt(2) * math.sqrt(6 / 20)


@pytest.mark.parametrize("make_stack", [SharedEncoder, StackedEncoder])
def test_maps_of_each_step(make_stack):
    encoder, x = make_stack(make("ndr"), 3), tokens(2, 5, 8)
    with collect_maps(encoder) as maps:
        y = encoder(x)
    if make_stack is SharedEncoder:
        assert {n: {k: len(v) for k, v in m.items()} for n, m in maps.items()} == {
            "layer.self_attn": {"attention": 3},
            "layer": {"gate": 3},
        }
        gates = maps["layer"]["gate"]
        assert not torch.equal(gates[0], gates[1]) and gates[0].shape == x.shape
        assert torch.equal(encoder(x), y)
    else:
        assert [n for n, m in maps.items() if "gate" in m] == ["layers.0", "layers.1", "layers.2"]
    with collect_maps(encoder) as maps:
        encoder(x[:0])
    assert all(m["gate"][0].shape == (0, 5, 8) for m in maps.values() if "gate" in m), "an empty batch"


# Adaptive computation time


def act_by_column(encoder, x, padding, threshold=0.99):
    """Graves' scheme for each column: weights p until their sum passes the threshold, then what is missing from 1."""
    states, ps = [x], []
    for _ in range(encoder.max_steps):
        ps.append(torch.sigmoid(encoder.halt(states[-1])).squeeze(-1))
        states.append(encoder.layer(states[-1], src_key_padding_mask=padding))
    out, remainders, weights = torch.zeros_like(x), [], torch.zeros(encoder.max_steps, *x.shape[:2], dtype=x.dtype)
    rows = []
    for b in range(x.shape[0]):
        for i in range(x.shape[1]):
            y, total = x.new_zeros(x.shape[-1]), 0.0
            if padding is not None and padding[b, i]:
                rows.append(y)
                remainders.append(torch.zeros((), dtype=x.dtype))
                continue
            for t in range(encoder.max_steps):
                last = t == encoder.max_steps - 1 and encoder.variant == "graves"
                halts = bool(total + ps[t][b, i] > threshold) or last
                w = 1 - total if halts else ps[t][b, i]
                weights[t, b, i] = w if isinstance(w, float) else w.detach()
                y = (
                    y + w * states[t + 1][b, i]
                    if encoder.variant == "graves"
                    else (1 - w) * y + w * states[t + 1][b, i]
                )
                if halts:
                    remainders.append(torch.as_tensor(w, dtype=x.dtype))
                    break
                total = total + w
            else:
                remainders.append(torch.zeros((), dtype=x.dtype))
            rows.append(y)
    out = torch.stack(rows).view_as(x)
    return out, encoder.loss_weight * torch.stack(remainders).mean(), weights


def act(variant="graves", bias=0.0, steps=4, **kwargs):
    torch.manual_seed(0)
    encoder = ACTEncoder(make("ndr"), steps, variant=variant, loss_weight=0.5, **kwargs)
    torch.nn.init.constant_(encoder.halt.bias, bias)
    return encoder


@pytest.mark.parametrize("variant", ["graves", "universal"])
@pytest.mark.parametrize("bias", [-1.5, 0.0, 6.0])
@pytest.mark.parametrize("padded", [False, True])
def test_act_is_its_formula(variant, bias, padded):
    encoder, x = act(variant, bias), tokens(2, 5, 8)
    padding = PADDING if padded else None
    with collect_maps(encoder) as maps:
        y, loss = encoder(x, src_key_padding_mask=padding)
    expected, expected_loss, weights = act_by_column(encoder, x, padding)
    torch.testing.assert_close(torch.stack(maps[""]["weight"]).squeeze(-1), weights)
    oracle.assert_same(y, expected, encoder, x)
    torch.testing.assert_close(loss, expected_loss)
    if expected_loss.requires_grad:  # else each column halted in its first step, or none did
        oracle.assert_same(loss, expected_loss, encoder, x)


def test_act_weights_sum_to_one():
    encoder, x = act(bias=-2.0, steps=6), tokens(2, 5, 8)
    with collect_maps(encoder) as maps:
        encoder(x, src_key_padding_mask=PADDING)
    total = torch.stack(maps[""]["weight"]).sum(0).squeeze(-1)
    torch.testing.assert_close(total, (~PADDING).double())
    encoder.variant = "universal"  # the last step does not halt a column
    with collect_maps(encoder) as maps:
        encoder(x, src_key_padding_mask=PADDING)
    assert (torch.stack(maps[""]["weight"]).sum(0).squeeze(-1)[~PADDING] < 1).any()


@pytest.mark.parametrize("variant", ["graves", "universal"])
def test_act_early_exit(variant):
    lazy, eager, x = act(variant, 3.0, 8), act(variant, 3.0, 8, early_exit=True), tokens(2, 5, 8)
    calls = []
    eager.layer.register_forward_hook(lambda *_: calls.append(1))
    a, b = lazy(x, src_key_padding_mask=PADDING), eager(x, src_key_padding_mask=PADDING)
    assert 1 < len(calls) < 8 and torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_act_edges():
    encoder, x = act(bias=0.0, steps=1), tokens(2, 5, 8)
    y, loss = encoder(x)
    torch.testing.assert_close(y, encoder.layer(x))
    torch.testing.assert_close(loss, torch.tensor(0.5, dtype=torch.float64))  # all of the one step is remainder
    encoder.set_num_layers(3)
    assert encoder.max_steps == 3
    with pytest.raises(ValueError, match="ACTEncoder: variant must be one of 'graves', 'universal', got 'A'"):
        act("A")
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        act(steps=0)
    with pytest.raises(ValueError, match="ACTEncoder: layer must be batch first, got one with batch_first=False"):
        ACTEncoder(make("ndr", batch_first=False), 3)


# torch's features


@pytest.mark.parametrize(
    "kind, stack", [("ndr", SharedEncoder), ("abs/rel+gate", SharedEncoder), ("+geom", ACTEncoder)]
)
def test_compiles_whole(kind, stack):
    torch.manual_seed(0)
    encoder, x = stack(make(kind, torch.float32), 2), tokens(2, 5, 8, dtype=torch.float32)
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    y, expected = (f(x, src_key_padding_mask=PADDING) for f in (compiled, encoder))
    torch.testing.assert_close(y, expected)
    y, expected = (t[0] if isinstance(t, tuple) else t for t in (y, expected))
    torch.testing.assert_close(oracle.gradients(y, encoder, x), oracle.gradients(expected, encoder, x))


@torch.no_grad()
def test_compiles_once_for_all_sizes():
    layer = make("abs/rel+gate", torch.float32)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="eager")
    for shape in ((2, 5, 8), (3, 7, 8), (4, 12, 8)):
        x = tokens(*shape, dtype=torch.float32)
        torch.testing.assert_close(compiled(x), layer(x))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_compiles_with_dropout():
    layer, x = make("ndr", torch.float32, dropout=0.5, gate_dropout=0.5), tokens(2, 5, 8, dtype=torch.float32)
    y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    assert not torch.equal(y, layer.eval()(x)) and y.isfinite().all()


@pytest.mark.parametrize("kind", LAYERS)
def test_autocast(kind):
    """The residual path stays in float32. Products in bfloat16 are off by 2⁻⁸; layer norms bound their sums."""
    layer, x = make(kind, torch.float32, dropout=0.5), tokens(2, 5, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x, src_key_padding_mask=PADDING)
        assert y.dtype == torch.float32
        y.sum().backward()
        y = layer.eval()(x, src_key_padding_mask=PADDING)
    assert all(
        p.grad is None or (p.grad.dtype == torch.float32 and p.grad.isfinite().all()) for p in layer.parameters()
    )
    torch.testing.assert_close(y, layer(x, src_key_padding_mask=PADDING), atol=0.2, rtol=0.1)


@pytest.mark.parametrize("kind", LAYERS)
def test_half_parameters(kind):
    layer, x = make(kind, torch.bfloat16, dropout=0.5), tokens(2, 5, 8, dtype=torch.bfloat16)
    y = layer(x, src_key_padding_mask=PADDING)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("kind", LAYERS)
def test_checkpoint_repeats_dropout(kind):
    encoder, x = SharedEncoder(make(kind, dropout=0.5), 2), tokens(2, 5, 8)
    torch.manual_seed(0)
    expected = oracle.gradients(encoder(x), encoder, x)
    torch.manual_seed(0)
    torch.testing.assert_close(oracle.gradients(checkpoint(encoder, x, use_reentrant=False), encoder, x), expected)


@pytest.mark.parametrize("kind", LAYERS)
def test_state_dict_round_trip(kind):
    layer, x = make(kind), tokens(2, 5, 8)
    other = make(kind)
    other.reset_parameters()
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(copy.deepcopy(layer.state_dict()))
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


# Bad input


@pytest.mark.parametrize(
    "error, words, kwargs",
    [
        (ValueError, "nhead must be at least 1, got 0", {"nhead": 0}),
        (ValueError, "dim_feedforward must be at least 1, got 0", {"dim_feedforward": 0}),
        (ValueError, r"dropout must be in \[0, 1\], got -0.5", {"dropout": -0.5}),
        (ValueError, "activation must be one of 'relu', 'gelu', got 'tanh'", {"activation": "tanh"}),
        (ValueError, "attention must be one of .* got 'linear'", {"attention": "linear"}),
    ],
)
@pytest.mark.parametrize("cls", [NDREncoderLayer, TransformerEncoderLayer, TransformerDecoderLayer])
def test_bad_arguments(cls, error, words, kwargs):
    with pytest.raises(error, match=f"{cls.__name__}: {words}"):
        cls(**{"d_model": 8, "nhead": 2, **kwargs})


def test_bad_ndr_arguments():
    for words, kwargs in (
        ("update must be one of 'norm', 'tanh', 'residual_norm', got 'add'", {"update": "add"}),
        (r"gate_dropout must be in \[0, 1\], got 2", {"gate_dropout": 2}),
        ("gate_size must be at least 1, got 0", {"gate_size": 0}),
        ("gate_bias must be finite, got nan", {"gate_bias": float("nan")}),
        ("attention must be one of .* got 'softmax'", {"attention": "softmax"}),
    ):
        with pytest.raises(ValueError, match=f"NDREncoderLayer: {words}"):
            NDREncoderLayer(8, 2, **kwargs)
    with pytest.raises(TypeError, match="NDREncoderLayer: scalar_gate must be a bool, got 2"):
        NDREncoderLayer(8, 2, scalar_gate=2)
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        SharedEncoder(make("ndr"), 0)
    with pytest.raises(ValueError, match="num_eval_layers must be at least 1, got 0"):
        SharedEncoder(make("ndr"), 1, 0)
