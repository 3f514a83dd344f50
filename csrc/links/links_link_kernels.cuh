// The link matrix: its update, and the projections of the read weights through it, each forward and backward
// in one pass over its N^2 elements.
//
// A block has ROWS rows of one sample, a warp EACH of them; its lanes have V columns each at a time. Sums
// along a row stay within the warp. Sums along a column go to scratch as one partial sum a block, and a
// second kernel adds these in order.
#pragma once
#include "common/kernel_math.cuh"
#include "cvmm/cvmm_tiles.cuh"

namespace sysgen {

template <class A_, int V_, int HEADS_ = 1>
struct LinkTile {
  using A = A_;
  static constexpr int V = V_, HEADS = HEADS_;  // HEADS: read heads that are taken together
  static constexpr int WARPS = 8, THREADS = 32 * WARPS, EACH = 4, ROWS = WARPS * EACH, COLUMNS = 32 * V;
};

inline constexpr int kLinkRows = LinkTile<float, 1>::ROWS;

// Where a thread of a tile is: sample, tile, its first row, its first column in a stripe of columns.
template <class P>
struct LinkPlace {
  i64 b, tile, row;
  int column;
  __device__ __forceinline__ explicit LinkPlace(i64 tiles)
      : b(blockIdx.x / tiles),
        tile(blockIdx.x % tiles),
        row(tile * P::ROWS + warp_id() * P::EACH),
        column(lane_id() * P::V) {}
};

template <class A, int V>
__device__ __forceinline__ Vec<A, V> link_load(const A* p, bool there) {
  return there ? *reinterpret_cast<const Vec<A, V>*>(p) : Vec<A, V>{};
}

// partial[column] for the columns of a stripe: the sum of the warps' numbers. `sums` is shared; all threads
// arrive.
template <class P, int COUNT>
__device__ __forceinline__ void link_sum_columns(typename P::A (&sums)[P::WARPS][COUNT][P::COLUMNS],
                                                 const typename P::A (&mine)[COUNT][P::V], i64 first,
                                                 i64 cells, int count, typename P::A* partial) {
  using A = typename P::A;
  __syncthreads();  // who read the stripe before has done so
#pragma unroll
  for (int h = 0; h < COUNT; ++h)
#pragma unroll
    for (int v = 0; v < P::V; ++v) sums[warp_id()][h][lane_id() * P::V + v] = mine[h][v];
  __syncthreads();
  for (int t = threadIdx.x; t < count * P::COLUMNS; t += P::THREADS) {
    const int h = t / P::COLUMNS, column = t % P::COLUMNS;
    A sum = 0;
#pragma unroll
    for (int w = 0; w < P::WARPS; ++w) sum += sums[w][h][column];
    if (first + column < cells) partial[h * cells + first + column] = sum;
  }
}

// ---- update

template <class A>
struct LinkUpdateArgs {
  const A *link, *precedence, *write_weights;
  const A *dupdated_link, *dupdated_precedence;  // backward: either may be null
  A *updated_link, *updated_precedence;          // forward
  A *dlink, *dprecedence, *dwrite_weights;       // backward
  A* partial;  // backward: [B, tiles, 2, N], of dwrite_weights and dprecedence
  i64 cells, tiles;
};

template <class P>
__global__ void __launch_bounds__(P::THREADS) link_update_fwd_kernel(const LinkUpdateArgs<typename P::A> a) {
  using A = typename P::A;
  constexpr int V = P::V;
  SYSGEN_SHARED(A, parts, [P::WARPS]);
  const LinkPlace<P> at(a.tiles);
  const i64 n = a.cells;
  const A *const w = a.write_weights + at.b * n, *const p = a.precedence + at.b * n;
  for (i64 j = at.column; j < n; j += P::COLUMNS) {
    const Vec<A, V> wj = link_load<A, V>(w + j, true), pj = link_load<A, V>(p + j, true);
#pragma unroll
    for (int k = 0; k < P::EACH; ++k) {
      const i64 i = at.row + k, element = (at.b * n + i) * n + j;
      if (i >= n) continue;
      Vec<A, V> l = link_load<A, V>(a.link + element, true);
      const A wi = w[i];
#pragma unroll
      for (int v = 0; v < V; ++v)
        l.v[v] = i == j + v ? A(0) : ((A(1) - wi) - wj.v[v]) * l.v[v] + wi * pj.v[v];
      *reinterpret_cast<Vec<A, V>*>(a.updated_link + element) = l;
    }
  }
  if (at.tile > 0) return;
  A total = 0;
  for (i64 i = threadIdx.x; i < n; i += P::THREADS) total += w[i];
  const A left = A(1) - over_block<Sum>(total, parts);
  for (i64 i = threadIdx.x; i < n; i += P::THREADS) a.updated_precedence[at.b * n + i] = left * p[i] + w[i];
}

// dwrite_weights gets the sums along the rows.
template <class P>
__global__ void __launch_bounds__(P::THREADS) link_update_bwd_kernel(const LinkUpdateArgs<typename P::A> a) {
  using A = typename P::A;
  constexpr int V = P::V;
  SYSGEN_SHARED(A, sums, [P::WARPS][2][P::COLUMNS]);
  const LinkPlace<P> at(a.tiles);
  const i64 n = a.cells;
  const A *const w = a.write_weights + at.b * n, *const p = a.precedence + at.b * n;
  A rows[P::EACH] = {};
  for (i64 first = 0; first < n; first += P::COLUMNS) {
    const i64 j = first + at.column;
    const Vec<A, V> wj = link_load<A, V>(w + j, j < n), pj = link_load<A, V>(p + j, j < n);
    A columns[2][V] = {};
#pragma unroll
    for (int k = 0; k < P::EACH; ++k) {
      const i64 i = at.row + k, element = (at.b * n + i) * n + j;
      if (i >= n || j >= n) continue;
      const Vec<A, V> old = link_load<A, V>(a.link + element, true);
      Vec<A, V> d{};
      if (a.dupdated_link) d = link_load<A, V>(a.dupdated_link + element, true);
      const A wi = w[i];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if (i == j + v) d.v[v] = 0;
        const A through = d.v[v] * old.v[v];
        columns[0][v] -= through;
        columns[1][v] += d.v[v] * wi;
        rows[k] += d.v[v] * pj.v[v] - through;
        d.v[v] *= (A(1) - wi) - wj.v[v];
      }
      *reinterpret_cast<Vec<A, V>*>(a.dlink + element) = d;
    }
    link_sum_columns<P, 2>(sums, columns, first, n, 2, a.partial + (at.b * a.tiles + at.tile) * 2 * n);
  }
#pragma unroll
  for (int k = 0; k < P::EACH; ++k) {
    const A sum = over_warp<Sum>(rows[k]);
    if (lane_id() == 0 && at.row + k < n) a.dwrite_weights[at.b * n + at.row + k] = sum;
  }
}

