// cvmm_fwd on the device: a tile is BM sorted routes of one expert by BN columns, with the rows of x gathered
// through `order` on the way in, and a persistent block goes through many of them. Without `reduce` its rows
// are scattered to their routes; with it they stay in sorted order, as accumulators, for cvmm_combine_kernel.
#pragma once
#include "cvmm/cvmm_epilogue.cuh"
#include "cvmm/cvmm_products.cuh"
#include "cvmm/cvmm_stream.cuh"

namespace sysgen {

template <class T, class W>
struct CvmmFwdKernelArgs {
  const int* order;
  const int* offsets;
  i64 num_routes, num_experts, d, h;
  int n_tiles;
  RowOperand<T> x;
  const W* w;
  i64 w_stride_e, w_stride_row;
  bool w_kn;  // rows of w in memory run along h (else along d); w_stride_row is the distance between them
  int w_vec;
  const Acc<T>* gate;
  const Acc<T>* bias;
  Activation activation;
  bool slope;      // rows are multiplied with the activation's derivative where `other` was kept
  T* out;          // [R, h] by route, or null
  T* second;       // [R, h] by route, or null: the activation's input, or with `slope` its output
  Acc<T>* sorted;  // [R, h] by place in `order`, or null
  bool vec_out;    // their rows may be written 16 bytes at a time
  RowOperand<T> other;
  Acc<T>* dot;        // [R] by route if there is one column tile, else null
  Acc<T>* dot_tiles;  // [n_tiles, R] by place in `order`, or null
  // For one chunk of tokens: offsets are the chunk's, begins [E] where its routes of each expert begin in
  // `order`, and `sorted` holds its rows by route, of which first_route is the first. Else begins is null.
  const int* begins;
  i64 first_route;
};

// Tiles lie behind each other in the order of the experts: those of expert e begin at tile_base(e). Enough,
// since floor(a / BM) + floor(n / BM) <= floor((a + n) / BM), and ceil(n / BM) <= floor(n / BM) + 1; a tile
// may turn out to be empty. In total there are at most R / BM + E tiles.
template <int BM>
__device__ __forceinline__ i64 tile_base(const int* offsets, i64 e) {
  return offsets[e] / BM + e;
}

// A block's tile: rows [row0, row0 + rows) in sorted order, all of one expert, by column tile n_tile.
struct CvmmFwdTile {
  i64 row0, expert;
  int rows, n_tile;
  int steps;  // along d; 0: there is no such tile
};

template <class P>
struct alignas(128) CvmmFwdShared {
  static constexpr int SLOTS = kStreamSlots<P::STAGES>;
  typename P::Shared stages;
  Acc<typename P::T> sums[P::WARPS_N][P::BM];  // of dot
  CvmmFwdTile tile[SLOTS];
  int route[SLOTS][P::BM];   // of the tiles' rows
  int source[SLOTS][P::BM];  // the rows of x that they read
};

// Which tiles a block works on: every gridDim.x-th of a list that goes through the experts in order. Within
// an expert, groups of GROUP row tiles share a column tile of the weights before the next one comes, so that
// what the resident blocks read at a time fits into L2.
template <class P>
struct CvmmFwdTiles {
  static constexpr int GROUP = 8;
  const CvmmFwdKernelArgs<typename P::T, typename P::W>& a;
  CvmmFwdShared<P>& shared;
  i64 index, expert;
  int route;  // of row threadIdx.x of the tile that was found last

  __device__ __forceinline__ CvmmFwdTiles(const CvmmFwdKernelArgs<typename P::T, typename P::W>& a_,
                                          CvmmFwdShared<P>& shared_)
      : a(a_), shared(shared_), index(blockIdx.x), expert(0), route(0) {}

  // In the list, tiles of the same rows count n_tiles times.
  __device__ __forceinline__ i64 begin(i64 e) const { return tile_base<P::BM>(a.offsets, e) * a.n_tiles; }

