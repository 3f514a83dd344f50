"""Definition of the memory operations of the Differentiable Neural Computer (Graves et al. 2016) with masking,
de-allocation and sharpening (Csordas 2023, chapter 2 and App. A, whose equations are named below), and of the Neural
Turing Machine's addressing.

B batch, N cells, W width of a cell, R read heads. One write head.
"""

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
    u = usage * (1 - eps) + eps
    ascending, order = u.sort(dim=1, stable=True)
    before = F.pad(ascending, (1, 0), value=1)[:, :-1].cumprod(1)
    return torch.zeros_like(u).scatter(1, order, (1 - ascending) * before)


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


def dnc_step(x, state, weights, masked, dealloc, sharpen, detach_write, mask_min, clip, eps):
    """One step of :func:`dnc_sequence`: x [B, X] -> (the nine tensors of the new state, all else that was computed)."""
    weight_input, weight_hidden, weight_reads, bias, weight_interface, bias_interface = weights
    hidden, cell, memory, usage, link, precedence, write_weights, read_weights, reads = state
    b, r, w = reads.shape

    def oneplus(x):
        return 1 + F.softplus(x)

    def mask(x, *shape):
        return (x.sigmoid() * (1 - mask_min) + mask_min).view(*shape)

    gates = F.linear(x, weight_input, bias) + F.linear(hidden, weight_hidden)
    i, f, g, o = (gates + F.linear(reads.flatten(1), weight_reads)).chunk(4, 1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    hidden = o.sigmoid() * cell.tanh()

    parts = F.linear(hidden, weight_interface, bias_interface).clamp(-clip, clip)
    sizes = [w, w, w, r, 1, 1, 1, r * w, r, 3 * r]
    sizes[:0] = [w] * masked
    sizes[7 + masked : 7 + masked] = [r * w] * masked
    parts = iter(parts.split(sizes + [r, r] * sharpen, 1))
    write_mask = mask(next(parts), b, 1, w) if masked else None
    write_key, erase, value, free = next(parts), next(parts).sigmoid(), next(parts), next(parts).sigmoid()
    write_strength, allocation_gate, write_gate = oneplus(next(parts)), next(parts).sigmoid(), next(parts).sigmoid()
    read_mask = mask(next(parts), b, r, w) if masked else None
    read_key, read_strength = next(parts).view(b, r, w), oneplus(next(parts))
    mode = next(parts).view(b, r, 3).softmax(2)
    sharp = [oneplus(next(parts)), oneplus(next(parts))] if sharpen else [None, None]

    write_content = content_address(memory, write_key[:, None], write_strength, write_mask, eps)[:, 0]
    kept = retention(read_weights, free)
    usage = usage_update(usage, write_weights, kept, detach_write)
    allocated = allocation(usage, eps)
    write_weights = write_gate * (allocation_gate * allocated + (1 - allocation_gate) * write_content)
    memory = memory_write(memory, write_weights, erase, value, kept if dealloc else None)
    link, precedence = link_update(link, precedence, write_weights)
    forward, backward = link_read(link, read_weights, *sharp, eps)
    read_content = content_address(memory, read_key, read_strength, read_mask, eps)
    read_weights = mode[..., :1] * backward + mode[..., 1:2] * read_content + mode[..., 2:] * forward
    reads = memory_read(memory, read_weights)
    computed = {
        "write_mask": None if write_mask is None else write_mask[:, 0],
        "write_key": write_key,
        "write_strength": write_strength[:, 0],
        "write_content": write_content,
        "erase": erase,
        "value": value,
        "free_gates": free,
        "retention": kept,
        "allocation": allocated,
        "allocation_gate": allocation_gate[:, 0],
        "write_gate": write_gate[:, 0],
        "read_mask": read_mask,
        "read_key": read_key,
        "read_strength": read_strength,
        "read_content": read_content,
        "read_mode": mode,
        "forward": forward,
        "backward": backward,
        "sharp_forward": sharp[0],
        "sharp_backward": sharp[1],
    }
    return (hidden, cell, memory, usage, link, precedence, write_weights, read_weights, reads), computed


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
    weights = weight_input, weight_hidden, weight_reads, bias, weight_interface, bias_interface
    b = len(state.hidden)
    hidden_out, reads_out = [], []
    for t, x in enumerate(input):
        new, _ = dnc_step(x, state, weights, masked, dealloc, sharpen, detach_write, mask_min, clip, eps)
        if lengths is None:
            hidden, reads = new[0], new[8]
        else:
            runs = [(t < lengths).view(b, *[1] * (n.dim() - 1)) for n in new]
            hidden, reads = torch.where(runs[0], new[0], 0), torch.where(runs[8], new[8], 0)
            new = (torch.where(on, n, old) for on, n, old in zip(runs, new, state))
        state = type(state)(*new)
        hidden_out.append(hidden)
        reads_out.append(reads)
    if not hidden_out:
        return input.new_zeros(0, *state.hidden.shape), input.new_zeros(0, *state.reads.shape), state
    return torch.stack(hidden_out), torch.stack(reads_out), state
