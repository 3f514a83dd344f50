// A kernel of the Hopper kind for planted_bugs.cpp, as planted_kernels.cuh has them for the other
// instructions.
#pragma once
#include "device/hopper.cuh"
#include "planted_kernels.cuh"

namespace planted {

// ---- out[m, :] = x[gather[m], :] . w, [64, 64]: one warpgroup gathers and calls TMA, the other multiplies

struct RingArgs {
  TensorMap w;        // [K, 64]
  const f16* x;       // [*, K]
  const int* gather;  // [64]
  float* out;         // [64, 64]
  int K;              // a multiple of 8
};

struct Ring {
  static constexpr int STAGES = 2, THREADS = 256;
  struct Stages {
    f16 a[STAGES][64][64];
    f16 b[STAGES][64][64];
  };
  using Barriers = Mbarrier[2][STAGES];
  static constexpr unsigned SHARED = sizeof(Stages) + 1024;
};

template <Bug BUG>
__global__ void __launch_bounds__(Ring::THREADS, 1) ring_product(const __grid_constant__ RingArgs a) {
  constexpr int STAGES = Ring::STAGES;
  Smem smem;
  auto& stages = smem.array<Ring::Stages, 1024>();
  auto& barriers = smem.array<Ring::Barriers>();
  auto& full = barriers[0];
  auto& empty = barriers[1];
  const int tid = threadIdx.x, lane = lane_id();
  if (tid == 0)
    for (int s = 0; s < STAGES; ++s) {
      mbarrier_init(full[s], BUG == Bug::arrival_not_counted ? 128 : 129);
      mbarrier_init(empty[s], 4);
    }
  if (tid == 0) fence_mbarrier_init();
  if (BUG != Bug::barriers_not_published) __syncthreads();
  const int steps = (a.K + 63) / 64;
  if (tid < 128) {
    for (int step = 0; step < steps + STAGES; ++step) {
      const int s = step % STAGES, k0 = step * 64;
      if (BUG != Bug::full_stage_overwritten || step >= steps) mbarrier_wait(empty[s], step / STAGES % 2 ^ 1);
      if (step >= steps) continue;  // the last stages are only waited for
      if (tid == 0) {
        mbarrier_arrive_expect(full[s], sizeof stages.b[s] / (BUG == Bug::too_few_bytes ? 2 : 1));
        tma_load_3d(stages.b[s], a.w, 0, k0, 0, full[s]);
      }
      for (int i = tid; i < 64 * 8; i += 128) {
        const int row = i / 8, chunk = i % 8, place = BUG == Bug::not_swizzled ? chunk : chunk ^ row % 8;
        const bool valid = k0 + chunk * 8 < a.K;
        cp_async<16>(&stages.a[s][row][place * 8], valid ? a.x + a.gather[row] * a.K + k0 + chunk * 8 : a.x,
                     valid);
      }
      cp_async_arrive(full[s]);
    }
  } else {
    float d[32];
    for (int step = 0; step < steps; ++step) {
      const int s = step % STAGES;
      if (BUG != Bug::one_lane_waits || lane == 0) mbarrier_wait(full[s], step / STAGES % 2);
      if (BUG != Bug::no_proxy_fence) fence_proxy_async();
      const u64 x = k_major_descriptor(shared_address(stages.a[s])),
                w = mn_major_descriptor(shared_address(stages.b[s]), 8192);
      if (BUG != Bug::no_wgmma_fence) wgmma_fence();
      if (BUG == Bug::divergent_wgmma && warp_id() == 7 && step == 1) continue;
      for (u32 k = 0; k < 4; ++k)
        wgmma<f16, false, true>(d, advanced(x, k * 32),
                                advanced(w, k * (BUG == Bug::wrong_k_step ? 32 : 2048)), step > 0 || k > 0);
      wgmma_commit();
      if (BUG == Bug::released_too_early && lane == 0) mbarrier_arrive(empty[s]);
      if (BUG != Bug::wgmma_not_waited_for || step + 1 < steps) wgmma_wait<0>(d);
      if (BUG != Bug::released_too_early && lane == 0) mbarrier_arrive(empty[s]);
    }
    for (int i = 0; i < 32; ++i)
      a.out[(tid % 128 / 32 * 16 + lane / 4 + i / 2 % 2 * 8) * 64 + i / 4 * 8 + lane % 4 * 2 + i % 2] = d[i];
  }
}

}  // namespace planted
