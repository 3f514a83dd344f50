// What the Hopper kernels of CVMM share: a warpgroup of producers and two of consumers, which meet at the
// stages of a ring in shared memory, and the consumers' accumulators.
#pragma once
#include "device/hopper.cuh"

namespace sysgen {

constexpr int RING_PRODUCERS = 128, RING_CONSUMERS = 256, RING_THREADS = RING_PRODUCERS + RING_CONSUMERS;
// 168 a thread to begin with, which is what 65536 allow; they change hands.
constexpr int RING_PRODUCER_REGISTERS = 80, RING_CONSUMER_REGISTERS = 208;

// [0]: full, the operands of a stage are there. [1]: empty, all consumers' warps are done with it.
template <int STAGES>
using RingBarriers = Mbarrier[2][STAGES];

// All threads call it. `arrivals` fill a stage.
template <class P>
__device__ __forceinline__ void start_ring(typename P::Barriers& barriers, u32 arrivals) {
  if (threadIdx.x == 0) {
    for (int s = 0; s < P::STAGES; ++s) {
      mbarrier_init(barriers[0][s], arrivals);
      mbarrier_init(barriers[1][s], RING_CONSUMERS / 32);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
}

// Which stage of the ring, and the parity of its barrier's phase.
template <int STAGES>
struct RingPlace {
  int stage;
  u32 parity;
  __device__ __forceinline__ void advance() {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
};

// Accumulators of a warpgroup's 64 rows, in the terms of cvmm_products.cuh.
template <int BN>
struct WgmmaProduct {
  static constexpr int ROWS = 2, RUNS = BN / 8, LEN = 2, RUN_STRIDE = 8;
  int first_row, lane;
  float acc[BN / 2];

  __device__ __forceinline__ explicit WgmmaProduct(int warp) : first_row(warp * 16), lane(lane_id()) {}
  __device__ __forceinline__ int row(int i) const { return first_row + i * 8 + lane / 4; }
  __device__ __forceinline__ int col(int j) const { return j * RUN_STRIDE + lane % 4 * 2; }
  __device__ __forceinline__ float& at(int i, int j, int l) { return acc[4 * j + 2 * i + l]; }
  __device__ __forceinline__ float at(int i, int j, int l) const { return acc[4 * j + 2 * i + l]; }
};

}  // namespace sysgen
