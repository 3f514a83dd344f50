"""Random shapes, dtypes, memory layouts and values, each against the reference in float64."""

import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st
from support import LAYOUTS
from test_select_experts import check, logits_of

from sysgen.ops._router_ops import SELECTIONS


@settings(max_examples=60)
@given(data=st.data())
def test_select_experts(compiled, data):
    def draw(strategy):
        return data.draw(strategy)

    num_experts = draw(st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 129, 257, 1023, 1025])))
    k = draw(st.integers(1, min(num_experts, draw(st.sampled_from([4, 9, 60])))))
    tokens = draw(st.integers(0, 70 if num_experts < 100 and not compiled.slow else 5))
    z = logits_of(
        tokens,
        num_experts,
        draw(st.sampled_from([torch.float32, torch.float64])),
        draw(st.sampled_from(["random", "ties", "far", "shifted"])),
        draw(st.integers(0, 2**32)),
    )
    check(
        z,
        k,
        compiled.device,
        draw(st.sampled_from(LAYOUTS)),
        selection=draw(st.sampled_from(SELECTIONS)),
        expert_dropout=draw(st.sampled_from([0.0, 0.3, 0.9, 1.0])),
    )
