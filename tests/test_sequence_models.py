"""Classifiers, encoder-decoders, embeddings and positions; released parameters; what a geometric head learns."""

import math

import layer_oracles as oracle
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sysgen.nn import (
    ACTEncoder,
    EmbeddingScaling,
    GeometricMultiheadAttention,
    NDREncoderLayer,
    RelativeMultiheadAttention,
    RNNClassifier,
    Seq2SeqTransformer,
    SequenceClassifier,
    SharedEncoder,
    SoftmaxMultiheadAttention,
    StackedEncoder,
    TransformerEncoderLayer,
    collect_maps,
    load_released_state_dict,
    sinusoidal_positions,
)

F64 = {"dtype": torch.float64}


def padded(lengths, vocabulary, seed=0):
    """Random tokens; behind the lengths, ids that no embedding has."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocabulary, (len(lengths), max(lengths)), generator=generator)
    lengths = torch.tensor(lengths)
    return tokens.masked_fill(torch.arange(tokens.shape[1]) >= lengths[:, None], -100), lengths


# Positions and embeddings


def test_sinusoidal_positions():
    expected = torch.stack([oracle.position(p, 6) for p in range(-3, 4)])
    torch.testing.assert_close(sinusoidal_positions(-3, 4, 6, **F64), expected)
    single = sinusoidal_positions(-3, 4, 6, dtype=torch.bfloat16)
    assert torch.equal(single, expected.float().bfloat16())
    assert sinusoidal_positions(2, 2, 6).shape == (0, 6)
    with pytest.raises(ValueError, match="d_model must be even, got 5"):
        sinusoidal_positions(0, 3, 5)


@pytest.mark.parametrize("scale, std", [("teu", math.sqrt(2 / (1000 + 64))), ("none", 1.0), ("ped", math.sqrt(2 / 64))])
def test_embedding(scale, std):
    torch.manual_seed(0)
    embedding = EmbeddingScaling(1000, 64, scale, **F64)
    assert abs(embedding.weight.std() / std - 1) < 0.02  # of 64000 values it scatters by 0.3 %
    tokens = torch.tensor([[3, 1, 4], [1, 5, 9]])
    e = embedding.weight[tokens]
    pe = torch.stack([oracle.position(p, 64) for p in range(10, 13)])
    expected = {"teu": 8 * e + pe, "none": e + pe, "ped": e + pe / 8}[scale]
    torch.testing.assert_close(embedding(tokens, offset=10), expected)
    without = EmbeddingScaling(1000, 64, scale, positions=False, dropout=0.9, **F64)
    without.load_state_dict(embedding.state_dict())
    torch.testing.assert_close(without(tokens), 8 * e if scale == "teu" else e)  # dropout belongs to the sum


def test_embedding_options():
    torch.manual_seed(0)
    dropped = EmbeddingScaling(5, 64, dropout=0.5)(torch.zeros(100, 4, dtype=torch.long))
    assert 0.4 < (dropped == 0).float().mean() < 0.6  # of 25600
    assert EmbeddingScaling(50, 64, init="xavier").weight.abs().max() <= math.sqrt(6 / 114)
    for words, kwargs in (("scale must be one of", {"scale": "up"}), ("init must be one of", {"init": "zeros"})):
        with pytest.raises(ValueError, match=f"EmbeddingScaling: {words}"):
            EmbeddingScaling(5, 64, **kwargs)


# Classifiers


class Recorder(nn.Module):
    """An encoder that returns what it is given, and remembers it."""

    def forward(self, src, src_mask=None, src_key_padding_mask=None):
        self.padding = src_key_padding_mask
        return src


@pytest.mark.parametrize("readout", ["last", "first"])
def test_classifier_adds_begin_and_end(readout):
    torch.manual_seed(0)
    model = SequenceClassifier(Recorder(), 7, 3, 8, readout, **F64)
    tokens, lengths = padded([4, 0, 2], 7)
    column = model.embedding.weight[7 if readout == "last" else 8]
    torch.testing.assert_close(model(tokens, lengths), model.output(column).expand(3, 3))
    expected = [[False] * 6, [False] * 2 + [True] * 4, [False] * 4 + [True] * 2]
    assert model.encoder.padding.tolist() == expected
    model.encoder = nn.Identity()
    model.encoder.forward = lambda x, src_key_padding_mask: x.roll(-1, 1) if readout == "first" else x.roll(1, 1)
    ids = [tokens[0, 0], 7, tokens[2, 0]] if readout == "first" else [tokens[0, 3], 8, tokens[2, 1]]
    seen = model.embedding.weight[torch.tensor(ids)]
    torch.testing.assert_close(model(tokens, lengths), model.output(seen))
    torch.testing.assert_close(model(tokens[:1]), model(tokens[:1], lengths[:1]))  # no lengths: all


ENCODERS = {
    "ndr": lambda: SharedEncoder(NDREncoderLayer(8, 2, **F64), 3),
    "abs/rel+gate": lambda: SharedEncoder(NDREncoderLayer(8, 2, update="tanh", attention="abs_rel", **F64), 3),
    "transformer": lambda: StackedEncoder(TransformerEncoderLayer(8, 2, 16, **F64), 2),
    "+rel": lambda: SharedEncoder(TransformerEncoderLayer(8, 2, 16, attention="relative", **F64), 2),
    "act": lambda: ACTEncoder(TransformerEncoderLayer(8, 2, 16, attention="geometric", **F64), 3),
}
MODELS = {
    **{name: lambda e=e: SequenceClassifier(e(), 7, 3, 8, **F64) for name, e in ENCODERS.items()},
    "first, positions": lambda: SequenceClassifier(ENCODERS["ndr"](), 7, 3, 8, "first", {"positions": True}, **F64),
    "lstm": lambda: RNNClassifier(7, 3, 8, num_layers=2, **F64),
    "bi-lstm": lambda: RNNClassifier(7, 3, 8, 6, num_layers=2, bidirectional=True, **F64),
    "released lstm": lambda: RNNClassifier(7, 3, 8, released_readout=True, **F64),
    "released bi-lstm": lambda: RNNClassifier(7, 3, 8, bidirectional=True, num_layers=4, released_readout=True, **F64),
}


@pytest.mark.parametrize("name", MODELS)
def test_classifier_ignores_padding(name):
    """Each sequence in a batch gives what it gives alone, and the gradients are those of the sum."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    tokens, lengths = padded([5, 1, 3], 7)

    def logits(*args):
        y = model(*args)
        return y[0] if isinstance(y, tuple) else y

    together = logits(tokens, lengths)
    alone = torch.cat([logits(t[None, :n]) for t, n in zip(tokens, lengths)])
    oracle.assert_same(together, alone, model)
    assert together.shape == (3, 3)


