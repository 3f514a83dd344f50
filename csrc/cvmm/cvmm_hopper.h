// The Hopper path of CVMM, for GPUs of compute capability 9.0. It has not run on hardware yet, so it is taken
// only if the environment variable SYSGEN_HOPPER is 1.
#pragma once
#include <cstdlib>
#include <cstring>

#include "cvmm/cvmm.h"
#include "cvmm/cvmm_bwd_w_kernels.cuh"
#include "cvmm/cvmm_fwd_kernels.cuh"
#include "device/launch.h"

namespace sysgen {

// They launch the product of `k` and return true; or return false if this build, this GPU, the shapes or the
// alignment do not allow it. `columns` is the width of k's column tiles, 64 or 128.
bool cvmm_fwd_hopper(const CvmmFwdArgs& a, const CvmmFwdKernelArgs<bf16, bf16>& k, int columns, void* stream);
bool cvmm_fwd_hopper(const CvmmFwdArgs& a, const CvmmFwdKernelArgs<f16, f16>& k, int columns, void* stream);
// For experts of few routes; k's column tiles are 128 wide.
bool cvmm_fwd_hopper_slim(const CvmmFwdArgs& a, const CvmmFwdKernelArgs<bf16, bf16>& k, void* stream);
bool cvmm_fwd_hopper_slim(const CvmmFwdArgs& a, const CvmmFwdKernelArgs<f16, f16>& k, void* stream);
bool cvmm_fwd_hopper_slim(const CvmmFwdArgs& a, const CvmmFwdKernelArgs<bf16, float>& k, void* stream);
bool cvmm_fwd_hopper_slim(const CvmmFwdArgs& a, const CvmmFwdKernelArgs<f16, float>& k, void* stream);
// Tiles of 128 by 128.
bool cvmm_bwd_w_hopper(const CvmmBwdWArgs& a, const CvmmBwdWKernelArgs<bf16>& k, void* stream);
bool cvmm_bwd_w_hopper(const CvmmBwdWArgs& a, const CvmmBwdWKernelArgs<f16>& k, void* stream);

#if !defined(SYSGEN_DRIVER_LAUNCH)
// With fewer routes an expert, tiles of 128 rows and steps of 64 are mostly padding.
inline constexpr int64_t kHopperRowsOfExpert = 64;

// What all of them ask for.
inline bool hopper_path_wanted(const char* what) {
  const char* set = std::getenv("SYSGEN_HOPPER");
  return set && std::strcmp(set, "1") == 0 && compute_capability(what) == 90;
}
#endif

}  // namespace sysgen
