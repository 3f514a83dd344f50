"""Geometric attention against its reference in float64, with error bounds that follow from its arithmetic."""

import torch
from support import HALF, place, values

from sysgen import reference
from sysgen.testing import assert_within, error_bound

TENSORS = ("query", "key", "value", "direction_bias", "key_padding_mask", "attn_mask")


def accumulator(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def make_inputs(
    shape, dtype=torch.float32, device="cpu", *, bias=True, padding="bool", mask="float", layout="sliced", seed=0
):
    """Tensor arguments of geometric_attention for (B, H, L, S, D). Every floating one requires a gradient and is a view
    of a larger buffer. padding and mask: None, "bool" or "float".
    """
    b, h, l, s, d = shape
    g = torch.Generator().manual_seed(seed)
    inputs = {
        "query": values(g, (b, h, l, d), dtype, device),
        "key": values(g, (b, h, s, d), dtype, device),
        "value": values(g, (b, h, s, d), dtype, device),
    }
    if bias:
        inputs["direction_bias"] = values(g, (b, h, l, 2), accumulator(dtype), device)
    hidden = torch.rand(b, s, generator=g).to(device) < 0.2
    if padding:
        added = values(g, (b, s), accumulator(dtype), device)
        inputs["key_padding_mask"] = hidden if padding == "bool" else added.masked_fill(hidden, float("-inf"))
    hidden = torch.rand(1, h, l, s, generator=g).to(device) < 0.2
    if mask:
        added = values(g, (1, h, l, s), accumulator(dtype), device)
        inputs["attn_mask"] = hidden if mask == "bool" else added.masked_fill(hidden, float("-inf"))
    inputs = {n: place(t, layout) for n, t in inputs.items()}
    return {n: t.requires_grad_(t.is_floating_point()) for n, t in inputs.items()}


def results_of(ops, inputs, directions=None, **options):
    """out, remainder and the gradient of each input that requires one, by name; and the directions used."""
    outputs = ops.geometric_attention(**inputs, **options, return_remainder=True)
    if directions is None:
        g = torch.Generator().manual_seed(1)
        directions = [values(g, y.shape, y.dtype, y.device) for y in outputs]
    names = [n for n, t in inputs.items() if t.requires_grad]
    results = dict(zip(("out", "remainder"), outputs))
    if names:
        tracked = [(y, d) for y, d in zip(outputs, directions) if y.requires_grad]
        leaves = [inputs[n] for n in names]
        found = torch.autograd.grad([y for y, _ in tracked], leaves, [d for _, d in tracked], materialize_grads=True)
        results.update(zip(names, found))
    return {n: t.detach() for n, t in results.items()}, directions


def check(ops, inputs, what="", **options):
    """Output, remainder and all gradients of ``ops.geometric_attention`` within their bounds. Gives the largest error
    of each as a fraction of its bound."""
    results, directions = results_of(ops, inputs, **options)
    double = {
        n: t.detach().cpu().to(torch.float64 if t.is_floating_point() else t.dtype).requires_grad_(t.requires_grad)
        for n, t in inputs.items()
    }
    directions = [d.cpu().double() for d in directions]
    exact, _ = results_of(reference, double, directions, **options)
    limits = bounds(exact, double, directions, inputs["query"].dtype, **options)
    worst = {}
    for name, actual in results.items():
        worst[name] = assert_within(actual, exact[name], limits[name](actual.dtype), f"{what} {name}".strip())
    return worst


def bounds(
    exact,
    inputs,
    directions,
    dtype,
    *,
    scale=None,
    normalize=False,
    eps=1e-12,
    include_self=False,
    is_causal=False,
    q_offset=0,
):
    """For each result a function from its dtype to the largest error that it may have, elementwise; and ``row_size``,
    the largest (1 − P) |g| + P Σ |g| of each query, of which its dS are differences.

    First-order propagation of rounding errors through the formulas of csrc/geometric_attention/geometric_attention.h,
    on matrices [B, H, L, S] whose columns are in the order in which a query takes the keys. With u the unit roundoff of
    the accumulator (plus float64's, for the exact value):

    - a score is an inner product of D terms, scaled, plus bias and masks: (4·√D + 8)·u·(sum of absolute values), see
      :func:`sysgen.testing.error_bound`;
    - it moves log P by 1 − P times its error, log(1 − P) by P times it; both are computed to 8 u of themselves;
    - sums over n keys have 4·√n·u of the sum of absolute values; exp(x) has a relative error of (4 + 2·|x|)·u;
    - normalised, <dout, v> and <dout, out> are counted apart: their difference may be small;
    - U adds the errors of its terms; dS = (1 − P) g − P U has 8 u of its two products on top of their errors;
    - for half types, A and dS may be rounded to them for the products with value, key, query and dout, where they may
      be subnormal.
    """
    q, k, v = (inputs[n].detach() for n in TENSORS[:3])
    bias, padding, mask = (inputs[n].detach() if n in inputs else None for n in TENSORS[3:])
    dout, drem = directions
    (b, h, l, d), s = q.shape, k.shape[2]
    u = torch.finfo(accumulator(dtype)).eps / 2 + 2**-53
    tiny = torch.finfo(accumulator(dtype)).tiny
    scale = max(d, 1) ** -0.5 if scale is None else scale

    def total(n):
        return 4 * n**0.5 * u

    hidden = torch.zeros(b, h, l, s, dtype=torch.bool)
    size = abs(scale) * (q.abs() @ k.abs().mT)
    if bias is not None:
        size = size + bias.abs().amax(-1, keepdim=True)
    if padding is not None:
        ignored = padding if padding.dtype == torch.bool else padding == float("-inf")
        hidden = hidden | ignored[:, None, None]
        k, v = (t.masked_fill(ignored[:, None, :, None], 0) for t in (k, v))
    scores = reference.geometric_attention_scores(q, k, direction_bias=bias, scale=scale, q_offset=q_offset)
    for m in (mask, padding[:, None, None] if padding is not None else None):
        if m is not None and m.dtype != torch.bool:
            hidden = hidden | (m == float("-inf"))
            finite = m.masked_fill(m == float("-inf"), 0)
            scores, size = scores + finite, size + finite.abs()
        elif m is not None:
            hidden = hidden | m
    offset = torch.arange(s) - torch.arange(l)[:, None] - q_offset
    hidden = hidden | (offset > 0 if is_causal else False) | (False if include_self else offset == 0)
    order = (2 * offset.abs() + (offset < 0)).argsort(-1).expand(b, h, l, s)
    back = order.argsort(-1)

    def take(t):
        return t.expand(b, h, l, s).gather(-1, order)

    def before(t):
        return torch.nn.functional.pad(t, (1, 0))[..., :-1].cumsum(-1)

    def after(t):
        return before(t.flip(-1)).flip(-1)

    hidden, scores, size = take(hidden), take(scores), take(size)
    scores = scores.masked_fill(hidden, 0)
    p = torch.sigmoid(scores).masked_fill(hidden, 0)
    log_p = torch.nn.functional.logsigmoid(scores)
    c = torch.nn.functional.logsigmoid(-scores).masked_fill(hidden, 0)
    e_s = (4 * d**0.5 + 8) * u * size
    e_c = p * e_s + 8 * u * c.abs()
    log_a = log_p + before(c)
    e_log = (1 - p) * e_s + 8 * u * log_p.abs() + before(e_c) + total(s) * before(c).abs() + (4 + 4 * log_a.abs()) * u
    a = log_a.exp().masked_fill(hidden, 0)
    e_a = a * e_log.clamp(max=50).expm1() + tiny
    rem = c.sum(-1).exp()
    e_c_sum = e_c.sum(-1) + total(s) * c.sum(-1).abs()
    e_rem = rem * (e_c_sum + (4 + 2 * c.sum(-1).abs()) * u).expm1() + tiny

    dot_size, e_dot = take((dout @ v.mT).abs()), take((4 * d**0.5 + 4) * u * (dout.abs() @ v.abs().mT))
    w, e_w = a, e_a
    if normalize:
        z = -c.sum(-1).expm1()
        e_z = rem * e_c_sum + 4 * u * z + tiny
        z, e_z = z[..., None].clamp(min=eps), e_z[..., None]
        w, e_w = a / z, e_a / z + a * e_z / z**2 + 4 * u * a / z
        mean_size = (w * dot_size).sum(-1, keepdim=True)
        e_mean = (e_w * dot_size + w * e_dot).sum(-1, keepdim=True) + total(s) * mean_size
        dot_size, e_dot = dot_size + mean_size, e_dot + e_mean
    g_size, e_g = w * dot_size, e_w * dot_size + w * e_dot + 4 * u * w * dot_size
    far_size = after(g_size) + (rem * drem).abs()[..., None]
    e_far = after(e_g) + (e_rem * drem.abs())[..., None] + (total(s) + 4 * u) * far_size
    e_p = p * (1 - p) * e_s + 8 * u * p
    size_ds = ((1 - p) * g_size + p * far_size).masked_fill(hidden, 0)
    e_ds = e_p * (g_size + far_size) + (1 - p) * e_g + p * e_far + 8 * u * size_ds
    e_ds = e_ds.masked_fill(hidden, 0)
    row_size = torch.nn.functional.pad(size_ds, (0, 1)).amax(-1)  # also without keys
    w, e_w, size_ds, e_ds, offset = (t.gather(-1, back) for t in (w, e_w, size_ds, e_ds, take(offset)))

    rounded = 1 if dtype in HALF else 0
    lost = rounded * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps / 2  # where A or dS is subnormal

    def limit(name, magnitude, error, *lengths, roundings=0):
        def of(result_dtype):
            own = error_bound(exact[name], magnitude, result_dtype, lengths, roundings, dtype)
            return own + error * (1 + torch.finfo(result_dtype).eps) + tiny

        return of

    def side(t):
        return torch.stack([(t * (offset < 0)).sum(-1), (t * (offset > 0)).sum(-1)], -1)

    heads = {"roundings": rounded}
    scale = abs(scale)
    found = {
        "row_size": row_size,
        "out": limit("out", w @ v.abs(), (e_w + lost) @ v.abs(), s, **heads),
        "remainder": limit("remainder", torch.zeros_like(rem), e_rem),
        "query": limit("query", scale * (size_ds @ k.abs()), scale * ((e_ds + lost) @ k.abs()), s, **heads),
        "key": limit("key", scale * (size_ds.mT @ q.abs()), scale * ((e_ds + lost).mT @ q.abs()), l, **heads),
        "value": limit("value", w.mT @ dout.abs(), (e_w + lost).mT @ dout.abs(), l, **heads),
        "direction_bias": limit("direction_bias", side(size_ds), side(e_ds), s),
    }
    if mask is not None:
        found["attn_mask"] = limit(
            "attn_mask",
            size_ds.sum_to_size(mask.shape),
            e_ds.sum_to_size(mask.shape),
            b * h * l * s // max(mask.numel(), 1),
        )
    if padding is not None:
        found["key_padding_mask"] = limit("key_padding_mask", size_ds.sum((1, 2)), e_ds.sum((1, 2)), h * l)
    return found
