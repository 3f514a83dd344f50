"""The σ-MoE layer: initial values, selection, regulariser, and life inside torch (compile, autocast, checkpoints)."""

import copy
import math
import pickle

import pytest
import torch
from support import regulariser
from torch.utils.checkpoint import checkpoint

from sysgen import reference
from sysgen.nn import SigmaMoE, load_released_state_dict
from sysgen.nn import sigma_moe as module
from sysgen.ops._router_ops import SELECTIONS
from sysgen.reference.router import drawn

ACTIVATIONS = {
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
    "identity": lambda z: z,
}


def make(d_model=6, num_experts=7, expert_size=5, k=3, *, seed=0, dtype=torch.float64, **kwargs):
    """A layer with random values in every parameter, biases included."""
    torch.manual_seed(seed)
    layer = SigmaMoE(d_model, num_experts, expert_size, k, dtype=dtype, **kwargs)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn_like(p))
    return layer


def token_by_token(layer, x, mask=None):
    """Eq. 7.11 and 7.21 in Python: x [N, d], mask [N, E] (0: dropped) -> y [N, d_out]."""
    rows = []
    for t, token in enumerate(x):
        keep = [1.0] * layer.num_experts if mask is None else mask[t].tolist()
        z = [token @ row for row in layer.expert_sel]
        if layer.selection == "sigmoid":
            s = [1 / (1 + torch.exp(-v)) for v in z]
        else:
            total = sum(torch.exp(v) for v in z)
            s = [torch.exp(v) / total for v in z]
        s = [a * m for a, m in zip(s, keep)]
        chosen = sorted(range(layer.num_experts), key=lambda e: (-s[e].item(), e))[: layer.k]
        if layer.selection == "softmax_after_topk":  # Eq. F.3
            total = sum(s[e] for e in chosen)
            s = [a / total if total.item() > 0 else a for a in s]
        y = token.new_zeros(layer.d_out) if layer.o_bias is None else layer.o_bias
        for e in chosen:
            u = token @ layer.keys[e]
            if layer.bias is not None:
                u = u + layer.bias[e]
            y = y + s[e] * (ACTIVATIONS[layer.activation](u) @ layer.values[e])
        rows.append(y)
    return torch.stack(rows)


def gradients(y, layer, x):
    direction = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    names, parameters = zip(*layer.named_parameters())
    return dict(zip(("x", *names), torch.autograd.grad(y, (x, *parameters), direction)))


def assert_same(actual, expected, layer, x):
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients(actual, layer, x), gradients(expected, layer, x))


# Initial values


def test_initial_statistics():
    torch.manual_seed(0)
    layer = SigmaMoE(48, 32, 16, 4, num_layers=8, bias=True)
    scale = math.sqrt(2 / 8)
    for p, std in ((layer.keys, scale / math.sqrt(48)), (layer.values, scale / math.sqrt(32 * 16))):
        n = p.numel()
        # Of n normal values, the mean and the standard deviation scatter by std/√n and std/√(2n).
        assert abs(p.mean()) < 5 * std / math.sqrt(n)
        assert abs(p.std() - std) < 5 * std / math.sqrt(2 * n)
        assert abs(((p / std) ** 4).mean() - 3) < 5 * math.sqrt(96 / n)  # normal: Var z⁴ = 105 - 9
    assert not layer.bias.any() and not layer.o_bias.any()


@pytest.mark.parametrize("d_model, num_experts", [(48, 32), (1, 5), (7, 1)])
def test_selection_rows_have_equal_norms(d_model, num_experts):
    layer = SigmaMoE(d_model, num_experts, 4, 1, num_layers=8, dtype=torch.float64)
    norms = layer.expert_sel.norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, math.sqrt(2 / 8)))
    rms = layer.expert_sel.square().mean().sqrt().item()
    torch.testing.assert_close(rms, math.sqrt(2 / 8 / d_model))


def test_seed_determines_the_layer():
    layers = []
    for _ in range(2):
        torch.manual_seed(3)
        layers.append(SigmaMoE(8, 4, 4, 2))
    for a, b in zip(*(layer.parameters() for layer in layers)):
        assert torch.equal(a, b)
    layers[1].reset_parameters()
    assert not torch.equal(layers[0].keys, layers[1].keys)


def test_meta_device():
    layer = SigmaMoE(8, 4, 4, 2, bias=True, device="meta", dtype=torch.float64)
    assert all(p.is_meta and p.dtype == torch.float64 for p in layer.parameters())
    layer.to_empty(device="cpu")
    torch.manual_seed(3)
    layer.reset_parameters()
    torch.manual_seed(3)
    expected = SigmaMoE(8, 4, 4, 2, bias=True, dtype=torch.float64).state_dict()
    for name, p in layer.state_dict().items():
        assert torch.equal(p, expected[name]), name


