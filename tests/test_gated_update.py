"""The gated update of the Neural Data Router: its formula with the same random factors, on every instruction set."""

import pytest
import torch
from support import values

from sysgen.nn import NDREncoderLayer
from sysgen.ops import _gated_update_ops as ops
from sysgen.ops._gated_update import Options, Parameters, _GatedUpdate, _open_gates
from sysgen.reference.gated_update import gated_update as reference

# One below, at and above the widths of vectors; a last row group that is not full; more rows than segments.
SIZES = [(37, 5, 7, 3), (200, 33, 16, 40), (1, 1, 1, 1), (65, 15, 17, 16), (0, 4, 3, 2)]
RATES = [(0.0, 0.0, 0.0), (0.5, 0.4, 0.3), (1.0, 0.1, 0.0), (0.1, 1.0, 1.0)]


def problem(rows, width, hidden, gate, dtype=torch.float64):
    g = torch.Generator().manual_seed(rows)
    shapes = [(rows, width)] * 2 + [(width,)] * 2 + [(hidden, width), (hidden,), (gate, width), (gate,)]
    shapes += [(width, hidden), (width,), (width, gate), (width,), (width,), (width,)]
    inputs = [values(g, shape, dtype).requires_grad_() for shape in shapes]
    return inputs, values(g, (rows, width), dtype)


def options(rates):
    return Options(*rates, 1e-5, 1e-4)


def noise(x, hidden, seed, rates):
    ones = torch.ones_like(x), x.new_ones(len(x), hidden)
    drawn = [ops.dropout_fwd(t, seed, p, stream) for t, p, stream in zip(ones, rates, (1, 2))]
    return *drawn, _open_gates(x, seed, rates[2])


def ours(inputs, dy, seed, rates):
    y = _GatedUpdate.apply(*inputs, seed, *options(rates))[0]
    return y, *torch.autograd.grad(y, inputs, dy)


def expected(inputs, dy, seed, rates):
    x, attended, *parameters = inputs
    hidden = len(parameters[2]) + len(parameters[4])
    y = reference(x, attended, Parameters(*parameters), noise(x, hidden, seed, rates), options(rates)[3:])
    return y, *torch.autograd.grad(y, inputs, dy)


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("sizes", SIZES)
def test_is_its_formula(isa, sizes, rates):
    """Float64: what a norm of one element amplifies included, errors stay 10³ below what is allowed."""
    inputs, dy = problem(*sizes)
    seed = torch.tensor([-3])
    for a, b in zip(ours(inputs, dy, seed, rates), expected(inputs, dy, seed, rates), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_float32(isa):
    """Some ten sums of at most 300 terms behind one another, each off by √300 · 2⁻²⁴: 1e-5 in the norm; allowed is ten
    times that. No hidden unit may fall on the other side of the ReLU by rounding: the biases keep them away from 0."""
    inputs, dy = problem(130, 64, 128, 64)
    inputs[5].data.copy_(torch.where(torch.arange(128) % 2 == 0, 200.0, -200.0))
    inputs[7].data.copy_(torch.where(torch.arange(64) % 2 == 0, 200.0, -200.0))
    seed, rates = torch.tensor([7]), (0.5, 0.1, 0.1)
    single = [t.detach().float().requires_grad_() for t in inputs]
    exact = [t.detach().double().requires_grad_() for t in single]
    for a, b in zip(ours(single, dy.float(), seed, rates), expected(exact, dy.float().double(), seed, rates)):
        assert a.dtype == torch.float32
        assert (a.double() - b).norm() <= 1e-4 * b.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threads_change_no_bit(dtype, monkeypatch):
    """Of the core: torch's own products keep their number of threads."""
    inputs, dy = problem(700, 64, 96, 64, dtype)
    seed, results = torch.tensor([1]), []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(ours(inputs, dy, seed, (0.5, 0.1, 0.1)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0]))