@pytest.mark.parametrize("name", MODELS)
def test_classifier_factory_arguments_and_reset(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    assert all(p.dtype == torch.float64 for p in model.parameters())
    model.reset_parameters()
    first = {n: p.clone() for n, p in model.state_dict().items()}
    model.reset_parameters()
    assert not torch.equal(first["output.weight"], model.output.weight)
    assert not torch.equal(first["embedding.weight"], model.embedding.weight)


def test_act_classifier_returns_the_loss():
    model = MODELS["act"]()
    logits, loss = model(*padded([5, 1, 3], 7))
    assert logits.shape == (3, 3) and loss.shape == () and loss > 0


def test_classifier_maps():
    model = MODELS["ndr"]()
    with collect_maps(model) as maps:
        model(*padded([5, 1, 3], 7))
    assert [m.shape for m in maps["encoder.layer.self_attn"]["attention"]] == [(3, 2, 7, 7)] * 3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32], ids=str)
def test_narrow_integers(dtype):
    """Begin and end tokens beyond the dtype's range, and lengths that torch would take for a mask."""
    model = SequenceClassifier(SharedEncoder(NDREncoderLayer(8, 2), 2), 300, 3, 8).eval()
    tokens, lengths = padded([5, 1, 3], 7)
    expected = model(tokens, lengths)
    assert torch.equal(model(tokens.to(dtype), lengths), expected)
    assert torch.equal(model(tokens, lengths.to(dtype)), expected)
    assert torch.equal(model(tokens.to(dtype), lengths.to(dtype)), expected)


