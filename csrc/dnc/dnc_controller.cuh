// The LSTM controller of one sample, and how samples lie in the state tensors.
#pragma once
#include "dnc/dnc_group.cuh"

namespace sysgen {

template <class A>
__device__ __forceinline__ i64 dnc_length(const DncProblem<A>& p, i64 b) {
  const i64 n = p.lengths ? p.lengths[b] : p.steps;
  return n < 0 ? 0 : (n > p.steps ? p.steps : n);
}

template <class A>
__device__ __forceinline__ i64 dnc_cells_numel(const DncProblem<A>& p) {
  DncCarver<A> count{nullptr, 0};
  dnc_cells(count, p.cells, p.width, p.reads, p.hidden);
  return count.used;
}

// Sample b of tensors [B, ...]; a null pointer stays one.
template <class A>
__device__ __forceinline__ DncCells<A> cells_of(const DncProblem<A>& p, const DncCells<A>& all, i64 b) {
  const i64 n = p.cells;
  const auto of = [b](A* x, i64 each) { return x ? x + b * each : nullptr; };
  return {of(all.link, n * n), of(all.memory, n * p.width), of(all.usage, n),   of(all.precedence, n),
          of(all.write_w, n),  of(all.read_w, n * p.reads), of(all.c, p.hidden)};
}

// By all threads of the group, with or without the links; zeros from a null pointer.
template <class A>
__device__ __forceinline__ void import_cells(const DncProblem<A>& p, const DncGroup& g, const DncCells<A>& x,
                                             const DncCells<A>& y, bool links) {
  const auto copy = [&](const A* from, A* to, i64 count) {
    for (i64 i = g.thread(); i < count; i += g.threads()) to[i] = from ? from[i] : A(0);
  };
  const i64 n = p.cells;
  if (links) copy(x.link, y.link, n * n);
  copy(x.memory, y.memory, n * p.width);
  copy(x.usage, y.usage, n);
  copy(x.precedence, y.precedence, n);
  copy(x.write_w, y.write_w, n);
  copy(x.read_w, y.read_w, n * p.reads);
  copy(x.c, y.c, i64(p.hidden));
}

// gates [4 H]: projections of the input on entry, activated at the end. A warp takes a unit, and so its c.
template <class A>
__device__ __forceinline__ void lstm_fwd(const DncProblem<A>& p, const DncGroup& g, const A* h_before,
                                         const A* reads, const A* w_hidden, const A* w_reads, A* gates, A* c,
                                         A* h) {
  const i64 hidden = p.hidden;
  const int words = p.reads * p.width;
  for (int k = g.warp(); k < p.hidden; k += g.warps()) {
    A sums[4] = {};
    dot_rows(h_before, p.hidden, sums, [&](int r) { return w_hidden + (r * hidden + k) * hidden; });
    dot_rows(reads, words, sums, [&](int r) { return w_reads + (r * hidden + k) * words; });
    const A sum = warp_sums(sums);
    const int gate = lane_id() / 8;  // input, forget, cell, output
    const A x = gates[gate * hidden + k] + sum, y = gate == 2 ? tanh_of(x) : dnc_sigmoid(x);
    __syncwarp();
    if (lane_id() % 8 == 0) gates[gate * hidden + k] = y;
    const A i = __shfl_sync(~0u, y, 0), f = __shfl_sync(~0u, y, 8), u = __shfl_sync(~0u, y, 16),
            o = __shfl_sync(~0u, y, 24);
    if (lane_id() != 0) continue;
    const A cell = f * c[k] + i * u;
    c[k] = cell;
    h[k] = o * tanh_of(cell);
  }
}

// c after the step from activated gates, by the operation of lstm_fwd.
template <class A>
__device__ __forceinline__ void repeat_cell(const DncProblem<A>& p, const DncGroup& g, const A* gates,
                                            const A* before, A* c) {
  const i64 hidden = p.hidden;
  for (i64 k = g.thread(); k < hidden; k += g.threads())
    c[k] = gates[hidden + k] * before[k] + gates[k] * gates[2 * hidden + k];
}

// From the gradients of h and of c after the step: of the gates before their activation, and of c before.
template <class A>
__device__ __forceinline__ void lstm_unit_bwd(i64 hidden, int k, const A* gates, A c_before, A c, A dh, A* dc,
                                              A* dgates) {
  const A i = gates[k], f = gates[hidden + k], u = gates[2 * hidden + k], o = gates[3 * hidden + k];
  const A t = tanh_of(c), dcell = dc[k] + dh * o * (A(1) - t * t);
  dgates[k] = dcell * u * i * (A(1) - i);
  dgates[hidden + k] = dcell * c_before * f * (A(1) - f);
  dgates[2 * hidden + k] = dcell * i * (A(1) - u * u);
  dgates[3 * hidden + k] = dh * t * o * (A(1) - o);
  dc[k] = dcell * f;
}

}  // namespace sysgen
