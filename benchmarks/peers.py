"""Other ways to compute a mixture of experts, as a competent PyTorch user would write them.

Every peer has two functions: ``<peer>_cvmm(x, experts, w)``, the selected products x[t]·w[experts[t, j]] as
[T, k, h], and ``<peer>_ffn(x, experts, gate, w_up, w_down, activation=relu)``, the two-layer network
Σ_j gate·activation(x·w_up)·w_down as [T, d_out]. x [T, d]; experts [T, k]; gate [T, k]; w [E, d, h]. All are
differentiable.
"""

from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F


class Peer(NamedTuple):
    """``unusable(device, dtype, widths)`` is the reason why the peer cannot run there, or None.

    ``widths`` are the row lengths of the operands.
    """

    cvmm: Callable
    ffn: Callable
    unusable: Callable = lambda device, dtype, widths: None


# One expert after the other, each looking up its tokens. unbind: indexing w in the loop would make every expert's
# backward write a gradient of all experts.


def loop_cvmm(x, experts, w):
    y = x.new_zeros(*experts.shape, w.shape[2])
    for e, matrix in enumerate(w.unbind()):
        token, slot = (experts == e).nonzero(as_tuple=True)
        if len(token):
            y = y.index_put_((token, slot), x.index_select(0, token) @ matrix)
    return y


def loop_ffn(x, experts, gate, w_up, w_down, activation=F.relu):
    y = x.new_zeros(len(x), w_down.shape[2])
    for e, (up, down) in enumerate(zip(w_up.unbind(), w_down.unbind())):
        token, slot = (experts == e).nonzero(as_tuple=True)
        if len(token):
            hidden = activation(x.index_select(0, token) @ up)
            y = y.index_add_(0, token, (hidden @ down) * gate[token, slot].unsqueeze(1))
    return y


# Sorted by expert: one gather, one contiguous block of rows an expert, one gather back.


def _sorted_routes(x, experts, num_experts):
    """Rows of x by expert, the place of each route among them, and the number of rows of each expert."""
    ids = experts.flatten()
    order = ids.argsort()
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=x.device)
    return x.index_select(0, order // experts.shape[1]), place, ids.bincount(minlength=num_experts)


def _combine(y, place, gate):
    """Rows by expert -> Σ_j gate[t, j] · row of route (t, j)."""
    y = y.index_select(0, place).view(*gate.shape, y.shape[1])
    return (gate.unsqueeze(1) @ y).squeeze(1)


def _blocks(rows, counts, w):
    return torch.cat([a @ matrix for a, matrix in zip(rows.split(counts.tolist()), w.unbind())])


def sorted_loop_cvmm(x, experts, w):
    rows, place, counts = _sorted_routes(x, experts, len(w))
    return _blocks(rows, counts, w).index_select(0, place).view(*experts.shape, w.shape[2])


def sorted_loop_ffn(x, experts, gate, w_up, w_down, activation=F.relu):
    rows, place, counts = _sorted_routes(x, experts, len(w_up))
    return _combine(_blocks(activation(_blocks(rows, counts, w_up)), counts, w_down), place, gate)


# The same with one call for all blocks.

grouped_mm = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)


def grouped_mm_cvmm(x, experts, w):
    rows, place, counts = _sorted_routes(x, experts, len(w))
    offsets = counts.cumsum(0, dtype=torch.int32)
    return grouped_mm(rows, w, offs=offsets).index_select(0, place).view(*experts.shape, w.shape[2])


def grouped_mm_ffn(x, experts, gate, w_up, w_down, activation=F.relu):
    rows, place, counts = _sorted_routes(x, experts, len(w_up))
    offsets = counts.cumsum(0, dtype=torch.int32)
    hidden = activation(grouped_mm(rows, w_up, offs=offsets))
    return _combine(grouped_mm(hidden, w_down, offs=offsets), place, gate)


def grouped_mm_unusable(device, dtype, widths):
    if grouped_mm is None:
        return f"torch {torch.__version__} has none"
    if any(n * dtype.itemsize % 16 for n in widths):
        return "rows must be multiples of 16 bytes"
    return None


# Numba, where it is installed.

try:
    import numba_peer
except ImportError:
    numba_peer = None


def numba_cvmm(x, experts, w):
    return numba_peer.cvmm(x, experts, w)


def numba_ffn(x, experts, gate, w_up, w_down, activation=F.relu):
    hidden = activation(numba_peer.cvmm(x, experts, w_up))
    y = numba_peer.cvmm(hidden.flatten(0, 1), experts.view(-1, 1), w_down)
    return (gate.unsqueeze(1) @ y.view(*experts.shape, -1)).squeeze(1)


def numba_unusable(device, dtype, widths):
    if numba_peer is None:
        return "numba is not installed"
    if device.type != "cpu":
        return "a CPU kernel"
    return None if dtype == torch.float32 else f"numba has no {str(dtype).removeprefix('torch.')}"


# ScatterMoE, where it is installed.

try:
    from scattermoe.parallel_experts import flatten_sort_count, parallel_linear
except ImportError:
    parallel_linear = None


def scattermoe_cvmm(x, experts, w):
    y = parallel_linear(x, w, experts.shape[1], *flatten_sort_count(experts, len(w)))
    return y.view(*experts.shape, w.shape[2])


def scattermoe_ffn(x, experts, gate, w_up, w_down, activation=F.relu):
    plan = flatten_sort_count(experts, len(w_up))
    hidden = activation(parallel_linear(x, w_up, experts.shape[1], *plan, grouped_out=True))
    return parallel_linear(hidden, w_down, 1, *plan, gates=gate, grouped_in=True)


def scattermoe_unusable(device, dtype, widths):
    if device.type != "cuda":
        return "CUDA only"
    return None if parallel_linear is not None else "scattermoe is not installed"


PEERS = {
    "loop over experts": Peer(loop_cvmm, loop_ffn),
    "sorted loop": Peer(sorted_loop_cvmm, sorted_loop_ffn),
    "sort + grouped_mm": Peer(grouped_mm_cvmm, grouped_mm_ffn, grouped_mm_unusable),
    "numba prange": Peer(numba_cvmm, numba_ffn, numba_unusable),
    "ScatterMoE": Peer(scattermoe_cvmm, scattermoe_ffn, scattermoe_unusable),
}


# Not the same function, but the same size.


def dense_equivalent_cvmm(x, w):
    """One matrix product with the multiplications, the input and the output of a cvmm. x [T, d], w [d, k·h]."""
    return x @ w


def dense_ffn(x, w_up, w_down):
    """The MLP of d_ff hidden units. w_up [d, d_ff], w_down [d_ff, d]."""
    return F.relu(x @ w_up) @ w_down


def topk_selection(x, w, k):
    """σ-MoE's experts and gates with torch's own top-k. x [T, d], w [E, d] -> both [T, k]."""
    gate, experts = (x.float() @ w.float().t()).topk(k, dim=-1)
    return experts, gate.sigmoid().to(x.dtype)


def torch_routing(experts, num_experts):
    """What ``sysgen.ops.route`` computes, from torch's sort: order, inverse and offsets. experts [T, k]."""
    ids = experts.flatten()
    order = ids.argsort(stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=ids.device)
    offsets = F.pad(ids.bincount(minlength=num_experts).cumsum(0), (1, 0))
    return order, inverse.view(experts.shape), offsets