def test_bad_tokens():
    for model, name in ((MODELS["ndr"](), "SequenceClassifier"), (MODELS["lstm"](), "RNNClassifier")):
        tokens, lengths = padded([5, 1, 3], 7)
        for error, words, args in (
            (TypeError, "tokens must be an integer tensor, got torch.float32", (tokens.float(), lengths)),
            (ValueError, r"tokens must have shape \[B, N\], got \[5\]", (tokens[0], lengths)),
            (ValueError, r"lengths of tokens must be integers of shape \[3\], got \[2\]", (tokens, lengths[:2])),
            (TypeError, "lengths of tokens must be an integer tensor, got list", (tokens, [5, 1, 3])),
            (TypeError, "lengths of tokens must be an integer tensor, got torch.bool", (tokens, lengths > 1)),
            (
                ValueError,
                r"lengths of tokens must be in \[0, 5\], got 1 to 6",
                (tokens, lengths + (lengths == 5).long()),
            ),
        ):
            with pytest.raises(error, match=f"{name}: {words}"):
                model(*args)
    with pytest.raises(ValueError, match="readout must be one of 'last', 'first', got 'middle'"):
        SequenceClassifier(Recorder(), 7, 3, 8, readout="middle")


def lstm_states(lstm, x):
    """Final (forward, backward) hidden states of each layer for one sequence x [N, d], cell by cell."""
    finals = []
    for layer in range(lstm.num_layers):
        outs = []
        for suffix in ("", "_reverse") if lstm.bidirectional else ("",):
            w = [getattr(lstm, f"{n}_l{layer}{suffix}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            h = c = x.new_zeros(lstm.hidden_size)
            out = []
            for row in x.flip(0) if suffix else x:
                i, f, g, o = (w[0] @ row + w[2] + w[1] @ h + w[3]).chunk(4)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
                out.append(h)
            outs.append(torch.stack(out[::-1] if suffix else out))
            finals.append(h)
        x = torch.cat(outs, -1)
    return finals, x


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("released", [False, True])
def test_rnn_readout(layers, bidirectional, released):
    torch.manual_seed(0)
    model = RNNClassifier(7, 3, 8, 6, layers, bidirectional, released_readout=released, **F64).eval()
    tokens, lengths = padded([4, 2], 7)
    expected = []
    for row, n in zip(tokens, lengths):
        finals, top = lstm_states(model.lstm, model.embedding.weight[[*row[:n].tolist(), 7]])
        if not bidirectional:
            state = top[n - 1] if released else top[n]
        elif not released or layers == 1:
            state = torch.cat(finals[-2:])
        else:  # both backwards: of layers 0 and 1, or 1 and 3
            state = torch.cat((finals[layers - 1], finals[2 * layers - 1]))
        expected.append(model.output(state))
    torch.testing.assert_close(model(tokens, lengths), torch.stack(expected))


def test_rnn_options():
    model = RNNClassifier(7, 3, 8, padding_idx=1, dropout=0.5, num_layers=2)
    assert not model.embedding.weight[1].any() and model.lstm.dropout == 0.5
    tokens, lengths = padded([4, 2], 7)
    assert not torch.equal(model(tokens, lengths), model(tokens, lengths))
    with pytest.raises(ValueError, match="RNNClassifier: hidden_size must be even if bidirectional, got 7"):
        RNNClassifier(7, 3, 7, bidirectional=True)


# Encoder-decoder

SEQ2SEQ = {
    "teu": {"embedding_scale": "teu"},
    "none": {"embedding_scale": "none"},
    "ped universal": {"universal": True},
    "relative": {"attention": "relative"},
    "relative universal": {"attention": "relative", "universal": True},
}


def seq2seq(name, seed=0, **kwargs):
    torch.manual_seed(seed)
    return Seq2SeqTransformer(6, 5, 8, 2, 2, 3, 16, **SEQ2SEQ[name], **F64, **kwargs)


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_seq2seq_is_its_formula(name):
    model = oracle.randomize(seq2seq(name).eval())
    src, src_lengths = padded([4, 2], 6)
    tgt, tgt_lengths = padded([3, 1], 5, seed=1)
    rows = []
    for b in range(2):
        x = model.src_embedding(torch.tensor([[7, *src[b, : src_lengths[b]].tolist(), 6]]))
        y = model.tgt_embedding(torch.tensor([[5, *tgt[b, : tgt_lengths[b]].tolist()]]))
        for step in range(2):
            x = oracle.encoder_layer(model.encoder.layer if model.universal else model.encoder.layers[step], x)
        for step in range(3):
            y = oracle.decoder_layer(model.decoder_layers[0 if model.universal else step], y, x)
        rows.append((y @ model.tgt_embedding.weight.T + model.output_bias)[0])
    logits = model(src, tgt, src_lengths, tgt_lengths)
    assert logits.shape == (2, 4, 6)
    torch.testing.assert_close(logits[0], rows[0])
    torch.testing.assert_close(logits[1, :2], rows[1])
    assert model.targets(tgt, tgt_lengths).tolist() == [[*tgt[0].tolist(), 5], [tgt[1, 0].item(), 5, -100, -100]]


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_learns_to_reverse_and_generates_what_teacher_forcing_says(name):
    """Fed with what it generated, the model finds each token of that the likeliest, and then the end."""
    torch.manual_seed(0)
    model = Seq2SeqTransformer(6, 6, 32, 4, 1, 1, 64, dropout=0.0, **SEQ2SEQ[name])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def batch(size):
        lengths, src = torch.randint(1, 5, (size,)), torch.randint(6, (size, 4))
        return src, torch.stack([torch.cat((row[:n].flip(0), row[n:])) for row, n in zip(src, lengths)]), lengths

    for _ in range(100):
        src, tgt, lengths = batch(64)
        optimizer.zero_grad()
        logits = model(src, tgt, lengths, lengths)
        F.cross_entropy(logits.flatten(0, 1), model.targets(tgt, lengths).flatten()).backward()
        optimizer.step()
    model.eval()
    src, tgt, src_lengths = batch(100)
    tokens, lengths = model.generate(src, src_lengths, max_length=6)
    assert tokens.shape == (100, lengths.max()) and len(set(lengths.tolist())) > 2
    best = model(src, tokens, src_lengths, lengths).argmax(-1)
    right = 0
    for i, (row, n, likeliest) in enumerate(zip(tokens.tolist(), lengths.tolist(), best.tolist())):
        assert row[:n] == likeliest[:n] and set(row[n:]) <= {6}
        assert n == 6 or likeliest[n] == 6
        right += row[:n] == tgt[i, : src_lengths[i]].tolist()
    assert right > 30  # of 100, where a guess is right in less than one
    one, n = model.generate(src[:1], src_lengths[:1], max_length=6)
    assert n == lengths[0] and one[0].tolist() == tokens[0, :n].tolist()


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_seq2seq_does_not_look_ahead(name):
    model = seq2seq(name).eval()
    src, tgt = padded([4, 4], 6)[0], padded([5, 5], 5, seed=1)[0]
    changed = tgt.clone()
    changed[:, 3] = (tgt[:, 3] + 1) % 5
    a, b = model(src, tgt), model(src, changed)
    assert torch.equal(a[:, :4], b[:, :4]) and not torch.equal(a[:, 4], b[:, 4])


def test_seq2seq_parameters():
    """Of two numbers of layers, a universal model has the same size; the output layer adds one bias for each token."""
    sizes = {name: sum(p.numel() for p in seq2seq(name).parameters()) for name in SEQ2SEQ}
    attention, feedforward, norm = 4 * 64, 2 * 8 * 16 + 16 + 8, 16
    position = 64 + 16
    outside, encoder = 8 * 8 + 6 * 8 + 6, attention + feedforward + 2 * norm
    decoder = 2 * attention + feedforward + 3 * norm
    assert sizes["teu"] == outside + 2 * encoder + 3 * decoder
    assert sizes["ped universal"] == outside + encoder + decoder
    assert sizes["relative"] == sizes["teu"] + 5 * position
    model = seq2seq("relative")
    assert model.tgt_embedding.weight.abs().max() <= math.sqrt(6 / 14)
    before = model.output_bias.detach().clone()
    oracle.randomize(model).reset_parameters()
    assert torch.equal(model.output_bias, before)
    assert model.decoder_layers[0].linear1.weight.abs().max() <= math.sqrt(2 * 6 / 24)


def test_seq2seq_dropout_is_everywhere():
    model = seq2seq("teu", dropout=0.3)
    rates = [m.dropout for m in model.modules() if hasattr(m, "dropout")]
    assert set(rates) == {0.3} and len(rates) == 2 + 2 * 2 + 3 * 3  # embeddings, encoder and decoder layers


def test_bad_seq2seq():
    for words, kwargs in (
        ("embedding_scale must be one of None, got 'teu'", {"attention": "relative", "embedding_scale": "teu"}),
        ("embedding_scale must be one of .* got 'up'", {"embedding_scale": "up"}),
        ("attention must be one of 'softmax', 'relative', got 'geometric'", {"attention": "geometric"}),
        ("num_decoder_layers must be at least 1", {"num_decoder_layers": 0}),
    ):
        with pytest.raises(ValueError, match=f"Seq2SeqTransformer: {words}"):
            Seq2SeqTransformer(6, 5, **kwargs)
    with pytest.raises(ValueError, match="max_length must be at least 1"):
        seq2seq("teu").generate(torch.zeros(1, 3, dtype=torch.long), max_length=0)


# Released parameters


def released_attention(layer, prefix, state):
    """The inverse of the loader: q [H · d], and k and v of each head in turn."""
    h = layer.num_heads
    for kind in ("weight", "bias"):
        p = getattr(layer, f"in_proj_{kind}")
        if p is not None:
            q, k, v = p.detach().chunk(3)
            state[f"{prefix}data_to_q.{kind}"] = q
            heads = [t.chunk(h) for t in (k, v)]
            state[f"{prefix}data_to_kv.{kind}"] = torch.cat([t for pair in zip(*heads) for t in pair])
    state[f"{prefix}multi_head_merge.weight"] = layer.out_proj.weight.detach()
    names = {"content_bias": "global_content_bias", "position_bias": "global_pos_bias", "position_proj": "pos_to_pq"}
    names |= {"direction": "data_to_qp", "absolute_gate": "data_to_absgate"}
    names |= {"alpha": "scale", "beta": "scale_pos", "gamma": "s_bias"}
    for ours, theirs in names.items():
        part = getattr(layer, ours, None)
        for n, p in part.state_dict().items() if isinstance(part, nn.Module) else ():
            state[f"{prefix}{theirs}.{n}"] = p
        if isinstance(part, nn.Parameter):
            state[prefix + theirs] = part.detach()
    if isinstance(layer, RelativeMultiheadAttention):
        state[prefix + "s_bias"] = torch.zeros(1)
        state[prefix + "pos_encoding"] = torch.zeros(1999, layer.embed_dim)
    elif isinstance(layer, GeometricMultiheadAttention) and layer.content_bias is not None:  # ndr
        state[prefix + "pos_to_pq.weight"] = torch.zeros(layer.embed_dim, layer.embed_dim)
        state[prefix + "pos_encoding"] = torch.zeros(1999, layer.embed_dim)


def released_layer(layer, prefix, state):
    ndr = isinstance(layer, NDREncoderLayer)
    names = {"linear1": "p1", "linear2": "p2", "gate1": "g1", "gate2": "g2", "norm1": "nmerge", "norm2": "no"}
    for n, child in layer.named_children():
        if n in ("self_attn", "multihead_attn"):
            released_attention(child, f"{prefix}att." if ndr else f"{prefix}{n}.", state)
        else:
            state |= {f"{prefix}{names[n] if ndr else n}.{k}": p for k, p in child.state_dict().items()}
    if ndr and layer.update == "tanh":
        state |= {f"{prefix}n1.weight": torch.ones(8), f"{prefix}n1.bias": torch.zeros(8)}


CTLPP = {"update": "residual_norm", "activation": "gelu", "attention_kwargs": {"bias": True, "content_bias": False}}
RELEASED = {
    "ndr": lambda: NDREncoderLayer(8, 2, 12, **F64),
    "rel+gate": lambda: NDREncoderLayer(8, 2, update="tanh", attention="relative", **F64),
    "abs/rel+gate": lambda: NDREncoderLayer(8, 2, update="tanh", attention="abs_rel", **F64),
    "ctl++": lambda: NDREncoderLayer(8, 2, 12, **CTLPP, **F64),
    "transformer": lambda: TransformerEncoderLayer(8, 2, 12, **F64),
    "+rel": lambda: TransformerEncoderLayer(8, 2, 12, attention="relative", **F64),
    "+geom": lambda: TransformerEncoderLayer(8, 2, 12, attention="geometric", **F64),
}


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("stack", ["layer", "universal", "stacked", "act"])
def test_released_models(name, stack):
    source = oracle.randomize(RELEASED[name]())
    x, state = torch.randn(2, 5, 8, **F64), {}
    if stack == "layer":
        target, prefix = RELEASED[name](), "model.trafo.layer."
        released_layer(source, prefix, state)
        state |= {"model.output_map.weight": torch.zeros(3, 8), "optimizer.step": torch.zeros(())}
        load_released_state_dict(target, state)
        assert torch.equal(target.eval()(x), source.eval()(x))
        return
    wrap = {
        "universal": lambda layer: SharedEncoder(layer, 2),
        "stacked": lambda layer: StackedEncoder(layer, 2),
        "act": lambda layer: ACTEncoder(layer, 2),
    }[stack]
    source = oracle.randomize(SequenceClassifier(wrap(source), 7, 3, 8, **F64)).eval()
    for i, layer in enumerate(source.encoder.layers if stack == "stacked" else [source.encoder.layer]):
        released_layer(layer, f"trafo.layers.{i}." if stack == "stacked" else "trafo.layer.", state)
    if stack == "act":
        state |= {f"trafo.p_map.{n}": p for n, p in source.encoder.halt.state_dict().items()}
    embedding = "embedding.embedding.weight" if name == "ctl++" else "embedding.weight"
    state |= {embedding: source.embedding.weight.detach(), "int_seq": torch.arange(5000)}
    state |= {f"output_map.{n}": p for n, p in source.output.state_dict().items()}
    target = SequenceClassifier(wrap(RELEASED[name]()), 7, 3, 8, **F64).eval()
    load_released_state_dict(target, state)
    for a, b in zip(target.state_dict().items(), source.state_dict().items()):
        assert a[0] == b[0] and torch.equal(a[1], b[1]), a[0]


def test_released_rnn_and_seq2seq():
    source, target = (oracle.randomize(MODELS["bi-lstm"](), seed) for seed in (1, 2))
    names = {"embedding": "encoder.embedding", "lstm": "encoder.lstm", "output": "classifier"}
    state = {f"{names[n.split('.')[0]]}.{n.split('.', 1)[1]}": p for n, p in source.state_dict().items()}
    load_released_state_dict(target, state)
    assert all(torch.equal(p, source.state_dict()[n]) for n, p in target.state_dict().items())
    for name in ("teu", "relative universal"):
        source, target = (oracle.randomize(seq2seq(name), seed) for seed in (1, 2))
        state = {"input_embedding.weight": source.src_embedding.weight, "output_map.bias": source.output_bias}
        state["output_embedding.weight"] = source.tgt_embedding.weight
        for where, layers in (
            ("encoder", [source.encoder.layer] if source.universal else source.encoder.layers),
            ("decoder", source.decoder_layers),
        ):
            for i, layer in enumerate(layers):
                released_layer(layer, f"trafo.{where}.layer" + ("." if source.universal else f"s.{i}."), state)
        state = {n: p for n, p in state.items() if not n.endswith(".s_bias")}
        load_released_state_dict(target, state)
        assert all(torch.equal(p, source.state_dict()[n]) for n, p in target.state_dict().items())


def test_released_parameters_that_do_not_fit():
    source, state = oracle.randomize(RELEASED["ndr"]()), {}
    released_layer(source, "a.", state)
    target = RELEASED["ndr"]()
    before = {n: p.clone() for n, p in target.state_dict().items()}
    without = {n: p for n, p in state.items() if n != "a.g2.bias"}
    for words, wrong in (
        (r"missing: \['g2.bias'\]", without),
        (r"without counterpart in the layer: \['att.data_to_range_switch.weight'\]",
         {**state, "a.att.data_to_range_switch.weight": torch.zeros(2, 8)}),
        (r"a.p1.bias must have shape \[12\], got \[13\]", {**state, "a.p1.bias": torch.zeros(13)}),
        ("state holds 0 NDREncoderLayers", {}),
        (r"state holds 2 NDREncoderLayers; give prefix, one of \['a.', 'b.'\]",
         {**state, "b.att.data_to_q.weight": torch.zeros(8, 8)}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            load_released_state_dict(target, wrong)
    assert all(torch.equal(p, before[n]) for n, p in target.state_dict().items())
    with pytest.raises(TypeError, match="layer must be a released one, got Linear"):
        load_released_state_dict(nn.Linear(1, 1), state)
    attention = SoftmaxMultiheadAttention(8, 2, **F64)
    with pytest.raises(ValueError, match="global_content_bias"):
        load_released_state_dict(attention, state)


# What it is for

KEYS, VALUES, LENGTH, STEPS = 8, 8, 16, 400


class NearestMatch(nn.Module):
    """One geometric head that reads (key, value, query) columns."""

    def __init__(self, d_model=32):
        super().__init__()
        self.key, self.value, self.query = (
            nn.Embedding(KEYS, d_model),
            nn.Embedding(VALUES, d_model),
            nn.Embedding(KEYS, d_model),
        )
        self.attention = GeometricMultiheadAttention(d_model, 1)
        self.output = nn.Linear(d_model, VALUES)

    def forward(self, key, value, query):
        x = self.key(key) + self.value(value) + self.query(query)
        return self.output(self.attention(x, x, x, need_weights=False)[0])


def nearest_match_batch(batch, length):
    """Each position has a key, a value and a query; its target is the value of the nearest other position whose key is
    its query, to the right if two are as near. Where there is none, the target is -100.
    """
    key, value, query = (torch.randint(n, (batch, length)) for n in (KEYS, VALUES, KEYS))
    offset = torch.arange(length) - torch.arange(length)[:, None]
    rank = 2 * offset.abs() - (offset > 0).long()
    match = (key[:, None] == query[:, :, None]) & (offset != 0)
    rank = rank.expand(match.shape).masked_fill(~match, 4 * length)
    best, where = rank.min(-1)
    return (key, value, query), value.gather(1, where).masked_fill(best == 4 * length, -100)


def test_nearest_match_generalizes_to_longer_sequences():
    torch.manual_seed(0)
    model = NearestMatch()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        inputs, target = nearest_match_batch(64, LENGTH)
        optimizer.zero_grad()
        F.cross_entropy(model(*inputs).flatten(0, 1), target.flatten(), ignore_index=-100).backward()
        optimizer.step()
    model.eval()
    for length, batch in ((LENGTH, 64), (32 * LENGTH, 4)):
        inputs, target = nearest_match_batch(batch, length)
        with torch.no_grad():
            right = model(*inputs).argmax(-1) == target
        assert right[target >= 0].float().mean() >= 0.99
