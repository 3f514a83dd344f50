"""The recurrence of a Differentiable Neural Computer in plain torch: what a user without this package would run.

All take and return what :func:`sysgen.ops.dnc_sequence` does, masked, with de-allocation and sharpening, and without
padding. The well-written one is ``sysgen.reference.dnc_sequence``: masks squared into the keys, products where sums
over products would do, one softmax for a sharpening.
"""

import torch
from torch.nn import functional as F

from sysgen.reference.dnc import controls, lstm_step

EPS = 1e-6


def released(input, state, weight_input, weight_hidden, weight_reads, bias, weight_interface, bias_interface):
    """In the order and with the temporaries of the thesis' code (Csordás 2023, App. A): masked copies of the memory
    [B, R, N, W], the projections of the links as sums over [B, R, N, N], a sharpening by maximum, power and sum."""
    hidden, cell, memory, usage, link, precedence, write_weights, read_weights, reads = state
    heads, width = reads.shape[1:]
    off_diagonal = 1 - torch.eye(memory.shape[1], dtype=memory.dtype, device=memory.device)
    outputs = []
    for x in input:
        hidden, cell = lstm_step(x, hidden, cell, reads, weight_input, weight_hidden, weight_reads, bias)
        interface = F.linear(hidden, weight_interface, bias_interface)
        c = controls(interface, heads, width, True, True, 0.0, 20.0)
        key, mask = c["write_key"][:, None], c["write_mask"][:, None]
        write_content = _content(memory, key, c["write_strength"][:, None], mask)[:, 0]
        retention = (1 - c["free_gates"][..., None] * read_weights).prod(1)
        usage = (usage + write_weights.detach() * (1 - usage)) * retention
        gate = c["allocation_gate"][:, None]
        write_weights = c["write_gate"][:, None] * (gate * _allocation(usage) + (1 - gate) * write_content)
        column = write_weights[..., None]
        memory = memory * (1 - column * c["erase"][:, None]) * retention[..., None] + column * c["value"][:, None]
        row = write_weights[:, None]
        link = ((1 - column - row) * link + column * precedence[:, None]) * off_diagonal
        precedence = (1 - write_weights.sum(1, keepdim=True)) * precedence + write_weights
        forward = _sharpened((link[:, None] * read_weights[:, :, None]).sum(3), c["sharp_forward"])
        backward = _sharpened((link[:, None] * read_weights[..., None]).sum(2), c["sharp_backward"])
        read_content = _content(memory, c["read_key"], c["read_strength"], c["read_mask"])
        mode = c["read_mode"]
        read_weights = mode[..., :1] * backward + mode[..., 1:2] * read_content + mode[..., 2:] * forward
        reads = (memory[:, None] * read_weights[..., None]).sum(2)
        outputs.append((hidden, reads))
    last = hidden, cell, memory, usage, link, precedence, write_weights, read_weights, reads
    return *(torch.stack(t) for t in zip(*outputs)), last


def _content(memory, key, strength, mask):
    cells, key = memory[:, None] * mask[:, :, None], (key * mask)[:, :, None]
    dot = (cells * key).sum(3)
    norms = cells.norm(dim=3) * key.norm(dim=3)
    return F.softmax(dot / (norms + EPS) * strength[..., None], 2)


def _allocation(usage):
    ascending, order = (usage * (1 - EPS) + EPS).sort(1)
    before = torch.cat((torch.ones_like(ascending[:, :1]), ascending.cumprod(1)[:, :-1]), 1)
    return torch.zeros_like(usage).scatter(1, order, (1 - ascending) * before)


def _sharpened(d, strength):
    d = d + EPS
    d = (d / d.max(2, keepdim=True).values).pow(strength[..., None])
    return d / d.sum(2, keepdim=True)


class Controller(torch.nn.Module):
    """torch's LSTM and the interface's product on the same sizes, without any memory: the floor of a DNC's time."""

    def __init__(self, inputs, hidden, reads, interface):
        super().__init__()
        self.lstm = torch.nn.LSTM(inputs + reads, hidden)
        self.interface = torch.nn.Linear(hidden, interface)

    def forward(self, x):
        padded = F.pad(x, (0, self.lstm.input_size - x.shape[2]))
        hidden, _ = self.lstm(padded)
        return hidden, self.interface(hidden)
