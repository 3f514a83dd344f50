"""Definition of :func:`sysgen.ops.select_experts`: a stable sort, and softmaxes (Csordás 2023, Eq. 7.11, 7.19-7.21)."""

import torch


def select_experts(logits, k, *, selection="sigmoid", expert_dropout=0.0, seed=None, return_log_sum=False):
    """logits [..., E] -> experts int64 [..., k], gate [..., k], and log_sum [E] if it is asked for."""
    num_experts = logits.shape[-1]
    rows = logits.reshape(-1, num_experts)
    scores = rows.detach() + 0  # -0 becomes 0
    scores = torch.where(scores.isnan(), torch.inf, scores)
    first = rows.isnan().to(scores.dtype)  # two stable sorts, of which the last one counts most
    dropped = drawn(seed, rows, expert_dropout)
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    for key in (first, (~dropped).to(scores.dtype)):
        order = order.gather(-1, key.gather(-1, order).sort(dim=-1, descending=True, stable=True).indices)
    experts = order[:, :k]
    experts = experts.masked_fill(dropped.gather(-1, experts), -1)
    gate, log_sum = gate_and_log_sum(rows, experts, selection)
    shape = (*logits.shape[:-1], k)
    selected = experts.view(shape), gate.view(shape)
    return (*selected, log_sum) if return_log_sum else selected


def gate_and_log_sum(logits, experts, selection):
    """Gates [T, k] of the experts [T, k] that were chosen by logits [T, E], 0 for −1, and the logarithm of the sum over
    the tokens of softmax(logits), [E]."""
    chosen, log_p = experts >= 0, logits.log_softmax(-1)
    of_chosen = experts.clamp(min=0)
    if selection == "sigmoid":
        gate = logits.gather(-1, of_chosen).sigmoid()
    elif selection == "softmax":
        gate = log_p.gather(-1, of_chosen).exp()
    else:
        left = logits.gather(-1, of_chosen).masked_fill(~chosen, -torch.inf)
        gate = left.masked_fill(~chosen.any(-1, keepdim=True), 0).softmax(-1)
    return gate.masked_fill(~chosen, 0), log_p.logsumexp(0)


def drawn(seed, like, rate):
    """[T, E]: is an expert dropped for a token? 16 bits for each from splitmix64 (Steele et al. 2014) of a counter."""
    tokens, num_experts = like.shape
    if not rate:
        return torch.zeros(like.shape, dtype=torch.bool, device=like.device)
    words = -(-num_experts // 4)
    golden, stream = _signed(0x9E3779B97F4A7C15), 4
    counters = torch.arange(tokens * words, device=like.device)
    word = _mix(_mix(seed.to(like.device) + stream) + counters * golden)  # int64 wraps around, as intended
    bits = torch.stack([word >> 16 * i & 0xFFFF for i in range(4)], -1)
    return bits.view(tokens, 4 * words)[:, :num_experts] < int(rate * 65536 + 0.5)


def _signed(x):
    return x - 2**64 if x >= 2**63 else x


def _mix(z):
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ _shifted(z, shift)) * _signed(factor)
    return z ^ _shifted(z, 31)


def _shifted(z, n):
    """To the right as an unsigned number."""
    return z >> n & (1 << 64 - n) - 1
