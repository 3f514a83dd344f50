"""The Neural Turing Machine as a layer: conventions of nn.LSTM, its state and its trace; the cell; what it learns."""

import copy

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from sysgen import nn
from sysgen.ops import NTMState

F64 = {"dtype": torch.float64}
SIZES = (5, 4, 8, 6, 3, 2)  # X, Y, H, N, W, P
READS = 5 + 2 * 3
CONTROLLERS = {
    "lstm": lambda: None,
    "LSTMCell": lambda: torch.nn.LSTMCell(READS, 8, **F64),
    "GRUCell": lambda: torch.nn.GRUCell(READS, 8, **F64),
    "Linear": lambda: torch.nn.Linear(READS, 8, **F64),
}


def layer(kind=nn.NTM, seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    return kind(*SIZES, dtype=dtype, **options)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)  # float64: products of other sizes sum in other orders


def test_batch_first_unbatched_and_state():
    ntm = layer()
    x = torch.randn(7, 3, 5, **F64)
    y, last = ntm(x)
    assert y.shape == (7, 3, 4) and last.memory.shape == (3, 6, 3) and last.write_weights.shape == (3, 2, 6)
    first, _ = layer(batch_first=True)(x.transpose(0, 1))
    close(first.transpose(0, 1), y)
    alone, end = ntm(x[:, 1])
    close((alone, *end), (y[:, 1], *(s[1] for s in last)))
    before, state = ntm(x[:3])
    after, end = ntm(x[3:], state)
    close((torch.cat([before, after]), *end), (y, *last))
    (gradient,) = torch.autograd.grad(after.sum(), ntm.interface.weight)
    (cut,) = torch.autograd.grad(ntm(x[3:], state.detach())[0].sum(), ntm.interface.weight)
    assert not torch.allclose(gradient, cut) and not any(s.requires_grad for s in state.detach())


def test_lengths_and_packed_sequences():
    ntm = layer()
    samples = [torch.randn(n, 5, **F64) for n in (3, 7, 5)]
    y, last = ntm(torch.nn.utils.rnn.pad_sequence(samples), lengths=torch.tensor([3, 7, 5]))
    packed, end = ntm(pack_sequence(samples, enforce_sorted=False))
    close((pad_packed_sequence(packed)[0], *end), (y, *last))
    for b, sample in enumerate(samples):
        alone, state = ntm(sample)
        close((y[: len(sample), b], *(s[b] for s in last)), (alone, *state))
        assert (y[len(sample) :, b] == 0).all()


@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize("max_shift", [0, 1, 2])
def test_the_cell_stepped_over_time_is_the_layer(controller, max_shift):
    torch.manual_seed(0)
    options = {"max_shift": max_shift, "learn_initial": max_shift == 2}
    ntm = layer(controller=CONTROLLERS[controller](), **options)
    cell = layer(nn.NTMCell, controller=CONTROLLERS[controller](), **options)
    cell.load_state_dict(ntm.state_dict())
    x, state, outputs = torch.randn(4, 3, 5, **F64), None, []
    expected, last = ntm(x, lengths=torch.tensor([4, 4, 4]))
    for step in x:
        y, state = cell(step, state)
        outputs.append(y)
    close((torch.stack(outputs), *state), (expected, *last))
    losses = (torch.stack(outputs).square().sum(), expected.square().sum())
    unused = {"allow_unused": True, "materialize_grads": True}  # a controller may ignore its first state
    both = [torch.autograd.grad(a, m.parameters(), **unused) for a, m in zip(losses, (cell, ntm))]
    for a, e in zip(*both):
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-10)
    alone, end = cell(x[0, 1])
    close(alone, expected[0, 1])
    assert end.memory.shape == (6, 3)


@pytest.mark.parametrize("kind", [nn.NTM, nn.NTMCell])
def test_initial_state(kind):
    """One small number in every word, all heads at the first cell, and what is learned."""
    state = layer(kind, memory_value=1e-3).initial_state(2, num_cells=19)
    assert state.memory.shape == (2, 19, 3) and (state.memory == 1e-3).all() and (state.hidden == 0).all()
    for weights in (state.read_weights, state.write_weights):
        assert (weights[..., 0] == 1).all() and (weights.sum(-1) == 1).all()
    learned = layer(kind, learn_initial=True)
    x = torch.randn(*(4, 2, 5)[kind is nn.NTMCell :], **F64)
    y, _ = learned(x, learned.initial_state(2, num_cells=19))
    y.sum().backward()
    for name in ("hidden", "cell", "reads"):
        parameter = getattr(learned, f"initial_{name}")
        assert (parameter.grad != 0).all() and (getattr(learned.initial_state(2), name) == parameter).all()


def test_cells_do_not_stay_equal():
    """From a memory of one number content finds every cell alike; only the heads' first place tells them apart."""
    _, state = layer()(torch.randn(3, 1, 5, **F64))
    assert len({tuple(cell) for cell in state.memory[0].tolist()}) == 6


