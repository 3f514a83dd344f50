"""Every registered op, and how the public functions behave inside torch: compile, fake tensors, views, transforms."""

import functools

import pytest
import torch
from content_checks import make_inputs
from support import place, routes, values
from torch._subclasses import FakeTensorMode

from sysgen import ops, reference
from sysgen._load import core
from sysgen.ops._dnc_ops import interface_size as dnc_interface_size
from sysgen.ops._ntm_ops import interface_size as ntm_interface_size

REGISTERED = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("sysgen::"))


def tensors(dtype=torch.float32, device="cpu", lead=(6,), k=2, d=5, h=7, num_experts=3, requires_grad=False):
    """Arguments that the samples below share. Accumulator dtype for gate and bias."""
    g = torch.Generator().manual_seed(0)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    made = {
        "x": values(g, (*lead, d), dtype, device),
        "rows": values(g, (*lead, k, d), dtype, device),
        "weight": values(g, (num_experts, d, h), dtype, device),
        "gate": values(g, (*lead, k), accumulator, device),
        "bias": values(g, (num_experts, h), accumulator, device),
        "y": values(g, (*lead, h), dtype, device),
        "y_rows": values(g, (*lead, k, h), dtype, device),
    }
    return {
        **{n: t.requires_grad_(requires_grad) for n, t in made.items()},
        "ids": routes(g, lead, k, num_experts, device),
    }


def attention_tensors(dtype=torch.float32, device="cpu", lead=(6,), k=2, d=5, h=7):
    """Arguments of the attention operations: k heads of width d, as many queries as tokens, h keys."""
    g = torch.Generator().manual_seed(0)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    batch, queries = 2, lead[0]
    mask = values(g, (batch, k, queries, h), accumulator, device)
    return {
        "heads": [values(g, (batch, k, n, d), dtype, device) for n in (queries, h, h)],
        "direction_bias": values(g, (batch, k, queries, 2), accumulator, device),
        "key_mask": torch.rand(batch, h, generator=g).to(device) < 0.3,
        "mask": mask,
        "hidden": (mask[:1, :1] > 0.5).expand(batch, k, queries, h),
        "dout": values(g, (batch, k, queries, d), dtype, device),
        "dremainder": values(g, (batch, k, queries), accumulator, device),
    }