# The function


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_is_its_formula(selection, bias, k):
    layer = make(k=k, selection=selection, bias=bias, d_out=4)
    x = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    assert_same(layer(x), token_by_token(layer, x), layer, x)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dropout", [0.0, 1e-300])  # the second takes the other path, and drops nothing
def test_activations(activation, dropout):
    layer = make(activation=activation, bias=True, dropout=dropout)
    x = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    assert_same(layer(x), token_by_token(layer, x), layer, x)


@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6), (2, 1, 3, 6), (0, 6), (3, 0, 6)])
def test_shapes(shape):
    layer = make(bias=True, d_out=4, expert_dropout=0.5).eval()
    x = torch.randn(shape, dtype=torch.float64)
    y, aux = layer(x, return_aux=True)
    assert y.shape == (*shape[:-1], 4) and aux.shape == ()
    torch.testing.assert_close(y, layer(x.reshape(-1, 6)).view(y.shape))


@pytest.mark.parametrize("training", [False, True])
def test_zero_tokens_differentiate(training):
    layer = make(bias=True, expert_dropout=0.5, dropout=0.5).train(training)
    y, aux = layer(torch.randn(0, 6, dtype=torch.float64), return_aux=True)
    assert aux == 0
    (y.sum() + aux).backward()
    for name, p in layer.named_parameters():
        assert p.grad is not None and not p.grad.any(), name


@pytest.mark.parametrize("selection", SELECTIONS)
def test_second_derivative(selection):
    layer = make(4, 4, 3, 2, selection=selection, activation="gelu", bias=True)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*layer.named_parameters())

    def function(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters)), (x, True))

    assert torch.autograd.gradcheck(function, (x, *parameters))
    assert torch.autograd.gradgradcheck(function, (x, *parameters))


def test_dropout_acts_on_hidden_activations():
    layer = make(dropout=0.3, bias=True)
    x = torch.randn(1, 6, dtype=torch.float64)
    expected = layer.eval()(x)
    n = 40_000
    samples = layer.train()(x.expand(n, 6)).detach()
    # The mean over masks is the value without dropout, each mean scattering by its standard error.
    assert ((samples.mean(0) - expected).abs() < 5 * samples.std(0) / math.sqrt(n)).all()
    assert (samples.std(0) > 0).all()
    layer.dropout = 1.0
    assert torch.equal(layer(x), layer.o_bias[None])


# Expert dropout


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("rate, k", [(0.3, 3), (0.9, 3), (0.99, 7)])
def test_expert_dropout_masks_the_scores(selection, rate, k):
    layer = make(k=k, selection=selection, bias=True, expert_dropout=rate)
    x = torch.randn(60, 6, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    y = layer(x)
    torch.manual_seed(1)
    mask = (~drawn(torch.randint(-(2**63), 2**63 - 1, (1,)), torch.empty(60, 7), rate)).double()
    left = mask.sum(1)
    assert left.max() > 0 and (rate == 0.3 or left.min() < k)  # both kinds of tokens occur
    assert_same(y, token_by_token(layer, x, mask), layer, x)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_all_experts_dropped(selection, dropout):
    layer = make(k=7, selection=selection, bias=True, expert_dropout=1.0, dropout=dropout)
    with torch.no_grad():
        layer.keys.fill_(torch.inf)  # 0 · inf would show
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    experts, gate, _ = layer.select(x)
    assert (experts == -1).all() and not gate.any()
    with torch.autograd.detect_anomaly():  # no NaN on the way either
        y = layer(x)
        found = gradients(y, layer, x)
    assert torch.equal(y, layer.o_bias.expand(5, 6))
    assert found.pop("o_bias").any()
    assert not any(g.any() for g in found.values())


def test_expert_dropout_is_for_training_and_each_token():
    layer = make(k=7, expert_dropout=0.4)
    x = torch.randn(1, 6, dtype=torch.float64).expand(5000, 6)
    dropped = (layer.select(x)[0] == -1).double()
    # Independent over tokens and experts: 5 standard deviations of a binomial share.
    assert abs(dropped.mean() - 0.4) < 5 * math.sqrt(0.24 / dropped.numel())
    assert abs(dropped.sum(1).var() / 7 - 0.24) < 5 * 0.24 * math.sqrt(2 / 5000)
    assert (layer.eval().select(x)[0] >= 0).all()


def test_regulariser_ignores_expert_dropout():
    layer = make(expert_dropout=0.5)
    x = torch.randn(9, 6, dtype=torch.float64)
    assert torch.equal(layer(x, True)[1], layer.eval()(x, True)[1])


# Ties


def chosen(scores, k):
    """[..., k] by a stable sort, as sets."""
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :k].sort(-1).values


