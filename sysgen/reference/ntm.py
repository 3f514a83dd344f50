"""Definition of the Neural Turing Machine with an LSTM controller (Graves et al. 2014). The operations on the memory
that it is made of stand in :mod:`sysgen.reference.dnc`.

B batch, N cells, W width of a cell, P pairs of a read and a write head, S farthest shift of the focus.
"""

import sys

import torch
import torch.nn.functional as F

from .dnc import lstm_step, memory_read, memory_write, ntm_address, oneplus, unroll

__all__ = ["controls", "memory_read", "memory_step", "memory_write", "ntm_address", "ntm_sequence"]


def controls(interface, num_heads, word_size, max_shift):
    """What the interface vector [B, I] tells the memory, by name: keys [B, P, W], strengths, gates and sharpness [B, P]
    and shifts [B, P, 2 S + 1] of the read and the write heads; erase and add [B, P, W]. The order of its entries stands
    in csrc/ntm/ntm.h.
    """
    p, w, k = num_heads, word_size, 2 * max_shift + 1
    sizes = {"key": 2 * p * w, "erase": p * w, "add": p * w, "strength": 2 * p, "gate": 2 * p, "sharpness": 2 * p}
    sizes |= {"shift": 2 * p * k}
    parts = dict(zip(sizes, interface.split(list(sizes.values()), 1)))
    both = {
        "key": parts["key"].unflatten(1, (p, 2, w)),
        "strength": F.softplus(parts["strength"]).unflatten(1, (p, 2)),
        "gate": parts["gate"].sigmoid().unflatten(1, (p, 2)),
        "shift": parts["shift"].unflatten(1, (p, 2, k)).softmax(3),
        "sharpness": oneplus(parts["sharpness"]).unflatten(1, (p, 2)),
    }
    found = {f"{side}_{name}": t[:, :, i] for i, side in enumerate(("read", "write")) for name, t in both.items()}
    found["erase"] = parts["erase"].sigmoid().unflatten(1, (p, w))
    found["add"] = parts["add"].unflatten(1, (p, w))
    return found


def memory_step(control, memory, read_weights, write_weights, eps, ops):
    """Each pair of heads in turn reads and then writes (section 3.1 to 3.3), by the operations that ``ops`` has.

    control: of :func:`controls`; the state as in :class:`sysgen.ops.NTMState` -> (memory, read_weights, write_weights,
    reads). The write head of a pair looks for its place in the memory that the read head saw.
    """

    def address(side, before, p):
        names = "key", "strength", "gate", "shift", "sharpness"
        head = (control[f"{side}_{name}"][:, p : p + 1] for name in names)
        return ops.ntm_address(memory, *head, before[:, p : p + 1], eps=eps)

    reading, writing, reads = [], [], []
    for p in range(read_weights.shape[1]):
        reading.append(address("read", read_weights, p))
        writing.append(address("write", write_weights, p))
        reads.append(ops.memory_read(memory, reading[-1]))
        memory = ops.memory_write(memory, writing[-1][:, 0], control["erase"][:, p], control["add"][:, p])
    return memory, torch.cat(reading, 1), torch.cat(writing, 1), torch.cat(reads, 1)


def ntm_sequence(
    input,
    state,
    weight_input,
    weight_hidden,
    weight_reads,
    bias,
    weight_interface,
    bias_interface,
    *,
    lengths=None,
    max_shift=1,
    eps=1e-6,
    checkpoint_every=None,
):
    """Definition of :func:`sysgen.ops.ntm_sequence`, whose arguments and results it has."""
    controller = weight_input, weight_hidden, weight_reads, bias
    _, p, w = state.reads.shape

    def step(x, state):
        hidden, cell = lstm_step(x, state.hidden, state.cell, state.reads, *controller)
        control = controls(F.linear(hidden, weight_interface, bias_interface), p, w, max_shift)
        return type(state)(hidden, cell, *memory_step(control, *state[2:5], eps, sys.modules[__name__]))

    return unroll(step, input, state, lengths)
