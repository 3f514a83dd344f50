"""The two projections of a mixture-of-experts MLP with their activation (Csordás 2023, Eq. 7.11–7.12)."""

import torch

from . import _cvmm_checks as checks
from . import _cvmm_ops as ops
from ._activations import ACTIVATIONS
from ._cvmm_autograd import Plan, bias_gradient, dot, needs_gradient, outer, product, product_and_dot


def moe_ffn(x, experts, gate, w_up, w_down, *, b_up=None, activation="relu", recompute=False, precision="ieee"):
    """``y[t] = Σ_j gate[t, j] · act(x[t] · w_up[e] + b_up[e]) · w_down[e]`` with e = ``experts[t, j]``.

    The same as two calls of :func:`~sysgen.ops.cvmm` with the activation between them, but only x and the hidden
    activations are kept for the backward, and only x with ``recompute=True``. The gradients of hidden activations
    and gate come from one pass. Derivatives of every order are exact.

    Args:
        x: [..., d].
        experts: int32 or int64 [..., k] or a :class:`~sysgen.ops.Route`; −1 drops a route.
        gate: [..., k], any floating dtype.
        w_up: [E, d, G].
        w_down: [E, G, d_out].
        b_up: [E, G] or None.
        activation: ``"relu"``, ``"gelu"`` (exact), ``"silu"``, ``"tanh"`` or ``"identity"``.
        recompute: recompute the hidden activations in the backward instead of keeping them.
        precision: as in :func:`~sysgen.ops.cvmm`.

    Returns:
        [..., d_out] in x's dtype (autocast's under autocast). dtypes as in :func:`~sysgen.ops.cvmm`.

    Raises:
        TypeError, ValueError: as :func:`~sysgen.ops.cvmm`; ValueError for an unknown activation.
    """
    op = "moe_ffn"
    x = checks.cast_input(op, x)
    w_up = checks.cast_weight(op, "w_up", w_up, x, "[E, d, G]")
    w_down = checks.cast_weight(op, "w_down", w_down, x, "[E, G, d_out]")
    num_experts, d, hidden = w_up.shape
    if tuple(w_down.shape[:2]) != (num_experts, hidden):
        raise ValueError(
            f"{op}: w_down must have shape [{num_experts}, {hidden}, d_out] to match w_up {list(w_up.shape)}, "
            f"got {list(w_down.shape)}"
        )
    checks.check_name(op, "activation", activation, ACTIVATIONS)
    r = checks.as_route(op, experts, num_experts)
    if tuple(x.shape) != (*r.lead_shape, d):
        raise ValueError(
            f"{op}: x must have shape {[*r.lead_shape, d]} to match experts {[*r.lead_shape, r.k]} and w_up "
            f"{list(w_up.shape)}, got {list(x.shape)}"
        )
    plan = checks.as_plan(op, r, x, precision)
    gate = checks.cast_gate(op, gate, x, r)
    if b_up is not None:
        b_up = checks.cast_bias(op, "b_up", b_up, x, (num_experts, hidden))
    if x.dim() != 2:
        x = x.reshape(r.num_tokens, d)
    if needs_gradient(x, w_up, w_down, gate, b_up):
        y = _MoEFFN.apply(x, w_up, w_down, gate, b_up, *plan, activation, recompute)
    else:
        y = _forward(x, w_up, w_down, gate, b_up, plan, ACTIVATIONS[activation])[0]
    return y if len(r.lead_shape) == 1 else y.view(*r.lead_shape, w_down.shape[2])


def _hidden(x, w_up, b_up, plan, act):
    """The up projection: (what the activation's derivative needs, the activated hidden rows)."""
    order, inverse, offsets, precision = plan
    z = ops.cvmm_fwd(x, w_up, order, inverse, offsets, None, b_up, False, act.fused, precision)
    h = z if act.fused else act.forward(z)
    return (h if act.from_output else z), h


def _forward(x, w_up, w_down, gate, b_up, plan, act):
    saved, h = _hidden(x, w_up, b_up, plan, act)
    order, inverse, offsets, precision = plan
    y = ops.cvmm_fwd(h, w_down, order, inverse, offsets, gate, None, True, 0, precision)
    return y, saved


class _MoEFFN(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w_up, w_down, gate, b_up, order, inverse, offsets, precision, activation, recompute):
        plan = Plan(order, inverse, offsets, precision)
        y, saved = _forward(x, w_up, w_down, gate, b_up, plan, ACTIVATIONS[activation])
        saved = None if recompute else saved
        ctx.save_for_backward(x, w_up, w_down, gate, b_up, order, inverse, offsets, saved)
        ctx.precision, ctx.activation = precision, activation
        return y

    @staticmethod
    def backward(ctx, dy):
        x, w_up, w_down, gate, b_up, *route, saved = ctx.saved_tensors
        plan, act = Plan(*route, ctx.precision), ACTIVATIONS[ctx.activation]
        need_x, need_up, need_down, need_gate, need_bias = ctx.needs_input_grad[:5]
        need_hidden = need_x or need_up or need_bias
        if torch.is_grad_enabled():  # create_graph: the hidden rows must carry their own history
            z = product(x, w_up, None, b_up, plan, False)
            h = act.forward(z)
            saved = h if act.from_output else z
        elif saved is None:
            saved, h = _hidden(x, w_up, b_up, plan, act)
        else:
            h = saved if act.from_output else act.forward(saved)
        dx = dw_up = dw_down = dgate = dbias = dz = None
        if need_down:
            dw_down = outer(h, dy, gate, plan, w_down.dtype)
        if need_hidden and need_gate and not torch.is_grad_enabled():
            dz, dgate = product_and_dot(dy, w_down, gate, h, plan)
        else:
            if need_gate:
                dgate = dot(h, w_down, None, dy, plan)
            if need_hidden:
                dz = product(dy, w_down.transpose(1, 2), gate, None, plan, False)
        del h
        if need_hidden:
            dz = act.backward(dz, saved)
            if need_x:
                dx = product(dz, w_up.transpose(1, 2), None, None, plan, True)
            if need_up:
                dw_up = outer(x, dz, None, plan, w_up.dtype)
            if need_bias:
                dbias = bias_gradient(dz, None, plan, b_up.dtype)
        return dx, dw_up, dw_down, dgate, dbias, *(None,) * 6
