// cvmm_fwd on the device: one block computes BM sorted routes of one expert by BN columns, with the rows of x
// gathered through `order` on the way in. Without `reduce` its rows are scattered to their routes; with it
// they stay in sorted order, as accumulators, for cvmm_combine_kernel.
#pragma once
#include "cvmm/cvmm_products.cuh"

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
  bool relu;
  T* out;          // [R, h] by route, or null
  Acc<T>* sorted;  // [R, h] by place in `order`, or null
  bool vec_out;    // their rows may be written 16 bytes at a time
  RowOperand<T> other;
  Acc<T>* dot;        // [R] by route if there is one column tile, else null
  Acc<T>* dot_tiles;  // [n_tiles, R] by place in `order`, or null
};

// Tiles lie behind each other in the order of the experts: those of expert e begin at tile_base(e). Enough,
// since floor(a / BM) + floor(n / BM) <= floor((a + n) / BM), and ceil(n / BM) <= floor(n / BM) + 1; a tile
// that turns out to be empty returns. The dropped routes follow as the rows of expert E. In total there are
// at most R / BM + E + 1 tiles.
template <int BM>
__device__ __forceinline__ i64 tile_base(const int* offsets, i64 e) {
  return offsets[e] / BM + e;
}

template <class P>
union CvmmFwdShared {
  typename P::Shared tiles;
  Acc<typename P::T> sums[P::WARPS_N][P::BM];  // of store_dots, when the tiles are done with
};

template <class P>
__device__ __forceinline__ void clear_tile(const CvmmFwdKernelArgs<typename P::T, typename P::W>& a,
                                           const int (&route)[P::BM], int rows, int n_tile) {
  const i64 n0 = i64(n_tile) * P::BN;
  for (int i = threadIdx.x; i < rows * P::BN; i += P::THREADS) {
    const i64 col = n0 + i % P::BN;
    if (a.out && col < a.h) a.out[route[i / P::BN] * a.h + col] = from_acc<typename P::T>(0);
  }
  if (a.dot)
    for (int i = threadIdx.x; i < rows; i += P::THREADS) a.dot[route[i]] = 0;
}

// dot[r] = sum_j u[r, j] * other[src(r), j] over the columns of this tile: within a thread, within its quad,
// over the warps; always in this order.
template <class P>
__device__ __forceinline__ void store_dots(const CvmmFwdKernelArgs<typename P::T, typename P::W>& a,
                                           const P& product, const int (&route)[P::BM],
                                           Acc<typename P::T> (&sums)[P::WARPS_N][P::BM], i64 row0, int rows,
                                           int n_tile) {
  using T = typename P::T;
  const i64 n0 = i64(n_tile) * P::BN;
  __syncthreads();  // everybody is done with the tiles, whose memory holds the sums
#pragma unroll
  for (int i = 0; i < P::ROWS; ++i) {
    const int m = product.row(i);
    Acc<T> sum = 0;
    if (m < rows) {
      const T* other = a.other.data + route[m] / a.other.divisor * a.other.stride + n0;
#pragma unroll
      for (int j = 0; j < P::RUNS; ++j)
#pragma unroll
        for (int l = 0; l < P::LEN; ++l) {
          const int col = product.col(j) + l;
          if (n0 + col < a.h) sum += product.at(i, j, l) * to_acc(other[col]);
        }
    }
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    if (lane_id() % 4 == 0) sums[product.warp_n / (P::BN / P::WARPS_N)][m] = sum;
  }
  __syncthreads();
  for (int m = threadIdx.x; m < rows; m += P::THREADS) {
    Acc<T> sum = sums[0][m];
#pragma unroll
    for (int w = 1; w < P::WARPS_N; ++w) sum += sums[w][m];
    if (a.dot) {
      a.dot[route[m]] = sum;
    } else {
      a.dot_tiles[n_tile * a.num_routes + row0 + m] = sum;
    }
  }
}

