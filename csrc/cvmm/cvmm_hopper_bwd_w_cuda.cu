// Launches cvmm_bwd_w's Hopper kernel where it can run; see cvmm_hopper_cuda.cu.
#include "cvmm/cvmm_hopper.h"

#if defined(SYSGEN_DRIVER_LAUNCH) || !(defined(SYSGEN_WITH_HOPPER) || defined(SYSGEN_EMULATOR))

namespace sysgen {
bool cvmm_bwd_w_hopper(const CvmmBwdWArgs&, const CvmmBwdWKernelArgs<bf16>&, void*) { return false; }
bool cvmm_bwd_w_hopper(const CvmmBwdWArgs&, const CvmmBwdWKernelArgs<f16>&, void*) { return false; }
}  // namespace sysgen

#else

#include "cvmm/cvmm_hopper_bwd_w_kernels.cuh"
#include "cvmm/cvmm_launch.h"

namespace sysgen {
namespace {

template <class P>
void launch_gradient(const CvmmBwdWArgs& a, const CvmmBwdWKernelArgs<typename P::T>& k, void* stream) {
  const int64_t tiles = (a.route.num_routes() / k.segment + k.num_experts) * k.m_tiles * k.n_tiles;
  const int64_t blocks = std::min<int64_t>(tiles, num_multiprocessors("cvmm_bwd_w"));
  const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(P::THREADS), P::SHARED};
  SYSGEN_LAUNCH_TEMPLATE(cvmm_hopper_bwd_w_kernel, P, config, stream, k);
}

template <class T>
bool launch_hopper_gradient(const CvmmBwdWArgs& a, const CvmmBwdWKernelArgs<T>& k, void* stream) {
  if (a.route.num_routes() < kHopperRowsOfExpert * a.route.num_experts || k.x.vec != 16 || k.dy.vec != 16 ||
      !hopper_path_wanted("cvmm_bwd_w"))
    return false;
  k.gate ? launch_gradient<CvmmHopperGradientTile<T, true> >(a, k, stream)
         : launch_gradient<CvmmHopperGradientTile<T, false> >(a, k, stream);
  return true;
}

}  // namespace

bool cvmm_bwd_w_hopper(const CvmmBwdWArgs& a, const CvmmBwdWKernelArgs<bf16>& k, void* stream) {
  return launch_hopper_gradient(a, k, stream);
}
bool cvmm_bwd_w_hopper(const CvmmBwdWArgs& a, const CvmmBwdWKernelArgs<f16>& k, void* stream) {
  return launch_hopper_gradient(a, k, stream);
}

}  // namespace sysgen
#endif
