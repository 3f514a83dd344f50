"""Registered operations of the selection of experts: allocation of memory and one core call each. Arguments as in
csrc/router/select_experts.h.

logits [T, E], float32 or float64; ``seed`` int64 [1], needed for expert dropout; ``selection`` is a place in
:data:`SELECTIONS`.
"""

import torch

from .._alloc import empty
from .._library import define_op
from ._core_call import new_fake, run

SELECTIONS = ("sigmoid", "softmax", "softmax_after_topk")


def needs_lse(selection, want_log_sum):
    """Whether the gates or the sums are made from the log-sum-exp of each token."""
    return want_log_sum or selection == SELECTIONS.index("softmax")


def _fwd_outputs(new, logits, k, selection, want_log_sum):
    tokens, num_experts = logits.shape
    return (
        new(logits, (tokens, k), torch.int64),
        new(logits, (tokens, k)),
        new(logits, (tokens if needs_lse(selection, want_log_sum) else 0, 2)),
        new(logits, (num_experts if want_log_sum else 0,)),
    )


def _fwd(logits, seed, k, selection, expert_dropout, want_log_sum):
    logits = logits.contiguous()
    experts, gate, lse, log_sum = outputs = _fwd_outputs(empty, logits, k, selection, want_log_sum)
    given = (lse if needs_lse(selection, want_log_sum) else None, log_sum if want_log_sum else None)
    run("select_experts_fwd", (logits, seed, experts, gate, *given), logits, (selection, expert_dropout))
    return outputs


select_experts_fwd = define_op(
    "select_experts_fwd(Tensor logits, Tensor? seed, SymInt k, int selection, float expert_dropout, bool want_log_sum) "
    "-> (Tensor experts, Tensor gate, Tensor lse, Tensor log_sum)",
    _fwd,
    lambda logits, seed, k, selection, expert_dropout, want_log_sum: _fwd_outputs(
        new_fake, logits, k, selection, want_log_sum
    ),
)


def _bwd(logits, experts, gate, lse, log_sum, dgate, dlog_sum, selection):
    logits, experts, gate = (t.contiguous() for t in (logits, experts, gate))
    rest = [None if t is None else t.contiguous() for t in (lse, log_sum, dgate, dlog_sum)]
    dlogits = empty(logits, logits.shape)
    run("select_experts_bwd", (logits, experts, gate, *rest, dlogits), logits, (selection,))
    return dlogits


select_experts_bwd = define_op(
    "select_experts_bwd(Tensor logits, Tensor experts, Tensor gate, Tensor? lse, Tensor? log_sum, Tensor? dgate, "
    "Tensor? dlog_sum, int selection) -> Tensor",
    _bwd,
    lambda logits, *_: new_fake(logits, logits.shape),
)
