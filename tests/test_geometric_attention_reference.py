"""The reference of geometric attention against its definition, key by key."""

import itertools

import pytest
import torch

from sysgen.reference import geometric_attention, geometric_attention_scores, geometric_attention_weights
from sysgen.testing import check_gradients

BOOLEANS = (False, True)


def key_by_key(
    query,
    key,
    value,
    direction_bias=None,
    hidden=None,
    added=None,
    scale=None,
    normalize=False,
    include_self=False,
    is_causal=False,
    q_offset=0,
    left_first=False,
):
    """(out, remainder, A) by walking from each query outwards; hidden and added [B, H, L, S]."""
    (batch, heads, queries, d), keys = query.shape, key.shape[2]
    weights = query.new_zeros(batch, heads, queries, keys)
    remainder = query.new_ones(batch, heads, queries)
    for b, h, i in itertools.product(range(batch), range(heads), range(queries)):
        position = i + q_offset
        for distance in range(keys + queries + abs(q_offset)):
            sides = (position + distance, position - distance)
            for j in dict.fromkeys(reversed(sides) if left_first else sides):
                if not 0 <= j < keys or (hidden is not None and hidden[b, h, i, j]):
                    continue
                if (j == position and not include_self) or (j > position and is_causal):
                    continue
                score = (d**-0.5 if scale is None else scale) * query[b, h, i].dot(key[b, h, j])
                if direction_bias is not None and j != position:
                    score = score + direction_bias[b, h, i, int(j > position)]
                if added is not None:
                    score = score + added[b, h, i, j]
                match = torch.sigmoid(score)
                weights[b, h, i, j] = match * remainder[b, h, i]
                remainder[b, h, i] *= 1 - match
    if normalize:
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)
    return weights @ value, remainder, weights


def inputs(batch=2, heads=2, queries=5, keys=7, d=3):
    torch.manual_seed(0)
    shapes = [(queries, d), (keys, d), (keys, d), (queries, 2)]
    return [torch.randn(batch, heads, *shape, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("q_offset", [-6, -3, 0, 2, 6, 9])
@pytest.mark.parametrize("normalize, include_self, is_causal", list(itertools.product(BOOLEANS, repeat=3)))
def test_it_is_the_definition(normalize, include_self, is_causal, q_offset):
    query, key, value, bias = inputs()
    added, hidden = torch.randn(2, 1, 5, 7, dtype=torch.float64), torch.rand(2, 7) < 0.3
    options = {"normalize": normalize, "include_self": include_self, "is_causal": is_causal, "q_offset": q_offset}
    masks = {"key_padding_mask": hidden, "attn_mask": added}
    out, remainder = geometric_attention(
        query, key, value, direction_bias=bias, scale=0.7, **masks, **options, return_remainder=True
    )
    full = (2, 2, 5, 7)
    expected = key_by_key(
        query, key, value, bias, hidden[:, None, None].expand(full), added.expand(full), 0.7, **options
    )
    torch.testing.assert_close(out, expected[0])
    torch.testing.assert_close(remainder, expected[1])
    scores = geometric_attention_scores(query, key, direction_bias=bias, scale=0.7, q_offset=q_offset)
    torch.testing.assert_close(geometric_attention_weights(scores, **masks, **options), expected[2])


def test_bool_and_infinite_masks_are_the_same():
    query, key, value, _ = inputs()
    padded, hidden = torch.rand(2, 7) < 0.3, torch.rand(5, 7) < 0.3
    as_float = [torch.zeros(m.shape, dtype=torch.float64).masked_fill(m, float("-inf")) for m in (padded, hidden)]
    y = geometric_attention(query, key, value, key_padding_mask=padded, attn_mask=hidden)
    assert torch.equal(y, geometric_attention(query, key, value, key_padding_mask=as_float[0], attn_mask=as_float[1]))
    expected = key_by_key(query, key, value, hidden=(padded[:, None, None] | hidden).expand(2, 2, 5, 7))
    torch.testing.assert_close(y, expected[0])


@pytest.mark.parametrize("q_offset", [2**62 - 1, -(2**62) + 1])
def test_any_distance(q_offset):
    """Twice the distance would not fit into 64 bits; beyond all keys the order is that of any other place there."""
    scores = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    near = geometric_attention_weights(scores, q_offset=100 if q_offset > 0 else -100)
    assert torch.equal(geometric_attention_weights(scores, q_offset=q_offset), near)


def test_half_types_are_computed_in_float32():
    query, key, value, _ = (t.bfloat16() for t in inputs())
    out, remainder = geometric_attention(query, key, value, return_remainder=True)
    wide, same = geometric_attention(query.float(), key.float(), value.float(), return_remainder=True)
    assert out.dtype == torch.bfloat16 and torch.equal(out, wide.bfloat16())
    assert remainder.dtype == torch.float32 and torch.equal(remainder, same)


@pytest.mark.parametrize("normalize", BOOLEANS)
def test_derivatives(normalize):
    query, key, value, bias = (t.requires_grad_() for t in inputs(1, 2, 3, 4, 2))
    mask = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def call(query, key, value, direction_bias, attn_mask):
        return geometric_attention(
            query,
            key,
            value,
            direction_bias=direction_bias,
            attn_mask=attn_mask,
            normalize=normalize,
            return_remainder=True,
        )

    check_gradients(call, (query, key, value, bias, mask))


def test_infinite_scores_have_finite_gradients():
    torch.manual_seed(0)
    query, key, value, _ = (t.requires_grad_() for t in inputs())
    mask = torch.randn(5, 7, dtype=torch.float64)
    mask[mask > 0.5], mask[mask < -0.5] = float("inf"), float("-inf")
    out, remainder = geometric_attention(query, key, value, attn_mask=mask, return_remainder=True)
    for g in torch.autograd.grad([out.sum(), remainder.sum()], (query, key, value)):
        assert g.isfinite().all() and g.any()
