// What the kernels on a memory [B, N, W] share. blockIdx.y takes samples; within a sample a warp takes units,
// each a tile of 32 rows and some of the rest. Sums over the rows are made of one partial sum for each tile,
// added up in their order, so that neither the grid nor the schedule changes a bit.
#pragma once
#include "common/kernel_math.cuh"

namespace sysgen {

constexpr int kTileRows = 32;

template <class T, int WARPS_ = 4>
struct ContentTile {
  using A = T;
  static constexpr int WARPS = WARPS_, THREADS = 32 * WARPS;
  static constexpr int HEADS = 4;                            // of a unit
  static constexpr int MIN_BLOCKS = sizeof(T) == 8 ? 2 : 3;  // or registers spill
  // Lane l reads row l of a column: 33 words apart, no two lanes share a bank.
  using Rows = A[kTileRows][33];
  using Vectors = A[HEADS][2][32];
};

struct MemoryShape {
  i64 batch, cells, width, heads;

  __host__ __device__ i64 tiles() const { return (cells + kTileRows - 1) / kTileRows; }
  __host__ __device__ i64 chunks() const { return (width + 31) / 32; }  // a warp's columns
  template <class P>
  __host__ __device__ i64 groups() const {
    return (heads + P::HEADS - 1) / P::HEADS;
  }
};

// Calls f(unit) for the units of this warp.
template <class P, class F>
__device__ __forceinline__ void for_each_unit(i64 count, F f) {
  for (i64 unit = i64(blockIdx.x) * P::WARPS + warp_id(); unit < count; unit += i64(gridDim.x) * P::WARPS)
    f(unit);
}

// For row `lane` of `count` rows: dot[h] = <row, p> and, with SQUARES, square[h] = <row^2, q>, where
// vector(h, w, p, q) sets p and q (0 for heads that are missing).
template <class P, bool SQUARES, class A, class F>
__device__ __forceinline__ void row_products(const A* rows, i64 count, i64 width, typename P::Rows& tile,
                                             typename P::Vectors& vectors, F vector, A (&dot)[P::HEADS],
                                             A (&square)[P::HEADS]) {
  const int lane = lane_id();
#pragma unroll
  for (int h = 0; h < P::HEADS; ++h) dot[h] = square[h] = 0;
  for (i64 w0 = 0; w0 < width; w0 += 32) {
    const i64 w = w0 + lane;
    const bool inside = w < width;
    __syncwarp();
#pragma unroll 8
    for (int i = 0; i < kTileRows; ++i) tile[i][lane] = inside && i < count ? rows[i * width + w] : A(0);
#pragma unroll
    for (int h = 0; h < P::HEADS; ++h) {
      A p = 0, q = 0;
      if (inside) vector(h, w, p, q);
      vectors[h][0][lane] = p;
      if constexpr (SQUARES) vectors[h][1][lane] = q;
    }
    __syncwarp();
    const int columns = width - w0 < 32 ? static_cast<int>(width - w0) : 32;
#pragma unroll 4
    for (int c = 0; c < columns; ++c) {
      const A m = tile[lane][c];
#pragma unroll
      for (int h = 0; h < P::HEADS; ++h) {
        dot[h] += m * vectors[h][0][c];
        if constexpr (SQUARES) square[h] += m * m * vectors[h][1][c];
      }
    }
  }
}

// Softmax of n numbers in place, by the block.
template <class P, class A>
__device__ __forceinline__ void softmax_by_block(A* row, i64 n, A (&parts)[P::WARPS]) {
  A largest = minus_infinity<A>(), sum = 0;
  for (i64 i = threadIdx.x; i < n; i += P::THREADS) largest = Largest()(largest, row[i]);
  largest = over_block<Largest>(largest, parts);
  for (i64 i = threadIdx.x; i < n; i += P::THREADS) {
    const A e = exp_of(row[i] - largest);
    row[i] = e;
    sum += e;
  }
  const A scale = A(1) / over_block<Sum>(sum, parts);
  for (i64 i = threadIdx.x; i < n; i += P::THREADS) row[i] *= scale;
}

}  // namespace sysgen
