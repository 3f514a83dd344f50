"""The layers of chapters 4 to 6 row by row, from the equations: float64, no batching, no fused products."""

import math

import torch
import torch.nn.functional as F


def randomize(module, seed=0, scale=0.5):
    """Random values in every parameter, so that no term of a formula is 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * scale)
    return module


def gradients(y, module, *inputs):
    """Gradients of a fixed random combination of ``y`` with respect to inputs and parameters, by name."""
    direction = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).sin().view_as(y)
    named = dict(module.named_parameters()) | {f"input {n}": t for n, t in enumerate(inputs)}
    grads = torch.autograd.grad(y, list(named.values()), direction, retain_graph=True, materialize_grads=True)
    return dict(zip(named, grads))


def assert_same(actual, expected, module, *inputs):
    """Both in float64, 1e-7 relative at worst: sums of at most 10³ terms of magnitude 10² leave 1e-11."""
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients(actual, module, *inputs), gradients(expected, module, *inputs))


def position(p, d):
    angles = [p / 10000 ** (2 * (c // 2) / d) for c in range(d)]
    return torch.tensor([math.cos(a) if c % 2 else math.sin(a) for c, a in enumerate(angles)], dtype=torch.float64)


def _heads(layer):
    width = layer.embed_dim // layer.num_heads
    return [slice(h * width, (h + 1) * width) for h in range(layer.num_heads)]


def _maps(layer):
    """q, k and v of one row."""
    weights = layer.in_proj_weight.chunk(3)
    biases = (None,) * 3 if layer.in_proj_bias is None else layer.in_proj_bias.chunk(3)
    return [lambda x, w=w, b=b: F.linear(x, w, b) for w, b in zip(weights, biases)]


def geometric_weights(layer, query, key, h, s, visible, offset):
    """[L, S] of one head. Nearest keys first, right before left; each takes its share of what is left over."""
    q_map, k_map, _ = _maps(layer)
    rows = []
    for i, x in enumerate(query):
        p = i + offset
        q = q_map(x)[s] + (0 if layer.content_bias is None else layer.content_bias[h])
        row, left_over = [q.new_zeros(())] * len(key), q.new_ones(())
        for j in sorted(range(len(key)), key=lambda j: (abs(j - p), j < p)):
            if not visible(i, j) or (j == p and not layer.include_self):
                continue
            score = layer.alpha[0] * (q @ k_map(key[j])[s])
            if layer.direction is not None and j != p:
                d = layer.direction.weight[2 * h + (j > p)] @ x + layer.direction.bias[2 * h + (j > p)]
                score = score + layer.beta[0] * d + layer.gamma[0]
            match = torch.sigmoid(score)
            row[j], left_over = left_over * match, left_over * (1 - match)
        total = sum(row)
        rows.append(torch.stack([w / total if layer.normalize and total > 0 else w for w in row]))
    return torch.stack(rows)


def softmax_weights(layer, query, key, h, s, visible, offset):
    """[L, S] of one head, with relative and absolute positions where the layer has them."""
    q_map, k_map, _ = _maps(layer)
    alpha = getattr(layer, "alpha", None)
    alpha = (layer.embed_dim // layer.num_heads) ** -0.5 if alpha is None else alpha
    rows = []
    for i, x in enumerate(query):
        q, row = q_map(x)[s], []
        for j, y in enumerate(key):
            if not visible(i, j):
                row.append(q.new_tensor(-math.inf))
                continue
            score = q @ k_map(y)[s]
            if hasattr(layer, "position_proj"):
                score = score + layer.content_bias[h] @ k_map(y)[s]
                place = layer.position_proj.weight[s]
                relative = (q + layer.position_bias[h]) @ (place @ position(j - i - offset, layer.embed_dim))
                if layer.absolute_gate is not None:
                    gate = torch.sigmoid(layer.absolute_gate(x))[h]
                    absolute = (q + layer.position_bias[h]) @ (place @ position(j, layer.embed_dim))
                    relative = gate * relative + (1 - gate) * absolute
                score = score + relative
            row.append((alpha * score).reshape(()))
        rows.append(torch.softmax(torch.stack(row), 0))
    return torch.stack(rows)


def attention(layer, query, key, value, padding=None, causal=False, offset=0):
    """query [B, L, E], key and value [B, S, E] -> (output, weights [B, H, L, S])."""
    weigh = geometric_weights if hasattr(layer, "include_self") else softmax_weights
    out, all_weights = [], []
    for b in range(len(query)):

        def visible(i, j, b=b):
            return not (padding is not None and padding[b, j]) and not (causal and j > i + offset)

        v = torch.stack([_maps(layer)[2](row) for row in value[b]])
        weights = [weigh(layer, query[b], key[b], h, s, visible, offset) for h, s in enumerate(_heads(layer))]
        read = torch.cat([w @ v[:, s] for w, s in zip(weights, _heads(layer))], dim=-1)
        out.append(read @ layer.out_proj.weight.T)
        all_weights.append(torch.stack(weights))
    return torch.stack(out), torch.stack(all_weights)


def _norm(module, x):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + module.eps) * module.weight + module.bias


def _activation(layer, z):
    if layer.activation == "relu":
        return torch.where(z > 0, z, 0)
    return z * (1 + torch.erf(z / math.sqrt(2))) / 2


def ndr(layer, x, padding=None, causal=False):
    """Eq. 5.1 to 5.5, and the variants with tanh and with a residual."""
    a = _norm(layer.norm1, x + attention(layer.self_attn, x, x, x, padding, causal)[0])
    u = layer.linear2(_activation(layer, layer.linear1(a)))
    if layer.update == "tanh":
        u = torch.tanh(u)
    elif layer.update == "norm":
        u = _norm(layer.norm2, u)
    else:
        u = _norm(layer.norm2, u + a)
    g = 1 / (1 + torch.exp(-layer.gate2(_activation(layer, layer.gate1(a)))))
    return (1 - g) * x + g * u


def encoder_layer(layer, x, padding=None, causal=False):
    a = _norm(layer.norm1, x + attention(layer.self_attn, x, x, x, padding, causal)[0])
    return _norm(layer.norm2, a + layer.linear2(_activation(layer, layer.linear1(a))))


def decoder_layer(layer, x, memory, padding=None):
    a = _norm(layer.norm1, x + attention(layer.self_attn, x, x, x, causal=True)[0])
    b = _norm(layer.norm2, a + attention(layer.multihead_attn, a, memory, memory, padding)[0])
    return _norm(layer.norm3, b + layer.linear2(_activation(layer, layer.linear1(b))))
