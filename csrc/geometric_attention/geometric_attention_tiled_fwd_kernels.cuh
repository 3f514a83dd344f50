// The forward pass of geometric attention for any number of keys: one block computes ROWS rows of the output
// of one head, see geometric_attention_tiled.cuh.
#pragma once
#include "geometric_attention/geometric_attention_tiled.cuh"

namespace sysgen {

template <class T>
struct GeometricTiledFwdArgs {
  GeometricScores<Acc<T>> s;
  GeometricRows<const T> q, k, v;
  GeometricRows<T> out;
  Acc<T>* rem;            // [B, H, L] or null
  i64 row_blocks, parts;  // of the queries of a head, and of the columns of the output
  i64 items;              // batch * heads * row_blocks * parts
};

template <class P>
struct GeometricTiledFwdShared {
  static constexpr int COPIES = P::STAGED ? 2 : 1, W = P::STAGED ? P::W : 1;
  GeometricRing<P> ring;
  alignas(128) typename P::T q[P::STAGED ? P::ROWS : 1][P::PAD];
  alignas(128) typename P::T k[COPIES][COPIES][W][P::PAD];
  alignas(128) typename P::T v[COPIES][COPIES][W][P::PAD];
  typename P::A share[P::ROWS];       // what the weights of a row are divided by
  GeometricHead<typename P::A> head;  // the block's; registers are scarce
  GeometricWalk walk;
};

// Turns the scores of window n into weights. total: log(1 - P) summed over the nearer keys of the lane's row.
template <class P, class Sides>
__device__ __forceinline__ void scan_fwd(Sides sides, const GeometricWarp<P>& warp, GeometricRing<P>& ring,
                                         int n, typename P::A& total) {
  using A = typename P::A;
  A match[P::CHUNK][Sides::COUNT], sum = 0;
#pragma unroll
  for (int i = 0; i < P::CHUNK; ++i)
#pragma unroll
    for (int s = 0; s < Sides::COUNT; ++s) {
      const int side = sides.at(s);
      const int place = ring_place<P>(side, warp.row, n, warp.part * P::CHUNK + i);
      const auto terms = geometric_terms<typename P::T>(ring[side][warp.row][place]);
      match[i][s] = terms.match + sum;
      sum += terms.miss;
    }
  const auto prefix = quad_prefix(sum, warp.part);
  const A before = total + prefix.before;
#pragma unroll
  for (int i = 0; i < P::CHUNK; ++i)
#pragma unroll
    for (int s = 0; s < Sides::COUNT; ++s) {
      const int side = sides.at(s);
      ring[side][warp.row][ring_place<P>(side, warp.row, n, warp.part * P::CHUNK + i)] =
          geometric_exp<typename P::T>(match[i][s] + before);
    }
  total += prefix.all;
}

// Weights of window n that are known to be zero.
template <class P>
__device__ __forceinline__ void clear_window(const GeometricWarp<P>& warp, GeometricRing<P>& ring, int n) {
#pragma unroll
  for (int i = 0; i < P::CHUNK; ++i)
#pragma unroll
    for (int side = 0; side < 2; ++side)
      ring[side][warp.row][ring_place<P>(side, warp.row, n, warp.part * P::CHUNK + i)] = 0;
}

template <class P>
__global__ void __launch_bounds__(P::THREADS, P::MIN_BLOCKS)
    geometric_attention_tiled_fwd_kernel(const GeometricTiledFwdArgs<typename P::T> a) {
  using T = typename P::T;
  using A = typename P::A;
  Smem smem;
  auto& shared = smem.array<GeometricTiledFwdShared<P>>();
  const GeometricWarp<P> warp;

  for (i64 item = blockIdx.x; item < a.items; item += gridDim.x) {
    const i64 part = item % a.parts, row0 = item / a.parts % a.row_blocks * P::ROWS;
    const i64 bh = item / a.parts / a.row_blocks, b = bh / a.s.heads, h = bh % a.s.heads;
    if (threadIdx.x == 0) {
      shared.head = geometric_head(a.s, b, h);
      shared.walk = geometric_walk<P>(a.s, row0);
    }
    __syncthreads();
    const auto& head = shared.head;
    const GeometricWalk& walk = shared.walk;
    const T *q = a.q.head(b, h), *k = a.k.head(b, h), *v = a.v.head(b, h);
    const auto tile_of = [&](const T* data, i64 stride, int t) {
      return GeometricGlobalRows<T>{data,     stride,         walk.key(warp.side, t * P::W),
                                    a.s.keys, warp.side == 1, head.key_mask};
    };
    const auto load = [&](int t) {  // what step t needs
      if constexpr (P::STAGED) {
        load_tile<P>(shared.k[t % 2], k, a.k.stride_n, a.k.vec, walk, a.s, head.key_mask, t);
        if (t >= P::LAG)
          load_tile<P>(shared.v[t % 2], v, a.v.stride_n, a.v.vec, walk, a.s, head.key_mask, t - P::LAG);
      }
      cp_async_commit();
    };

    A bias[2] = {};
    if (head.bias)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const i64 r = row0 + warp.tile_row(i);
        if (r < a.s.queries) bias[i] = head.bias[r * a.s.bias_stride_l + (warp.side ? 0 : 1)];
      }
    A out[P::DT][4] = {}, total = 0;
    int steps = walk.windows + P::LAG;
    bool stopped = false;
    if constexpr (P::STAGED) load_queries<P>(shared.q, q, a.q.stride_n, a.q.vec, walk, row0, a.s.width);
    load(0);
    for (int t = 0; t < steps; ++t) {
      cp_async_wait<0>();
      // The tiles of this step are there, and everybody is done with those that the next load overwrites.
      const int matters = __syncthreads_or(warp.row < walk.rows && !(total < geometric_zero_below<A>()));
      if (a.s.early_stop && !matters && !stopped) {  // the tiles of the windows so far are all that is left
        stopped = true;
        if (steps > t + P::LAG) steps = t + P::LAG;
      }
      if (t + 1 < steps) load(t + 1);
      if (!stopped) {
        A acc[P::NT][4] = {};
        if (has_keys<P>(walk, warp.side, t, 1)) {
          if constexpr (P::STAGED) {
            P::scores(acc, {shared.q}, warp.group * 16, {shared.k[t % 2][warp.side]}, a.s.width);
          } else {
            P::scores(acc, {q, a.q.stride_n, row0, a.s.queries, false, nullptr}, warp.group * 16,
                      tile_of(k, a.k.stride_n, t), a.s.width);
          }
        }
        store_scores<P>(warp, walk, a.s, head, row0, t, walk.windows, bias, acc, shared.ring);
      }
      const int n = t - P::LAG;
      if (n < 0) continue;
      warp.sync_pair();
      if (stopped) {
        clear_window<P>(warp, shared.ring, n);
      } else {
        with_sides<P>(walk, n, [&](auto sides) { scan_fwd<P>(sides, warp, shared.ring, n, total); });
      }
      warp.sync_pair();
      if (!has_keys<P>(walk, warp.side, n, 1)) continue;
      const auto weight = [&](int m, int c) -> const Vec<A, 2>& {
        return *reinterpret_cast<const Vec<A, 2>*>(
            &shared.ring[warp.side][warp.group * 16 + m][n % P::SLOTS * P::W + c]);
      };
      if constexpr (P::STAGED) {
        P::template weighted<P::W>(out, weight, {shared.v[t % 2][warp.side]}, int(part) * P::COLUMNS,
                                   a.s.width);
      } else {
        P::template weighted<P::W>(out, weight, tile_of(v, a.v.stride_n, n), int(part) * P::COLUMNS,
                                   a.s.width);
      }
    }
    cp_async_wait<0>();

    if (warp.part == 0) {
      const A sum = -expm1_of(total);
      shared.share[warp.row] = !a.s.normalize ? A(1) : sum > a.s.eps ? sum : a.s.eps;
      if (a.rem && part == 0 && warp.row < walk.rows)
        a.rem[bh * a.s.queries + row0 + warp.row] = exp_of(total);
    }
    __syncthreads();
    store_sides<P>(warp, shared.ring, out, [&](int i, int col, A first, A second) {
      const int r = warp.tile_row(i);
      if (r >= walk.rows) return;
      if (a.s.normalize) first /= shared.share[r], second /= shared.share[r];
      T* row = a.out.head(b, h) + (row0 + r) * a.out.stride_n;
      store_pair(row, part * P::COLUMNS + col, a.s.width, a.out.vec, first, second);
    });
    __syncthreads();  // before the next rows
  }
}

}  // namespace sysgen
