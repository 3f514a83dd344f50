"""The DNC step by step: the cell against the layer, modules as controllers, variants by name."""

import pytest
import torch
from test_dnc_adversarial import HIGH, MODE, interface
from torch.autograd import gradcheck

from sysgen import nn

F64 = {"dtype": torch.float64}
SIZES = (5, 4, 8, 6, 3, 2)  # X, Y, H, N, W, R
READS = 5 + 2 * 3
VARIANTS = ["dnc", "dnc-d", "dnc-m", "dnc-s", "dnc-md", "dnc-ms", "dnc-ds", "dnc-mds"]


class MLP(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Linear(READS, 10, **F64), torch.nn.Tanh(), torch.nn.Linear(10, 8, **F64))


class Stack(torch.nn.Module):
    """Two layers of GRU, with the states of both in one tensor: a controller with a state of its own width."""

    state_size = 7 + 8

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.GRUCell(READS, 7, **F64), torch.nn.GRUCell(7, 8, **F64)])

    def forward(self, x, state):
        below = self.layers[0](x, state[:, :7])
        output = self.layers[1](below, state[:, 7:])
        return 2 * output, torch.cat([below, output], 1)


CONTROLLERS = {
    "lstm": lambda: None,
    "LSTMCell": lambda: torch.nn.LSTMCell(READS, 8, **F64),
    "GRUCell": lambda: torch.nn.GRUCell(READS, 8, **F64),
    "RNNCell": lambda: torch.nn.RNNCell(READS, 8, **F64),
    "MLP": MLP,
    "state_size": Stack,
}


def make(kind, seed=0, **options):
    torch.manual_seed(seed)
    return kind(*SIZES, **F64, **options)


def pair(name, seed=0):
    """The layer and the cell with the same parameters and controllers of the kind ``name``."""
    torch.manual_seed(seed)
    dnc, cell = (make(kind, controller=CONTROLLERS[name]()) for kind in (nn.DNC, nn.DNCCell))
    cell.load_state_dict(dnc.state_dict())
    return dnc, cell


def walk(cell, x, state=None):
    outputs = []
    for step in x:
        y, state = cell(step, state)
        outputs.append(y)
    return torch.stack(outputs), state


def close(actual, expected, atol=1e-10):  # float64, and slopes of some hundreds at sharpened links
    for a, e in zip(actual, expected):
        torch.testing.assert_close(a, e, rtol=0, atol=atol)


@pytest.mark.parametrize("name", VARIANTS)
def test_steps_give_what_the_layer_gives(name):
    """Outputs, last state and the gradients of all parameters and of the initial state."""
    dnc, cell = (make(lambda *a, kind=kind, **k: kind.variant(name, *a, **k)) for kind in (nn.DNC, nn.DNCCell))
    cell.load_state_dict(dnc.state_dict())
    x = torch.randn(7, 3, 5, **F64)
    _, start = dnc(torch.randn(4, 3, 5, **F64))
    results = []
    for run, module in ((dnc, dnc), (lambda x, state: walk(cell, x, state), cell)):
        given = type(start)(*(t.detach().requires_grad_() for t in start))
        y, last = run(x, given)
        loss = y.square().sum() + sum(t.sin().sum() for t in last)
        leaves = [*module.parameters(), *given]
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        results.append((y, *last, *gradients))
    close(*results)


