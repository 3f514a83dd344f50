// Running sums over a warp.
#pragma once
#include "device/device.cuh"

namespace sysgen {

// Inclusive sum over the warp.
__device__ __forceinline__ int warp_sum(int v) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int below = __shfl_up_sync(~0u, v, step);
    if (lane_id() >= u32(step)) v += below;
  }
  return v;
}

}  // namespace sysgen
