"""Dense products of float32 matrices on the CPU by CVMM's kernels, as those of one expert. The library behind torch.mm
uses half the width of the vectors on some processors (MKL on AMD's, where these take half its time), and other dtypes
go there."""

import torch

from .._alloc import empty
from .._load import core
from . import _cvmm_ops as cvmm


def one_expert(rows):
    """(order, inverse, offsets) of so many rows, all of one expert's."""
    order = torch.arange(rows, dtype=torch.int32, device="cpu")
    return order, order.view(-1, 1), torch.tensor((0, rows), dtype=torch.int32, device="cpu")


def ours(*tensors):
    return not core.emulated and all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)


def product(x, w, route, out=None):
    """x [R, d] times w [d, h], with ``route`` of R rows, into ``out`` [R, h]."""
    if not ours(x, w):
        return torch.mm(x, w, out=out)
    direct = empty(x, (len(x), w.shape[1])) if out is None or not out.is_contiguous() else out
    cvmm._run_fwd(x, w.unsqueeze(0), route, None, None, direct.unsqueeze(1), None, None, False, 0, 0)
    return direct if out is None or out is direct else out.copy_(direct)


def outer(x, y, route):
    """xᵀ [d, R] times y [R, h]."""
    if not ours(x, y):
        return x.t() @ y
    out = empty(x, (1, x.shape[1], y.shape[1]))
    core.cvmm_bwd_w(x, y, *route, None, out, None, 0, torch.get_num_threads(), 0)
    return out.view(out.shape[1:])