def test_second_derivatives():
    inputs, _ = problem(3, 4, 5, 3)

    def function(*inputs):
        return _GatedUpdate.apply(*inputs, torch.tensor([5]), 0.3, 0.3, 0.3, 1e-5, 1e-5)[0]

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_autocast_around_backward_changes_no_bit():
    inputs, dy = problem(6, 4, 5, 3, torch.float32)
    seed, rates = torch.tensor([5]), (0.3, 0.3, 0.3)
    y, *expected = ours(inputs, dy, seed, rates)
    for create_graph in (False, True):
        y = _GatedUpdate.apply(*inputs, seed, *options(rates))[0]
        with torch.autocast("cpu", torch.bfloat16):
            actual = torch.autograd.grad(y, inputs, dy, create_graph=create_graph)
        for a, e in zip(actual, expected):
            torch.testing.assert_close(a, e)  # bfloat16 would be off by 4e-3


def drawn_bits(seed, stream, row, column, width):
    """16 of the 64 bits that splitmix64 makes of a counter, which has one value for four neighbours of a row."""

    def mix(z):
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    counter = row * ((width + 3) // 4) + column // 4
    return mix((mix(seed + stream) + counter * 0x9E3779B97F4A7C15) % 2**64) >> 16 * (column % 4) & 0xFFFF


def test_factors(isa):
    """Those of an element depend on its place only: rows of any stride, any instruction set; the streams differ."""
    seed, x = torch.tensor([11]), torch.ones(64, 37)
    drawn = {stream: ops.dropout_fwd(x, seed, 0.5, stream) for stream in (1, 2, 3)}
    assert not torch.equal(drawn[1], drawn[2]) and not torch.equal(drawn[2], drawn[3])
    assert torch.equal(ops.dropout_fwd(torch.ones(64, 50)[:, 7:44], seed, 0.5, 1), drawn[1])
    assert torch.equal(ops.dropout_fwd(x.double(), seed, 0.5, 1), drawn[1].double())
    assert not torch.equal(ops.dropout_fwd(x, seed + 1, 0.5, 1), drawn[1])
    kept = (drawn[1] != 0).double()
    # Neither rows nor columns nor neighbours hang together: a mean of n draws scatters by 1 / (2 √n).
    for part in (kept.mean(0), kept.mean(1)):
        assert (part - 0.5).abs().max() < 5 / (2 * (x.numel() / len(part)) ** 0.5)
    assert abs((kept[1:] * kept[:-1]).mean() - 0.25) < 5 * (3 / 16 / kept[1:].numel()) ** 0.5
    assert torch.equal(
        kept, torch.tensor([[drawn_bits(11, 1, r, c, 37) >= 2**15 for c in range(37)] for r in range(64)]).double()
    )


def test_the_layer_computes_the_same_without_the_operation():
    """A hook on a part of the layer must be called, which takes the other way through the layer."""
    torch.manual_seed(0)
    layer, x = NDREncoderLayer(8, 2, 12).double().eval(), torch.randn(2, 5, 8, dtype=torch.float64)
    y, called = layer(x), []
    handle = layer.linear2.register_forward_hook(lambda *_: called.append(1))
    torch.testing.assert_close(layer(x), y)
    assert called
    handle.remove()
    layer(x)
    assert len(called) == 1
    handle = torch.nn.modules.module.register_module_forward_hook(lambda m, *_: called.append(m))
    layer(x)
    handle.remove()
    assert layer.norm2 in called
    layer.norm1.forward = lambda t: torch.zeros_like(t)  # as tools do that wrap the methods of modules
    assert not torch.allclose(layer(x), y)


def test_another_default_device():
    """The seed lies where the rows do, or another kernel would be called."""
    layer, x, found = NDREncoderLayer(8, 2, dropout=0.5, gate_dropout=0.5), torch.randn(2, 5, 8), []
    for device in ("cpu", "meta"):
        torch.manual_seed(0)
        with torch.device(device):
            found.append(layer(x))
    assert torch.equal(*found)


def test_errors():
    x, seed = torch.ones(2, 3), torch.tensor([1])
    with pytest.raises(TypeError, match="dropout: rows must be float64, float32"):
        ops.dropout_fwd(x.bfloat16(), seed, 0.5, 1)
    with pytest.raises(ValueError, match="rate of dropout must be in"):
        ops.dropout_fwd(x, seed, 1.5, 1)
    with pytest.raises(TypeError, match="seed must be int64"):
        ops.dropout_fwd(x, seed.int(), 0.5, 1)
    with pytest.raises(ValueError, match="stream must be 1, 2 or 3"):
        ops.dropout_fwd(x, seed, 0.5, 4)
