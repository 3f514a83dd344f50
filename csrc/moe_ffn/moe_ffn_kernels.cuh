// moe_ffn_fwd on the device for half types and a hidden width up to HIDDEN: one block computes BM sorted
// routes of one expert from x to their rows of the output, in two products of the same shape. The first
// leaves its result, activated and rounded, in shared memory in the layout of the second's A; the second goes
// over the columns of the output. Its rows stay in sorted order, as accumulators, for cvmm_combine_kernel.
#pragma once
#include "cvmm/cvmm_fwd_kernels.cuh"

namespace sysgen {

// The accumulators of a block: BM rows by HIDDEN columns. HIDDEN / BK stages, so that the parts of the hidden
// tile along the second contraction and the parts of W_down that they meet have the same number.
template <class T, class W, int BM>
using MoeFfnProduct = HalfProduct<T, W, BM, 128, BM / 32, 256 / BM, false, true, 4, 2>;

template <class W>
struct MoeFfnWeight {  // [E, rows, columns], columns behind each other
  const W* data;
  i64 stride_e, stride_row;
  int vec;  // bytes of one copy, as in RowOperand
};

template <class T, class W>
struct MoeFfnFwdKernelArgs {
  const int* order;
  const int* offsets;
  i64 num_routes, num_experts, d, hidden, d_out;
  RowOperand<T> x;
  MoeFfnWeight<W> up, down;
  const float* gate;  // [R]
  const float* bias;  // [E, hidden] or null
  Activation activation;
  bool keep_input;            // kept are the rows before the activation, else behind it
  T* kept;                    // [R, hidden] by route, or null
  float* sorted;              // [R, d_out] by place in `order`, or null: only `kept` is wanted
  bool vec_kept, vec_sorted;  // their rows may be written 16 bytes at a time
};

template <class P>
struct alignas(128) MoeFfnShared {
  typename P::Shared tiles;
  int route[P::BM];  // of the tile's rows
  i64 place[P::BM];  // where their rows of x begin, then those of `sorted` (-1: none)
  float gate[P::BM];
};

// The tile of hidden rows in shared memory, as the product left it: kept, activated, and zero behind the
// hidden width.
template <class P>
__device__ __forceinline__ void activate_tile(const MoeFfnFwdKernelArgs<typename P::T, typename P::W>& a,
                                              typename P::Shared& shared, const int (&route)[P::BM],
                                              int rows) {
  using T = typename P::T;
  constexpr int V = 16 / sizeof(T), CHUNKS = P::BK / V;
  for (int i = threadIdx.x; i < P::BM * P::BN / V; i += P::THREADS) {
    const int chunk = i % CHUNKS * V, m = i / CHUNKS % P::BM, part = i / CHUNKS / P::BM,
              col = part * P::BK + chunk;
    auto& place = *reinterpret_cast<Vec<T, V>*>(&shared.a[part][m][P::place_a(m, chunk)]);
    const Vec<T, V> z = load_shared(place);
    Vec<T, V> h;
#pragma unroll
    for (int l = 0; l < V; ++l)
      h.v[l] = from_float<T>(col + l < a.hidden ? activated(a.activation, to_float(z.v[l]), false).value : 0);
    store_shared(place, h);
    if (!a.kept || m >= rows) continue;
    T* const to = a.kept + route[m] * a.hidden + col;
    const Vec<T, V> kept = a.keep_input ? z : h;
    if (a.vec_kept) {
      if (col < a.hidden) *reinterpret_cast<Vec<T, V>*>(to) = kept;
    } else {
#pragma unroll
      for (int l = 0; l < V; ++l)
        if (col + l < a.hidden) to[l] = kept.v[l];
    }
  }
}

template <class P>
__global__ void __launch_bounds__(P::THREADS, P::MIN_BLOCKS)
    moe_ffn_fwd_kernel(const MoeFfnFwdKernelArgs<typename P::T, typename P::W> a) {
  using T = typename P::T;
  using W = typename P::W;
  constexpr int PARTS = P::BN / P::BK;  // of the hidden width
  static_assert(PARTS == P::STAGES && !P::A_KM && P::B_KN,
                "the hidden tile takes the place of the stages of x");
  Smem smem;
  auto& memory = smem.array<MoeFfnShared<P>>();
  auto& shared = memory.tiles;
  auto& route = memory.route;
  auto& place = memory.place;

  const i64 tile = blockIdx.x;
  const i64 e = warp_search(a.num_experts + 1, [&](i64 i) { return tile_base<P::BM>(a.offsets, i); }, tile);
  const i64 row0 = a.offsets[e] + (tile - tile_base<P::BM>(a.offsets, e)) * P::BM;
  const i64 left = (e < a.num_experts ? a.offsets[e + 1] : a.num_routes) - row0;
  if (left <= 0) return;
  const int rows = left < P::BM ? left : P::BM;
  for (int m = threadIdx.x; m < rows; m += P::THREADS) {
    route[m] = a.order[row0 + m];
    place[m] = route[m] / a.x.divisor * a.x.stride;
    if (a.sorted) memory.gate[m] = a.gate[route[m]];
  }
  __syncthreads();
  if (e == a.num_experts) {  // dropped routes
    for (int i = threadIdx.x; a.kept && i < rows * P::BN; i += P::THREADS)
      if (i % P::BN < a.hidden) a.kept[route[i / P::BN] * a.hidden + i % P::BN] = from_float<T>(0);
    return;
  }

  P product;
  const bool active = product.warp_m < rows;
  const auto load_weight = [&](const MoeFfnWeight<W>& w, int stage, i64 first, i64 count, i64 column,
                               i64 columns) {
    const auto row = [&](int i, bool& valid) {
      valid = first + i < count;
      return w.data + e * w.stride_e + (valid ? (first + i) * w.stride_row : 0);
    };
    load_rows<P::THREADS, P::BN>(shared.b[stage], column, columns, w.vec, row, P::place_b);
  };

  pipeline<P::STAGES>(
      int((a.d + P::BK - 1) / P::BK),
      [&](int stage, int step) {
        const i64 k0 = i64(step) * P::BK;
        const auto x_row = [&](int m, bool& valid) {
          valid = m < rows;
          return a.x.data + (valid ? place[m] : 0);
        };
        load_rows<P::THREADS, P::BK>(shared.a[stage], k0, a.d, a.x.vec, x_row, P::place_a);
        load_weight(a.up, stage, k0, a.d, 0, a.hidden);
      },
      [&](int stage) {
        if (active && product.warp_n < a.hidden) product.multiply(shared, stage, nullptr);
      });

  if (a.bias) {
    const float* bias = a.bias + e * a.hidden;
#pragma unroll
    for (int j = 0; j < P::RUNS; ++j)
#pragma unroll
      for (int l = 0; l < P::LEN; ++l) {
        const int col = product.col(j) + l;
        const float b = col < a.hidden ? bias[col] : 0;
#pragma unroll
        for (int i = 0; i < P::ROWS; ++i) product.at(i, j, l) += b;
      }
  }
  __syncthreads();  // everybody is done with the tiles of x
#pragma unroll
  for (int i = 0; i < P::ROWS; ++i)
#pragma unroll
    for (int j = 0; j < P::RUNS; ++j) {
      const int m = product.row(i), col = product.col(j);
      u32& to = *reinterpret_cast<u32*>(&shared.a[col / P::BK][m][P::place_a(m, col % P::BK)]);
      store_shared(to, pack2<T>(product.at(i, j, 0), product.at(i, j, 1)));
    }
  for (int m = threadIdx.x; m < P::BM; m += P::THREADS) place[m] = m < rows ? (row0 + m) * a.d_out : -1;
  // W_down comes in while the activation is computed.
  const int steps = a.sorted ? PARTS * int((a.d_out + P::BN - 1) / P::BN) : 0;
  const auto load_down = [&](int step) {
    if (step < steps)
      load_weight(a.down, step % PARTS, step % PARTS * P::BK, a.hidden, i64(step / PARTS) * P::BN, a.d_out);
    cp_async_commit();
  };
#pragma unroll 1
  for (int step = 0; step < P::STAGES - 1; ++step) load_down(step);
  __syncthreads();
  activate_tile<P>(a, shared, route, rows);

  product = P();
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const int stage = step % PARTS;
    cp_async_wait<P::STAGES - 2>();
    __syncthreads();  // the hidden tile is whole, step has arrived, and the stage before it is free
    load_down(step + P::STAGES - 1);
    if (active) product.multiply(shared, stage, nullptr);
    if (stage != PARTS - 1) continue;
    const i64 n0 = i64(step / PARTS) * P::BN;
#pragma unroll
    for (int i = 0; i < P::ROWS; ++i) {
      const i64 to = load_shared(place[product.row(i)]);
      const float gate = load_shared(memory.gate[product.row(i)]);
#pragma unroll
      for (int j = 0; j < P::RUNS; ++j)
#pragma unroll
        for (int l = 0; l < P::LEN; ++l) product.at(i, j, l) *= gate;
      store_row<float>(product, i, to >= 0 ? a.sorted + to : nullptr, n0, a.d_out, a.vec_sorted);
    }
    product = P();
  }
}

}  // namespace sysgen
