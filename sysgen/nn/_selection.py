"""Choice of experts: logits, top-k with a defined order of ties, and the gates of the chosen ones."""

import torch
import torch.nn.functional as F

from .._library import autocast_dtype

SELECTIONS = ("sigmoid", "softmax", "softmax_after_topk")


def selection_logits(x, weight):
    """x [..., d] · weight [E, d]ᵀ -> [..., E], float32 (float64 for float64), also under autocast.

    Which experts serve a token hangs on differences between logits, and bfloat16 keeps 8 bits of each: many would tie.
    """
    dtype = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    if autocast_dtype(x) is None:
        return F.linear(x.to(dtype), weight.to(dtype))
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(dtype), weight.to(dtype))


@torch.no_grad()
def top_k(scores, k):
    """Indices [..., k] of the k largest scores [..., E]. Among equal scores the lowest index wins, on every device.

    ``torch.topk`` leaves ties open. A stable sort settles them, but at E = 512 takes five times as long as asking
    twice: first for the k-th largest value, then for the largest of keys that no two experts share. The slots come in
    no particular order of scores.
    """
    threshold = scores.topk(k, dim=-1).values[..., -1:]
    num_experts = scores.shape[-1]
    tied = torch.arange(num_experts, 0, -1, dtype=scores.dtype, device=scores.device)
    above = tied + num_experts  # a NaN score is not below the threshold, so it is chosen and shows
    keys = torch.where(scores == threshold, tied, torch.where(scores < threshold, 0, above))
    return keys.topk(k, dim=-1, sorted=False).indices


def select(logits, k, selection, expert_dropout):
    """The experts of each token, −1 where expert dropout has left none, and their gates. Both [..., k].

    Expert dropout multiplies the selection scores by a mask m (Eq. 7.21), drawn for each token and expert. Dropped
    experts have score 0 and thus rank behind all others; one that is chosen all the same, because fewer than k are
    left, has gate 0 and its route is dropped.
    """
    scores, dropped = logits.detach(), None
    if expert_dropout > 0:
        dropped = torch.rand_like(scores) < expert_dropout
        scores = scores.masked_fill(dropped, -torch.inf)
    experts = top_k(scores, k)  # by logit: sigmoid and softmax keep the order
    if dropped is not None:
        dropped = dropped.gather(-1, experts)
    if selection == "softmax":
        gate = logits.softmax(-1).gather(-1, experts)
    else:
        gate = logits.gather(-1, experts)
        if selection == "sigmoid":
            gate = gate.sigmoid()
        else:
            if dropped is not None:  # finite, because all k may be dropped
                gate = gate.masked_fill(dropped, torch.finfo(gate.dtype).min)
            gate = gate.softmax(-1)
    if dropped is not None:
        gate, experts = gate.masked_fill(dropped, 0), experts.masked_fill(dropped, -1)
    return experts, gate
