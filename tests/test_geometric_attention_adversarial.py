"""Cases that break implementations of geometric attention, each with the result it must have."""

import pytest
import torch
from geometric_attention_checks import bounds, check, make_inputs, results_of
from support import values
from test_geometric_attention_reference import key_by_key

from sysgen import ops, reference

F32, INF, NAN = torch.float32, float("inf"), float("nan")
SIZES = (2, 5, 13, 63, 64, 65, 127)


def attend(scores, device, **options):
    """(A [L, S], remainder [L]) of given scores [L, S]: queries are zero, scores come as a mask, and each batch reads
    64 columns of A by values that are columns of the identity."""
    queries, keys = scores.shape
    width = min(64, keys)
    chunks = -(-keys // width)
    value = torch.zeros(chunks * width, chunks * width, device=device).fill_diagonal_(1)
    value = value[:keys].view(1, keys, chunks, width).permute(2, 0, 1, 3)
    query = torch.zeros(chunks, 1, queries, width, device=device)
    key = torch.zeros(chunks, 1, 1, width, device=device).expand(chunks, 1, keys, width)
    out, remainder = ops.geometric_attention(
        query, key, value, attn_mask=scores.to(device), **options, return_remainder=True
    )
    return out[:, 0].permute(1, 0, 2).reshape(queries, -1)[:, :keys], remainder[0, 0]


def score_gradient(scores, device, **options):
    """(dS computed, dS exact, and the size of each row's terms) for random values and gradients of both outputs."""
    queries, keys = scores.shape
    g = torch.Generator().manual_seed(0)
    zeros = torch.zeros(1, 1, max(queries, keys), 16, device=device)
    inputs = {
        "query": zeros[:, :, :queries],
        "key": zeros[:, :, :keys],
        "value": values(g, (1, 1, keys, 16), F32, device),
        "attn_mask": scores.to(device).requires_grad_(),
    }
    results, directions = results_of(ops, inputs, **options)
    double = {n: t.detach().double().cpu().requires_grad_(t.requires_grad) for n, t in inputs.items()}
    directions = [d.double().cpu() for d in directions]
    exact, _ = results_of(reference, double, directions, **options)
    size = bounds(exact, double, directions, F32, **options)["row_size"]
    return results["attn_mask"].cpu(), exact["attn_mask"], size[0, 0]


def nearest(matches):
    """One-hot rows at the nearest column that matches, the right one of two."""
    n = matches.shape[1]
    rows = torch.zeros(matches.shape)
    for i in range(len(matches)):
        found = [j for j in range(n) if matches[i, j] and j != i]
        if found:
            rows[i, min(found, key=lambda j: (abs(j - i), j < i))] = 1
    return rows


# ---- scores at their limits


@pytest.mark.parametrize("score", [1e4, INF])
def test_every_key_matches(compiled, score):
    for n in SIZES:
        scores = torch.full((n, n), score)
        weights, remainder = attend(scores, compiled.device)
        assert torch.equal(weights.cpu(), nearest(torch.ones(n, n))) and not remainder.any()
        computed, *_ = score_gradient(scores, compiled.device)
        assert not computed.any(), "a saturated score has no gradient"


@pytest.mark.parametrize("score", [1e4, INF])
def test_matches_alternate(compiled, score):
    for n in SIZES:
        matches = (torch.arange(n) + torch.arange(n)[:, None] // 3) % 3 == 0
        scores = torch.where(matches, score, -1e4)
        weights, remainder = attend(scores, compiled.device)
        expected = nearest(matches)
        assert torch.equal(weights.cpu(), expected)
        assert torch.equal(remainder.cpu(), 1 - expected.sum(-1))
        assert not score_gradient(scores, compiled.device)[0].any()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("how", ["scores", "infinite scores", "attn_mask", "key_padding_mask", "both", "causal"])
def test_nothing_matches(compiled, how, normalize):
    for n in (1, 2, 13, 65):
        inputs = make_inputs((2, 2, n, n, 4), F32, compiled.device, padding=None, mask=None)
        device, options = compiled.device, {}
        if how == "scores":
            inputs["attn_mask"] = torch.full((n, n), -1e4, device=device)
        elif how == "infinite scores":
            inputs["attn_mask"] = torch.full((n, n), -INF, device=device, requires_grad=True)
        if how in ("attn_mask", "both"):
            inputs["attn_mask"] = torch.ones(n, n, dtype=torch.bool, device=device)
        if how in ("key_padding_mask", "both"):
            inputs["key_padding_mask"] = torch.full((2, n), -INF, device=device, requires_grad=True)
        if how == "causal":
            options = {"is_causal": True, "q_offset": -n}
        results, _ = results_of(ops, inputs, normalize=normalize, **options)
        assert (results.pop("remainder") == 1).all()
        for name, t in results.items():
            assert not t.any() and t.isfinite().all(), name


@pytest.mark.parametrize("scale", [0.3, -0.3, 0.0])
@pytest.mark.parametrize("bias", [INF, -INF])
def test_infinite_direction_bias(isa, bias, scale):
    """All keys on one side of a row match, or none does, also in rows that have no keys there. 70 rows: a block that is
    not full."""
    g = torch.Generator().manual_seed(0)
    q, k, v, both = (values(g, (1, 1, 70, width), F32) for width in (8, 8, 8, 2))
    both[0, 0, ::3, 1], both[0, 0, 1::4, 0] = bias, bias
    y = ops.geometric_attention(q, k, v, direction_bias=both, scale=scale)
    exact = [t.double() for t in (q, k, v, both)]
    expected = reference.geometric_attention(*exact[:3], direction_bias=exact[3], scale=scale)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


def test_opposite_infinities_in_two_masks(compiled):
    """-inf in either of two masks takes a key out, whatever the other says."""
    inputs = make_inputs((2, 2, 5, 7, 4), F32, compiled.device)
    hidden = torch.zeros(5, 7, device=compiled.device, dtype=torch.bool)
    hidden[1, 2] = hidden[3] = True
    padding, mask = torch.zeros(2, 7, device=compiled.device), torch.zeros(5, 7, device=compiled.device)
    padding[0, 2], padding[1, 4] = INF, -INF
    mask[hidden], mask[0, 4] = -INF, INF
    inputs["key_padding_mask"], inputs["attn_mask"] = padding.requires_grad_(), mask.requires_grad_()
    y, expected = (package.geometric_attention(**inputs) for package in (ops, reference))
    assert not y[:, :, 3].any()
    leaves = [t for t in inputs.values() if t.requires_grad]
    for actual, exact in zip(
        (y, *torch.autograd.grad(y.sum(), leaves)), (expected, *torch.autograd.grad(expected.sum(), leaves))
    ):
        torch.testing.assert_close(actual, exact)  # NaN is in neither: it would not be close


def test_scores_of_zero_halve(compiled):
    weights, remainder = attend(torch.zeros(3, 3), compiled.device)
    torch.testing.assert_close(weights[1].cpu(), torch.tensor([0.25, 0, 0.5]))
    for n in (5, 13, 65):
        weights, remainder = attend(torch.zeros(n, n), compiled.device)
        distance = torch.arange(n) - torch.arange(n)[:, None]
        rank = (2 * distance.abs() + (distance < 0)).argsort(-1).argsort(-1)  # 0: the query itself
        expected = torch.where(rank > 0, 2.0**-rank, 0)
        # exp of a sum of r logarithms of size log 2: a relative error of (4 + 2·|x|) u from exp and r·u from the sum
        assert ((weights.cpu() - expected).abs() <= (4 + 4 * rank) * 2**-24 * expected).all()
        assert ((remainder.cpu() - 2.0 ** (1 - n)).abs() <= (4 + 4 * n) * 2**-24 * 2.0 ** (1 - n)).all()


@pytest.mark.parametrize("n, expected", [(64, 0.623472), (1024, 0.631582), (4096, 0.631986)])
def test_many_equal_small_matches(compiled, n, expected):
    """P = 1 / (n + 1) everywhere: the row sum is 1 − (1 − P)^(n−1), and equal terms add their roundings up."""
    scores = torch.full((8, n), -float(torch.tensor(float(n)).log()))
    query, key = (torch.zeros(1, 1, length, 1, device=compiled.device) for length in scores.shape)
    _, remainder = ops.geometric_attention(
        query, key, key, attn_mask=scores.to(compiled.device), q_offset=n // 2, return_remainder=True
    )
    exact = 1 - torch.sigmoid(-scores[0, 0].double()) ** (n - 1)
    assert abs(float(exact) - expected) < 1e-6
    assert ((1 - remainder.double().cpu()) - exact).abs().max() <= 1e-6


def test_scores_that_overflow(compiled):
    """Inner products beyond float32 are infinite: certain matches, and certain misses."""
    for n in (5, 70):
        inputs = make_inputs((1, 1, n, n, 4), F32, compiled.device, bias=False, padding=None, mask=None)
        with torch.no_grad():
            inputs["query"][:] = 1e20
            inputs["key"][:] = 1e20
            inputs["key"][:, :, ::2] = -1e20
        results, _ = results_of(ops, inputs)
        expected = nearest((torch.arange(n) % 2 == 1).expand(n, n))
        assert torch.equal(results["out"][0, 0].cpu(), expected @ inputs["value"].detach()[0, 0].cpu())
        for name in ("query", "key"):
            assert not results[name].any(), name


# ---- rounding


def regime(name, keys):
    g = torch.Generator().manual_seed(0)
    random = torch.randn(8, keys, generator=g)
    if name == "±1e4":
        return 1e4 * random.sign()
    if name == "far left":
        scores = torch.full((8, keys), -8.0)
        scores[:, : keys // 20] = 1e4
        return scores
    if name == "sparse":
        return torch.where(torch.rand(8, keys, generator=g) < 0.002, 25.0, random - 9)
    mean, deviation = name
    return mean + deviation * random


REGIMES = [(0, 1), (-4, 1), (-9, 1), (0, 10), (0, 100), "±1e4", "far left", "sparse"]


@pytest.mark.parametrize("name", REGIMES, ids=str)
def test_weights_are_accurate_in_every_regime(compiled, name):
    """A difference of two long prefix sums is off by up to 0.7 here, and plain sums of many equal terms by 2e-6;
    sums that grow outwards and keep what they round off stay below 1e-6, also with all keys on one side."""
    keys = 500 if compiled.slow else 4096
    scores = regime(name, keys)
    for offset in (keys // 2, keys - 8):
        weights, remainder = attend(scores, compiled.device, q_offset=offset)
        exact = reference.geometric_attention_weights(scores.double(), q_offset=offset)
        assert (weights.cpu() - exact).abs().max() <= 1e-6
        assert (remainder.cpu() - (1 - exact.sum(-1))).abs().max() <= 1e-6


@pytest.mark.parametrize("name", REGIMES, ids=str)
def test_score_gradients_are_accurate_in_every_regime(compiled, name):
    """Per row, relative to the terms (1 − P) g and P·U, where these are no subnormal numbers: in the form g − P·U, with
    U including the key itself, saturated rows are lost altogether."""
    scores = regime(name, 500 if compiled.slow else 4096)
    for normalize in (False, True):
        computed, exact, size = score_gradient(
            scores, compiled.device, q_offset=scores.shape[1] // 2, normalize=normalize
        )
        assert ((computed - exact).abs().amax(-1) <= 1e-5 * size + 1e-35).all()
    assert name == "±1e4" or (size > 1e-30).any()


@pytest.mark.parametrize("strength, shift", [(1, 0), (4, 0), (1, -6)])
def test_bfloat16_at_length_4096(compiled, strength, shift):
    """U as a difference of <out, dout> and a prefix sum, with a rounded out, is off by 10 to 170 % here."""
    keys = 1024 if compiled.slow else 4096
    inputs = make_inputs((1, 1, 8, keys, 64), torch.bfloat16, compiled.device, bias=False, padding=None, mask=None)
    options = {"scale": strength / 8, "q_offset": keys // 2}
    inputs["attn_mask"] = torch.full((1, 1), float(shift), device=compiled.device)
    results, directions = results_of(ops, inputs, **options)
    double = {n: t.detach().double().cpu().requires_grad_(t.requires_grad) for n, t in inputs.items()}
    exact, _ = results_of(reference, double, [d.double().cpu() for d in directions], **options)
    error = {n: results[n].double().cpu() - exact[n] for n in ("out", "query", "key", "value")}
    assert error["out"].abs().max() <= 2**-8 * inputs["value"].detach().abs().max().item()
    for name in ("query", "key", "value"):
        assert error[name].norm() <= 5e-3 * exact[name].norm(), name


# ---- sizes and positions


@pytest.mark.parametrize("n", SIZES)
def test_sizes(compiled, n):
    inputs = make_inputs((1, 1, n, n, 8), F32, compiled.device, padding=None, mask=None)
    check(ops, inputs)


@pytest.mark.parametrize("n", [4095, 4096, 4097])
def test_long_sequences(compiled, n):
    for dtype in (F32,) if compiled.slow else (F32, torch.bfloat16):
        inputs = make_inputs((1, 1, 3 if compiled.slow else 8, n, 8), dtype, compiled.device, mask=None)
        for offset in (0, n // 2, n - 5):
            check(ops, inputs, f"q_offset={offset}", q_offset=offset)


@pytest.mark.parametrize("queries, keys", [(7, 13), (13, 7), (70, 65)])
def test_positions_outside_of_the_keys(compiled, queries, keys):
    inputs = make_inputs((1, 2, queries, keys, 4), F32, compiled.device)
    for include_self in (False, True):
        for offset in (-3, keys - 1, keys + 2, -queries, -queries - 1):
            check(ops, inputs, f"q_offset={offset}", q_offset=offset, include_self=include_self)
        for near, far in ((-queries, -(2**40)), (keys, 2**61)):
            a, b = (results_of(ops, inputs, q_offset=o, include_self=include_self)[0] for o in (near, far))
            for name in a:
                assert torch.equal(a[name], b[name]), "beyond either end the position does not matter"


# ---- padding


@pytest.mark.parametrize("padding", ["bool", "float"])
@pytest.mark.parametrize("dtype", [F32, torch.bfloat16], ids=str)
def test_padding_is_never_read(compiled, dtype, padding):
    """Lengths from 0; whatever the padded keys and values hold, no bit changes, and they get no gradient."""
    for n in (13, 70):
        lengths = torch.tensor([0, 1, n // 2, n])
        padded = torch.arange(n) >= lengths[:, None]
        inputs = make_inputs((4, 2, n, n, 8), dtype, compiled.device, padding=None)
        mask = padded if padding == "bool" else torch.zeros(4, n).masked_fill(padded, -INF)
        inputs["key_padding_mask"] = mask.to(compiled.device)
        check(ops, inputs)
        expected, _ = results_of(ops, inputs)
        for content in (NAN, INF, -INF, 3e38):
            for name in ("key", "value"):
                filled = inputs[name].detach().masked_fill(padded[:, None, :, None].to(compiled.device), content)
                inputs[name] = filled.requires_grad_()
            results, _ = results_of(ops, inputs)
            for name in expected:
                assert torch.equal(results[name], expected[name]), f"{name} with {content}"
            for name in ("key", "value"):
                assert not results[name].mT[padded[:, None, None].expand(4, 2, 8, n)].any()


def test_padding_is_not_read_by_second_derivatives(compiled):
    inputs = make_inputs((2, 1, 5, 6, 4), F32, compiled.device, mask=None)
    inputs["key_padding_mask"] = torch.tensor([[0, 0, 1, 0, 1, 1], [1] * 6], device=compiled.device).bool()
    leaves = [t for t in inputs.values() if t.requires_grad]

    def second():
        first = torch.autograd.grad(ops.geometric_attention(**inputs).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    expected = second()
    with torch.no_grad():
        for name in ("key", "value"):
            inputs[name][inputs["key_padding_mask"][:, None].expand(2, 1, 6)] = NAN
    for a, b in zip(second(), expected):
        assert torch.equal(a, b)


# ---- symmetries


def test_a_flipped_sequence_has_the_left_first_rule(compiled):
    n = 9
    inputs = make_inputs((1, 2, n, n, 4), F32, compiled.device, padding=None, mask=None)
    flipped = {name: t.detach().flip(2) for name, t in inputs.items()}
    flipped["direction_bias"] = flipped["direction_bias"].flip(3)
    given = [inputs[name].detach().double().cpu() for name in ("query", "key", "value", "direction_bias")]
    left, right = (key_by_key(*given, left_first=rule)[0] for rule in (True, False))
    actual = ops.geometric_attention(**flipped).flip(2).cpu()
    assert (actual - left).abs().max() <= 2e-6 < (left - right).abs().max()  # values of size 4


def test_causal_is_stick_breaking(compiled):
    """A[i, j] = P[i, j] · Π (1 − P[i, m]) over j < m < i: an exclusive sum from the right over a lower triangle."""
    for n in (13, 70):
        inputs = make_inputs((1, 2, n, n, 8), F32, compiled.device, bias=False, padding=None, mask=None)
        query, key, value = (t.detach().double().cpu() for t in inputs.values())
        scores = (query @ key.mT) / 8**0.5
        misses = torch.nn.functional.logsigmoid(-scores).tril(-1)
        after = misses.flip(-1).cumsum(-1).flip(-1) - misses
        weights = (torch.nn.functional.logsigmoid(scores) + after).exp().tril(-1)
        out, remainder = ops.geometric_attention(**inputs, is_causal=True, return_remainder=True)
        assert (out.cpu() - weights @ value).abs().max() <= 2e-6  # values of size 4
        assert (remainder.cpu() - (1 - weights.sum(-1))).abs().max() <= 1e-6