template <class P>
__global__ void __launch_bounds__(P::THREADS, P::MIN_BLOCKS)
    cvmm_fwd_kernel(const CvmmFwdKernelArgs<typename P::T, typename P::W> a) {
  using T = typename P::T;
  using W = typename P::W;
  SYSGEN_SHARED(int, route, [P::BM]);   // of the tile's rows
  SYSGEN_SHARED(i64, source, [P::BM]);  // where their rows of x begin
  Smem smem;
  auto& memory = smem.array<CvmmFwdShared<P>>();
  auto& shared = memory.tiles;

  const i64 tile = blockIdx.x / a.n_tiles;
  const int n_tile = blockIdx.x % a.n_tiles;
  const i64 n0 = i64(n_tile) * P::BN;
  const i64 e = warp_search(a.num_experts + 1, [&](i64 i) { return tile_base<P::BM>(a.offsets, i); }, tile);
  const i64 row0 = a.offsets[e] + (tile - tile_base<P::BM>(a.offsets, e)) * P::BM;
  const i64 left = (e < a.num_experts ? a.offsets[e + 1] : a.num_routes) - row0;
  if (left <= 0) return;
  const int rows = left < P::BM ? left : P::BM;
  for (int m = threadIdx.x; m < rows; m += P::THREADS) {
    route[m] = a.order[row0 + m];
    source[m] = route[m] / a.x.divisor * a.x.stride;
  }
  __syncthreads();
  if (e == a.num_experts) return clear_tile<P>(a, route, rows, n_tile);

  const W* w = a.w + e * a.w_stride_e;
  const auto load = [&](int stage, int step) {
    const i64 k0 = i64(step) * P::BK;
    const auto x_row = [&](int m, bool& valid) {
      valid = m < rows;
      return a.x.data + (valid ? source[m] : 0);
    };
    if constexpr (P::A_KM) {
      load_transposed<P::THREADS, P::BM>(shared.a[stage], k0, a.d, x_row);
    } else {
      load_rows<P::THREADS, P::BK>(shared.a[stage], k0, a.d, a.x.vec, x_row,
                                   [](int, int col) { return col; });
    }
    const auto w_row = [&](i64 first, i64 count) {
      return [&a, w, first, count](int i, bool& valid) {
        valid = first + i < count;
        return w + (valid ? (first + i) * a.w_stride_row : 0);
      };
    };
    if (P::TRANSPOSES_W ? a.w_kn : P::B_KN) {
      if constexpr (P::B_KN)
        load_rows<P::THREADS, P::BN>(shared.b[stage], n0, a.h, a.w_vec, w_row(k0, a.d), P::place_b);
    } else if constexpr (P::TRANSPOSES_W) {
      load_transposed<P::THREADS, P::BN>(shared.b[stage], k0, a.d, w_row(n0, a.h));
    } else if constexpr (!P::B_KN) {
      load_rows<P::THREADS, P::BK>(shared.b[stage], k0, a.d, a.w_vec, w_row(n0, a.h), P::place_b);
    }
  };

  P product;
  const bool active = product.warp_m < rows && n0 + product.warp_n < a.h;
  pipeline<P::STAGES>(int((a.d + P::BK - 1) / P::BK), load, [&](int stage) {
    if (active) product.multiply(shared, stage, nullptr);
  });

  if (a.bias) {
    const Acc<T>* bias = a.bias + e * a.h + n0;
#pragma unroll
    for (int j = 0; j < P::RUNS; ++j)
#pragma unroll
      for (int l = 0; l < P::LEN; ++l) {
        const int col = product.col(j) + l;
        const Acc<T> b = n0 + col < a.h ? bias[col] : 0;
#pragma unroll
        for (int i = 0; i < P::ROWS; ++i) product.at(i, j, l) += b;
      }
  }
  if (a.dot || a.dot_tiles) store_dots(a, product, route, memory.sums, row0, rows, n_tile);
  if (!a.out && !a.sorted) return;
#pragma unroll
  for (int i = 0; i < P::ROWS; ++i) {
    const int m = product.row(i);
    const int r = m < rows ? route[m] : -1;
    const Acc<T> gate = a.gate && r >= 0 ? a.gate[r] : 1;
#pragma unroll
    for (int j = 0; j < P::RUNS; ++j)
#pragma unroll
      for (int l = 0; l < P::LEN; ++l) {
        Acc<T>& u = product.at(i, j, l);
        if (a.relu && u < 0) u = 0;
        u *= gate;
      }
    if (a.out) {
      store_row<T>(product, i, r >= 0 ? a.out + r * a.h : nullptr, n0, a.h, a.vec_out);
    } else {
      store_row<Acc<T>>(product, i, r >= 0 ? a.sorted + (row0 + m) * a.h : nullptr, n0, a.h, a.vec_out);
    }
  }
}

// ---- after it
template <class T>
struct CvmmCombineArgs {
  const Acc<T>* sorted;  // [R, h]
  const int* inverse;    // [T, k]
  i64 num_tokens, k, h;
  bool vec;  // h is a multiple of 4 (2 for float64) and the pointers are aligned to 16 bytes
  T* out;    // [T, h]
};

// out[t] = sum over the slots j of sorted[inverse[t, j]], in slot order.
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
