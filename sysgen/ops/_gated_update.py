"""The update of a Neural Data Router's columns in one operation (Csordás 2023, Eq. 5.2-5.5). CPU only."""

import torch

from .._library import without_autocast
from ..reference.gated_update import gated_update as reference
from . import _gated_update_ops as ops
from ._cvmm_autograd import needs_gradient
from ._dropout import noise_seed
from ._gated_update_ops import STREAMS, Options, Parameters

__all__ = ["Options", "Parameters", "gated_update"]


def gated_update(x, attended, parameters, options, return_gate=False):
    """``y = (1 − g) · x + g · LN2(W2 h + b2)``, ``g = sigmoid(Wg2 h' + bg2)``, where h and h' are the hidden layers
    ``drop(relu(W a + b))`` of ``a = LN1(x + drop(attended))``.

    Only what the products need is stored; all random factors follow from one number, drawn from torch's generator.

    Args:
        x, attended: [R, d] on the CPU, float32 or float64.
        parameters: :class:`Parameters`, in x's dtype.
        options: :class:`Options`.

    Returns:
        [R, d]; with ``return_gate`` also g [R, d], without history.
    """
    x, attended = x.contiguous(), attended.contiguous()
    parameters = [p.contiguous() for p in parameters]
    seed = noise_seed(options.attended_rate, options.hidden_rate, options.gate_rate)
    run = _GatedUpdate.apply if needs_gradient(x, attended, *parameters) else ops.gated_update_fwd
    y, *_, logits = run(x, attended, *parameters, seed, *options)
    if not return_gate:
        return y
    with torch.no_grad():
        gate = (logits + parameters[9]).sigmoid_() * _open_gates(x, seed, options.gate_rate)
    return y, gate


def _open_gates(x, seed, rate):
    """[R, 1]: 0 where the gates of a row are closed, else 1."""
    return (ops.dropout_fwd(x.new_ones(len(x), 1), seed, rate, STREAMS["gate"]) > 0).to(x.dtype)


class _GatedUpdate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, attended, *rest):
        parameters, (seed, *options) = rest[:12], rest[12:]
        y, *kept, z = ops.gated_update_fwd(x, attended, *rest)
        ctx.save_for_backward(x, attended, *kept, z, *parameters, seed)
        ctx.mark_non_differentiable(z)
        ctx.set_materialize_grads(False)  # of z: zeros that nobody reads
        ctx.options = options
        return y, z

    @staticmethod
    def backward(ctx, dy, _):
        if dy is None:
            return (None,) * 20
        saved = ctx.saved_tensors
        with without_autocast(dy.device):
            if torch.is_grad_enabled():
                return *_with_history(dy, saved, Options(*ctx.options), ctx.needs_input_grad), *(None,) * 6
            return *ops.gated_update_bwd(dy.contiguous(), *saved, *ctx.options), *(None,) * 6


def _with_history(dy, saved, options, needed):
    """The gradients as differentiable functions of the inputs and of dy: through the reference, with the same noise."""
    x, attended, _, hidden, _, _, _, _, *parameters, seed = saved
    with torch.no_grad():
        of_attended, of_hidden = (
            ops.dropout_fwd(torch.ones_like(t), seed, rate, STREAMS[stream])
            for t, rate, stream in ((x, options.attended_rate, "attended"), (hidden, options.hidden_rate, "hidden"))
        )
        noise = of_attended, of_hidden, _open_gates(x, seed, options.gate_rate)
    inputs = [x, attended, *parameters]
    inputs = [t.view_as(t) if need else t.detach() for t, need in zip(inputs, needed)]  # x may be attended
    y = reference(*inputs[:2], Parameters(*inputs[2:]), noise, options[3:])
    wanted = [i for i, need in enumerate(needed[:14]) if need]
    gradients = [None] * 14
    for i, g in zip(wanted, torch.autograd.grad(y, [inputs[i] for i in wanted], dy, create_graph=True)):
        gradients[i] = g
    return gradients