// partial[tile * stride + offset], summed over the tiles.
template <class A>
__device__ __forceinline__ A link_sum_partial(const A* partial, i64 tiles, i64 stride) {
  A sum = 0;
  for (i64 tile = 0; tile < tiles; ++tile) sum += partial[tile * stride];
  return sum;
}

constexpr int kLinkThreads = 256;

// A block has kLinkThreads cells of a sample.
template <class A>
__global__ void __launch_bounds__(kLinkThreads) link_update_finish_kernel(const LinkUpdateArgs<A> a) {
  SYSGEN_SHARED(A, parts, [kLinkThreads / 32]);
  const i64 n = a.cells, chunks = (n + kLinkThreads - 1) / kLinkThreads, b = blockIdx.x / chunks;
  const i64 i = blockIdx.x % chunks * kLinkThreads + threadIdx.x;
  const A* const partial = a.partial + b * a.tiles * 2 * n + i;
  A total = 0, along = 0, d = 0;
  if (a.dupdated_precedence) {
    const A* const dprecedence = a.dupdated_precedence + b * n;
    for (i64 j = threadIdx.x; j < n; j += kLinkThreads) {
      total += a.write_weights[b * n + j];
      along += dprecedence[j] * a.precedence[b * n + j];
    }
    total = over_block<Sum>(total, parts);
    along = over_block<Sum>(along, parts);
    if (i < n) d = dprecedence[i];
  }
  if (i >= n) return;
  a.dwrite_weights[b * n + i] += link_sum_partial(partial, a.tiles, 2 * n) + (d - along);
  a.dprecedence[b * n + i] = link_sum_partial(partial + n, a.tiles, 2 * n) + (A(1) - total) * d;
}

