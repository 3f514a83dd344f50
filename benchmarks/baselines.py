"""Geometric attention and the Neural Data Router's layer in plain torch: what a user without this package would run.

Attention takes and returns [B, H, N, D], with scores <q, k> / √D, no mask, the diagonal excluded.
"""

import torch
from torch.nn import functional as F


def dense(q, k, v, bias=None):
    """Eager, written with care: scores by distance, two log-sigmoids, one exclusive sum, weights scattered back.

    ``bias`` [B, H, N, 2]: added to the scores of the columns left and right of the row. Keeps about six tensors of N²
    elements for the backward.
    """
    n = q.shape[2]
    closest = _closest_first(n, q.device)
    scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
    if bias is not None:
        i = torch.arange(n, device=q.device)
        scores = scores + torch.where(i < i[:, None], bias[..., :1], bias[..., 1:])
    scores = _wide(scores).gather(3, closest.expand(*q.shape[:2], -1, -1))
    skipped = F.logsigmoid(-scores).cumsum(3)
    skipped = F.pad(skipped[..., :-1], (1, 0))
    sorted_weights = (F.logsigmoid(scores) + skipped).exp().to(v.dtype)
    weights = torch.zeros(*q.shape[:2], n, n, dtype=v.dtype, device=v.device)
    return weights.scatter(3, closest.expand_as(sorted_weights), sorted_weights) @ v


def _wide(scores):
    return scores.float() if scores.element_size() == 2 else scores


def _closest_first(n, device):
    """[N, N - 1]: the other columns of each row in order of their distance, the right one first."""
    i = torch.arange(n, device=device)
    offset = i - i[:, None]
    rank = 2 * offset.abs() + (offset < 0)
    return rank.argsort(1)[:, 1:]


def released(q, k, v):
    """As the authors' code computes it (Csordás et al. 2022): one sum over all columns of a row, and the part between
    two keys as the difference of two of its elements. On float32 scores; inaccurate at large N.
    """
    n = q.shape[2]
    scores = _wide(q @ k.transpose(2, 3) * q.shape[3] ** -0.5)
    scores = scores.masked_fill(torch.eye(n, dtype=torch.bool, device=q.device), float("-inf"))
    c = -torch.log(torch.exp(-scores.abs()) + 1)
    log_match = scores.clamp(max=0) + c
    log_skip = -scores.clamp(min=0) + c
    total = log_skip.cumsum(3)
    i = torch.arange(n, device=q.device)
    offset = i - i[:, None]
    distance = offset.abs()
    last = (i[:, None] + distance - (offset > 0).long()).clamp(max=n - 1)
    before = i[:, None] - distance
    skipped = total.gather(3, last.expand_as(total)) - torch.where(
        before >= 0, total.gather(3, before.clamp(min=0).expand_as(total)), 0.0
    )
    return (log_match + skipped).exp().to(v.dtype) @ v


def softmax(q, k, v):
    """torch's fused softmax attention of the same shape: other weights, but the floor of what attention costs."""
    return F.scaled_dot_product_attention(q, k, v)


def ndr_layer(layer, x):
    """What :class:`sysgen.nn.NDREncoderLayer` computes with ``update="norm"``, equation by equation, on its parameters.

    x [B, N, d] -> the same.
    """
    attention, p = layer.self_attn, layer.dropout
    h, e = attention.num_heads, attention.embed_dim

    def heads(t):
        return t.unflatten(-1, (h, e // h)).transpose(1, 2)

    def drop(t, rate):
        return F.dropout(t, rate, layer.training)

    w_q, w_k, w_v = attention.in_proj_weight.chunk(3)
    q = heads(F.linear(x, w_q)) + attention.content_bias[:, None]
    k, v = drop(heads(F.linear(x, w_k)), attention.dropout), heads(F.linear(x, w_v))
    direction = attention.direction(x).unflatten(-1, (h, 2)).transpose(1, 2)
    bias = attention.beta * direction + attention.gamma
    attended = dense(q * attention.alpha * (e // h) ** 0.5, k, v, bias)
    attended = attention.out_proj(attended.transpose(1, 2).flatten(2))
    a = layer.norm1(x + drop(attended, p))
    u = layer.norm2(layer.linear2(drop(F.relu(layer.linear1(a)), p)))
    gate = torch.sigmoid(layer.gate2(drop(F.relu(layer.gate1(a)), p)))
    if layer.training:
        gate = gate * (torch.rand(*gate.shape[:-1], 1, device=x.device) >= layer.gate_dropout)
    return (1 - gate) * x + gate * u
