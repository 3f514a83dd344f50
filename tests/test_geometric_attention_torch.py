"""How geometric attention behaves inside torch: compile, export, fake tensors, views, transforms, CUDA graphs."""

import pytest
import torch
from geometric_attention_checks import make_inputs
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from sysgen import ops

F32 = torch.float32


def layer(x, w_in, w_out, bias, padding, mask):
    """Self-attention from one packed projection, cross attention with an offset, and every kind of mask."""
    batch, n, d = x.shape
    query, key, value = (x @ w_in).view(batch, n, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
    out, remainder = ops.geometric_attention(
        query,
        key,
        value,
        direction_bias=bias,
        key_padding_mask=padding,
        attn_mask=mask,
        return_remainder=True,
    )
    out = out + remainder.to(out.dtype)[..., None] * value
    last = ops.geometric_attention(query[:, :, -1:], key, value, q_offset=n - 1, normalize=True, include_self=True)
    return (out + last).transpose(1, 2).reshape(batch, n, d) @ w_out.to(out.dtype)


def arguments(n=6, batch=2, d=8, device="cpu", dtype=F32):
    g = torch.Generator().manual_seed(n)
    shapes = [(batch, n, d), (d, 3 * d), (d, d), (batch, 2, n, 2)]
    leaves = [torch.randn(s, generator=g).to(device, dtype).requires_grad_() for s in shapes]
    mask = torch.randn(n, n, generator=g).to(device, dtype).requires_grad_()
    padding = (torch.rand(batch, n, generator=g) < 0.2).to(device)
    return [*leaves, padding, mask], [*leaves, mask]


def results_of(function, **sizes):
    given, leaves = arguments(**sizes)
    y = function(*given)
    return [y, *torch.autograd.grad(y.square().sum(), leaves)]


def assert_same(function, expected, **sizes):
    for a, b in zip(results_of(function, **sizes), results_of(expected, **sizes)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dynamic", [False, True, None])
def test_compile_forward_and_backward(device, dynamic):
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.backends.debugging.aot_eager(graph, inputs)

    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend=count)
    sizes = (6, 9) if dynamic is False else (6, 9, 13)
    for n in sizes:
        assert_same(compiled, layer, device=device, n=n)
    # With dynamic=True torch may hand over one graph twice, before and after it found a float to be constant.
    assert len(graphs) <= {True: 2, None: 2, False: len(sizes)}[dynamic], "recompiled for another length"


def test_compile_with_inductor():
    torch._dynamo.reset()
    assert_same(torch.compile(layer, fullgraph=True), layer)


def test_compile_under_autocast(device):
    torch._dynamo.reset()

    def under_autocast(*given):
        with torch.autocast(device, torch.bfloat16):
            return layer(*given)

    compiled = torch.compile(under_autocast, fullgraph=True, backend="aot_eager")
    assert compiled(*arguments(device=device)[0]).dtype == torch.bfloat16
    for a, b in zip(results_of(compiled, device=device), results_of(under_autocast, device=device)):
        assert torch.equal(a, b)


def test_compile_with_one_tensor_as_all_three():
    """torch.compile hands a tensor to an autograd.Function only once."""
    torch._dynamo.reset()
    x = torch.randn(1, 2, 5, 4, requires_grad=True)

    def itself(x, y):
        return ops.geometric_attention(x, x, x) + ops.geometric_attention(x, y, y) + ops.geometric_attention(x, y, x)

    compiled = torch.compile(itself, fullgraph=True, backend="aot_eager")
    leaves = x, torch.randn(1, 2, 5, 4, requires_grad=True)
    for a, b in zip(*(torch.autograd.grad(f(*leaves).square().sum(), leaves) for f in (compiled, itself))):
        torch.testing.assert_close(a, b)


def test_compile_with_a_changing_offset():
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(
        lambda q, k, offset: ops.geometric_attention(q, k, k, q_offset=offset), fullgraph=True, backend=count
    )
    q, k = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 9, 4)
    for offset in (2, 3, 4, 5):
        assert torch.equal(compiled(q, k, offset), ops.geometric_attention(q, k, k, q_offset=offset))
    assert len(graphs) <= 2