@pytest.mark.parametrize("selection", SELECTIONS)
def test_constant_logits(selection):
    layer = make(num_experts=6, k=4, selection=selection)
    experts, gate, _ = layer.select(torch.zeros(3, 6, dtype=torch.float64))
    assert experts.sort(-1).values.tolist() == [[0, 1, 2, 3]] * 3
    torch.testing.assert_close(gate, torch.full_like(gate, {"sigmoid": 1 / 2, "softmax": 1 / 6}.get(selection, 1 / 4)))


# Regulariser


def test_layer_returns_the_regulariser_of_its_logits(monkeypatch):
    layer = make()
    x = torch.randn(2, 9, 6, dtype=torch.float64, requires_grad=True)
    y, aux = layer(x, return_aux=True)
    expected = regulariser(x @ layer.expert_sel.T)
    torch.testing.assert_close(aux, expected)
    torch.testing.assert_close(
        torch.autograd.grad(aux, (x, layer.expert_sel)), torch.autograd.grad(expected, (x, layer.expert_sel))
    )

    def not_asked_for(*arguments):
        raise AssertionError("computed without return_aux")

    monkeypatch.setattr(module, "selection_negentropy", not_asked_for)
    assert torch.equal(layer(x), y)


# Inside torch


def step(function, layer, x, return_aux):
    layer.zero_grad()
    torch.manual_seed(5)
    y, aux = function(x, True) if return_aux else (function(x), x.new_zeros(()))
    (y.square().sum() + aux).backward()
    return {"y": y.detach(), "aux": aux.detach(), **{n: p.grad.clone() for n, p in layer.named_parameters()}}


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()  # otherwise all these layers count as recompilations of one forward


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("return_aux", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_compile_fullgraph(return_aux, dropout, selection):
    layer = make(bias=True, selection=selection, dropout=dropout, expert_dropout=0.3)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for n, stance in ((11, "default"), (5, "fail_on_recompile")):
        x = torch.randn(2, n, 6, dtype=torch.float64)
        with torch.compiler.set_stance(stance):
            actual = step(compiled, layer, x, return_aux)
        torch.testing.assert_close(actual, step(layer, layer, x, return_aux))


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_compile_with_inductor():
    layer = make(bias=True)
    x = torch.randn(2, 11, 6, dtype=torch.float64)
    # A cached graph has the shapes that an operation had then, maybe in an earlier version of the package.
    compiled = torch.compile(layer, fullgraph=True, options={"fx_graph_cache": False})
    torch.testing.assert_close(step(compiled, layer, x, True), step(layer, layer, x, True))
    ties = torch.zeros(2, 11, 6, dtype=torch.float64)
    torch.testing.assert_close(step(compiled, layer, ties, True), step(layer, layer, ties, True))


@pytest.mark.parametrize("dropout", [0.0, 1e-300])
def test_autocast(dropout):
    layer = make(32, 8, 16, 2, dtype=torch.float32, bias=True, dropout=dropout)
    x = torch.randn(64, 32)
    y, aux = layer(x, True)
    experts, gate, logits = layer.select(x)
    with torch.autocast("cpu", torch.bfloat16):
        y_half, aux_half = layer(x, True)
        half = layer.select(x)
    assert y_half.dtype == torch.bfloat16
    for a, b in zip((experts, gate, logits, aux), (*half, aux_half)):
        assert a.dtype == b.dtype and torch.equal(a, b)
    # x, both weights, the hidden rows and y are rounded to 8 bits, each once (and once more by an unfused dropout);
    # the activation enlarges no error. The float32 sums themselves are exact in comparison.
    size = reference.moe_ffn(
        x.abs(), experts, gate, layer.keys.abs(), layer.values.abs(), b_up=layer.bias.abs(), activation="identity"
    )
    bound = 6 * 2**-9 * (size + layer.o_bias.abs()) * (1 + 2**-6)
    assert ((y_half - y).abs() <= bound).all()
    (y_half.float().square().sum() + aux_half).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_layer_selects_in_float32(dtype):
    layer = make(32, 8, 16, 2, dtype=dtype, bias=True)
    x = torch.randn(64, 32, dtype=dtype)
    y, aux = layer(x, True)
    experts, _, logits = layer.select(x)
    assert y.dtype == dtype and logits.dtype == aux.dtype == torch.float32
    exact = x.double() @ layer.expert_sel.double().T
    assert torch.equal(experts.sort(-1).values, chosen(exact, 2))


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_activation_checkpointing(use_reentrant, dropout):
    layer = make(bias=True, dropout=dropout, expert_dropout=0.4)
    x = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)

    def checkpointed(x, return_aux=False):
        return checkpoint(layer, x, return_aux, use_reentrant=use_reentrant)

    expected, actual = step(layer, layer, x, True), step(checkpointed, layer, x, True)
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def test_layer_is_an_ordinary_module():
    layer = make(bias=True)
    x = torch.randn(5, 6, dtype=torch.float64)
    assert set(layer.state_dict()) == {"keys", "values", "expert_sel", "bias", "o_bias"}
    assert set(make().state_dict()) == {"keys", "values", "expert_sel"}
    other = make(bias=True, seed=1)
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(layer.state_dict())
    for twin in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    assert "num_experts=7" in repr(layer)


