// CVMM, conditional vector-matrix multiplication (Csordas 2023, App. F.2.1), and its two relatives that close
// the family under differentiation. All of them are derivatives of one form over the routes r,
//
//   S = sum_r  gate[r] * x[src(r)] . W[expert(r)] . y[dst(r)]
//
// by y: cvmm_fwd; by x: cvmm_fwd with W transposed; by W: cvmm_bwd_w; by gate: the row dot of cvmm_fwd.
//
//   T  tokens    k  routes a token    R = T * k  routes    E  experts    d  contracted width    h  output
//   width
//
// Row operands are "shared" ([T, .], row r / k serves route r) or "routed" ([R, .], row r serves route r).
// Their inner stride is 1, their row stride is free (0 for an expanded row). Types: every row operand and
// `out` have `dtype`; gate, bias and dot have the accumulator type (float64 for float64, else float32). W has
// `dtype` too, or is a float32 master of a half `dtype`, then rounded to `dtype` on the way in.
#pragma once
#include <cstdint>

#include "common/tensor_view.h"
#include "cvmm/activation.cuh"

namespace sysgen {

// What an activation's derivative is a function of, and is kept for the backward: its output, or else its
// input.
inline bool derivative_from_output(Activation a) { return a != Activation::gelu && a != Activation::silu; }

enum class Precision : int {
  ieee = 0,
  tf32 = 1,
  tf32x3 = 2
};  // float32 on CUDA only; the CPU is always IEEE

struct Routing {           // as written by route_fwd
  const int32_t* order;    // [R]
  const int32_t* inverse;  // [R]
  const int32_t* offsets;  // [E + 1]
  int64_t num_tokens, k, num_experts;
  int64_t num_routes() const { return num_tokens * k; }
};

struct Rows {  // a row operand
  const void* data = nullptr;
  int64_t stride = 0;  // elements between rows
  bool routed = false;
};

// u[r] = x[src(r)] . W[expert(r)] + bias[expert(r)]                       for every route that is not dropped
// dot[r] = sum_j u[r, j] * other[src'(r), j]                              if dot
// out[r] = gate[r] * activation(u[r]), or out[t] = sum over the token's routes of that, in a fixed order
// (CUDA: by slot; CPU: by expert, then slot, maybe as two sums), if reduce.
// With slope, other[r] is what activation's derivative is a function of, and the backward of activated rows:
// dot[r] = sum_j u[r, j] * activated[r, j]
// out[r] = gate[r] * activation'[r] * u[r]
// Dropped routes: all results are 0. out may be null (then only dot is computed).
struct CvmmFwdArgs {
  Routing route;
  // [E + 1], CPU: offsets of the whole routing if `route` is a part of it. By them the order of sums is
  // chosen, which the parts must not change. Null: route.offsets.
  const int32_t* whole_offsets = nullptr;
  DType dtype, w_dtype;
  int64_t d, h;
  Rows x;                                      // [T or R, d]
  const void* w;                               // [E, d, h]
  int64_t w_stride_e, w_stride_d, w_stride_h;  // any; CUDA: w_stride_d or w_stride_h is 1 (or its size is 1)
  const void* gate;                            // [R] or null
  const void* bias;                            // [E, h], contiguous, or null
  Activation activation;  // the CPU has identity and relu only; CUDA all, with reduce those two
  bool slope;             // CUDA, not with reduce
  // [R, h], contiguous, or null; only for gelu and silu on CUDA: the rows before the activation, which is
  // then that of the rounded rows; or activated rows, with slope.
  void* second;
  void* out;  // [R, h], or [T, h] if reduce; contiguous; or null
  bool reduce;
  Rows other;  // [T or R, h] or null
  void* dot;   // [R] or null
  Precision precision;
  void* scratch;  // CUDA: cvmm_fwd_cuda_scratch_bytes; need not survive
};

// dw[e] = sum over the routes r of expert e of gate[r] * x[src(r)]^T . dy[src'(r)], routes in order, fixed
// segments. An expert without routes gets zeros.
struct CvmmBwdWArgs {
  Routing route;
  DType dtype, w_dtype;  // dw has w_dtype: dtype, or float32 for a half dtype
  int64_t d, h;
  Rows x;            // [T or R, d]
  Rows dy;           // [T or R, h]
  const void* gate;  // [R] or null
  void* dw;          // [E, d, h], contiguous
  Precision precision;
  void* scratch;  // CUDA: cvmm_bwd_w_cuda_scratch_bytes; need not survive
};

void cvmm_fwd_cpu(const CvmmFwdArgs& args, int num_threads);
void cvmm_bwd_w_cpu(const CvmmBwdWArgs& args, int num_threads);

// Scratch sizes depend on shapes, types and null-ness of the arguments only, never on the routing.
int64_t cvmm_fwd_cuda_scratch_bytes(const CvmmFwdArgs& args);
int64_t cvmm_bwd_w_cuda_scratch_bytes(const CvmmBwdWArgs& args);
void cvmm_fwd_cuda(const CvmmFwdArgs& args, int device_index, void* stream);
void cvmm_bwd_w_cuda(const CvmmBwdWArgs& args, int device_index, void* stream);

}  // namespace sysgen