  __device__ __forceinline__ void find(int slot) {
    CvmmFwdTile tile{};
    const i64 end = begin(a.num_experts);
#pragma unroll 1
    for (; tile.rows <= 0 && index < end; index += gridDim.x) {
      const i64 from = expert;
      expert += warp_search(a.num_experts - from, [&](i64 e) { return begin(from + e); }, index);
      const i64 first = tile_base<P::BM>(a.offsets, expert),
                m_tiles = tile_base<P::BM>(a.offsets, expert + 1) - first, i = index - first * a.n_tiles;
      const i64 group = i / (GROUP * a.n_tiles) * GROUP;
      const int height = m_tiles - group < GROUP ? m_tiles - group : GROUP;
      const int rest = i - group * a.n_tiles;
      tile.n_tile = rest / height;
      const i64 m0 = (group + rest % height) * P::BM;
      tile.row0 = (a.begins ? a.begins[expert] : a.offsets[expert]) + m0;
      const i64 left = a.offsets[expert + 1] - a.offsets[expert] - m0;
      tile.rows = left < P::BM ? left : P::BM;
    }
    if (tile.rows > 0) {
      tile.expert = expert;
      tile.steps = a.d > P::BK ? (a.d + P::BK - 1) / P::BK : 1;
      if (int(threadIdx.x) < tile.rows) route = a.order[tile.row0 + threadIdx.x];
    }
    if (threadIdx.x == 0) shared.tile[slot] = tile;
  }
  __device__ __forceinline__ void publish(int slot) {
    static_assert(P::THREADS >= P::BM, "a thread holds one row's route");
    if (threadIdx.x >= P::BM) return;
    shared.route[slot][threadIdx.x] = route;
    shared.source[slot][threadIdx.x] = route / a.x.divisor;
  }
};

// The dropped routes, which follow behind the last expert's.
template <class T, class W>
__device__ __forceinline__ void clear_dropped(const CvmmFwdKernelArgs<T, W>& a) {
  const int warps = blockDim.x / 32;
  for (i64 i = a.offsets[a.num_experts] + blockIdx.x * i64(warps) + warp_id(); i < a.num_routes;
       i += gridDim.x * i64(warps)) {
    const i64 r = a.order[i];
    for (i64 col = lane_id(); col < a.h; col += 32) {
      if (a.out) a.out[r * a.h + col] = from_acc<T>(0);
      if (a.second) a.second[r * a.h + col] = from_acc<T>(0);
    }
    if (a.dot && lane_id() == 0) a.dot[r] = 0;
  }
}

// Step `step` of a tile, into its stage.
template <class P>
__device__ __forceinline__ void load_step(const CvmmFwdKernelArgs<typename P::T, typename P::W>& a,
                                          CvmmFwdShared<P>& shared, int stage, int slot, int step) {
  const CvmmFwdTile& tile = shared.tile[slot];
  const i64 k0 = i64(step) * P::BK, n0 = i64(tile.n_tile) * P::BN;
  const auto x_row = [&](int m, bool& valid) {
    valid = m < tile.rows;
    return a.x.data + (valid ? shared.source[slot][m] * a.x.stride : 0);
  };
  auto& to_a = shared.stages.a[stage];
  if constexpr (P::A_KM) {
    load_transposed<P::THREADS, P::BM>(to_a, k0, a.d, x_row, P::place_a);
  } else {
    load_rows<P::THREADS, P::BK>(to_a, k0, a.d, a.x.vec, x_row, P::place_a);
  }
  const typename P::W* w = a.w + tile.expert * a.w_stride_e;
  const auto w_row = [&](i64 first, i64 count) {
    return [&a, w, first, count](int i, bool& valid) {
      valid = first + i < count;
      return w + (valid ? (first + i) * a.w_stride_row : 0);
    };
  };
  auto& to_b = shared.stages.b[stage];
  if (P::TRANSPOSES_W ? a.w_kn : P::B_KN) {
    if constexpr (P::B_KN) load_rows<P::THREADS, P::BN>(to_b, n0, a.h, a.w_vec, w_row(k0, a.d), P::place_b);
  } else if constexpr (P::TRANSPOSES_W) {
    load_transposed<P::THREADS, P::BN>(to_b, k0, a.d, w_row(n0, a.h), P::place_b);
  } else if constexpr (!P::B_KN) {
    load_rows<P::THREADS, P::BK>(to_b, k0, a.d, a.w_vec, w_row(n0, a.h), P::place_b);
  }
}

// Everything behind the product. Sums of dot go over a thread, its quad and the warps, always in this order.
template <class P>
__device__ __forceinline__ void finish_tile(const CvmmFwdKernelArgs<typename P::T, typename P::W>& a,
                                            P& product, CvmmFwdShared<P>& shared, int slot) {
  using T = typename P::T;
  const CvmmFwdTile& tile = shared.tile[slot];
  const auto& route = shared.route[slot];
  const i64 n0 = i64(tile.n_tile) * P::BN;
  add_bias<P, Acc<T>>(a, product, tile.expert, n0);
  finish_rows<T>(
      a, product, tile.row0, n0, [&](int m) { return m < tile.rows ? route[m] : -1; },
      [&](int m, Acc<T> sum) { store_shared(shared.sums[product.warp_n / (P::BN / P::WARPS_N)][m], sum); });
  if (!a.dot && !a.dot_tiles) return;
  __syncthreads();
  for (int m = threadIdx.x; m < tile.rows; m += P::THREADS) {
    Acc<T> sum = load_shared(shared.sums[0][m]);
#pragma unroll
    for (int w = 1; w < P::WARPS_N; ++w) sum += load_shared(shared.sums[w][m]);
    if (a.dot) {
      a.dot[route[m]] = sum;
    } else {
      a.dot_tiles[tile.n_tile * a.num_routes + tile.row0 + m] = sum;
    }
  }
  // The sums are free for the next tile once this one is over: a tile has a step, and a step a barrier.
}

template <class P>
__global__ void __launch_bounds__(P::THREADS, P::MIN_BLOCKS)
    cvmm_fwd_kernel(const CvmmFwdKernelArgs<typename P::T, typename P::W> a) {
  Smem smem;
  auto& shared = smem.array<CvmmFwdShared<P>>();
  if (!a.begins) clear_dropped(a);
  CvmmFwdTiles<P> tiles(a, shared);
  P product;
  stream_tiles<P::STAGES>([&](int slot) { tiles.find(slot); }, [&](int slot) { tiles.publish(slot); },
                          [&](int slot) { return shared.tile[slot].steps; },
                          [&](int stage, int slot, int step) { load_step(a, shared, stage, slot, step); },
                          [&](int stage, int slot) {
                            const CvmmFwdTile& tile = shared.tile[slot];
                            if (product.warp_m < tile.rows && i64(tile.n_tile) * P::BN + product.warp_n < a.h)
                              product.multiply(shared.stages, stage, nullptr, tile.rows);
                          },
                          [&](int slot) {
                            finish_tile(a, product, shared, slot);
                            product = P();
                          });
}

// ---- after it
template <class T>
struct CvmmCombineArgs {
  const Acc<T>* sorted;  // [R, h] by place in `order`, or by route
  const int* inverse;    // [T, k]
  i64 num_tokens, k, h;
  bool vec;  // h is a multiple of 4 (2 for float64) and the pointers are aligned to 16 bytes
  T* out;    // [T, h]
  bool by_route;
};

// out[t] = sum over the slots j of sorted[inverse[t, j]] (by route: of sorted[t, j] unless dropped), in slot
// order.
template <class T>
__global__ void __launch_bounds__(256) cvmm_combine_kernel(const CvmmCombineArgs<T> a) {
  constexpr int V = 16 / sizeof(Acc<T>), AHEAD = 4;
  const i64 groups = (a.h + V - 1) / V, all = a.num_tokens * groups;
  for (i64 index = blockIdx.x * 256ll + threadIdx.x; index < all; index += gridDim.x * 256ll) {
    const i64 t = index / groups, col = index % groups * V;
    const int count = a.h - col < V ? a.h - col : V;
    Acc<T> sum[V] = {};
    for (i64 j0 = 0; j0 < a.k; j0 += AHEAD) {
      int place[AHEAD];
      Vec<Acc<T>, V> row[AHEAD];
#pragma unroll
      for (int j = 0; j < AHEAD; ++j) {
        place[j] = j0 + j < a.k ? a.inverse[t * a.k + j0 + j] : -1;
        if (place[j] < 0) continue;
        if (a.by_route) place[j] = t * a.k + j0 + j;
        const Acc<T>* source = a.sorted + place[j] * a.h + col;
        if (a.vec) {
          row[j] = *reinterpret_cast<const Vec<Acc<T>, V>*>(source);
        } else {
#pragma unroll
          for (int l = 0; l < V; ++l) row[j].v[l] = l < count ? source[l] : 0;
        }
      }
#pragma unroll
      for (int j = 0; j < AHEAD; ++j)
#pragma unroll
        for (int l = 0; l < V; ++l)
          if (place[j] >= 0) sum[l] += row[j].v[l];
    }
    T* out = a.out + t * a.h + col;
    if (a.vec) {
      Vec<T, V> result;
#pragma unroll
      for (int l = 0; l < V; ++l) result.v[l] = from_acc<T>(sum[l]);
      *reinterpret_cast<Vec<T, V>*>(out) = result;
    } else {
#pragma unroll
      for (int l = 0; l < V; ++l)
        if (l < count) out[l] = from_acc<T>(sum[l]);
    }
  }
}

template <class A>
struct CvmmDotArgs {
  const A* tiles;  // [n_tiles, R] by place in `order`
  const int* order;
  const int* offsets;
  i64 num_routes, num_experts;
  int n_tiles;
  A* dot;  // [R]
};

// dot[r] = the column tiles' shares in order; 0 for a dropped route.
template <class A>
__global__ void __launch_bounds__(256) cvmm_dot_kernel(const CvmmDotArgs<A> a) {
  const i64 place = blockIdx.x * 256ll + threadIdx.x;
  if (place >= a.num_routes) return;
  A sum = 0;
  if (place < a.offsets[a.num_experts])
    for (int tile = 0; tile < a.n_tiles; ++tile) sum += a.tiles[tile * a.num_routes + place];
  a.dot[a.order[place]] = sum;
}

}  // namespace sysgen
