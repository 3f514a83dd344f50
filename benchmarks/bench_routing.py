"""Sorting routes by expert: what has to happen before any product."""

import peers
import pytest
import torch
from curve import Series

import sysgen


@pytest.mark.parametrize("num_experts", [16, 128, 1024, 16384])
@pytest.mark.parametrize("routes", [16384, 131072])
def test_route(curve, device, scaled, routes, num_experts):
    k = 4
    experts = torch.randint(0, num_experts, (scaled(routes) // k, k), device=device)
    moved = experts.numel() * (8 + 4 + 4) + 4 * num_experts
    curve(
        {
            "sysgen": Series(lambda: sysgen.ops.route(experts, num_experts)[:3], 0, moved),
            "torch sort": Series(lambda: peers.torch_routing(experts, num_experts), 0, moved),
        },
        figure="routing",
        x_name="num_experts",
        x=num_experts,
        dtype="int64",
        passes="forward",
        sizes={"routes": experts.numel()},
        expected=peers.torch_routing(experts, num_experts),
    )
