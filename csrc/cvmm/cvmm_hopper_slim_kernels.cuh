// cvmm_fwd for sm_90a where experts have few routes: wgmma's 64 rows are columns of the weights, and its
// columns are up to 64 routes, so that no weight passes more than once. Roles and ring are those of
// cvmm_hopper_kernels.cuh. Masters reach wgmma through registers, rounded on the way. The results, which the
// accumulators hold transposed, go through shared memory to the epilogue.
#pragma once
#include "cvmm/cvmm_hopper_kernels.cuh"

namespace sysgen {

// A box of W is 64 k by 128 bytes of columns (KN), else 128 columns by 128 bytes of k.
template <class T_, class W_, bool KN_>
struct CvmmHopperSlimTile {
  using T = T_;
  using W = W_;
  static constexpr bool KN = KN_, ROUNDS = sizeof(W) == 4;
  static constexpr int BM = 64, BN = 128, BK = 64, STAGES = ROUNDS ? 4 : 6;
  static constexpr int PRODUCERS = RING_PRODUCERS, THREADS = RING_THREADS;
  static constexpr int BOX_ROWS = KN ? BK : BN, BOX = BOX_ROWS * 128 / sizeof(W), BOXES = BN * BK / BOX;
  static constexpr u32 B_BYTES = sizeof(W) * BN * BK;
  struct Stages {
    T a[STAGES][BM][BK];  // rows of x
    W b[STAGES][BOXES][BOX];
  };
  using Results = float[BM][BN];
  using Barriers = RingBarriers<STAGES>;
  static constexpr u32 SHARED =
      sizeof(Stages) + 1024 - 128 + sizeof(Results) + (sizeof(Barriers) + 127) / 128 * 128;
};

// Where column `col` of route m lies in its row of the results: without bank conflicts, whether 4 even (or
// odd) routes are written 8 columns each, or 4 neighbours read.
__device__ __forceinline__ int slim_place(int m, int col) {
  return col ^ (((m ^ m >> 2) & 1) << 4 | (m >> 1 & 1) << 3);
}

// A warp's 8 routes by 128 columns, in the terms of cvmm_products.cuh.
struct SlimRows {
  static constexpr int ROWS = 1, RUNS = 16, LEN = 2, RUN_STRIDE = 8;
  int first_row, lane;
  float acc[RUNS][LEN];

  template <class Results>
  __device__ __forceinline__ SlimRows(const Results& results, int warp)
      : first_row(warp * 8), lane(lane_id()) {
    const int m = row(0);
#pragma unroll
    for (int j = 0; j < RUNS; ++j) {
      const auto& pair = reinterpret_cast<const Vec<float, 2>&>(results[m][slim_place(m, col(j))]);
      const Vec<float, 2> v = load_shared(pair);
      acc[j][0] = v.v[0], acc[j][1] = v.v[1];
    }
  }
  __device__ __forceinline__ int row(int) const { return first_row + lane / 4; }
  __device__ __forceinline__ int col(int j) const { return j * RUN_STRIDE + lane % 4 * 2; }
  __device__ __forceinline__ float& at(int, int j, int l) { return acc[j][l]; }
  __device__ __forceinline__ float at(int, int j, int l) const { return acc[j][l]; }
};

// Which of 8 columns is row `row` of a fragment. Along k, 4 rows are read at once, 32 bytes each: of even
// columns, then of odd ones, those lie in different banks.
template <class P>
__device__ __forceinline__ int slim_column(int row) {
  return P::ROUNDS && !P::KN ? row % 4 * 2 + row / 4 : row;
}

// Columns col and col + 8 of float32 masters by 16 k, rounded: A of one wgmma.
template <class P>
__device__ __forceinline__ void slim_fragment(u32 (&a)[4], const typename P::W (&w)[P::BOXES][P::BOX],
                                              int col, int k0) {
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int m = col + r % 2 * 8, k = k0 + lane_id() % 4 * 2 + r / 2 * 8;
    float lo, hi;
    if constexpr (P::KN) {
      const auto at = [&](int row) { return row * 32 + ((m % 32 / 4) ^ (row % 8)) * 4 + m % 4; };
      lo = load_shared(w[m / 32][at(k)]);
      hi = load_shared(w[m / 32][at(k + 1)]);
    } else {
      const float& first = w[k / 32][m * 32 + ((k % 32 / 4) ^ (m % 8)) * 4 + k % 4];
      const Vec<float, 2> pair = load_shared(reinterpret_cast<const Vec<float, 2>&>(first));
      lo = pair.v[0], hi = pair.v[1];
    }
    a[r] = pack2<typename P::T>(lo, hi);
  }
}

