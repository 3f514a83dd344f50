"""Linear maps over many rows."""

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from .._library import autocast_dtype
from ..ops._cvmm_autograd import Plan, product
from ..ops._products import one_expert, ours


def linear(x, weight, bias=None):
    """``F.linear``, on the CPU in float32 by CVMM's kernels (:mod:`sysgen.ops._products`) where those may run."""
    given = (x, weight) if bias is None else (x, weight, bias)
    if (
        torch.compiler.is_compiling()
        or not ours(*given)
        or autocast_dtype(x)
        or forward_ad._current_level >= 0
        or torch._C._functorch.maybe_current_level() is not None
    ):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    plan = Plan(*one_expert(len(rows)), 0)
    bias = None if bias is None else bias.unsqueeze(0)
    return product(rows, weight.t().unsqueeze(0), None, bias, plan, False).view(*x.shape[:-1], len(weight))


def hooked(module):
    """Whether somebody has asked to be called with the module, or calls something else in its place."""
    own = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(own or _has_any_global_hook() or "forward" in module.__dict__)


def apply(module, x):
    """``module(x)`` of an ``nn.Linear``, by :func:`linear` where nobody sees the difference."""
    if type(module) is not nn.Linear or hooked(module):
        return module(x)
    return linear(x, module.weight, module.bias)
