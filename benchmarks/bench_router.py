"""Selection of experts, forward and backward: one operation against the same steps in torch."""

import pytest
import torch
from curve import Series

import sysgen
from sysgen.nn._entropy import selection_negentropy

K = 4


def torch_choice(logits):
    """Indices [T, K] of the largest logits, equal ones by index: ``torch.topk`` leaves open which of them it takes, and
    a stable sort takes longer than to ask it twice."""
    num_experts = logits.shape[-1]
    threshold = logits.topk(K, dim=-1).values[:, -1:]
    tied = torch.arange(num_experts, 0, -1, dtype=logits.dtype, device=logits.device)
    keys = torch.where(logits == threshold, tied, torch.where(logits < threshold, 0, tied + num_experts))
    return keys.topk(K, dim=-1, sorted=False).indices


def torch_router(logits, regularised):
    """Gates and, if it is wanted, the regulariser."""
    with torch.no_grad():
        experts = torch_choice(logits)
    gate = logits.gather(-1, experts).sigmoid()
    if not regularised:
        return (gate,)
    log_p = logits.log_softmax(-1).logsumexp(0) - torch.tensor(float(len(logits))).log()
    return gate, (log_p.exp() * log_p).sum()


def sysgen_router(logits, regularised):
    _, gate, *log_sum = sysgen.ops.select_experts(logits, K, return_log_sum=regularised)
    return (gate, selection_negentropy(*log_sum, len(logits))) if regularised else (gate,)


def step(router, logits, dgate, regularised):
    """What does not depend on the order of the chosen experts: their gates' sum, and the gradient."""
    results = router(logits, regularised)
    incoming = [dgate.expand_as(results[0]), *(torch.ones_like(r) for r in results[1:])]
    return results[0].detach().sum(-1), *torch.autograd.grad(results, logits, incoming)


@pytest.mark.parametrize("num_experts", [32, 128, 512])
@pytest.mark.parametrize("tokens", [4096, 32768])
@pytest.mark.parametrize("regularised", [False, True], ids=["selection", "regularised"])
def test_router(curve, device, scaled, regularised, tokens, num_experts):
    tokens = scaled(tokens)
    logits = torch.randn(tokens, num_experts, device=device).requires_grad_()
    dgate = torch.randn(tokens, 1, device=device)
    exact = logits.detach().double().requires_grad_()
    moved = 3 * logits.nbytes + 3 * 12 * tokens * K  # logits twice and their gradient, choice and gates

    def series(router):
        return Series(lambda: step(router, logits, dgate, regularised), 0, moved)

    curve(
        {"sysgen": series(sysgen_router), "torch": series(torch_router)},
        figure=f"router{'_regularised' if regularised else ''}_{tokens}",
        x_name="num_experts",
        x=num_experts,
        dtype="float32",
        passes="forward+backward",
        sizes={"tokens": tokens},
        expected=step(torch_router, exact, dgate.double(), regularised),
        tolerance=(1e-6, 1e-5),  # of sums of up to 32768 float32 terms in another order
    )
