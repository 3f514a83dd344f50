"""Selection of experts: which ones serve a token, with which gates, and what the entropy regulariser needs to know of
all tokens (Csordás 2023, Eq. 7.11 and 7.19-7.21)."""

import torch

from ..reference.router import gate_and_log_sum
from ._cvmm_autograd import needs_gradient
from ._cvmm_checks import check_name, check_tensor, name
from ._geometric_attention_checks import check_flag
from ._router_ops import SELECTIONS, needs_lse, select_experts_bwd, select_experts_fwd
from ._second_order import second_order

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def select_experts(logits, k, *, selection="sigmoid", expert_dropout=0.0, seed=None, return_log_sum=False):
    """The k experts with the largest logits of each token, by logit, and their gates; one pass over the logits.

    Of equal logits that of the expert with the lowest index wins, on every device. A NaN counts as the largest, so that
    it shows in the gates. Expert dropout leaves experts out of the selection, drawn for each token and expert (Eq.
    7.21), without rescaling; it takes part in no arithmetic, so gates are finite where logits are. Results are bitwise
    repeatable, and derivatives of every order exact; the choice itself has none.

    Args:
        logits: [..., E], float32 or float64; bfloat16 and float16 are computed in float32. Autocast changes nothing.
        k: experts a token, 1 to E.
        selection: gates are ``"sigmoid"`` of the logits, ``"softmax"`` over all experts, dropped or not, or
            ``"softmax_after_topk"``, over those that were chosen.
        expert_dropout: rate, in [0, 1]; rounded to a multiple of 2⁻¹⁶.
        seed: int64 [1] on the device of the logits, which decides what is dropped, the same on every device; drawn from
            the device's default generator if None.
        return_log_sum: also return log_sum.

    Returns:
        experts: int64 [..., k]; −1 where fewer than k are left.
        gate: [..., k] in the dtype of the computation; 0 where no expert is left.
        log_sum: [E], ``log Σ softmax(logits)`` over the tokens, of all experts, dropped or not: what a process
            contributes to the regulariser. −∞ without tokens.

    Raises:
        TypeError, ValueError: an argument that does not fit, by its name.
    """
    op = "select_experts"
    _check_arguments(op, logits, k, selection, expert_dropout, seed, return_log_sum)
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    if not expert_dropout:
        seed = None
    elif seed is None:
        seed = torch.randint(-(2**63), 2**63 - 1, (1,), device=logits.device)
    rows = logits.reshape(-1, logits.shape[-1])
    run = _SelectExperts.apply if needs_gradient(rows) else select_experts_fwd
    experts, gate, _, log_sum = run(
        rows, seed, k, SELECTIONS.index(selection), float(expert_dropout), bool(return_log_sum)
    )
    shape = (*logits.shape[:-1], k)
    experts, gate = experts.view(shape), gate.view(shape)
    return (experts, gate, log_sum) if return_log_sum else (experts, gate)


def _check_arguments(op, logits, k, selection, expert_dropout, seed, return_log_sum):
    check_tensor(op, "logits", logits)
    if logits.dtype not in _DTYPES:
        raise TypeError(f"{op}: logits must be float32, float64, bfloat16 or float16, got {name(logits.dtype)}")
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"{op}: logits must have shape [..., E] with at least one expert, got {list(logits.shape)}")
    if not isinstance(k, (int, torch.SymInt)) or isinstance(k, bool):
        raise TypeError(f"{op}: k must be an int, got {type(k).__name__}")
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"{op}: k must be in [1, {logits.shape[-1]}] (the experts of logits), got {k}")
    check_name(op, "selection", selection, SELECTIONS)
    if not isinstance(expert_dropout, (int, float)) or isinstance(expert_dropout, bool):
        raise TypeError(f"{op}: expert_dropout must be a number, got {type(expert_dropout).__name__}")
    if not 0 <= expert_dropout <= 1:
        raise ValueError(f"{op}: expert_dropout must be in [0, 1], got {expert_dropout}")
    check_flag(op, "return_log_sum", return_log_sum)
    if seed is None:
        return
    check_tensor(op, "seed", seed)
    if seed.dtype != torch.int64:
        raise TypeError(f"{op}: seed must be int64, got {name(seed.dtype)}")
    if seed.shape != (1,) or seed.device != logits.device:
        raise ValueError(
            f"{op}: seed must have shape [1] and be on {logits.device}, got {list(seed.shape)} on {seed.device}"
        )


class _SelectExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, seed, k, selection, expert_dropout, want_log_sum):
        experts, gate, lse, log_sum = select_experts_fwd(logits, seed, k, selection, expert_dropout, want_log_sum)
        ctx.save_for_backward(
            logits,
            experts,
            gate,
            lse if needs_lse(selection, want_log_sum) else None,
            log_sum if want_log_sum else None,
        )
        ctx.selection = selection
        ctx.mark_non_differentiable(experts, lse)
        ctx.set_materialize_grads(False)
        return experts, gate, lse, log_sum

    @staticmethod
    def backward(ctx, _experts, dgate, _lse, dlog_sum):
        logits, experts, gate, lse, log_sum = ctx.saved_tensors
        if log_sum is None:  # what stands for it has no elements
            dlog_sum = None
        if dgate is None and dlog_sum is None:
            return (None,) * 6
        given = logits, experts, gate, lse, log_sum, dgate, dlog_sum, ctx.selection
        differentiable = needs_gradient(logits, dgate, dlog_sum)
        return _SelectExpertsBackward.apply(*given) if differentiable else select_experts_bwd(*given), *(None,) * 5


class _SelectExpertsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *given):
        *tensors, ctx.selection = given
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return select_experts_bwd(*given)

    @staticmethod
    def backward(ctx, direction):
        logits, experts, _, _, _, *incoming = ctx.saved_tensors
        needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[5:7])

        def function(logits):
            return gate_and_log_sum(logits, experts, SELECTIONS[ctx.selection])

        dlogits, ddgate, ddlog_sum = second_order(function, (logits,), incoming, (direction,), needed)
        return dlogits, None, None, None, None, ddgate, ddlog_sum, None