// ---- read

// Each [B, R, N], or [B, R] for the sharpness.
template <class A>
struct LinkReadArgs {
  const A *link, *read_weights;
  const A *sharp_forward, *sharp_backward;        // or null
  A *projection_forward, *projection_backward;    // before sharpening: results, or of the forward pass
  A *weights_forward, *weights_backward;          // forward: results; backward: their gradients, or null
  A *dprojection_forward, *dprojection_backward;  // backward; null: zeros
  A *dsharp_forward, *dsharp_backward;            // backward
  A *dlink, *dread_weights;                       // backward
  A* partial;  // [B, tiles, R, N], of projection_backward, or of dread_weights
  i64 batch, cells, reads, tiles;
  A eps;
};

// What HEADS heads from `first` have for one row or for V columns; 0 where there is none.
template <int HEADS, int V, class A>
__device__ __forceinline__ void link_load_heads(A (&to)[HEADS][V], const A* x, i64 n, i64 at, bool there,
                                                int heads) {
#pragma unroll
  for (int h = 0; h < HEADS; ++h) {
    const Vec<A, V> loaded = link_load<A, V>(x + h * n + at, there && h < heads);
#pragma unroll
    for (int v = 0; v < V; ++v) to[h][v] = loaded.v[v];
  }
}

// Sums of the rows along the warp, to out[head][row].
template <class P>
__device__ __forceinline__ void link_store_rows(const typename P::A (&rows)[P::EACH][P::HEADS],
                                                typename P::A* out, i64 n, i64 row, int heads) {
#pragma unroll
  for (int k = 0; k < P::EACH; ++k)
#pragma unroll
    for (int h = 0; h < P::HEADS; ++h) {
      const typename P::A sum = over_warp<Sum>(rows[k][h]);
      if (lane_id() == 0 && row + k < n && h < heads) out[h * n + row + k] = sum;
    }
}

template <class P>
__global__ void __launch_bounds__(P::THREADS, 1) link_read_fwd_kernel(const LinkReadArgs<typename P::A> a) {
  using A = typename P::A;
  constexpr int V = P::V, HEADS = P::HEADS;
  SYSGEN_SHARED(A, sums, [P::WARPS][HEADS][P::COLUMNS]);
  const LinkPlace<P> at(a.tiles);
  const i64 n = a.cells;
  const A* const link = a.link + at.b * n * n;
  for (i64 first_head = 0; first_head < a.reads; first_head += HEADS) {
    const int heads = static_cast<int>(a.reads - first_head < HEADS ? a.reads - first_head : HEADS);
    const A* const read = a.read_weights + (at.b * a.reads + first_head) * n;
    A rows[P::EACH][HEADS] = {}, weight[P::EACH][HEADS][1];
#pragma unroll
    for (int k = 0; k < P::EACH; ++k)
      link_load_heads<HEADS, 1>(weight[k], read, n, at.row + k, at.row + k < n, heads);
    for (i64 first = 0; first < n; first += P::COLUMNS) {
      const i64 j = first + at.column;
      A readers[HEADS][V], columns[HEADS][V] = {};
      link_load_heads<HEADS, V>(readers, read, n, j, j < n, heads);
#pragma unroll
      for (int k = 0; k < P::EACH; ++k) {
        const i64 i = at.row + k;
        const Vec<A, V> l = link_load<A, V>(link + i * n + j, i < n && j < n);
#pragma unroll
        for (int h = 0; h < HEADS; ++h)
#pragma unroll
          for (int v = 0; v < V; ++v) {
            rows[k][h] += l.v[v] * readers[h][v];
            columns[h][v] += l.v[v] * weight[k][h][0];
          }
      }
      link_sum_columns<P, HEADS>(sums, columns, first, n, heads,
                                 a.partial + ((at.b * a.tiles + at.tile) * a.reads + first_head) * n);
    }
    link_store_rows<P>(rows, a.projection_forward + (at.b * a.reads + first_head) * n, n, at.row, heads);
  }
}

