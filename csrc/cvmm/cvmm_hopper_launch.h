// What the launchers of cvmm_fwd's Hopper kernels share.
#pragma once
#include <climits>

#include "cvmm/cvmm_hopper.h"
#include "cvmm/cvmm_hopper_kernels.cuh"
#include "cvmm/cvmm_launch.h"
#include "device/tensor_map.h"

namespace sysgen {

template <class T, class W>
bool hopper_can_run(const CvmmFwdArgs& a, const CvmmFwdKernelArgs<T, W>& k) {
  return k.x.vec == 16 && a.d > 0 && a.d <= INT_MAX / 2 && a.h <= INT_MAX / 2 &&
         a.route.num_experts <= INT_MAX && hopper_path_wanted("cvmm");
}

// False if TMA cannot read the weights. It knows halves: a float32 counts as two of them.
template <class P>
bool encode_weights(TensorMap& map, const CvmmFwdArgs& a,
                    const CvmmFwdKernelArgs<typename P::T, typename P::W>& k) {
  constexpr int64_t kSize = sizeof(typename P::W);
  // A dimension of size 1 may have any stride; TMA wants one that is a multiple of 16 all the same.
  const int64_t rows = k.w_kn ? a.d : a.h, columns = k.w_kn ? a.h : a.d, experts = a.route.num_experts;
  const int64_t row_bytes = rows > 1 ? k.w_stride_row * kSize : round_up(columns * kSize, 16);
  const int64_t expert_bytes = experts > 1 ? k.w_stride_e * kSize : rows * row_bytes;
  if (row_bytes <= 0 || expert_bytes <= 0) return false;
  return encode_tensor_map(
      map, {a.w, static_cast<u64>(columns * kSize / 2), static_cast<u64>(rows), static_cast<u64>(experts),
            static_cast<u64>(row_bytes), static_cast<u64>(expert_bytes), P::BOX_ROWS});
}

template <class P>
LaunchConfig hopper_config(const CvmmFwdKernelArgs<typename P::T, typename P::W>& k) {
  const int64_t tiles = (k.num_routes / P::BM + k.num_experts) * k.n_tiles;  // at most
  const int64_t blocks = std::min<int64_t>(tiles, num_multiprocessors("cvmm"));
  return {dim3(static_cast<unsigned>(blocks)), dim3(P::THREADS), P::SHARED};
}

}  // namespace sysgen