@pytest.mark.parametrize("controller", ["lstm", "GRUCell"])
def test_trace_tells_what_happened(controller):
    ntm = layer(controller=CONTROLLERS[controller](), max_shift=2)
    x = torch.randn(6, 2, 5, **F64)
    plain, expected = ntm(x)
    y, state, trace = ntm(x, return_trace=True)
    close((y, *state), (plain, *expected))
    for name in ("read_weights", "write_weights", "memory", "reads"):
        close(trace[name][-1], getattr(expected, name))
    assert not any(t.requires_grad for t in trace.values())
    memory = trace["memory"][:-1]
    for p in range(2):
        written = trace["write_weights"][1:, :, p, :, None]
        memory = memory * (1 - written * trace["erase"][1:, :, p, None]) + written * trace["add"][1:, :, p, None]
    close(memory, trace["memory"][1:])
    for side in ("read", "write"):
        assert trace[f"{side}_key"].shape == (6, 2, 2, 3) and (trace[f"{side}_strength"] > 0).all()
        assert (trace[f"{side}_sharpness"] > 1).all() and ((trace[f"{side}_gate"] - 0.5).abs() < 0.5).all()
        close(trace[f"{side}_shift"].sum(-1), torch.ones(6, 2, 2, **F64))
        close(trace[f"{side}_weights"].sum(-1), torch.ones(6, 2, 2, **F64))


def test_half_types_autocast_and_copies():
    ntm, x = layer(dtype=torch.float32), torch.randn(5, 2, 5)
    _, expected = ntm(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = ntm(x)
    assert y.dtype == torch.bfloat16 and all(torch.equal(a, e) for a, e in zip(state, expected))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for module in (ntm, layer(dtype=torch.float32, controller=torch.nn.GRUCell(11, 8))):  # the other half type
            assert module(x.half())[0].dtype == torch.bfloat16
    half = copy.deepcopy(ntm).to(torch.bfloat16)
    y, state = half(x.bfloat16())
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and state.memory.dtype == torch.float32
    assert half.interface.weight.grad.dtype == torch.bfloat16
    assert layer(device="meta")(torch.empty(7, 3, 5, device="meta", **F64))[0].shape == (7, 3, 4)
    half.reset_parameters()
    assert not torch.equal(half.interface.weight, ntm.interface.weight.bfloat16())
    assert "num_cells=6" in repr(ntm) and "max_shift=1" in repr(ntm)


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled(dynamic):
    ntm = layer(learn_initial=True)
    compiled = torch.compile(ntm, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for steps, lengths in ((4, None), (7, torch.tensor([7, 0]))):
        x = torch.randn(steps, 2, 5, **F64)
        gradients = []
        for f in (ntm, compiled):
            y, _ = f(x, lengths=lengths)
            gradients.append(torch.autograd.grad(y.square().sum(), ntm.parameters()))
        for a, e in zip(*gradients):
            torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: nn.NTM(5, 4, 8, 0, 3), "num_cells"),
        (lambda: NTMState.initial(2, 8, 0, 3), "num_cells"),
        (lambda: nn.NTM(5, 4, 8, 6, 3, max_shift=-1), "max_shift"),
        (lambda: nn.NTM(5, 4, 8, 6, 3, memory_value=0.0), "memory_value"),
        (lambda: nn.NTMCell(5, 4, 8, 6, 3, controller=torch.nn.LSTM(8, 8)), "controller"),
        (lambda: layer()(torch.randn(3, 2, 6, **F64)), "input"),
        (lambda: layer(nn.NTMCell)(torch.randn(3, 2, 5, **F64)), "input"),
        (lambda: layer()(torch.randn(3, 5, **F64), lengths=torch.tensor([3])), "lengths"),
        (lambda: layer()(torch.randn(3, 2, 5, **F64), layer().initial_state(4)), "state"),
        (lambda: layer(nn.NTMCell)(torch.randn(2, 5, **F64), layer().initial_state(4)), "state"),
        (lambda: layer()(torch.randn(3, 5, **F64), state=(1,) * 6), "state"),
        (
            lambda: layer()(torch.randn(3, 2, 5, **F64), NTMState.initial(2, 8, 6, 4, 2, **F64)),
            r"NTM: state.memory must have shape \[2, 6, 3\], got \[2, 6, 4\]",
        ),
    ],
)
def test_errors_name_the_argument(call, name):
    with pytest.raises((TypeError, ValueError), match=name):
        call()


def test_learns_to_copy():
    """Random bits, a delimiter, the same bits again."""
    torch.manual_seed(1)
    ntm = nn.NTM(9, 8, 64, 32, 12)
    optimizer = torch.optim.Adam(ntm.parameters(), 4e-3)
    losses = []
    for _ in range(400):
        n = int(torch.randint(1, 9, ()))
        bits = torch.randint(2, (n, 16, 8)).float()
        x = torch.zeros(2 * n + 1, 16, 9)
        x[:n, :, :8], x[n, :, 8] = bits, 1
        loss = torch.nn.functional.binary_cross_entropy_with_logits(ntm(x)[0][n + 1 :], bits)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(ntm.parameters(), 10)
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-50:]) / 50 < 0.35  # chance: ln 2; seeds end between 0.03 and 0.17