@pytest.mark.parametrize("name", CONTROLLERS)
def test_any_controller_through_layer_and_cell(name):
    dnc, cell = pair(name)
    x = torch.randn(6, 3, 5, **F64)
    y, last = dnc(x)
    stepped, end = walk(cell, x)
    close((y, *last), (stepped, *end))
    first, state = dnc(x[:2])
    second, end = dnc(x[2:], state)
    close((y, *last), (torch.cat([first, second]), *end))
    y.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in dnc.parameters())
    assert dnc.initial_state(2, num_cells=9).memory.shape == (2, 9, 3)


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell", "MLP", "state_size"])
def test_a_controller_sees_the_input_the_last_reads_and_its_state(name):
    _, cell = pair(name)
    _, before = walk(cell, torch.randn(3, 2, 5, **F64))
    x = torch.randn(2, 5, **F64)
    _, after = cell(x, before)
    seen = torch.cat([x, before.reads.flatten(1)], 1)
    if name == "LSTMCell":
        expected = cell.controller(seen, (before.hidden, before.cell))
    elif name == "state_size":
        expected = cell.controller(seen, before.cell)
    elif name == "MLP":
        expected = cell.controller(seen), torch.zeros(2, 0, **F64)
    else:
        expected = cell.controller(seen, before.hidden), torch.zeros(2, 0, **F64)
    close((after.hidden, after.cell), expected, atol=0)
    assert before.reads.abs().min() > 1e-6


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "MLP", "state_size"])
def test_a_sample_with_a_controller_ends_when_it_ends(name):
    dnc, _ = pair(name)
    samples = [torch.randn(n, 5, **F64) for n in (3, 5, 4)]
    packed, end = dnc(torch.nn.utils.rnn.pack_sequence(samples, enforce_sorted=False))
    y, last = dnc(torch.nn.utils.rnn.pad_sequence(samples), lengths=torch.tensor([3, 5, 4]))
    close((torch.nn.utils.rnn.pad_packed_sequence(packed)[0], *end), (y, *last))
    for b, sample in enumerate(samples):
        alone, state = dnc(sample)
        close((y[: len(sample), b], *(t[b] for t in last)), (alone, *state))
        assert (y[len(sample) :, b] == 0).all()


def test_an_lstm_cell_as_controller_is_the_lstm():
    dnc, module = make(nn.DNC), make(nn.DNC, controller=CONTROLLERS["LSTMCell"]())
    parameters = dnc.state_dict()
    names = ("weight_input", "weight_hidden", "weight_reads", "bias")
    weight_input, weight_hidden, weight_reads, bias = (parameters.pop(n) for n in names)
    parameters |= {"controller.weight_ih": torch.cat([weight_input, weight_reads], 1)}
    parameters |= {"controller.weight_hh": weight_hidden, "controller.bias_ih": bias}
    parameters |= {"controller.bias_hh": torch.zeros_like(bias)}
    module.load_state_dict(parameters)
    x = torch.randn(5, 2, 5, **F64)
    (y, last), (expected, state) = module(x), dnc(x)
    close((y, *last), (expected, *state))


def test_forms_of_a_step():
    cell = make(nn.DNCCell)
    x = torch.randn(3, 5, **F64)
    y, state = cell(x)
    alone, last = cell(x[1])
    close((alone, *last), (y[1], *(t[1] for t in state)))
    again, _ = cell(x[1], last.detach())
    assert again.shape == (4,)
    half = make(nn.DNCCell, controller=CONTROLLERS["LSTMCell"]()).to(torch.bfloat16)
    y, state = half(x.bfloat16())
    assert y.dtype == torch.bfloat16 and state.cell.dtype == torch.float32


def test_a_compiled_step():
    _, cell = pair("GRUCell")
    x, state = torch.randn(2, 5, **F64), cell.initial_state(2)
    (y, last), (expected, after) = torch.compile(cell, fullgraph=True, backend="eager")(x, state), cell(x, state)
    close((y, *last), (expected, *after))


def test_the_trace_of_a_controller_is_of_the_same_run():
    """With dropout in the controller a second run would be another one."""
    controller = torch.nn.Sequential(MLP(), torch.nn.Dropout(0.5))
    y, state, trace = make(nn.DNC, controller=controller)(torch.randn(6, 3, 5, **F64), return_trace=True)
    close([trace["memory"][-1], trace["read_weights"][-1]], [state.memory, state.read_weights], atol=0)
    assert y.requires_grad and not trace["memory"].requires_grad


