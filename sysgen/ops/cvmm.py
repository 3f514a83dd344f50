"""CVMM: conditional vector-matrix multiplication (Csordás 2023, App. F.2.1)."""

from . import _cvmm_checks as checks
from ._cvmm_autograd import product


def cvmm(x, experts, weight, *, gate=None, reduce=False, bias=None, precision="ieee"):
    """Multiplies each row by the matrix of the expert that it is routed to.

    ``y[t, j] = gate[t, j] · (x[t] · weight[experts[t, j]] + bias[experts[t, j]])``, with ``x[t, j]`` in place of
    ``x[t]`` for a routed input; with ``reduce`` the sum over j. A dropped route (expert −1) contributes zeros.
    Gather, bias and gate happen inside the kernel, and so does the reduction on the CPU (on CUDA it is a second kernel
    over a float32 [tokens · k, h] that lives during the call, or over 20 MiB of it at a time where there are few
    experts); there is no padding and no alignment rule. The result is
    bitwise repeatable. Derivatives of every order are exact up to rounding, for x, weight, gate and bias.

    Args:
        x: [..., d], shared by the k routes of its token, or [..., k, d], one row a route.
        experts: int32 or int64 [..., k], or a :class:`~sysgen.ops.Route` made from it (worth it when several calls
            use the same routing).
        weight: [E, d, h], any strides (a transposed view costs no copy).
        gate: [..., k] or None, any floating dtype.
        reduce: sum over the k routes of each token.
        bias: [E, h] or None, any floating dtype.
        precision: float32 on CUDA only: ``"ieee"``; ``"tf32"`` (10-bit mantissa products on tensor cores) or
            ``"tf32x3"`` (three of them, nearly float32). The CPU always computes in IEEE float32.

    dtypes: float64, float32, bfloat16, float16; half types accumulate in float32. A half x may meet a float32
    ``weight`` (master weights: rounded in the kernel, gradient in float32). Under autocast x is cast to autocast's
    dtype and the weight is read as it is.

    Returns:
        [..., k, h], or [..., h] with ``reduce``, in x's dtype.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape, device or expert id that does not fit.
    """
    op = "cvmm"
    x = checks.cast_input(op, x)
    weight = checks.cast_weight(op, "weight", weight, x, "[E, d, h]")
    num_experts, d, h = weight.shape
    r = checks.as_route(op, experts, num_experts)
    shape, lead = x.shape, r.lead_shape
    routed = len(shape) == len(lead) + 2
    if shape != ((*lead, r.k, d) if routed else (*lead, d)):
        raise ValueError(
            f"{op}: x must have shape {[*lead, d]} or {[*lead, r.k, d]} to match experts {[*lead, r.k]} and "
            f"weight {list(weight.shape)}, got {list(shape)}"
        )
    if not isinstance(reduce, bool):
        raise TypeError(f"{op}: reduce must be a bool, got {reduce!r}")
    plan = checks.as_plan(op, r, x, precision)
    if gate is not None:
        gate = checks.cast_gate(op, gate, x, r)
    if bias is not None:
        bias = checks.cast_bias(op, "bias", bias, x, (num_experts, h))
    if len(lead) != 1:
        x = x.reshape(r.num_tokens, r.k, d) if routed else x.reshape(r.num_tokens, d)
    y = product(x, weight, gate, bias, plan, reduce)
    if len(lead) == 1:
        return y
    return y.view(*lead, h) if reduce else y.view(*lead, r.k, h)
