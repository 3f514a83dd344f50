"""Definition of the memory operations of the Differentiable Neural Computer (Graves et al. 2016) with masking,
de-allocation and sharpening (Csordas 2023, chapter 2 and App. A, whose equations are named below), and of the Neural
Turing Machine's addressing.

B batch, N cells, W width of a cell, R read heads. One write head.
"""

import sys

import torch
import torch.nn.functional as F


def _sqrt(x):
    """√x with the subgradient 0 at 0."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).sqrt(), 0)


def content_address(memory, key, strength, mask=None, eps=1e-6):
    """Softmax over the cells of strength · cosine(memory ∘ mask, key ∘ mask) (Eq. 2.1 to 2.4).

    memory [B, N, W], key [B, R, W], strength [B, R], mask [B, R, W] or None -> [B, R, N]. The cosine's denominator is
    |memory ∘ mask| · |key ∘ mask| + eps. The mask enters through its square only.
    """
    q = torch.ones_like(key) if mask is None else mask * mask
    dot = (q * key) @ memory.transpose(1, 2)
    cell_norm = _sqrt(q @ (memory * memory).transpose(1, 2))
    key_norm = _sqrt((q * key * key).sum(2, keepdim=True))
    return F.softmax(strength[..., None] * (dot / (key_norm * cell_norm + eps)), 2)


def retention(read_weights, free_gate):
    """ψ = Π over the read heads of (1 − free_gate · weights): read_weights [B, R, N], free_gate [B, R] -> [B, N]."""
    return (1 - free_gate[..., None] * read_weights).prod(1)


def usage_update(usage, write_weights, retention, detach_write=True):
    """(u + w − u ∘ w) ∘ ψ, all [B, N].

    The write weights get no gradient, as in the released code, unless ``detach_write`` is False.
    """
    w = write_weights.detach() if detach_write else write_weights
    return (usage + w * (1 - usage)) * retention


def allocation(usage, eps=1e-6):
    """a = (1 − ũ) · product of ũ over the cells used less, ũ = eps + (1 − eps) · usage; ties: the lower index first.

    usage [B, N] -> [B, N].
    """
    ascending, order = usage.sort(dim=1, stable=True)
    ascending = ascending * (1 - eps) + eps
    before = F.pad(ascending, (1, 0), value=1)[:, :-1].cumprod(1)
    return torch.zeros_like(usage).scatter(1, order, (1 - ascending) * before)


def memory_write(memory, write_weights, erase, value, retention=None):
    """memory ∘ (1 − w eᵀ) + w vᵀ; with ``retention`` the old content is also multiplied by ψ 1ᵀ (de-allocation).

    memory [B, N, W], write_weights [B, N], erase [B, W], value [B, W], retention [B, N] or None -> [B, N, W].
    """
    w = write_weights[..., None]
    kept = memory * (1 - w * erase[:, None])
    if retention is not None:
        kept = kept * retention[..., None]
    return kept + w * value[:, None]


def link_update(link, precedence, write_weights):
    """L'[i, j] = (1 − w[i] − w[j]) L[i, j] + w[i] p[j], 0 on the diagonal; p' = (1 − Σw) p + w.

    link [B, N, N], precedence [B, N], write_weights [B, N] -> (link, precedence).
    """
    row, column = write_weights[..., None], write_weights[:, None]
    updated = (1 - row - column) * link + row * precedence[:, None]
    diagonal = torch.eye(link.shape[1], dtype=torch.bool, device=link.device)
    total = write_weights.sum(1, keepdim=True)
    return updated.masked_fill(diagonal, 0), (1 - total) * precedence + write_weights


def link_read(link, read_weights, sharp_forward=None, sharp_backward=None, eps=1e-6):
    """forward = L r and backward = Lᵀ r for each read head; with a strength s sharpened to softmax(s · log(d + eps)),
    which is (d + eps)ˢ normalised to a sum of 1 (Eq. A.10).

    link [B, N, N], read_weights [B, R, N], sharp_forward and sharp_backward [B, R] or None -> two of [B, R, N].
    A projection below 0 (rounding of a link) counts as 0 when it is sharpened.
    """

    def sharpen(d, s):
        return d if s is None else F.softmax(s[..., None] * (d.clamp(min=0) + eps).log(), 2)

    forward = read_weights @ link.transpose(1, 2)
    return sharpen(forward, sharp_forward), sharpen(read_weights @ link, sharp_backward)


def memory_read(memory, read_weights):
    """r M: memory [B, N, W], read_weights [B, R, N] -> [B, R, W]."""
    return read_weights @ memory


def ntm_address(memory, key, strength, gate, shift, sharpness, previous, eps=1e-6):
    """Addressing of the Neural Turing Machine (Graves et al. 2014, Eq. 5 to 9): content, interpolation with the weights
    of the last step, circular shift, sharpening.

    memory [B, N, W], key [B, R, W], strength, gate and sharpness [B, R], previous [B, R, N], shift [B, R, 2 S + 1],
    whose entry k moves the focus by S − k cells -> [B, R, N]. Weights that are all 0 stay 0; so do those that rounding
    made negative. ``eps`` is that of :func:`content_address`: without it (the paper has none) the gradient at a cell
    that was erased has no bound.
    """
    content = content_address(memory, key, strength, eps=eps)
    interpolated = gate[..., None] * content + (1 - gate[..., None]) * previous
    reach = shift.shape[2] // 2
    shifted = sum(interpolated.roll(reach - k, 2) * shift[..., k : k + 1] for k in range(shift.shape[2]))
    absent = shifted <= 0  # a NaN is not, so that it shows
    exponent = (sharpness[..., None] * torch.where(absent, 1, shifted).log()).masked_fill(absent, float("-inf"))
    nothing = absent.all(2, keepdim=True)
    return torch.where(nothing, 0, F.softmax(torch.where(nothing, 0, exponent), 2))


def oneplus(x):
    return 1 + F.softplus(x)


def lstm_step(x, hidden, cell, reads, weight_input, weight_hidden, weight_reads, bias):
    """The controller: x [B, X], hidden and cell [B, H], reads [B, R, W] -> (hidden, cell)."""
    gates = F.linear(x, weight_input, bias) + F.linear(hidden, weight_hidden)
    i, f, g, o = (gates + F.linear(reads.flatten(1), weight_reads)).chunk(4, 1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def controls(interface, num_reads, word_size, masked, sharpen, mask_min, clip):
    """What the interface vector [B, I] tells the memory, by name; entries that a variant lacks are None (Eq. A.1)."""
    b, r, w = len(interface), num_reads, word_size
    sizes = {"write_mask": w * masked, "write_key": w, "erase": w, "value": w, "free_gates": r, "write_strength": 1}
    sizes |= {"allocation_gate": 1, "write_gate": 1}
    sizes |= {"read_mask": r * w * masked, "read_key": r * w, "read_strength": r, "read_mode": 3 * r}
    sizes |= {"sharp_forward": r * sharpen, "sharp_backward": r * sharpen}
    parts = dict(zip(sizes, interface.clamp(-clip, clip).split(list(sizes.values()), 1)))
    for name in ("erase", "free_gates", "allocation_gate", "write_gate"):
        parts[name] = parts[name].sigmoid()
    for name in ("write_strength", "read_strength", "sharp_forward", "sharp_backward"):
        parts[name] = oneplus(parts[name])
    for name in ("write_mask", "read_mask"):
        parts[name] = parts[name].sigmoid() * (1 - mask_min) + mask_min
    parts["read_mode"] = parts["read_mode"].view(b, r, 3).softmax(2)
    parts["read_key"] = parts["read_key"].view(b, r, w)
    for name in ("write_strength", "allocation_gate", "write_gate"):
        parts[name] = parts[name][:, 0]
    parts["read_mask"] = parts["read_mask"].view(b, r, w) if masked else None
    parts["write_mask"] = parts["write_mask"] if masked else None
    if not sharpen:
        parts["sharp_forward"] = parts["sharp_backward"] = None
    return parts


def memory_step(control, memory, usage, link, precedence, write_weights, read_weights, dealloc, detach_write, eps, ops):
    """One write and one read of the memory (Eq. A.5 to A.12), made of the operations that ``ops`` has.

    control: of :func:`controls` -> (memory, usage, link, precedence, write_weights, read_weights, reads, what else was
    computed, by name).
    """
    mask = control["write_mask"]
    mask = None if mask is None else mask[:, None]
    key, strength = control["write_key"][:, None], control["write_strength"][:, None]
    write_content = ops.content_address(memory, key, strength, mask, eps)[:, 0]
    retention = ops.retention(read_weights, control["free_gates"])
    usage = ops.usage_update(usage, write_weights, retention, detach_write)
    allocation = ops.allocation(usage, eps)
    write_gate, allocation_gate = control["write_gate"][:, None], control["allocation_gate"][:, None]
    write_weights = write_gate * (allocation_gate * allocation + (1 - allocation_gate) * write_content)
    erase, value = control["erase"], control["value"]
    memory = ops.memory_write(memory, write_weights, erase, value, retention if dealloc else None)
    link, precedence = ops.link_update(link, precedence, write_weights)
    sharp = control["sharp_forward"], control["sharp_backward"]
    forward, backward = ops.link_read(link, read_weights, *sharp, eps)
    read_key, strength, mask = control["read_key"], control["read_strength"], control["read_mask"]
    read_content = ops.content_address(memory, read_key, strength, mask, eps)
    mode = control["read_mode"]
    read_weights = mode[..., :1] * backward + mode[..., 1:2] * read_content + mode[..., 2:] * forward
    reads = ops.memory_read(memory, read_weights)
    computed = {"write_content": write_content, "retention": retention, "allocation": allocation}
    computed |= {"read_content": read_content, "forward": forward, "backward": backward}
    return memory, usage, link, precedence, write_weights, read_weights, reads, computed


def until_end(sequence, lengths):
    """sequence [T, B, D] with 0 after the ``lengths`` [B] of the samples, if given."""
    if lengths is None:
        return sequence
    ended = torch.arange(len(sequence), device=sequence.device)[:, None] >= lengths
    return sequence.masked_fill(ended[..., None], 0)


def unroll(step, input, state, lengths):
    """``step(x [B, X], state) -> state`` over input [T, B, X]: (hidden [T, B, H], reads [T, B, R, W], last state).

    After the ``lengths`` [B] of the samples, if given, a state stays as it is and hidden and reads are 0.
    """
    b = len(state.hidden)
    hidden_out, reads_out = [], []
    for t, x in enumerate(until_end(input, lengths)):  # a NaN in the padding would reach the gradients
        new = step(x, state)
        hidden, reads = new.hidden, new.reads
        if lengths is not None:
            runs = [(t < lengths).view(b, *[1] * (n.dim() - 1)) for n in new]
            hidden, reads = torch.where(runs[0], hidden, 0), torch.where(runs[-1], reads, 0)
            new = type(state)(*(torch.where(on, n, old) for on, n, old in zip(runs, new, state)))
        state = new
        hidden_out.append(hidden)
        reads_out.append(reads)
    if not hidden_out:
        return input.new_zeros(0, *state.hidden.shape), input.new_zeros(0, *state.reads.shape), state
    return torch.stack(hidden_out), torch.stack(reads_out), state


def dnc_sequence(
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
    masked=True,
    dealloc=True,
    sharpen=True,
    detach_write=True,
    mask_min=0.0,
    clip=20.0,
    eps=1e-6,
    checkpoint_every=None,
):
    """Definition of :func:`sysgen.ops.dnc_sequence`, whose arguments and results it has."""
    controller = weight_input, weight_hidden, weight_reads, bias
    _, r, w = state.reads.shape

    def step(x, state):
        hidden, cell = lstm_step(x, state.hidden, state.cell, state.reads, *controller)
        interface = F.linear(hidden, weight_interface, bias_interface)
        control = controls(interface, r, w, masked, sharpen, mask_min, clip)
        *new, _ = memory_step(control, *state[2:8], dealloc, detach_write, eps, sys.modules[__name__])
        return type(state)(hidden, cell, *new)

    return unroll(step, input, state, lengths)
