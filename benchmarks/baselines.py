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
    """As the authors' code computes it (Csordás et al. 2022). On float32 scores; inaccurate at large N."""
    return released_weights(_wide(q @ k.transpose(2, 3) * q.shape[3] ** -0.5)).to(v.dtype) @ v


def released_weights(scores):
    """[B, H, N, N]: one sum over all columns of a row, and the part between two keys as the difference of two of its
    elements."""
    n = scores.shape[3]
    i = torch.arange(n, device=scores.device)
    scores = scores.masked_fill(i == i[:, None], float("-inf"))
    c = -torch.log(torch.exp(-scores.abs()) + 1)
    log_match = scores.clamp(max=0) + c
    log_skip = -scores.clamp(min=0) + c
    total = log_skip.cumsum(3)
    offset = i - i[:, None]
    distance = offset.abs()
    last = (i[:, None] + distance - (offset > 0).long()).clamp(max=n - 1)
    before = i[:, None] - distance
    skipped = total.gather(3, last.expand_as(total)) - torch.where(
        before >= 0, total.gather(3, before.clamp(min=0).expand_as(total)), 0.0
    )
    return (log_match + skipped).exp()


def softmax(q, k, v):
    """torch's fused softmax attention of the same shape: other weights, but the floor of what attention costs."""
    return F.scaled_dot_product_attention(q, k, v)


def dense_attention(attention, x):
    """What :class:`sysgen.nn.GeometricMultiheadAttention` computes on x [B, N, d], on its parameters: :func:`dense`,
    with the factors α, β and γ on what is small."""
    q, k, v, direction = _projections(attention, x)
    bias = attention.beta * direction + attention.gamma
    return _merged(attention, dense(q * attention.alpha * q.shape[3] ** 0.5, k, v, bias))


def released_attention(attention, x):
    """The same in the order of the authors' code: factors, direction and masks each on a tensor of all scores."""
    q, k, v, direction = _projections(attention, x)
    i = torch.arange(x.shape[1], device=x.device)
    content = attention.alpha * (q @ k.transpose(2, 3))
    scores = content + attention.beta * torch.where(i > i[:, None], direction[..., 1:], direction[..., :1])
    return _merged(attention, released_weights(scores + attention.gamma) @ v)


def _projections(attention, x):
    """Queries with their bias, dropped keys, values [B, H, N, D], and the direction [B, H, N, 2]."""
    h, e = attention.num_heads, attention.embed_dim

    def heads(t):
        return t.unflatten(-1, (h, e // h)).transpose(1, 2)

    w_q, w_k, w_v = attention.in_proj_weight.chunk(3)
    q = heads(F.linear(x, w_q)) + attention.content_bias[:, None]
    k, v = F.dropout(heads(F.linear(x, w_k)), attention.dropout, attention.training), heads(F.linear(x, w_v))
    return q, k, v, attention.direction(x).unflatten(-1, (h, 2)).transpose(1, 2)


def _merged(attention, out):
    return attention.out_proj(out.transpose(1, 2).flatten(2))


def ndr_layer(layer, x, attend=dense_attention):
    """What :class:`sysgen.nn.NDREncoderLayer` computes with ``update="norm"``, equation by equation, on its parameters.

    x [B, N, d] -> the same.
    """
    p = layer.dropout

    def drop(t):
        return F.dropout(t, p, layer.training)

    a = layer.norm1(x + drop(attend(layer.self_attn, x)))
    u = layer.norm2(layer.linear2(drop(F.relu(layer.linear1(a)))))
    gate = torch.sigmoid(layer.gate2(drop(F.relu(layer.gate1(a)))))
    if layer.training:
        gate = gate * (torch.rand(*gate.shape[:-1], 1, device=x.device) >= layer.gate_dropout)
    return (1 - gate) * x + gate * u