def test_export():
    class Attention(torch.nn.Module):
        def forward(self, query, key, value, padding):
            return ops.geometric_attention(query, key, value, key_padding_mask=padding)

    def given(n):
        return (*(torch.randn(2, 2, n, 4) for _ in range(3)), torch.arange(n).expand(2, n) >= n - 2)

    length = torch.export.Dim("length", min=2)
    exported = torch.export.export(Attention(), given(5), dynamic_shapes=(*({2: length},) * 3, {1: length}))
    other = given(9)
    torch.testing.assert_close(exported.module()(*other), Attention()(*other))


@pytest.mark.parametrize("where", ["meta", "fake"])
def test_shapes_without_data(where):
    given, _ = arguments()
    expected = layer(*given)
    if where == "meta":
        y = layer(*[a.detach().to("meta") for a in given])
    else:
        with FakeTensorMode() as mode:
            y = layer(*[mode.from_tensor(a) for a in given])
            y.sum().backward()
    assert (y.shape, y.dtype, y.stride()) == (expected.shape, expected.dtype, expected.stride())


def test_negated_views():
    given, leaves = arguments()
    y = layer(*given)
    negated = [torch._neg_view(-a.detach()).requires_grad_() if a.is_floating_point() else a for a in given]
    assert torch.equal(layer(*negated), y)
    again = torch.autograd.grad(layer(*negated).sum(), [a for a in negated if a.is_floating_point()])
    for a, b in zip(torch.autograd.grad(y.sum(), leaves), again):
        assert torch.equal(a, b)


def test_double_backward():
    given, leaves = arguments(n=2, batch=1, d=2, dtype=torch.float64)
    padding = given[4]
    torch.autograd.gradgradcheck(lambda *t: layer(*t[:4], padding, t[4]), leaves)


def test_activation_checkpointing():
    assert_same(lambda *given: checkpoint(layer, *given, use_reentrant=False), layer)


def test_vmap_without_gradients():
    x = torch.randn(3, 1, 2, 5, 4)
    y = torch.vmap(lambda t: ops.geometric_attention(t, t, t))(x)
    for a, b in zip(y, x):
        assert torch.equal(a, ops.geometric_attention(b, b, b))


@pytest.mark.parametrize("transform", ["grad", "jvp", "jacrev", "vmap of grad"])
def test_function_transforms_refuse(transform):
    """None of them may return a derivative that leaves the op out."""
    x = torch.randn(1, 2, 5, 4)

    def function(t):
        return ops.geometric_attention(t, t, t).sum()

    calls = {
        "grad": lambda: torch.func.grad(function)(x),
        "jvp": lambda: torch.func.jvp(function, (x,), (x,)),
        "jacrev": lambda: torch.func.jacrev(function)(x),
        "vmap of grad": lambda: torch.vmap(torch.func.grad(function))(x.expand(2, *x.shape)),
    }
    with pytest.raises(RuntimeError, match="functorch transforms"):
        calls[transform]()


def test_forward_mode_refuses():
    x = torch.randn(1, 2, 5, 4)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match="forward mode"):
            ops.geometric_attention(dual, x, x)


def test_inference_mode():
    given, _ = arguments()
    expected = layer(*given)
    with torch.inference_mode():
        assert torch.equal(layer(*given), expected)


@pytest.mark.cuda
def test_cuda_graph_forward_and_backward():
    """Nothing synchronises: a captured step replays with other values in the same memory."""
    inputs = make_inputs((2, 2, 70, 90, 16), F32, "cuda")
    leaves = [t for t in inputs.values() if t.requires_grad]

    def step():
        y = ops.geometric_attention(**inputs)
        return [y, *torch.autograd.grad(y, leaves, torch.ones_like(y))]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        inputs["query"].mul_(-0.5)
    graph.replay()
    for a, b in zip(captured, step()):
        assert torch.equal(a, b)
