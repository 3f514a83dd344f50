"""Random shapes, dtypes, memory layouts and routings, each against the reference in float64."""

import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st
from support import DTYPES, LAYOUTS, check_cvmm, check_moe_ffn, place, values
from test_route import assert_route

from sysgen import ops

SIZES = st.one_of(st.integers(0, 9), st.sampled_from([15, 16, 17, 31, 33, 47, 63, 65, 97]))
LEADS = st.lists(st.integers(0, 7), min_size=1, max_size=3).map(tuple)


@st.composite
def routings(draw, max_k=5):
    """(expert ids [..., k], E), with duplicates and dropped routes."""
    num_experts = draw(st.integers(0, 9))
    shape = (*draw(LEADS), draw(st.integers(0, max_k)))
    low = draw(st.sampled_from([-1, 0])) if num_experts else -1
    high = draw(st.integers(0, num_experts - 1)) if num_experts else -1
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    ids = torch.randint(low, high + 1, shape, generator=g)
    return ids.to(draw(st.sampled_from([torch.int32, torch.int64]))), num_experts


class Draws:
    """Draws tensors: values by seed, memory layout, and whether a gradient is required."""

    def __init__(self, draw, device):
        self.draw, self.device = draw, device
        self.generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def tensor(self, shape, dtype, scale=1.0):
        t = values(self.generator, shape, dtype, self.device, scale)
        layout = self.draw(st.sampled_from([*LAYOUTS, "expanded"]))
        if layout != "expanded":
            t = place(t, layout)
        elif t.dim() and t.shape[0]:
            t = t[:1].expand_as(t)
        return t.requires_grad_(self.draw(st.booleans()))

    def maybe(self, shape, dtypes):
        return self.tensor(shape, self.draw(st.sampled_from(dtypes))) if self.draw(st.booleans()) else None

    def ids(self, ids):
        return place(ids.to(self.device), self.draw(st.sampled_from(LAYOUTS)))


def vector_dtypes(rows):
    return [torch.float64] if rows == torch.float64 else [torch.float32, torch.bfloat16]


@settings(max_examples=100)
@given(routing=routings(max_k=40), data=st.data())
def test_route(compiled, routing, data):
    ids, num_experts = routing
    ids = Draws(data.draw, compiled.device).ids(ids)
    assert_route(ops.route(ids, num_experts), ids, num_experts)


@settings(max_examples=100)
@given(routing=routings(), d=SIZES, h=SIZES, dtypes=st.sampled_from(DTYPES), data=st.data())
def test_cvmm(compiled, routing, d, h, dtypes, data):
    ids, num_experts = routing
    lead, k = ids.shape[:-1], ids.shape[-1]
    make = Draws(data.draw, compiled.device)
    inputs = {
        "x": make.tensor((*lead, k, d) if data.draw(st.booleans()) else (*lead, d), dtypes[0]),
        "experts": make.ids(ids),
        "weight": make.tensor((num_experts, d, h), dtypes[1], scale=max(d, 1) ** -0.5),
        "gate": make.maybe((*lead, k), vector_dtypes(dtypes[0])),
        "bias": make.maybe((num_experts, h), vector_dtypes(dtypes[0])),
        "reduce": data.draw(st.booleans()),
    }
    check_cvmm(ops, inputs)


@settings(max_examples=100)
@given(routing=routings(), d=SIZES, hidden=SIZES, d_out=SIZES, dtypes=st.sampled_from(DTYPES), data=st.data())
def test_moe_ffn(compiled, routing, d, hidden, d_out, dtypes, data):
    ids, num_experts = routing
    lead, k = ids.shape[:-1], ids.shape[-1]
    make = Draws(data.draw, compiled.device)
    inputs = {
        "x": make.tensor((*lead, d), dtypes[0]),
        "experts": make.ids(ids),
        "gate": make.tensor((*lead, k), vector_dtypes(dtypes[0])[0]),
        "w_up": make.tensor((num_experts, d, hidden), dtypes[1], scale=max(d, 1) ** -0.5),
        "w_down": make.tensor((num_experts, hidden, d_out), dtypes[1], scale=max(hidden, 1) ** -0.5),
        "b_up": make.maybe((num_experts, hidden), vector_dtypes(dtypes[0])),
        "activation": data.draw(st.sampled_from(["relu", "gelu", "identity"])),
        "recompute": data.draw(st.booleans()),
    }
    check_moe_ffn(ops, inputs)
