"""What a call costs beyond its arithmetic: operations on tensors of 16 elements, in a loop, after a warm-up."""

import pytest
import torch
import torch.nn.functional as F

import sysgen


@pytest.fixture
def operations(device):
    x, gate = torch.randn(4, 4, device=device), torch.rand(4, 1, device=device)
    w, w_down = torch.randn(1, 4, 4, device=device), torch.randn(1, 4, 4, device=device)
    experts = torch.zeros(4, 1, dtype=torch.int64, device=device)
    route = sysgen.ops.route(experts, 1)
    matrix = torch.randn(4, 4, device=device)
    return {
        "route": (lambda: sysgen.ops.route(experts, 1), []),
        "cvmm (routed)": (lambda: sysgen.ops.cvmm(x, route, w), [x, w]),
        "cvmm": (lambda: sysgen.ops.cvmm(x, experts, w), [x, w]),
        "moe_ffn (routed)": (lambda: sysgen.ops.moe_ffn(x, route, gate, w, w_down), [x, gate, w, w_down]),
        "torch linear": (lambda: F.linear(x, matrix), [x, matrix]),
    }


NAMES = ["cvmm (routed)", "cvmm", "moe_ffn (routed)", "torch linear"]


@pytest.mark.parametrize("name", ["route", *NAMES])
def test_no_gradient(curve, operations, name):
    run, _ = operations[name]
    with torch.no_grad():
        curve.calls(run, figure="overhead", x_name="operation", x=name, dtype="float32", passes="no gradient")


@pytest.mark.parametrize("name", NAMES)
def test_forward_with_history(curve, operations, name):
    run, inputs = operations[name]
    for t in inputs:
        t.requires_grad_()
    curve.calls(run, figure="overhead", x_name="operation", x=name, dtype="float32", passes="forward with history")


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward(curve, operations, name):
    run, inputs = operations[name]
    for t in inputs:
        t.requires_grad_()
    dy = torch.randn_like(run())
    curve.calls(
        lambda: torch.autograd.grad(run(), inputs, dy),
        figure="overhead",
        x_name="operation",
        x=name,
        dtype="float32",
        passes="forward+backward",
    )
