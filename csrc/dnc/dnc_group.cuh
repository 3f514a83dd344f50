// The blocks that share a sample, and what warps and blocks of them do together.
#pragma once
#include "common/kernel_math.cuh"
#include "cvmm/cvmm_tiles.cuh"
#include "dnc/dnc_problem.cuh"

namespace sysgen {

template <class A>
__device__ __forceinline__ A dnc_sigmoid(A x) {
  return A(1) / (A(1) + exp_of(-x));
}

// The sums over the warp of COUNT values at once, a power of two: lane l gets that of v[l / (32 / COUNT)].
template <int STEP = 16, int COUNT, class A>
__device__ __forceinline__ A warp_sums(const A (&v)[COUNT]) {
  if constexpr (COUNT > 1) {
    const bool upper = lane_id() & STEP;
    A half[COUNT / 2];
#pragma unroll
    for (int i = 0; i < COUNT / 2; ++i) {
      const A sent = upper ? v[i] : v[i + COUNT / 2];
      half[i] = (upper ? v[i + COUNT / 2] : v[i]) + __shfl_xor_sync(~0u, sent, STEP);
    }
    return warp_sums<STEP / 2>(half);
  } else {
    A sum = v[0];
#pragma unroll
    for (int step = STEP; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    return sum;
  }
}
// Eight lanes share a cell.
inline constexpr int kDncLanes = 8;
template <class A>
__device__ __forceinline__ A octet_sum(A v) {
#pragma unroll
  for (int step = kDncLanes / 2; step > 0; step /= 2) v += __shfl_xor_sync(~0u, v, step);
  return v;
}

struct DncGroup {
  int block, blocks;  // within the group
  int first, last;    // the cells that this block owns
  u32 *counter, due;

  template <class A>
  __device__ __forceinline__ explicit DncGroup(const DncProblem<A>& p)
      : block(blockIdx.x % p.group), blocks(p.group), counter(p.counters + blockIdx.x / p.group), due(0) {
    const i64 tiles = dnc_tiles(p.cells, kDncTile);
    const int begin = static_cast<int>(tiles * block / blocks) * kDncTile,
              end = static_cast<int>(tiles * (block + 1) / blocks) * kDncTile;
    first = min(begin, p.cells);
    last = min(end, p.cells);
  }
  // Warps and threads of the group: units of work that no cell owns are dealt out to them.
  __device__ __forceinline__ int warp() const { return block * kDncWarps + static_cast<int>(warp_id()); }
  __device__ __forceinline__ int warps() const { return blocks * kDncWarps; }
  __device__ __forceinline__ int thread() const {
    return block * kDncThreads + static_cast<int>(threadIdx.x);
  }
  __device__ __forceinline__ int threads() const { return blocks * kDncThreads; }

  // What any thread of the group wrote before, all may read behind.
  __device__ __forceinline__ void barrier() {
    __syncthreads();
    if (blocks == 1) return;
    due += blocks;
    if (threadIdx.x == 0) {
      atomic_add_acq_rel(counter, 1);
      while (static_cast<int>(load_acquire(counter) - due) < 0) {
      }
    }
    __syncthreads();
  }
};

// Calls f(i, k) for the block's cells i and 0 <= k < each; neighbouring threads have neighbouring cells.
template <class F>
__device__ __forceinline__ void own_cells(const DncGroup& g, int each, const F& f) {
  const int count = g.last - g.first;
  for (int at = threadIdx.x; at < count * each; at += kDncThreads) f(g.first + at % count, at / count);
}

// Calls f(i, lane, there) with eight lanes for each of the block's cells; all lanes of a warp arrive.
template <class F>
__device__ __forceinline__ void own_octets(const DncGroup& g, const F& f) {
  const int octet = threadIdx.x / kDncLanes, lane = threadIdx.x % kDncLanes;
  for (int i = g.first; i < g.last; i += kDncThreads / kDncLanes) f(i + octet, lane, i + octet < g.last);
}

// sums[r] += this lane's share of <x, row(r)>; rows of one matrix, of n elements. STEP elements at once.
template <int STEP, int ROWS, class A, class RowOf>
__device__ __forceinline__ void dot_rows_by(const A* x, int n, A (&sums)[ROWS], const RowOf& row) {
  const A* rows[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; ++r) rows[r] = row(r);
#pragma unroll 2
  for (int k = STEP * lane_id(); k < n; k += 32 * STEP) {
    using Piece = Vec<A, STEP>;
    const Piece v = *reinterpret_cast<const Piece*>(x + k);
    Piece w[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) w[r] = *reinterpret_cast<const Piece*>(rows[r] + k);
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int e = 0; e < STEP; ++e) sums[r] += v.v[e] * w[r].v[e];
  }
}
template <int ROWS, class A, class RowOf>
__device__ __forceinline__ void dot_rows(const A* x, int n, A (&sums)[ROWS], const RowOf& row) {
  constexpr int STEP = 16 / sizeof(A);
  const u64 places = reinterpret_cast<u64>(x) | reinterpret_cast<u64>(row(0));
  if (n % STEP == 0 && places % 16 == 0) {
    dot_rows_by<STEP>(x, n, sums, row);
  } else {
    dot_rows_by<1>(x, n, sums, row);
  }
}
// Calls f(j, <x, row j of weight>) for 0 <= j < count: four rows a warp, each of n elements.
template <class A, class F>
__device__ __forceinline__ void product(const DncGroup& g, const A* x, int n, const A* weight, int count,
                                        const F& f) {
  for (int j = 4 * g.warp(); j < count; j += 4 * g.warps()) {
    A sums[4] = {};
    dot_rows(x, n, sums, [&](int r) { return weight + i64(min(j + r, count - 1)) * n; });
    const A sum = warp_sums(sums);
    const int mine = j + static_cast<int>(lane_id()) / 8;
    if (lane_id() % 8 == 0 && mine < count) f(mine, sum);
  }
}

// The sum of f(i) over 0 <= i < n, by one warp.
template <class A, class F>
__device__ __forceinline__ A warp_total(int n, const F& f) {
  A sum = 0;
  for (int i = lane_id(); i < n; i += 32) sum += f(i);
  return over_warp<Sum>(sum);
}

// Largest element of z and 1 / sum of exp(z - largest), by one warp.
template <class A>
struct DncSoftmax {
  A largest, scale;
  __device__ __forceinline__ A operator()(A z) const { return exp_of(z - largest) * scale; }
};
template <class A>
__device__ __forceinline__ DncSoftmax<A> softmax_of(const A* z, int n) {
  A largest = z[0];
  for (int i = lane_id(); i < n; i += 32) largest = z[i] > largest ? z[i] : largest;
  largest = over_warp<Largest>(largest);
  const A sum = warp_total<A>(n, [&](int i) { return exp_of(z[i] - largest); });
  return {largest, A(1) / sum};
}

}  // namespace sysgen