template <class P>
__device__ __forceinline__ void cvmm_hopper_slim_consume(
    const CvmmFwdKernelArgs<typename P::T, typename P::W>& a, typename P::Stages& stages,
    typename P::Results& results, typename P::Barriers& barriers) {
  using T = typename P::T;
  auto& full = barriers[0];
  auto& empty = barriers[1];
  const int warp = warp_id() - P::PRODUCERS / 32, group = warp / 4, lane = lane_id();
  const int col = warp * 16 + slim_column<P>(lane / 4);  // and 8 further on
  const auto release = [&](int stage) {
    if (lane == 0) mbarrier_arrive(empty[stage]);
  };
  RingPlace<P::STAGES> at{0, 0};
  const i64 end = cvmm_hopper_tiles<P>(a);
  for (i64 index = blockIdx.x; index < end; index += gridDim.x) {
    const CvmmHopperWork work = cvmm_hopper_work<P>(a, index);
    if (work.rows == 0) continue;
    float acc[P::BM / 2];
    for (i64 k0 = 0; k0 < a.d; k0 += P::BK, at.advance()) {
      mbarrier_wait(full[at.stage], at.parity);
      fence_proxy_async();  // cp.async wrote x
      const u64 x = k_major_descriptor(shared_address(&stages.a[at.stage]));
      const auto& w = stages.b[at.stage];
      if constexpr (P::ROUNDS) {
        u32 fragments[P::BK / 16][4];
#pragma unroll
        for (int k = 0; k < P::BK / 16; ++k) slim_fragment<P>(fragments[k], w, col, k * 16);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < P::BK / 16; ++k)
          wgmma<T, false>(acc, fragments[k], advanced(x, k * 32), k0 > 0 || k > 0);
        wgmma_commit();
        wgmma_wait<0>(acc);  // the fragments' registers are needed again
        __syncwarp();        // all lanes have read w
      } else {
        const u32 first = shared_address(&w) + group * 64 * 128;
        const u64 columns = P::KN ? mn_major_descriptor(first, 64 * 128) : k_major_descriptor(first);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < P::BK / 16; ++k)
          wgmma<T, P::KN, false>(acc, advanced(columns, k * (P::KN ? 2048 : 32)), advanced(x, k * 32),
                                 k0 > 0 || k > 0);
        wgmma_commit();
        wgmma_wait<0>(acc);
      }
      release(at.stage);
    }
    named_barrier(1, RING_CONSUMERS);  // the results of the tile before have been read
#pragma unroll
    for (int n = 0; n < P::BM / 2; ++n) {
      const int m = n / 4 * 8 + lane % 4 * 2 + n % 2;
      store_shared(results[m][slim_place(m, col + n / 2 % 2 * 8)], acc[n]);
    }
    named_barrier(1, RING_CONSUMERS);
    if (warp * 8 >= work.rows) continue;
    SlimRows rows(results, warp);
    cvmm_hopper_finish(a, work, rows);
  }
}

template <class P>
__global__ void __launch_bounds__(P::THREADS, 1)
    cvmm_hopper_slim_kernel(const __grid_constant__ CvmmHopperArgs<typename P::T, typename P::W> args) {
  Smem smem;
  auto& stages = smem.array<typename P::Stages, 1024>();
  auto& results = smem.array<typename P::Results>();
  auto& barriers = smem.array<typename P::Barriers>();
  if (threadIdx.x == 0) prefetch_tensor_map(args.w);
  start_ring<P>(barriers, P::PRODUCERS + 1);  // their copies, and thread 0 for TMA
  if (!args.fwd.begins) clear_dropped(args.fwd);
  if (warp_id() < P::PRODUCERS / 32) {
    cvmm_hopper_produce<P>(args, stages, barriers);
  } else {
    cvmm_hopper_slim_consume<P>(args.fwd, stages, results, barriers);
  }
}

}  // namespace sysgen