def test_variants_have_the_flags_of_their_names():
    for name, flags in zip(VARIANTS, ("", "d", "m", "s", "md", "ms", "ds", "mds")):
        dnc = nn.DNC.variant(name, *SIZES)
        assert (dnc.masked, dnc.dealloc, dnc.sharpen) == tuple(letter in flags for letter in "mds")
    thesis = nn.DNC.variant("DNC-SDM", *SIZES, batch_first=True)
    assert thesis.masked and thesis.batch_first and thesis.mask_min == 0.1 and (thesis.interface.bias[:3] == 1).all()
    released = nn.DNCCell.variant("dnc-msd", *SIZES, released=True)
    assert released.mask_min == 0 and (released.interface.bias == 0).all()
    assert nn.DNC.variant("dnc-m", *SIZES, released=True, mask_min=0.1).mask_min == 0.1


class Wrong(torch.nn.Linear):
    state_size = "many"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: nn.DNC.variant("dnc-x", *SIZES), "name must be 'dnc'.* got 'dnc-x'"),
        (lambda: nn.DNC.variant("dnc-", *SIZES), "got 'dnc-'"),
        (lambda: nn.DNC.variant("dnc-dd", *SIZES), "got 'dnc-dd'"),
        (lambda: nn.DNC.variant("dnc-d", *SIZES, masked=True), "masked follows from the name"),
        (lambda: make(nn.DNC, mask_min=2), "mask_min must be in"),
        (lambda: make(nn.DNCCell, clip=0), "DNCCell: clip must be positive"),
        (lambda: make(nn.DNC, controller="lstm"), "controller must be an nn.Module or None, got str"),
        (lambda: make(nn.DNC, controller=torch.nn.LSTM(READS, 8)), "as nn.LSTMCell does"),
        (lambda: make(nn.DNC, controller=torch.nn.GRUCell(5, 8)), "controller's input_size must be 11, got 5"),
        (lambda: make(nn.DNC, controller=Wrong(11, 8)), "state_size must be an int of at least 0, got 'many'"),
        (
            lambda: make(nn.DNC, controller=torch.nn.Linear(11, 9, **F64))(torch.randn(2, 3, 5, **F64)),
            r"controller's output must have shape \[3, 8\], got \[3, 9\]",
        ),
        (lambda: make(nn.DNCCell)(torch.randn(2, 3, 5, **F64)), r"DNCCell: input must have shape \[B, 5\]"),
        (lambda: make(nn.DNCCell)(torch.randn(3, 5)), "DNCCell: input must be float64 as the layer's parameters"),
        (
            lambda: make(nn.DNCCell)(torch.randn(3, 5, **F64), make(nn.DNCCell).initial_state(4)),
            r"DNCCell: state.hidden must have shape \[3, 8\], got \[4, 8\]",
        ),
        (
            lambda: pair("MLP")[0](torch.randn(2, 3, 5, **F64), make(nn.DNC).initial_state(3)),
            r"DNC: state.cell must have shape \[3, 0\], got \[3, 8\]",
        ),
        (
            lambda: pair("MLP")[0](torch.randn(2, 3, 5, **F64), lengths=torch.tensor([1, 2, 3])),
            r"DNC: lengths must lie in \[0, 2\]",
        ),
    ],
)
def test_errors_say_what_is_wrong(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()


# What the layer of (Graves et al. 2016) must do, at the sizes of its authors' own tests: 20 cells of 6, 2 reads


def graves(kind=nn.DNC, **options):
    torch.manual_seed(0)
    flags = dict.fromkeys(("masked", "dealloc", "sharpen"), False)
    return kind(10, 7, 5, 20, 6, 2, **{**flags, **F64, **options})


def constant(clip=HIGH, **entries):
    """A cell whose interface is what ``entries`` say, whatever it is given."""
    cell = graves(nn.DNCCell, clip=clip)
    torch.nn.init.zeros_(cell.interface.weight)
    cell.interface.bias.data = interface(6, 2, **entries)
    return cell


def test_a_step_of_training_with_a_large_rate_stays_finite():
    for options in ({}, {"masked": True, "dealloc": True, "sharpen": True}):
        dnc = graves(**options)
        x, target = torch.randn(4, 2, 10, **F64), torch.rand(4, 2, 7, **F64)
        before = torch.nn.functional.mse_loss(dnc(x)[0], target)
        before.backward()
        torch.optim.SGD(dnc.parameters(), 1.0).step()
        after = torch.nn.functional.mse_loss(dnc(x)[0], target)
        assert after.isfinite() and after != before
        assert all(p.isfinite().all() for p in dnc.parameters())


def test_modes_and_other_distributions_are_some():
    *_, trace = graves(masked=True, dealloc=True, sharpen=True)(torch.randn(4, 2, 10, **F64), return_trace=True)
    for name in ("read_mode", "write_content", "read_content", "forward", "backward"):
        assert (trace[name] >= 0).all()
        close([trace[name].sum(-1)], [torch.ones(trace[name].shape[:-1], **F64)])
    for name in ("write_gate", "allocation_gate", "free_gates", "write_mask", "read_mask", "erase", "usage"):
        assert trace[name].min() >= 0 and trace[name].max() <= 1


def test_a_write_has_the_size_of_its_gate_and_goes_to_the_unused_cell():
    memory = 10 * (torch.rand(2, 20, 6, **F64) - 0.5)
    usage = torch.rand(2, 20, **F64)
    usage[:, 3] = 0
    cell = constant(allocation_gate=HIGH, write_gate=HIGH, write_key=torch.randn(6, **F64))
    _, state = cell(torch.randn(2, 10, **F64), cell.initial_state(2)._replace(memory=memory, usage=usage))
    close([state.write_weights], [torch.eye(20, **F64)[[3, 3]]], atol=1e-5)  # ε of the allocation, 19 cells
    cell = constant(allocation_gate=0.5, write_gate=0.3, write_key=torch.randn(6, **F64))
    _, state = cell(torch.randn(2, 10, **F64), cell.initial_state(2)._replace(memory=memory, usage=usage))
    close([state.write_weights.sum(1)], [torch.full((2,), 0.3, **F64).sigmoid()], atol=1e-5)


def test_a_key_that_is_a_cell_reads_it_whatever_the_links_say():
    memory = 10 * (torch.rand(2, 20, 6, **F64) - 0.5)
    link = torch.rand(2, 20, 20, **F64) / 20 * (1 - torch.eye(20, **F64))
    read_weights = torch.rand(2, 2, 20, **F64) / 20
    keys = torch.cat([memory[0, 3], torch.randn(6, **F64)])
    cell = constant(write_gate=-HIGH, read_key=keys, read_strength=HIGH, mode=MODE["content"] + MODE["forward"])
    start = cell.initial_state(2)._replace(memory=memory, link=link, read_weights=read_weights)
    _, state = cell(torch.randn(2, 10, **F64), start)
    close([state.read_weights[0, 0]], [torch.eye(20, **F64)[3]], atol=1e-3)
    close([state.reads[0, 0]], [memory[0, 3]], atol=1e-2)
    close([state.read_weights[:, 1]], [(link @ read_weights[:, 1, :, None])[..., 0]])


@pytest.mark.parametrize("name", ["memory", "read_weights", "precedence", "link", "input"])
@pytest.mark.parametrize("start", ["empty", "used"])
def test_gradients_of_the_reads(name, start):
    """Of Σ reads after a step, against differences. At an empty memory the cosine bends within ε of 0, so that the
    differences must be far smaller there: 1e-10 of them bends by 1e-4, and 2⁻⁵³ rounds it by 1e-6."""
    used = start == "used"
    cell = graves(nn.DNCCell, sharpen=used, masked=used)
    x, state = torch.randn(2, 10, **F64), cell.initial_state(2)
    if used:
        state = walk(cell, torch.randn(5, 2, 10, **F64))[1].detach()
        state = state._replace(usage=torch.rand(2, 20, **F64))  # no ties, where the allocation jumps

    def reads(t):
        given = state if name == "input" else state._replace(**{name: t})
        return cell(t if name == "input" else x, given)[1].reads.sum((1, 2))

    argument = (x if name == "input" else getattr(state, name)).clone().requires_grad_()
    tiny = name == "memory" and not used
    assert gradcheck(reads, argument, eps=1e-10 if tiny else 1e-6, atol=1e-5, rtol=1e-3, fast_mode=True)