// The head and direction of a block: [2][B][R] blocks, of which the first half is forward.
struct LinkHead {
  bool forward;
  i64 b, r, head;
  __device__ __forceinline__ LinkHead(i64 batch, i64 reads)
      : forward(blockIdx.x < batch * reads),
        b(blockIdx.x / reads % batch),
        r(blockIdx.x % reads),
        head(blockIdx.x % (batch * reads)) {}
};

template <class A>
__device__ __forceinline__ A shifted_projection(A d, A eps) {
  return (d < A(0) ? A(0) : d) + eps;
}

// One block for each head: the backward projection is complete here, and both are sharpened.
template <class A>
__global__ void __launch_bounds__(kLinkThreads) link_read_finish_kernel(const LinkReadArgs<A> a) {
  SYSGEN_SHARED(A, parts, [kLinkThreads / 32]);
  const LinkHead at(a.batch, a.reads);
  const i64 n = a.cells;
  A* const projection = (at.forward ? a.projection_forward : a.projection_backward) + at.head * n;
  A* const weights = (at.forward ? a.weights_forward : a.weights_backward) + at.head * n;
  const A* const sharpness = at.forward ? a.sharp_forward : a.sharp_backward;
  const A* const partial = a.partial + (at.b * a.tiles * a.reads + at.r) * n;
  const A strength = sharpness ? sharpness[at.head] : A(0);
  A largest = minus_infinity<A>();
  for (i64 i = threadIdx.x; i < n; i += kLinkThreads) {
    if (!at.forward) projection[i] = link_sum_partial(partial + i, a.tiles, a.reads * n);
    if (!sharpness) continue;
    const A x = strength * log_of(shifted_projection(projection[i], a.eps));
    weights[i] = x;
    largest = x > largest ? x : largest;
  }
  if (!sharpness) return;
  largest = over_block<Largest>(largest, parts);
  A sum = 0;
  for (i64 i = threadIdx.x; i < n; i += kLinkThreads) {
    const A e = exp_of(weights[i] - largest);
    weights[i] = e;
    sum += e;
  }
  const A scale = A(1) / over_block<Sum>(sum, parts);
  for (i64 i = threadIdx.x; i < n; i += kLinkThreads) weights[i] *= scale;
}

// One block for each head, where it is sharpened: from the gradient of the weights to that of the projection.
template <class A>
__global__ void __launch_bounds__(kLinkThreads, 1) link_read_sharpen_bwd_kernel(const LinkReadArgs<A> a) {
  SYSGEN_SHARED(A, parts, [kLinkThreads / 32]);
  const LinkHead at(a.batch, a.reads);
  const A* const sharpness = at.forward ? a.sharp_forward : a.sharp_backward;
  if (!sharpness) return;
  const i64 n = a.cells;
  const A* const projection = (at.forward ? a.projection_forward : a.projection_backward) + at.head * n;
  const A* const dweights = at.forward ? a.weights_forward : a.weights_backward;
  A* const out = (at.forward ? a.dprojection_forward : a.dprojection_backward) + at.head * n;
  const A strength = sharpness[at.head];
  const auto incoming = [&](i64 i) { return dweights ? dweights[at.head * n + i] : A(0); };
  A largest = minus_infinity<A>();
  for (i64 i = threadIdx.x; i < n; i += kLinkThreads) {
    const A x = strength * log_of(shifted_projection(projection[i], a.eps));
    out[i] = x;
    largest = x > largest ? x : largest;
  }
  largest = over_block<Largest>(largest, parts);
  A sum = 0, along = 0;
  for (i64 i = threadIdx.x; i < n; i += kLinkThreads) {
    const A e = exp_of(out[i] - largest);
    out[i] = e;
    sum += e;
    along += e * incoming(i);
  }
  sum = over_block<Sum>(sum, parts);
  const A mean = over_block<Sum>(along, parts) / sum;
  A dstrength = 0;
  for (i64 i = threadIdx.x; i < n; i += kLinkThreads) {
    const A d = projection[i], shifted = shifted_projection(d, a.eps),
            g = out[i] / sum * (incoming(i) - mean);
    dstrength += g * log_of(shifted);
    out[i] = d < A(0) ? A(0) : strength * g / shifted;
  }
  dstrength = over_block<Sum>(dstrength, parts);
  if (threadIdx.x == 0) (at.forward ? a.dsharp_forward : a.dsharp_backward)[at.head] = dstrength;
}

