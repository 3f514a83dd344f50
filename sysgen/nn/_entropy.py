"""Entropy regulariser of expert selection (Csordás 2023, Eq. 7.19-7.20)."""

import torch
import torch.distributed as dist


class _AllReduceSum(torch.autograd.Function):
    """Sum over processes. Its derivative is that of the sum of all processes' losses, to any order."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, g):
        return _AllReduceSum.apply(g.contiguous())


def selection_negentropy(log_sum, num_tokens):
    """``Σ_e p[e] log p[e]`` of ``p = mean over tokens of softmax(logits)`` -> scalar, ≤ 0. No tokens: 0.

    ``log_sum`` [E] is the logarithm of the sum over ``num_tokens`` tokens (:func:`sysgen.ops.select_experts`): p[e] may
    be smaller than the smallest float, its logarithm is not.

    With ``torch.distributed`` initialised, p is the mean over the tokens of all processes, which may have different
    numbers of them, and every process gets the same value; so all must call it, and all must differentiate it or
    none. The gradient on each process is that of the sum of this value over the processes, i.e. world size times that
    of the value. Averaged over processes, as DistributedDataParallel and FSDP do, it is that of the value.
    """
    count = log_sum.new_full((1,), num_tokens)
    log_sum = log_sum.clamp(min=torch.finfo(log_sum.dtype).min)  # finite without tokens
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        top = log_sum.detach().clone()
        dist.all_reduce(top, dist.ReduceOp.MAX)
        total = _AllReduceSum.apply(torch.cat([(log_sum - top).exp(), count]))
        log_sum, count = top + total[:-1].log(), total[-1:]
    log_p = log_sum - count.clamp(min=1).log()
    return (log_p.exp() * log_p).sum()