def dnc_samples(dtype, device, lead=(6,), k=2, **_):
    """The DNC's recurrence: as many steps as tokens, k read heads. float32 and float64 only."""
    if dtype not in (torch.float32, torch.float64):
        return {"dnc_sequence_fwd": [], "dnc_sequence_bwd": []}
    g = torch.Generator().manual_seed(0)
    steps, b, x, h, n, w, r = lead[0], 2, 3, 4, 5, 2, max(k, 1)
    interface = dnc_interface_size(r, w, True, True)
    shapes = (b, h), (b, h), (b, n, w), (b, n), (b, n, n), (b, n), (b, n), (b, r, n), (b, r, w)
    state = [values(g, shape, dtype, device).abs() / 10 for shape in shapes]
    weights = [
        values(g, shape, dtype, device)
        for shape in ((4 * h, x), (4 * h,), (4 * h, h), (4 * h, r * w), (interface, h), (interface,))
    ]
    lengths = torch.tensor([steps, steps // 2], device=device)
    options = (True, True, True, False, 1e-6, 20.0, 0.0, 2)
    forward = (values(g, (steps, b, x), dtype, device), *weights, lengths, *state, *options, True)
    gates, hidden, reads, checkpoints, *_ = torch.ops.sysgen.dnc_sequence_fwd(*forward)
    backward = (gates, hidden, reads, checkpoints, *weights[2:], lengths, hidden, None, None, *state[1:], n, *options)
    return {"dnc_sequence_fwd": [forward], "dnc_sequence_bwd": [backward]}


def gated_update_samples(dtype, device, lead=(6,), d=5, h=7, **_):
    """As many rows as tokens, hidden layers of h and h + 2. CPU, float32 and float64 only."""
    if device != "cpu" or dtype not in (torch.float32, torch.float64):
        return {"dropout_fwd": [], "gated_update_fwd": [], "gated_update_bwd": []}
    g = torch.Generator().manual_seed(0)
    rows, d, h = lead[0], max(d, 1), max(h, 1)
    shapes = [(d,), (d,), (h, d), (h,), (h + 2, d), (h + 2,), (d, h), (d,), (d, h + 2), (d,), (d,), (d,)]
    x, attended, dy = (values(g, (rows, d), dtype, device) for _ in range(3))
    rest = *(values(g, shape, dtype, device) for shape in shapes), torch.tensor([3]), 0.5, 0.3, 0.1, 1e-5, 1e-5
    _, *kept = torch.ops.sysgen.gated_update_fwd(x, attended, *rest)
    return {
        "dropout_fwd": [(x, torch.tensor([3]), 0.5, 1), (x.mT.contiguous().mT[None], torch.tensor([3]), 0.5, 2)],
        "gated_update_fwd": [(x, attended, *rest)],
        "gated_update_bwd": [(dy, x, attended, *kept, *rest)],
    }


def ntm_samples(dtype, device, lead=(6,), k=2, **_):
    """The Neural Turing Machine's: as many steps as tokens, k pairs of heads. float32 and float64 only."""
    if dtype not in (torch.float32, torch.float64):
        return {"ntm_sequence_fwd": [], "ntm_sequence_bwd": []}
    g = torch.Generator().manual_seed(0)
    steps, b, x, h, n, w, p, max_shift = lead[0], 2, 3, 4, 5, 2, max(k, 1), 2
    interface = ntm_interface_size(p, w, max_shift)
    shapes = (b, h), (b, h), (b, n, w), (b, p, n), (b, p, n), (b, p, w)
    state = [values(g, shape, dtype, device).abs() / 10 for shape in shapes]
    shapes = (4 * h, x), (4 * h,), (4 * h, h), (4 * h, p * w), (interface, h), (interface,)
    weights = [values(g, shape, dtype, device) for shape in shapes]
    lengths, options = torch.tensor([steps, steps // 2], device=device), (max_shift, 1e-6, 2)
    forward = (values(g, (steps, b, x), dtype, device), *weights, lengths, *state, *options, True)
    gates, hidden, reads, checkpoints, *_ = torch.ops.sysgen.ntm_sequence_fwd(*forward)
    backward = (gates, hidden, reads, checkpoints, *weights[2:], lengths, hidden, None, None, *state[1:], n, *options)
    return {"ntm_sequence_fwd": [forward], "ntm_sequence_bwd": [backward]}


def content_samples(dtype, device, lead=(6,), k=2, d=5, h=7, **_):
    """Addressing, writing and reading: as many samples as tokens, h cells of width d, k heads. float32, float64."""
    optional = {"content_address": "mask", "ntm_address": None, "memory_write": "retention", "memory_read": None}
    made = {}
    for name, last in optional.items():
        forward, backward = [], []
        for layout in ("contiguous", "transposed") if dtype in (torch.float32, torch.float64) else ():
            full = layout == "contiguous"
            tensors = make_inputs(name, (lead[0], h, d, k), dtype, device, optional=full, layout=layout)
            tensors = [t.detach() for t in tensors.values()] + [None] * (last is not None and not full)
            eps = (1e-6,) if name.endswith("address") else ()
            forward.append((*tensors, *eps))
            backward.append((*tensors, overload(f"{name}_fwd")(*forward[-1]), *eps))
        made |= {f"{name}_fwd": forward, f"{name}_bwd": backward}
    return made


def links_samples(dtype, device, lead=(6,), k=2, h=7, **_):
    """Dynamic allocation and temporal links: as many samples as tokens, h cells, k read heads. float32, float64."""
    names = ("retention", "usage_update", "allocation", "link_update", "link_read")
    if dtype not in (torch.float32, torch.float64):
        return {f"{name}_{way}": [] for name in names for way in ("fwd", "bwd")}
    g = torch.Generator().manual_seed(0)

    def cells(*shape):
        return values(g, (lead[0], *shape), dtype, device).abs() / 10

    usage, w, p, kept, d = (cells(h) for _ in range(5))
    link, dlink, read, dread, gate = cells(h, h), cells(h, h), cells(k, h), cells(k, h), cells(k)
    sharp, steps = (link, read, gate, gate + 1), (link.mT.contiguous().mT, p, w)
    return {
        "retention_fwd": [(read, gate)],
        "retention_bwd": [(read, gate, d)],
        "usage_update_fwd": [(usage, w, kept)],
        "usage_update_bwd": [(usage, w, kept, d)],
        "allocation_fwd": [(usage, 1e-6)],
        "allocation_bwd": [(usage, d, 1e-6)],
        "link_update_fwd": [steps],
        "link_update_bwd": [(*steps, dlink, d), (*steps, None, d), (*steps, dlink, None)],
        "link_read_fwd": [(*sharp, 1e-6), (link, read, None, gate, 1e-6), (link, read, None, None, 1e-6)],
        "link_read_bwd": [
            (*sharp, read, read, dread, None, 1e-6),
            (link, read, None, gate, None, read, dread, dread, 1e-6),
            (link, read, *(None,) * 4, dread, dread, 1e-6),
        ],
    }


def moe_ffn_samples(x, w, gate, bias, y_rows, route):
    """Back to x's width: dy is like x. With and without what the forward keeps, and with everything unwanted; one with
    hidden rows of the width that the fused CUDA kernel takes."""
    down = w.mT.contiguous()
    arguments = (x, w, down, *route, gate)
    wide = values(torch.Generator().manual_seed(0), (w.shape[0], w.shape[1], 72), w.dtype, w.device)
    return {
        "moe_ffn_fwd": [
            (*arguments, bias, "gelu", True, 0),
            (*arguments, None, "relu", False, 0),
            (x, wide, wide.mT.contiguous(), *route, gate, None, "tanh", True, 0),
        ],
        "moe_ffn_bwd": [
            (x, *arguments, bias, y_rows, "silu", True, True, True, True, 0),
            (x, *arguments, None, None, "tanh", True, False, False, False, 0),
            (x, *arguments, bias, y_rows, "relu", False, False, True, False, 0),
        ],
    }


def router_samples(dtype, device, lead=(6,), k=2, num_experts=3, **_):
    """Selection of experts, with and without what the regulariser needs. float32 and float64 only."""
    if dtype not in (torch.float32, torch.float64):
        return {"select_experts_fwd": [], "select_experts_bwd": []}
    g = torch.Generator().manual_seed(0)
    k, seed, columns = max(k, 1), torch.tensor([3], device=device), (lead[0], num_experts)
    logits, turned = values(g, columns, dtype, device), values(g, columns[::-1], dtype, device).mT
    forward = [(logits, seed, k, 1, 0.5, True), (turned, None, k, 0, 0.0, False), (logits, seed, k, 2, 0.3, True)]
    (experts, gate, lse, log_sum), sparse, _ = (torch.ops.sysgen.select_experts_fwd(*f) for f in forward)
    dgate, dlog_sum = values(g, gate.shape, dtype, device), values(g, (num_experts,), dtype, device)
    backward = [
        (logits, experts, gate, lse, log_sum, dgate, dlog_sum, 1),
        (turned, *sparse[:2], None, None, dgate, None, 0),
        (logits, experts, gate, lse, log_sum, None, dlog_sum, 0),
    ]
    return {"select_experts_fwd": forward, "select_experts_bwd": backward}


def samples(dtype=torch.float32, device="cpu", **sizes):
    """Arguments of every registered op: its name -> list of argument tuples, with shared and routed rows."""
    t = tensors(dtype, device, **sizes)
    r = ops.route(t["ids"], t["weight"].shape[0])
    route, wide = r[:3], torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
    x, rows, w, gate, bias, y, y_rows = (t[n] for n in ("x", "rows", "weight", "gate", "bias", "y", "y_rows"))
    a = attention_tensors(dtype, device, **sizes)
    sequence_major = [u.transpose(1, 2).contiguous().transpose(1, 2) for u in a["heads"]]
    masks, switches = (a["direction_bias"], a["key_mask"], a["mask"]), (0.5, True, 1e-12, False, False, 1, True)
    return {
        "route_fwd": [(t["ids"], 3), (t["ids"].int(), 3)],
        "cvmm_fwd": [
            (x, w, *route, gate, bias, True, 0, 0),
            (rows, w.mT.contiguous().mT, *route, None, None, False, 1, 0),
        ],
        "cvmm_bwd_x": [(y, w, *route, gate, x, True, 0), (y_rows, w, *route, None, rows, False, 0)],
        "cvmm_dot": [(x, w, bias, y, *route, 0), (rows, w, None, y_rows, *route, 0)],
        "cvmm_bwd_w": [(x, y, *route, gate, dtype, 0), (rows, y_rows, *route, None, wide, 0)],
        **moe_ffn_samples(x, w, gate, bias, y_rows, route),
        **dnc_samples(dtype, device, **sizes),
        **content_samples(dtype, device, **sizes),
        **links_samples(dtype, device, **sizes),
        **router_samples(dtype, device, **sizes),
        **gated_update_samples(dtype, device, **sizes),
        **ntm_samples(dtype, device, **sizes),
        "geometric_attention_fwd": [
            (*a["heads"], *masks, *switches, True),
            (*(u.mT.contiguous().mT for u in a["heads"]), None, None, a["hidden"], *switches, False),
        ],
        "geometric_attention_bwd": [
            (*a["heads"], *masks, a["dout"], a["dremainder"], *switches, True, True),
            (*sequence_major, *masks[:2], a["hidden"], a["dout"], None, *switches, False, False),
        ],
    }


def overload(name):
    return getattr(torch.ops.sysgen, name.removeprefix("sysgen::")).default


def each_sample(**options):
    for name, calls in samples(**options).items():
        for arguments in calls:
            yield overload(name), arguments


def test_every_registered_op_has_samples():
    assert sorted(f"sysgen::{name}" for name in samples()) == REGISTERED


@pytest.mark.parametrize("name", REGISTERED)
def test_opcheck(name):
    for arguments in samples()[name.removeprefix("sysgen::")]:
        torch.library.opcheck(overload(name), arguments)


def test_fake_kernels_agree_with_the_kernels(device):
    """Shape, dtype, strides and device, for sizes that include zero."""
    sizes = [{}, {"lead": (0,)}, {"k": 0}, {"d": 0}, {"h": 0}]
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for size in sizes:
            for op, arguments in each_sample(dtype=dtype, device=device, **size):
                real = op(*arguments)
                with FakeTensorMode() as mode:
                    fake = op(*[mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments])
                for a, b in zip(*((t if isinstance(t, tuple) else (t,)) for t in (real, fake)), strict=True):
                    assert (a.shape, a.dtype, a.stride(), a.device) == (b.shape, b.dtype, b.stride(), b.device), op


@pytest.mark.parametrize("name", REGISTERED)
def test_a_bare_op_refuses_to_lose_a_gradient(name):
    op = overload(name)
    for arguments in samples()[name.removeprefix("sysgen::")]:
        for i, argument in enumerate(arguments):
            if not isinstance(argument, torch.Tensor) or not argument.is_floating_point():
                continue
            tracked = list(arguments)
            tracked[i] = argument.detach().requires_grad_()
            with pytest.raises(RuntimeError, match="has no derivative of its own"):
                op(*tracked)
            with torch.no_grad():
                op(*tracked)
            with torch.autograd.forward_ad.dual_level():
                tracked[i] = torch.autograd.forward_ad.make_dual(argument, torch.ones_like(argument))
                with pytest.raises(RuntimeError, match="no forward-mode derivative"):
                    op(*tracked)


def test_negated_views_are_resolved():
    for op, arguments in each_sample():
        plain = op(*arguments)
        negated = [
            torch._neg_view(-a) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments
        ]
        for a, b in zip(*((t if isinstance(t, tuple) else (t,)) for t in (plain, op(*negated)))):
            assert torch.equal(a, b), op


# ---- the public functions


def layer(x, ids, gate, w_up, w_down, b_up, activation="gelu"):
    """All of them at once."""
    r = ops.route(ids, w_up.shape[0])
    hidden = ops.cvmm(x, r, w_up, bias=b_up).relu()
    y = ops.cvmm(hidden, r, w_down, gate=gate, reduce=True)
    return y + ops.moe_ffn(x, ids, gate, w_up, w_down, b_up=b_up, activation=activation)


def layer_arguments(lead=(6,), k=2, num_experts=3, dtype=torch.float32, device="cpu"):
    t = tensors(dtype, device, lead, k, num_experts=num_experts)
    w_down = t["weight"].mT.contiguous()
    leaves = [u.requires_grad_() for u in (t["x"], t["gate"], t["weight"], w_down, t["bias"])]
    return [leaves[0], t["ids"], *leaves[1:]], leaves


def results_of(function, **sizes):
    arguments, leaves = layer_arguments(**sizes)
    y = function(*arguments)
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
    sizes = [{"lead": (n,)} for n in (6, 9, 13, 24)]
    for size in sizes:
        assert_same(compiled, layer, device=device, **size)
    assert len(graphs) <= {True: 1, None: 2, False: len(sizes)}[dynamic], "recompiled for another number of tokens"


def test_compile_with_inductor():
    torch._dynamo.reset()
    plain = functools.partial(layer, activation="relu")  # inductor has a gelu of its own
    assert_same(torch.compile(plain, fullgraph=True), plain, lead=(3, 4))


def test_compile_under_autocast(device):
    torch._dynamo.reset()

    def under_autocast(*arguments):
        with torch.autocast(device, torch.bfloat16):
            return layer(*arguments)

    compiled = torch.compile(under_autocast, fullgraph=True, backend="aot_eager")
    y = compiled(*layer_arguments(device=device)[0])
    assert y.dtype == torch.bfloat16
    for a, b in zip(results_of(compiled, device=device), results_of(under_autocast, device=device)):
        assert torch.equal(a, b)


def test_export():
    arguments, _ = layer_arguments()

    class Layer(torch.nn.Module):
        def forward(self, *arguments):
            return layer(*arguments)

    tokens = torch.export.Dim("tokens", min=2)
    shapes = ({0: tokens}, {0: tokens}, {0: tokens}, None, None, None)
    exported = torch.export.export(Layer(), tuple(arguments), dynamic_shapes=(shapes,))
    other, _ = layer_arguments(lead=(11,))
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(*other), layer(*other))
    with pytest.raises(RuntimeError, match="has no derivative of its own"):  # an exported graph is for inference
        exported.module()(*other)


@pytest.mark.parametrize("where", ["meta", "fake"])
def test_shapes_without_data(where):
    arguments, _ = layer_arguments(lead=(2, 3))
    expected = layer(*arguments)
    if where == "meta":
        y = layer(*[a.detach().to("meta") for a in arguments])
    else:
        with FakeTensorMode() as mode:
            y = layer(*[mode.from_tensor(a) for a in arguments])
            y.sum().backward()
    assert y.shape == expected.shape and y.dtype == expected.dtype


def test_negated_views_through_the_public_functions():
    arguments, leaves = layer_arguments()
    y = layer(*arguments)
    negated = [torch._neg_view(-a.detach()).requires_grad_() if a.is_floating_point() else a for a in arguments]
    assert torch.equal(layer(*negated), y)
    expected = torch.autograd.grad(y.sum(), leaves)
    again = torch.autograd.grad(layer(*negated).sum(), [a for a in negated if a.is_floating_point()])
    for a, b in zip(expected, again):
        assert torch.equal(a, b)


def test_double_backward_through_all():
    arguments, leaves = layer_arguments(lead=(3,), dtype=torch.float64)
    ids = arguments[1]
    torch.autograd.gradgradcheck(lambda x, *rest: layer(x, ids, *rest), leaves)


def test_activation_checkpointing():
    from torch.utils.checkpoint import checkpoint

    assert_same(lambda *arguments: checkpoint(layer, *arguments, use_reentrant=False), layer)


def test_vmap_without_gradients():
    t = tensors()
    x = torch.stack([t["x"], 2 * t["x"]])
    y = torch.vmap(lambda row: ops.cvmm(row, t["ids"], t["weight"], gate=t["gate"]))(x)
    for a, b in zip(y, x):
        assert torch.equal(a, ops.cvmm(b, t["ids"], t["weight"], gate=t["gate"]))


@pytest.mark.parametrize("transform", ["grad", "jvp", "jacrev", "jacfwd", "vmap of grad"])
def test_function_transforms_refuse(transform):
    """None of them may return a derivative that leaves the op out."""
    t = tensors()

    def function(x):
        return ops.cvmm(x, t["ids"], t["weight"]).sum()

    calls = {
        "grad": lambda x: torch.func.grad(function)(x),
        "jvp": lambda x: torch.func.jvp(function, (x,), (x,)),
        "jacrev": lambda x: torch.func.jacrev(function)(x),
        "jacfwd": lambda x: torch.func.jacfwd(function)(x),
        "vmap of grad": lambda x: torch.vmap(torch.func.grad(function))(x.expand(2, *x.shape)),
    }
    with pytest.raises(RuntimeError, match="functorch transforms"):
        calls[transform](t["x"])


def test_forward_mode_refuses():
    t = tensors()
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(t["x"], torch.ones_like(t["x"]))
        with pytest.raises(NotImplementedError, match="forward mode"):
            ops.cvmm(x, t["ids"], t["weight"])
        with pytest.raises(NotImplementedError, match="forward mode"):
            ops.moe_ffn(x, t["ids"], t["gate"], t["weight"], t["weight"].mT.contiguous())


def test_inference_mode():
    arguments, _ = layer_arguments()
    expected = layer(*arguments)
    with torch.inference_mode():
        assert torch.equal(layer(*arguments), expected)


def test_results_are_written_to_memory_of_their_own():
    """No output aliases an input, so that in-place changes of a result are safe."""
    for op, arguments in each_sample():
        before = [place(a, "contiguous").clone() for a in arguments if isinstance(a, torch.Tensor)]
        outputs = op(*arguments)
        for out in outputs if isinstance(outputs, tuple) else (outputs,):
            out.fill_(1)
        for a, b in zip((a for a in arguments if isinstance(a, torch.Tensor)), before):
            assert torch.equal(a, b), op


class _CopyingProducer:
    """A DLPack producer whose every export is a new array that only the capsule keeps alive."""

    def __init__(self, value, shape):
        self.value, self.shape = value, shape

    def __dlpack__(self, **_):
        return torch.full(self.shape, self.value).numpy().__dlpack__()

    def __dlpack_device__(self):
        return (1, 0)


def test_the_core_keeps_arrays_alive_until_it_returns():
    h = 1 << 16  # large enough that freed memory is unmapped or reused at once
    r = ops.route(torch.zeros(4, 1, dtype=torch.long), 2)
    out = torch.empty(4, 1, h)
    x, w, bias = torch.zeros(4, 3), torch.zeros(2, 3, h), _CopyingProducer(7.0, (2, h))
    core.cvmm_fwd(x, w, r.order, r.inverse, r.offsets, None, bias, out, None, None, None, False, 0, 0, 1, 0)
    assert (out == 7).all()


def test_a_fake_tensor_with_an_offset_is_refused_by_the_core():
    with FakeTensorMode():
        ids = torch.zeros(8, 2, dtype=torch.long)[2:]
    order, inverse, offsets = (torch.empty(n, dtype=torch.int32) for n in (12, 12, 5))
    with pytest.raises(ValueError, match="no data"):
        core.route_fwd(ids, 4, order, inverse, offsets, None, 1, 0)


def test_any_number_of_dimensions():
    ids = torch.randint(-1, 4, (1, 2, 1, 1, 1, 3, 1, 2, 2))
    r = ops.route(ids, 4)
    assert r.inverse.shape == ids.shape
    assert torch.equal(r.order, reference.route(ids, 4).order)
