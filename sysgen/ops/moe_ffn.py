"""The two projections of a mixture-of-experts MLP with their activation (Csordás 2023, Eq. 7.11–7.12)."""

import torch

from . import _cvmm_checks as checks
from ._activations import ACTIVATIONS
from ._cvmm_autograd import Plan, bias_gradient, dot, needs_gradient, outer, product
from ._geometric_attention_checks import check_flag
from ._moe_ffn_ops import moe_ffn_bwd, moe_ffn_fwd


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
    check_flag(op, "recompute", recompute)
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
        y = _forward(x, w_up, w_down, gate, b_up, plan, activation, False)[0]
    return y if len(r.lead_shape) == 1 else y.view(*r.lead_shape, w_down.shape[2])


def _forward(x, w_up, w_down, gate, b_up, plan, activation, keep):
    order, inverse, offsets, precision = plan
    return moe_ffn_fwd(x, w_up, w_down, order, inverse, offsets, gate, b_up, activation, keep, precision)


class _MoEFFN(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w_up, w_down, gate, b_up, order, inverse, offsets, precision, activation, recompute):
        plan = Plan(order, inverse, offsets, precision)
        y, kept = _forward(x, w_up, w_down, gate, b_up, plan, activation, not recompute)
        kept = None if recompute else kept
        ctx.save_for_backward(x, w_up, w_down, gate, b_up, order, inverse, offsets, kept)
        ctx.precision, ctx.activation = precision, activation
        return y

    @staticmethod
    def backward(ctx, dy):
        x, w_up, w_down, gate, b_up, *route, kept = ctx.saved_tensors
        plan, activation = Plan(*route, ctx.precision), ctx.activation
        needs = ctx.needs_input_grad[:5]
        _, need_up, need_down, _, need_bias = needs
        hidden = _hidden_with_history if torch.is_grad_enabled() else _hidden_gradients
        dz, h, dx, dgate = hidden(dy, x, w_up, w_down, gate, b_up, kept, plan, activation, needs)
        dw_down = outer(h, dy, gate, plan, w_down.dtype) if need_down else None
        del h
        dw_up = outer(x, dz, None, plan, w_up.dtype) if need_up else None
        dbias = bias_gradient(dz, None, plan, b_up.dtype) if need_bias else None
        return dx, dw_up, dw_down, dgate, dbias, *(None,) * 6


def _hidden_gradients(dy, x, w_up, w_down, gate, b_up, kept, plan, activation, needs):
    """Gradient of the pre-activations, the activated rows, and the gradients of x and gate: what is needed of them."""
    need_x, need_up, need_down, need_gate, need_bias = needs
    need_hidden = need_x or need_up or need_bias
    from_output = ACTIVATIONS[activation].from_output
    dz = dx = dgate = None
    h = kept if from_output else None
    if need_hidden or need_gate or (need_down and h is None):
        order, inverse, offsets, precision = plan
        wanted = (need_hidden, need_x, need_gate, need_down)
        dz, made, dx, dgate = moe_ffn_bwd(
            *(dy, x, w_up, w_down, order, inverse, offsets, gate, b_up, kept, activation, *wanted, precision)
        )
        h = made if h is None else h
    return dz, h, dx if need_x else None, dgate if need_gate else None


def _hidden_with_history(dy, x, w_up, w_down, gate, b_up, kept, plan, activation, needs):
    """The same for create_graph: of products that have derivatives, and of hidden rows with their own history."""
    need_x, need_up, _, need_gate, need_bias = needs
    act = ACTIVATIONS[activation]
    z = product(x, w_up, None, b_up, plan, False)
    h = act.forward(z)
    dz = dx = dgate = None
    if need_gate:
        dgate = dot(h, w_down, None, dy, plan)
    if need_x or need_up or need_bias:
        dz = act.backward(product(dy, w_down.transpose(1, 2), gate, None, plan, False), h if act.from_output else z)
        if need_x:
            dx = product(dz, w_up.transpose(1, 2), None, None, plan, True)
    return dz, h, dx, dgate
