// The backward pass of geometric attention for any number of keys, see geometric_attention_tiled.cuh. A block
// owns a segment of the row blocks of one head and takes them in order. For each it goes outwards once, to
// find where the logarithms of every window begin (and with normalize the sums over a row), and then inwards:
//
//   scores and <dout, v> of a tile   ->   A and ds of a window   ->   dq, dk and dv of the tile that is
//   finished
//
// dk and dv of a segment are sums in the accumulator type, in global memory;
// geometric_attention_tiled_sum_kernel adds the segments in order. So no result depends on which block is
// faster.
#pragma once
#include "geometric_attention/geometric_attention_tiled.cuh"

namespace sysgen {

template <class T>
struct GeometricTiledBwdArgs {
  GeometricScores<Acc<T>> s;
  GeometricRows<const T> q, k, v, dout;
  const Acc<T>* drem;  // [B, H, L] or null
  GeometricRows<T> dq;
  Acc<T>* dbias;                    // [B, H, L, 2] or null
  Acc<T>* dmask;                    // [B, H, L, S] or null
  Acc<T>* carries;                  // [items, windows, ROWS]
  Acc<T>* dk;                       // [segments, B * H, S, pitch], without the scale
  Acc<T>* dv;                       // the same
  i64 row_blocks, segments, parts;  // of the queries of a head, twice, and of the columns of dq, dk and dv
  i64 windows, pitch;
  i64 items;  // batch * heads * segments * parts
};

template <class P>
struct GeometricTiledBwdShared {
  static constexpr int COPIES = P::STAGED ? 2 : 1, ROWS = P::STAGED ? P::ROWS : 1, W = P::STAGED ? P::W : 1;
  static constexpr int KEYS = P::STAGED ? P::SLOTS + 1 : 1;  // dq needs the tiles of k that are in the ring
  GeometricRing<P> weights, slopes;                          // s, then A; <dout, v>, then ds
  alignas(128) typename P::T q[ROWS][P::PAD];
  alignas(128) typename P::T dout[ROWS][P::PAD];
  alignas(128) typename P::T k[KEYS][COPIES][W][P::PAD];
  alignas(128) typename P::T v[COPIES][COPIES][W][P::PAD];
};

// What a lane knows of its row, besides the scores.
template <class A>
struct GeometricRowState {
  A total;        // log(1 - P) summed over the keys nearer than the window
  A dot;          // A <dout, v> summed; then <dout, out>, or 0 where it does not count
  A share;        // what the weights are multiplied by
  A farther;      // U: g summed over the keys beyond the window
  A left, right;  // of dbias
};

// Window n on the way outwards.
template <class P, class Sides>
__device__ __forceinline__ void scan_outwards(Sides sides, const GeometricWarp<P>& warp,
                                              const GeometricTiledBwdShared<P>& shared, int n, bool normalize,
                                              GeometricRowState<typename P::A>& row) {
  using A = typename P::A;
  A match[P::CHUNK][Sides::COUNT], sum = 0;
#pragma unroll
  for (int i = 0; i < P::CHUNK; ++i)
#pragma unroll
    for (int s = 0; s < Sides::COUNT; ++s) {
      const int side = sides.at(s);
      const int place = ring_place<P>(side, warp.row, n, warp.part * P::CHUNK + i);
      const auto terms = geometric_terms<typename P::T>(shared.weights[side][warp.row][place]);
      match[i][s] = terms.match + sum;
      sum += terms.miss;
    }
  const auto prefix = quad_prefix(sum, warp.part);
  if (normalize) {
    const A before = row.total + prefix.before;
#pragma unroll
    for (int i = 0; i < P::CHUNK; ++i)
#pragma unroll
      for (int s = 0; s < Sides::COUNT; ++s) {
        const int side = sides.at(s);
        const int place = ring_place<P>(side, warp.row, n, warp.part * P::CHUNK + i);
        row.dot += geometric_exp<typename P::T>(match[i][s] + before) * shared.slopes[side][warp.row][place];
      }
  }
  row.total += prefix.all;
}

// Window n on the way inwards; row.total is of its beginning. dmask: of the lane's row, or null.
template <class P, class Sides>
__device__ __forceinline__ void scan_inwards(Sides sides, const GeometricWarp<P>& warp,
                                             const GeometricWalk& w, GeometricTiledBwdShared<P>& shared,
                                             int n, i64 keys, typename P::A* dmask,
                                             GeometricRowState<typename P::A>& row) {
  using A = typename P::A;
  A match[P::CHUNK][Sides::COUNT], chance[P::CHUNK][Sides::COUNT], other[P::CHUNK][Sides::COUNT],
      farther[P::CHUNK][Sides::COUNT], sum = 0;
#pragma unroll
  for (int i = 0; i < P::CHUNK; ++i)
#pragma unroll
    for (int s = 0; s < Sides::COUNT; ++s) {
      const int side = sides.at(s);
      const int place = ring_place<P>(side, warp.row, n, warp.part * P::CHUNK + i);
      const auto terms = geometric_terms<typename P::T>(shared.weights[side][warp.row][place]);
      match[i][s] = terms.match + sum;
      chance[i][s] = terms.chance, other[i][s] = terms.other;
      sum += terms.miss;
    }
  const A before = row.total + quad_prefix(sum, warp.part).before;

  auto& g = match;
  sum = 0;
#pragma unroll
  for (int i = P::CHUNK - 1; i >= 0; --i)
#pragma unroll
    for (int s = Sides::COUNT - 1; s >= 0; --s) {
      const int side = sides.at(s);
      farther[i][s] = sum;
      const int place = ring_place<P>(side, warp.row, n, warp.part * P::CHUNK + i);
      const A weight = geometric_exp<typename P::T>(match[i][s] + before) * row.share;
      const A gain = weight * (shared.slopes[side][warp.row][place] - row.dot);
      shared.weights[side][warp.row][place] = weight;
      g[i][s] = gain;
      sum += gain;
    }
  const auto suffix = quad_prefix<A, true>(sum, warp.part);
  const A beyond = row.farther + suffix.before;
#pragma unroll
  for (int i = 0; i < P::CHUNK; ++i)
#pragma unroll
    for (int s = 0; s < Sides::COUNT; ++s) {
      const int side = sides.at(s);
      const int at = n * P::W + warp.part * P::CHUNK + i;  // distance, from `near`
      const int place = ring_place<P>(side, warp.row, n, warp.part * P::CHUNK + i);
      // adding 0 makes a -0 the 0 that is written where nothing is computed
      const A slope = other[i][s] * g[i][s] - chance[i][s] * (beyond + farther[i][s]) + A(0);
      shared.slopes[side][warp.row][place] = slope;
      const bool self = w.near + at == 0;
      row.left += side && !self ? slope : A(0);
      row.right += side || self ? A(0) : slope;
      if (dmask && !(self && side == 0)) {
        const i64 j = w.key(side, at + (side ? P::ROWS - 1 - warp.row : warp.row));
        if (j >= 0 && j < keys) dmask[j] = slope;
      }
    }
  row.farther += suffix.all;
}

template <class P>
__global__ void __launch_bounds__(P::THREADS, P::MIN_BLOCKS)
    geometric_attention_tiled_bwd_kernel(const GeometricTiledBwdArgs<typename P::T> a) {
  using T = typename P::T;
  using A = typename P::A;
  static_assert(P::W % 16 == 0);
  Smem smem;
  auto& shared = smem.array<GeometricTiledBwdShared<P>>();
  const GeometricWarp<P> warp;

  for (i64 item = blockIdx.x; item < a.items; item += gridDim.x) {
    const i64 part = item % a.parts, segment = item / a.parts % a.segments;
    const i64 bh = item / a.parts / a.segments, b = bh / a.s.heads, h = bh % a.s.heads;
    const i64 heads = a.items / a.parts / a.segments;
    const auto head = geometric_head(a.s, b, h);
    const T *q = a.q.head(b, h), *k = a.k.head(b, h), *v = a.v.head(b, h), *dout = a.dout.head(b, h);
    A* const dk = a.dk + (segment * heads + bh) * a.s.keys * a.pitch;
    A* const dv = a.dv + (segment * heads + bh) * a.s.keys * a.pitch;
    A* const carries = a.carries + item * a.windows * P::ROWS + warp.row;
    const i64 col0 = part * P::COLUMNS, width = a.pitch - col0 < P::COLUMNS ? a.pitch - col0 : P::COLUMNS;
    for (i64 i = threadIdx.x; i < a.s.keys * width; i += P::THREADS)
      dk[i / width * a.pitch + col0 + i % width] = dv[i / width * a.pitch + col0 + i % width] = 0;

    const i64 last = (segment + 1) * a.row_blocks / a.segments * P::ROWS;
    for (i64 row0 = segment * a.row_blocks / a.segments * P::ROWS; row0 < last; row0 += P::ROWS) {
      const GeometricWalk walk = geometric_walk<P>(a.s, row0);
      const bool exists = warp.row < walk.rows;
      const i64 place = bh * a.s.queries + row0 + warp.row;  // of the lane's row
      const auto query_rows = [&](const T* data, i64 stride) {
        return GeometricGlobalRows<T>{data, stride, row0, a.s.queries, false, nullptr};
      };
      const auto key_rows = [&](const T* data, i64 stride, int t) {
        return GeometricGlobalRows<T>{data,     stride,         walk.key(warp.side, t * P::W),
                                      a.s.keys, warp.side == 1, head.key_mask};
      };
      const auto load = [&](int t, bool with_v) {
        if constexpr (P::STAGED) {
          load_tile<P>(shared.k[t % shared.KEYS], k, a.k.stride_n, a.k.vec, walk, a.s, head.key_mask, t);
          if (with_v) load_tile<P>(shared.v[t % 2], v, a.v.stride_n, a.v.vec, walk, a.s, head.key_mask, t);
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
      // s and, if asked for, <dout, v> of tile t into the rings
      const auto compute = [&](int t, int windows, bool with_v) {
        A acc[P::NT][4] = {};
        if (has_keys<P>(walk, warp.side, t, 1)) {
          if constexpr (P::STAGED) {
            P::scores(acc, {shared.q}, warp.group * 16, {shared.k[t % shared.KEYS][warp.side]}, a.s.width);
          } else {
            P::scores(acc, query_rows(q, a.q.stride_n), warp.group * 16, key_rows(k, a.k.stride_n, t),
                      a.s.width);
          }
        }
        store_scores<P>(warp, walk, a.s, head, row0, t, windows, bias, acc, shared.weights);
        if (!with_v) return;
        A slopes[P::NT][4] = {};
        if (has_keys<P>(walk, warp.side, t, 1)) {
          if constexpr (P::STAGED) {
            P::scores(slopes, {shared.dout}, warp.group * 16, {shared.v[t % 2][warp.side]}, a.s.width);
          } else {
            P::scores(slopes, query_rows(dout, a.dout.stride_n), warp.group * 16,
                      key_rows(v, a.v.stride_n, t), a.s.width);
          }
        }
        store_tile<P>(warp, shared.slopes, t, slopes, [](int, A slope) { return slope; });
        if (!is_scanned<P>(t, windows))
          revise_tile<P>(warp, shared.slopes, t, windows, [](int, int, A slope) { return slope; });
      };

      if constexpr (P::STAGED) {
        load_queries<P>(shared.q, q, a.q.stride_n, a.q.vec, walk, row0, a.s.width);
        load_queries<P>(shared.dout, dout, a.dout.stride_n, a.dout.vec, walk, row0, a.s.width);
      }
      A* const dmask = a.dmask && exists && part == 0 ? a.dmask + place * a.s.keys : nullptr;
      if (a.dmask && part == 0)
        for (i64 i = threadIdx.x; i < walk.rows * a.s.keys; i += P::THREADS)
          a.dmask[(bh * a.s.queries + row0) * a.s.keys + i] = 0;

      // ---- outwards
      GeometricRowState<A> row{};
      int windows = walk.windows;
      load(0, a.s.normalize);
      for (int t = 0; t < windows + P::LAG; ++t) {
        cp_async_wait<0>();
        const int matters = __syncthreads_or(exists && !(row.total < geometric_zero_below<A>()));
        if (a.s.early_stop && !matters) {
          windows = t - P::LAG;
          break;
        }
        if (t + 1 < windows + P::LAG) load(t + 1, a.s.normalize);
        compute(t, windows, a.s.normalize);
        const int n = t - P::LAG;
        if (n < 0) continue;
        if (warp.part == 0) carries[i64(n) * P::ROWS] = row.total;
        warp.sync_pair();
        with_sides<P>(walk, n,
                      [&](auto sides) { scan_outwards<P>(sides, warp, shared, n, a.s.normalize, row); });
      }
      cp_async_wait<0>();
      __syncthreads();

      const A sum = -expm1_of(row.total);
      row.share = !a.s.normalize ? A(1) : 1 / (sum > a.s.eps ? sum : a.s.eps);
      row.dot += __shfl_xor_sync(~0u, row.dot, 1);
      row.dot += __shfl_xor_sync(~0u, row.dot, 2);
      row.dot = a.s.normalize && sum > a.s.eps ? row.dot * row.share : A(0);
      row.farther = a.drem && exists ? exp_of(row.total) * a.drem[place] : A(0);

      // ---- inwards
      A dq[P::DT][4] = {};
      const int tiles = windows > 0 ? windows + P::LAG : 0;
      if (tiles > 0) load(tiles - 1, true);
      for (int t = tiles - 1; t >= (tiles > 0 ? -P::LAG : 0); --t) {
        cp_async_wait<0>();
        __syncthreads();  // the tiles are there, and everybody is done with the finished one
        if (t > 0) load(t - 1, true);
        if (t >= 0) compute(t, windows, true);
        if (t >= 0 && t < windows) {
          row.total = carries[i64(t) * P::ROWS];
          warp.sync_pair();
          with_sides<P>(walk, t, [&](auto sides) {
            scan_inwards<P>(sides, warp, walk, shared, t, a.s.keys, dmask, row);
          });
        }
        __syncthreads();
        const int done = t + P::LAG, slot = (done + P::SLOTS) % P::SLOTS * P::W;
        if (done >= tiles) continue;
        const bool any = has_keys<P>(walk, warp.side, done, 1);
        if (any) {
          const auto weight = [&](int m, int c) -> const Vec<A, 2>& {
            return *reinterpret_cast<const Vec<A, 2>*>(
                &shared.slopes[warp.side][warp.group * 16 + m][slot + c]);
          };
          if constexpr (P::STAGED) {
            P::template weighted<P::W>(dq, weight, {shared.k[done % shared.KEYS][warp.side]}, int(col0),
                                       a.s.width);
          } else {
            P::template weighted<P::W>(dq, weight, key_rows(k, a.k.stride_n, done), int(col0), a.s.width);
          }
        }
        // The warps of a side share the columns of its tile of dk and dv.
        const auto add = [&](A* to, const GeometricRing<P>& ring, const auto& rows) {
          for (int j = warp.group; j < P::COLUMNS / 16 && col0 + j * 16 < a.s.width; j += P::GROUPS)
#pragma unroll 1
            for (int c0 = 0; c0 < P::W; c0 += 16) {
              A acc[2][4] = {};
              P::template weighted<P::ROWS>(
                  acc,
                  [&](int c, int r) -> Vec<A, 2> {
                    return {{ring[warp.side][r][slot + c0 + c], ring[warp.side][r + 1][slot + c0 + c]}};
                  },
                  rows, int(col0) + j * 16, a.s.width);
#pragma unroll
              for (int i = 0; i < 2; ++i) {
                const i64 key = walk.key(warp.side, done * P::W + c0 + fragment_row(i));
                if (key < 0 || key >= a.s.keys) continue;
#pragma unroll
                for (int l = 0; l < 2; ++l) {
                  const i64 col = col0 + j * 16 + fragment_col(l);
                  if (col >= a.s.width) continue;
                  auto& pair = *reinterpret_cast<Vec<A, 2>*>(to + key * a.pitch + col);
                  pair = {{pair.v[0] + acc[l][2 * i], pair.v[1] + acc[l][2 * i + 1]}};
                }
              }
            }
        };
        const auto add_side = [&] {
          if constexpr (P::STAGED) {
            add(dk, shared.slopes, typename P::Rows{shared.q});
            add(dv, shared.weights, typename P::Rows{shared.dout});
          } else {
            add(dk, shared.slopes, query_rows(q, a.q.stride_n));
            add(dv, shared.weights, query_rows(dout, a.dout.stride_n));
          }
        };
        const bool meet = 2 * done * P::W < P::ROWS;  // the tiles of both sides have keys in common
        if (any && warp.side == 0) add_side();
        if (meet) __syncthreads();
        if (any && warp.side == 1) add_side();
      }

      __syncthreads();
      store_sides<P>(warp, shared.weights, dq, [&](int i, int col, A first, A second) {
        const int r = warp.tile_row(i);
        if (r >= walk.rows) return;
        T* to = a.dq.head(b, h) + (row0 + r) * a.dq.stride_n;
        store_pair(to, col0 + col, a.s.width, a.dq.vec, a.s.scale * first, a.s.scale * second);
      });
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        A dbias = side ? row.right : row.left;
        dbias += __shfl_xor_sync(~0u, dbias, 1);
        dbias += __shfl_xor_sync(~0u, dbias, 2);
        if (a.dbias && part == 0 && exists && warp.part == side) a.dbias[place * 2 + side] = dbias;
      }
      __syncthreads();  // before the next rows
    }
  }
}

// ---- after it
template <class T>
struct GeometricTiledSumArgs {
  const Acc<T>* sums;  // [segments, B * H, S, pitch]
  GeometricRows<T> out;
  i64 segments, batch, heads, keys, width, pitch;
  Acc<T> scale;
};

// out = scale * the segments' sums, in order, rounded once.
template <class T>
__global__ void __launch_bounds__(256)
    geometric_attention_tiled_sum_kernel(const GeometricTiledSumArgs<T> a) {
  using A = Acc<T>;
  const i64 pairs = a.pitch / 2, count = a.batch * a.heads * a.keys * pairs;
  for (i64 i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) {
    Vec<A, 2> sum = {};
    for (i64 segment = 0; segment < a.segments; ++segment) {
      const auto pair = *reinterpret_cast<const Vec<A, 2>*>(a.sums + (segment * count + i) * 2);
      sum = {{sum.v[0] + pair.v[0], sum.v[1] + pair.v[1]}};
    }
    const i64 row = i / pairs, bh = row / a.keys;
    T* to = a.out.head(bh / a.heads, bh % a.heads) + row % a.keys * a.out.stride_n;
    store_pair(to, i % pairs * 2, a.width, a.out.vec, a.scale * sum.v[0], a.scale * sum.v[1]);
  }
}

}  // namespace sysgen
