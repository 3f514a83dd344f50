// Launches cvmm_fwd's Hopper kernel where it can run. Builds for other architectures, and those whose kernels
// NVRTC compiles, have none: SYSGEN_WITH_HOPPER says that this file is compiled for sm_90a.
#include "cvmm/cvmm_hopper.h"

#if defined(SYSGEN_DRIVER_LAUNCH) || !(defined(SYSGEN_WITH_HOPPER) || defined(SYSGEN_EMULATOR))

namespace sysgen {
bool cvmm_fwd_hopper(const CvmmFwdArgs&, const CvmmFwdKernelArgs<bf16, bf16>&, int, void*) { return false; }
bool cvmm_fwd_hopper(const CvmmFwdArgs&, const CvmmFwdKernelArgs<f16, f16>&, int, void*) { return false; }
}  // namespace sysgen

#else

#include "cvmm/cvmm_hopper_launch.h"

namespace sysgen {
namespace {

template <class P>
bool launch_tiles(const CvmmFwdArgs& a, const CvmmFwdKernelArgs<typename P::T, typename P::T>& k,
                  void* stream) {
  CvmmHopperArgs<typename P::T> args{};
  if (!encode_weights<P>(args.w, a, k)) return false;
  args.fwd = k;
  SYSGEN_LAUNCH_TEMPLATE(cvmm_hopper_kernel, P, hopper_config<P>(k), stream, args);
  return true;
}

template <class T>
bool launch_hopper(const CvmmFwdArgs& a, const CvmmFwdKernelArgs<T, T>& k, int columns, void* stream) {
  if (a.route.num_routes() < kHopperRowsOfExpert * a.route.num_experts || !hopper_can_run(a, k)) return false;
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
