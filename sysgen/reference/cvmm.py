"""Definition of :func:`sysgen.ops.cvmm` (Csordás 2023, App. F.2.1) and :func:`sysgen.ops.moe_ffn` (Eq. 7.11)."""

import torch
import torch.nn.functional as F

from ..ops.routing import Route
from .routing import route

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh, "identity": lambda z: z}


def cvmm(x, experts, weight, *, gate=None, reduce=False, bias=None, precision="ieee"):
    """``y[t, j] = gate[t, j] · (x[t] · weight[e] + bias[e])``, e = experts[t, j]; with ``reduce`` summed over j.

    x [..., d] (shared by the k routes) or [..., k, d]; experts int [..., k] or a Route; weight [E, d, h];
    gate [..., k]; bias [E, h]. Returns [..., k, h], or [..., h] with ``reduce``, in x's dtype.

    Only rows that an expert serves are ever multiplied by its matrix, so a NaN stays with its token and its expert.
    """
    num_experts, d, h = weight.shape
    r = experts if isinstance(experts, Route) else route(experts, num_experts)
    if x.shape not in ((*r.lead_shape, d), (*r.lead_shape, r.k, d)):
        raise ValueError(
            f"cvmm: x must have shape {[*r.lead_shape, d]} or {[*r.lead_shape, r.k, d]}, got {list(x.shape)}"
        )
    routed = x.dim() == len(r.lead_shape) + 2
    counts = r.offsets.diff().long()
    routes = r.order[: r.offsets[-1]].long()  # sorted by expert, without the dropped ones
    rows = x.reshape(r.num_tokens * (r.k if routed else 1), d)[routes if routed else routes // r.k]
    used = counts.nonzero().squeeze(1)
    matrices = weight.to(x.dtype)[used]
    products = [a @ w for a, w in zip(rows.split(counts[used].tolist()), matrices)]
    y = torch.cat(products or [rows @ matrices.sum(0)])  # no route at all: empty, but differentiable
    if bias is not None:
        y = y + bias.to(x.dtype)[torch.arange(num_experts, device=x.device).repeat_interleave(counts)]
    if gate is not None:
        y = gate.to(x.dtype).reshape(-1, 1)[routes] * y
    y = y.new_zeros(r.num_tokens * r.k, h).index_copy(0, routes, y).view(*r.lead_shape, r.k, h)
    return y.sum(-2) if reduce else y


def moe_ffn(x, experts, gate, w_up, w_down, *, b_up=None, activation="relu", recompute=False, precision="ieee"):
    """``y[t] = Σ_j gate[t, j] · activation(x[t] · w_up[e] + b_up[e]) · w_down[e]``, e = experts[t, j].

    x [..., d]; experts int [..., k] or a Route; gate [..., k]; w_up [E, d, G]; w_down [E, G, d_out]; b_up [E, G].
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"moe_ffn: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if not isinstance(experts, Route):
        experts = route(experts, w_up.shape[0])
    hidden = ACTIVATIONS[activation](cvmm(x, experts, w_up, bias=b_up))
    return cvmm(hidden, experts, w_down, gate=gate, reduce=True)