// dread_weights gets the sums along the rows.
template <class P>
__global__ void __launch_bounds__(P::THREADS, 1) link_read_bwd_kernel(const LinkReadArgs<typename P::A> a) {
  using A = typename P::A;
  constexpr int V = P::V, HEADS = P::HEADS;
  SYSGEN_SHARED(A, sums, [P::WARPS][HEADS][P::COLUMNS]);
  const LinkPlace<P> at(a.tiles);
  const i64 n = a.cells;
  const bool forward = a.dprojection_forward != nullptr, backward = a.dprojection_backward != nullptr;
  const A* const dforward = forward ? a.dprojection_forward : a.read_weights;
  const A* const dbackward = backward ? a.dprojection_backward : a.read_weights;
  i64 first_head = 0;
  do {  // once without heads, too: dlink is 0 then
    const int heads = static_cast<int>(a.reads - first_head < HEADS ? a.reads - first_head : HEADS);
    const i64 head = (at.b * a.reads + first_head) * n;
    A rows[P::EACH][HEADS] = {}, weight[P::EACH][HEADS][1], d_row[P::EACH][HEADS][1];
#pragma unroll
    for (int k = 0; k < P::EACH; ++k) {
      const bool there = at.row + k < n;
      link_load_heads<HEADS, 1>(weight[k], a.read_weights + head, n, at.row + k, there, heads);
      link_load_heads<HEADS, 1>(d_row[k], dforward + head, n, at.row + k, there && forward, heads);
    }
    for (i64 first = 0; first < n; first += P::COLUMNS) {
      const i64 j = first + at.column;
      A readers[HEADS][V], d_column[HEADS][V], columns[HEADS][V] = {};
      link_load_heads<HEADS, V>(readers, a.read_weights + head, n, j, j < n, heads);
      link_load_heads<HEADS, V>(d_column, dbackward + head, n, j, j < n && backward, heads);
#pragma unroll
      for (int k = 0; k < P::EACH; ++k) {
        const i64 i = at.row + k, element = (at.b * n + i) * n + j;
        if (i >= n || j >= n) continue;
        const Vec<A, V> l = link_load<A, V>(a.link + element, true);
        Vec<A, V> d = link_load<A, V>(a.dlink + element, first_head > 0);
#pragma unroll
        for (int h = 0; h < HEADS; ++h)
#pragma unroll
          for (int v = 0; v < V; ++v) {
            d.v[v] += d_row[k][h][0] * readers[h][v] + weight[k][h][0] * d_column[h][v];
            rows[k][h] += l.v[v] * d_column[h][v];
            columns[h][v] += l.v[v] * d_row[k][h][0];
          }
        *reinterpret_cast<Vec<A, V>*>(a.dlink + element) = d;
      }
      link_sum_columns<P, HEADS>(sums, columns, first, n, heads,
                                 a.partial + ((at.b * a.tiles + at.tile) * a.reads + first_head) * n);
    }
    link_store_rows<P>(rows, a.dread_weights + head, n, at.row, heads);
    first_head += HEADS;
  } while (first_head < a.reads);
}

// dread_weights += the sums along the columns.
template <class A>
__global__ void __launch_bounds__(kLinkThreads) link_read_bwd_finish_kernel(const LinkReadArgs<A> a) {
  const i64 size = a.reads * a.cells, count = a.batch * size;
  for (i64 i = i64(blockIdx.x) * kLinkThreads + threadIdx.x; i < count; i += i64(gridDim.x) * kLinkThreads)
    a.dread_weights[i] += link_sum_partial(a.partial + i / size * a.tiles * size + i % size, a.tiles, size);
}

}  // namespace sysgen
