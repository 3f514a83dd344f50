"""Random shapes, options, dtypes, masks and memory layouts of geometric attention, each against the reference in
float64."""

import pytest
import torch

pytest.importorskip("hypothesis")

from geometric_attention_checks import accumulator, check
from hypothesis import given, settings
from hypothesis import strategies as st
from support import LAYOUTS, place, values

from sysgen import ops

SEQUENCES = st.one_of(st.integers(0, 9), st.sampled_from([15, 16, 17, 31, 33, 63, 64, 65, 97]))
WIDTHS = st.one_of(st.integers(0, 9), st.sampled_from([16, 32, 33, 64, 65]))


@st.composite
def cases(draw, device, most=3):
    """(inputs, options)."""
    b, h = draw(st.integers(0, most)), draw(st.integers(0, most))
    l, s, d = draw(SEQUENCES), draw(SEQUENCES), draw(WIDTHS)
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    wide = accumulator(dtype)
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def tensor(*shape, dtype=wide, scale=1.0):
        t = place(values(g, shape, dtype, device, scale), draw(st.sampled_from(LAYOUTS)))
        return t.requires_grad_(draw(st.booleans()))

    def mask(*shape):
        kind = draw(st.sampled_from(["bool", "float", "infinite"]))
        hidden = torch.rand(shape, generator=g).to(device) < draw(st.sampled_from([0.1, 0.5, 1.0]))
        if kind == "bool":
            return place(hidden, draw(st.sampled_from(LAYOUTS)))
        added = tensor(*shape)
        if kind == "infinite":
            with torch.no_grad():
                added.masked_fill_(hidden, float("-inf"))
        return added

    inputs = {
        "query": tensor(b, h, l, d, dtype=dtype, scale=draw(st.sampled_from([0.3, 1.0, 3.0]))),
        "key": tensor(b, h, s, d, dtype=dtype),
        "value": tensor(b, h, s, d, dtype=dtype),
    }
    if draw(st.booleans()):
        inputs["direction_bias"] = tensor(b, h, l, 2)
    if draw(st.booleans()):
        inputs["key_padding_mask"] = mask(b, s)
    if draw(st.booleans()):
        shape = [n if draw(st.booleans()) else 1 for n in (b, h, l, s)]
        inputs["attn_mask"] = mask(*shape[draw(st.integers(0, 3)) :])
    options = {name: draw(st.booleans()) for name in ("normalize", "include_self", "is_causal")}
    options["q_offset"] = draw(st.integers(-l - 2, s + 2))
    if draw(st.booleans()):
        options["scale"] = draw(st.sampled_from([-1.0, 0.0, 0.1, 2]))
    return inputs, options


@settings(max_examples=60)
@given(data=st.data())
def test_geometric_attention(compiled, data):
    inputs, options = data.draw(cases(compiled.device, most=1 if compiled.slow else 3))
    check(ops, inputs, **options)
