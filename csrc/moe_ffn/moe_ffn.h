// The experts of a mixture-of-experts MLP (Csordas 2023, Eq. 7.11-7.12) in one call: up projection,
// activation, gate and down projection, and of the backward what flows through the hidden rows,
//
//   z[r] = x[t(r)] . W_up[e(r)] + b[e(r)]       h = act(z)
//   y[t] = sum over its routes of gate[r] * h[r] . W_down[e(r)]
//   dgate[r] = h[r] . (dy[t(r)] . W_down[e(r)]^T)
//   dz[r] = act'(z[r]) * gate[r] * dy[t(r)] . W_down[e(r)]^T
//   dx[t] = sum over its routes of dz[r] . W_up[e(r)]^T
//
// Each product is described by the arguments of cvmm_fwd (cvmm/cvmm.h), whose conventions and types hold
// here:
//
//   T  tokens    k  routes a token    R = T * k  routes    G  hidden width
//
// CPU: hidden rows are used while they lie in cache; no [R, d] exists.
#pragma once
#include "cvmm/cvmm.h"
#include "moe_ffn/activation.h"

namespace sysgen {

struct MoeFfnFwdArgs {
  Activation activation;
  CvmmFwdArgs up;    // out: [R, G] what act' is a function of, or null if nothing is kept
  CvmmFwdArgs down;  // x is the kernel's own; gate, reduce
  void* scratch;     // moe_ffn_fwd_cpu_scratch_bytes or .._cuda_..; need not survive
};

struct MoeFfnBwdArgs {
  Activation activation;
  CvmmFwdArgs up;    // as forward; out is what it kept, or null: then it is recomputed
  CvmmFwdArgs down;  // by W_down^T: x is dy; out is dz [R, G] or null; dot is dgate or null; other is the
                     // kernel's own
  CvmmFwdArgs dx;    // by W_up^T: x is the kernel's own; out is dx, or null (also if dz is)
  void* h;           // [R, G] the activated rows, or null if nobody needs them or up.out holds them
  void* scratch;     // moe_ffn_bwd_cpu_scratch_bytes or .._cuda_..; need not survive
};

// By shapes, types, null-ness and the number of threads only.
int64_t moe_ffn_fwd_cpu_scratch_bytes(const MoeFfnFwdArgs& args, int num_threads);
int64_t moe_ffn_bwd_cpu_scratch_bytes(const MoeFfnBwdArgs& args, int num_threads);
void moe_ffn_fwd_cpu(const MoeFfnFwdArgs& args, int num_threads);
void moe_ffn_bwd_cpu(const MoeFfnBwdArgs& args, int num_threads);

// CUDA: one kernel for half types, a hidden width of 65 to 128, and weights that are contiguous along their
// columns; else one for each product, with the activation or its slope in its epilogue. The forward without
// down.out computes up.out only.
int64_t moe_ffn_fwd_cuda_scratch_bytes(const MoeFfnFwdArgs& args);
int64_t moe_ffn_bwd_cuda_scratch_bytes(const MoeFfnBwdArgs& args);
void moe_ffn_fwd_cuda(const MoeFfnFwdArgs& args, int device_index, void* stream);
void moe_ffn_bwd_cuda(const MoeFfnBwdArgs& args, int device_index, void* stream);

}  // namespace sysgen