# Released parameters


def released(layer, prefix=""):
    state = {prefix + n: p.detach().clone().float() for n, p in layer.named_parameters()}
    return {**state, prefix + "kv_sel_counts_100": torch.zeros(7, 5), "embedding.weight": torch.zeros(3)}


@pytest.mark.parametrize("prefix", ["model.layers.1.pkm.", "module._orig_mod.layers.0.ffn."])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_released_parameters(prefix, bias, named):
    source, layer = make(bias=bias, d_out=4), make(bias=bias, d_out=4, seed=1)
    state = released(source, prefix)
    if named:
        state.update(released(make(seed=2), "other."))
    load_released_state_dict(layer, state, prefix if named else None)
    for name, p in layer.named_parameters():
        assert torch.equal(p, source.get_parameter(name).detach().float().double()), name
    state[prefix + "keys"] = state[prefix + "keys"].flatten(0, 1)
    state[prefix + "values"] = state[prefix + "values"].flatten(0, 1)
    twin = make(bias=bias, d_out=4, seed=3)
    load_released_state_dict(twin, state, prefix)
    x = torch.randn(5, 6, dtype=torch.float64)
    assert torch.equal(twin(x), layer(x))


def test_released_parameters_that_do_not_fit():
    layer, state = make(), released(make(seed=1), "a.")
    before = copy.deepcopy(layer.state_dict())
    for change, message in [
        ({"a.keys": torch.zeros(7, 5, 6)}, "a.keys must have shape"),
        ({"a.sel_bias": torch.zeros(7)}, "sel_bias"),
        ({"a.sel.0.weight": torch.zeros(7)}, "sel.0.weight"),
        ({"a.bias": torch.zeros(7, 5), "a.o_bias": torch.zeros(6)}, "o_bias"),
        ({"b.expert_sel": torch.zeros(7, 6)}, "2 MoE layers"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_released_state_dict(layer, {**state, **change})
    with pytest.raises(ValueError, match=r"missing: .*bias"):
        load_released_state_dict(make(bias=True), state)
    with pytest.raises(ValueError, match="0 MoE layers"):
        load_released_state_dict(layer, {})
    assert all(torch.equal(p, before[n]) for n, p in layer.state_dict().items())


# Errors


@pytest.mark.parametrize(
    "change, error",
    [
        ({"d_model": 0}, ValueError),
        ({"num_experts": -1}, ValueError),
        ({"expert_size": 2.0}, TypeError),
        ({"k": 0}, ValueError),
        ({"k": 8}, ValueError),
        ({"k": True}, TypeError),
        ({"num_layers": 0}, ValueError),
        ({"d_out": 0}, ValueError),
        ({"activation": "sine"}, ValueError),
        pytest.param({"activation": torch.relu}, ValueError, id="activation of another type"),
        ({"selection": "sinkhorn"}, ValueError),
        ({"dropout": 1.5}, ValueError),
        ({"expert_dropout": -0.1}, ValueError),
        ({"expert_dropout": math.nan}, ValueError),
        ({"dropout": True}, TypeError),
        ({"expert_dropout": True}, TypeError),
        ({"bias": "no"}, TypeError),
    ],
    ids=str,
)
def test_bad_arguments_are_named(change, error):
    with pytest.raises(error, match=f"SigmaMoE: {next(iter(change))} must"):
        SigmaMoE(**{"d_model": 6, "num_experts": 7, "expert_size": 5, "k": 3, **change})


@pytest.mark.parametrize("shape", [(), (5,), (3, 7)])
def test_bad_input_shape(shape):
    with pytest.raises(ValueError, match=r"x must have shape \[\.\.\., 6\]"):
        make()(torch.randn(shape, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_bad_input_dtype(dtype):
    with pytest.raises(TypeError, match=r"dtype|x must be"):
        make()(torch.ones(3, 6, dtype=dtype))


def test_meta_tensors_give_shapes():
    layer = SigmaMoE(8, 4, 3, 2, d_out=5, device="meta")
    y, aux = layer(torch.empty(2, 7, 8, device="meta"), return_aux=True)
    assert y.shape == (2, 7, 5)
    assert y.device.type == "meta"
    assert aux.shape == ()
