// Launches cvmm_fwd's Hopper kernel where it can run. Builds for other architectures, and those whose kernels
// NVRTC compiles, have none: SYSGEN_WITH_HOPPER says that this file is compiled for sm_90a.
#include "cvmm/cvmm_hopper.h"

#if defined(SYSGEN_DRIVER_LAUNCH) || !(defined(SYSGEN_WITH_HOPPER) || defined(SYSGEN_EMULATOR))

namespace sysgen {
bool cvmm_fwd_hopper(const CvmmFwdArgs&, const CvmmFwdKernelArgs<bf16, bf16>&, int, void*) { return false; }
bool cvmm_fwd_hopper(const CvmmFwdArgs&, const CvmmFwdKernelArgs<f16, f16>&, int, void*) { return false; }
}  // namespace sysgen

#else

#include <climits>

#include "cvmm/cvmm_hopper_kernels.cuh"
#include "cvmm/cvmm_launch.h"
#include "device/tensor_map.h"

namespace sysgen {
namespace {

template <class P>
bool launch_tiles(const CvmmFwdArgs& a, const CvmmFwdKernelArgs<typename P::T, typename P::T>& k,
                  void* stream) {
  CvmmHopperArgs<typename P::T> args{};
  constexpr int64_t kSize = sizeof(typename P::T);
  // A dimension of size 1 may have any stride; TMA wants one that is a multiple of 16 all the same.
  const int64_t rows = k.w_kn ? a.d : a.h, columns = k.w_kn ? a.h : a.d, experts = a.route.num_experts;
  const int64_t row_bytes = rows > 1 ? k.w_stride_row * kSize : round_up(columns * kSize, 16);
  const int64_t expert_bytes = experts > 1 ? k.w_stride_e * kSize : rows * row_bytes;
  if (row_bytes <= 0 || expert_bytes <= 0) return false;
  const MatrixStack w{a.w,
                      static_cast<u64>(columns),
                      static_cast<u64>(rows),
                      static_cast<u64>(experts),
                      static_cast<u64>(row_bytes),
                      static_cast<u64>(expert_bytes),
                      P::BOX_ROWS};
  if (!encode_tensor_map(args.w, w)) return false;
  args.fwd = k;
  const int64_t tiles = (k.num_routes / P::BM + k.num_experts) * k.n_tiles;  // at most
  const int64_t blocks = std::min<int64_t>(tiles, num_multiprocessors("cvmm"));
  const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(P::THREADS), P::SHARED};
  SYSGEN_LAUNCH_TEMPLATE(cvmm_hopper_kernel, P, config, stream, args);
  return true;
}

template <class T>
bool launch_hopper(const CvmmFwdArgs& a, const CvmmFwdKernelArgs<T, T>& k, int columns, void* stream) {
  if (!hopper_path_wanted(a.route, "cvmm") || k.x.vec != 16 || a.d == 0 || a.d > INT_MAX || a.h > INT_MAX ||
      a.route.num_experts > INT_MAX)
    return false;
  if (columns == 64)
    return k.w_kn ? launch_tiles<CvmmHopperTile<T, 64, true> >(a, k, stream)
                  : launch_tiles<CvmmHopperTile<T, 64, false> >(a, k, stream);
  return columns == 128 && (k.w_kn ? launch_tiles<CvmmHopperTile<T, 128, true> >(a, k, stream)
                                   : launch_tiles<CvmmHopperTile<T, 128, false> >(a, k, stream));
}

}  // namespace

bool cvmm_fwd_hopper(const CvmmFwdArgs& a, const CvmmFwdKernelArgs<bf16, bf16>& k, int columns,
                     void* stream) {
  return launch_hopper(a, k, columns, stream);
}
bool cvmm_fwd_hopper(const CvmmFwdArgs& a, const CvmmFwdKernelArgs<f16, f16>& k, int columns, void* stream) {
  return launch_hopper(a, k, columns, stream);
}

}  // namespace sysgen
#endif
