// Launches cvmm_fwd's Hopper kernel for small groups where it can run; see cvmm_hopper_cuda.cu.
#include "cvmm/cvmm_hopper.h"

#if defined(SYSGEN_DRIVER_LAUNCH) || !(defined(SYSGEN_WITH_HOPPER) || defined(SYSGEN_EMULATOR))

#define SYSGEN_HOPPER_SLIM(T, W) \
  bool cvmm_fwd_hopper_slim(const CvmmFwdArgs&, const CvmmFwdKernelArgs<T, W>&, void*) { return false; }

#else

#include "cvmm/cvmm_hopper_launch.h"
#include "cvmm/cvmm_hopper_slim_kernels.cuh"

namespace sysgen {
namespace {

template <class P>
bool launch_slim_tiles(const CvmmFwdArgs& a, const CvmmFwdKernelArgs<typename P::T, typename P::W>& k,
                       void* stream) {
  CvmmHopperArgs<typename P::T, typename P::W> args{};
  if (!encode_weights<P>(args.w, a, k)) return false;
  args.fwd = k;
  SYSGEN_LAUNCH_TEMPLATE(cvmm_hopper_slim_kernel, P, hopper_config<P>(k), stream, args);
  return true;
}

template <class T, class W>
bool launch_slim(const CvmmFwdArgs& a, const CvmmFwdKernelArgs<T, W>& k, void* stream) {
  if (!hopper_can_run(a, k)) return false;
  return k.w_kn ? launch_slim_tiles<CvmmHopperSlimTile<T, W, true> >(a, k, stream)
                : launch_slim_tiles<CvmmHopperSlimTile<T, W, false> >(a, k, stream);
}

}  // namespace
}  // namespace sysgen

#define SYSGEN_HOPPER_SLIM(T, W)                                                                    \
  bool cvmm_fwd_hopper_slim(const CvmmFwdArgs& a, const CvmmFwdKernelArgs<T, W>& k, void* stream) { \
    return launch_slim(a, k, stream);                                                               \
  }

#endif

namespace sysgen {
SYSGEN_HOPPER_SLIM(bf16, bf16)
SYSGEN_HOPPER_SLIM(f16, f16)
SYSGEN_HOPPER_SLIM(bf16, float)
SYSGEN_HOPPER_SLIM(f16, float)
}  // namespace sysgen
