"""CVMM as a Python user would write it with numba: routes sorted by expert, threads over experts and blocks of rows."""

import numpy as np
import torch
from numba import njit, prange, set_num_threads

BLOCK = 32  # rows a task: enough to reuse the expert's matrix from the cache, few enough to keep all threads busy


def _plan(experts, num_experts):
    """Routes by expert, and the (expert, first, last) blocks of rows, in NumPy."""
    ids = experts.numpy().ravel()
    order = np.argsort(ids, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(ids, minlength=num_experts))])
    blocks = [
        (e, i, min(i + BLOCK, offsets[e + 1]))
        for e in range(num_experts)
        for i in range(offsets[e], offsets[e + 1], BLOCK)
    ]
    return order, offsets, np.array(blocks, dtype=np.int64).reshape(-1, 3)


@njit(parallel=True, fastmath=True, cache=True)
def _products(x, w, order, blocks, k, out):
    d, h = w.shape[1], w.shape[2]
    for b in prange(blocks.shape[0]):
        e, first, last = blocks[b]
        i = first
        while i + 4 <= last:  # four rows share each row of the matrix
            r0, r1, r2, r3 = order[i], order[i + 1], order[i + 2], order[i + 3]
            x0, x1, x2, x3 = x[r0 // k], x[r1 // k], x[r2 // k], x[r3 // k]
            acc = np.zeros((4, h), dtype=np.float32)
            for m in range(d):
                a0, a1, a2, a3 = x0[m], x1[m], x2[m], x3[m]
                for n in range(h):
                    v = w[e, m, n]
                    acc[0, n] += a0 * v
                    acc[1, n] += a1 * v
                    acc[2, n] += a2 * v
                    acc[3, n] += a3 * v
            out[r0], out[r1], out[r2], out[r3] = acc[0], acc[1], acc[2], acc[3]
            i += 4
        while i < last:
            r = order[i]
            row = np.zeros(h, dtype=np.float32)
            for m in range(d):
                a = x[r // k, m]
                for n in range(h):
                    row[n] += a * w[e, m, n]
            out[r] = row
            i += 1


@njit(parallel=True, fastmath=True, cache=True)
def _weight_gradients(x, dy, order, offsets, k, dw):
    d, h = dw.shape[1], dw.shape[2]
    parts = (d + BLOCK - 1) // BLOCK
    for task in prange(dw.shape[0] * parts):
        e, first = task // parts, task % parts * BLOCK
        last = min(first + BLOCK, d)
        dw[e, first:last] = 0
        for i in range(offsets[e], offsets[e + 1]):
            r = order[i]
            for m in range(first, last):
                a = x[r // k, m]
                for n in range(h):
                    dw[e, m, n] += a * dy[r, n]


class _CVMM(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, experts, w):
        set_num_threads(torch.get_num_threads())
        ctx.save_for_backward(x, w)
        ctx.plan = _plan(experts, len(w))
        ctx.k = experts.shape[1]
        order, _, blocks = ctx.plan
        y = x.new_empty(*experts.shape, w.shape[2])
        _products(x.detach().numpy(), w.detach().numpy(), order, blocks, ctx.k, y.flatten(0, 1).numpy())
        return y

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        order, offsets, blocks = ctx.plan
        dy = dy.contiguous().flatten(0, 1)
        transposed = w.detach().transpose(1, 2).contiguous()
        dx = torch.empty(len(dy), x.shape[1])
        _products(dy.numpy(), transposed.numpy(), order, blocks, 1, dx.numpy())
        dw = torch.empty_like(w)
        _weight_gradients(x.detach().numpy(), dy.numpy(), order, offsets, ctx.k, dw.detach().numpy())
        return dx.view(len(x), ctx.k, -1).sum(1), None, dw


def cvmm(x, experts, w):
    """x [T, d] float32, experts [T, k] in [0, E), w [E, d, h] -> [T, k, h]."""
    return _CVMM.apply(x.contiguous(), experts, w.contiguous())
