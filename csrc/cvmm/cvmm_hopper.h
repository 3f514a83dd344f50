// The Hopper path of cvmm_fwd, for GPUs of compute capability 9.0. It has not run on hardware yet, so it is
// taken only if the environment variable SYSGEN_HOPPER is 1.
#pragma once
#include "cvmm/cvmm.h"
#include "cvmm/cvmm_fwd_kernels.cuh"

namespace sysgen {

// Launches the product of `k`, whose column tiles are `columns` (64 or 128) wide, and returns true; or
// returns false if this build, this GPU, the shapes or the alignment do not allow it.
bool cvmm_fwd_hopper(const CvmmFwdArgs& a, const CvmmFwdKernelArgs<bf16, bf16>& k, int columns, void* stream);
bool cvmm_fwd_hopper(const CvmmFwdArgs& a, const CvmmFwdKernelArgs<f16, f16>& k, int columns, void* stream);

}  // namespace sysgen
