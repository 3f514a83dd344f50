// What a column of the Neural Data Router makes of what it attended to (Csordas 2023, Eq. 5.2-5.5): the parts
// around the matrix products, one pass over memory each.
//
//   a = LN1(s), s = x + D1 t           h = D2 relu(a W1^T + b1)      both hidden layers side by side
//   y = x + g (n - x), n = LN2(v)      v = h W2^T + b2               g = sigmoid(h' Wg^T + bg), 0 where D3
//   closes
//
//   R  rows    d  width    F  width of both hidden layers    S  segments of the rows    p  rates of dropout
//
// D1, D2 are factors 0 or 1 / (1 - p) for each element, D3 is 0 or 1 for each row; all three are functions of
// (seed, position) only and are made anew wherever they are needed. The rate is p rounded to a multiple of
// 2^-16.
//
// Types: float32 or float64, the same for all; everything is contiguous. Sums over rows are left in S parts,
// whose number depends on R only: results do not depend on the number of threads.
#pragma once
#include <cstdint>

#include "common/tensor_view.h"

namespace sysgen {

enum class NoiseStream : uint64_t { attended = 1, hidden = 2, gate = 3, experts = 4 };

struct Noise {
  uint64_t seed;
  double rate;  // 0: no noise
};

struct RowNorm {              // y = (x - mean) / sqrt(variance + eps) * weight + bias
  const void *weight, *bias;  // [d]
  double eps;
  void* stats;  // [R, 2]: mean, 1 / sqrt(variance + eps); written forward, read backward
};

struct GatedUpdateSizes {
  DType dtype;
  int64_t rows, width;
};

// Number of segments; sums below have this many parts.
int64_t gated_update_segments(int64_t rows);

// out = D x for the factors of a stream, which for the same number of rows and columns are those above (the
// gates: one column, and no factor). Rows have any stride; out may be x.
struct DropoutArgs {
  GatedUpdateSizes s;
  Noise noise;
  NoiseStream stream;
  const void* x;
  int64_t x_stride;
  void* out;
  int64_t out_stride;
};

// a = LN1(x + D1 t).   backward: dx += ds, dt = D1 ds, sums [S, 2, d] of weight and bias.
struct AttendedArgs {
  GatedUpdateSizes s;
  const void *x, *t;  // [R, d]
  RowNorm norm;
  Noise noise;
  void* a = nullptr;         // forward: [R, d]
  const void* da = nullptr;  // backward: [R, d]
  void *dx = nullptr, *dt = nullptr, *sums = nullptr;
};

// h = D2 relu(h + bias) in place; width is F.   backward: dh *= its slope at h in place, sums [S, F] of bias.
struct HiddenArgs {
  GatedUpdateSizes s;
  const void* bias;  // [F]
  Noise noise;
  void* h;  // [R, F]: written forward, read backward
  void *dh = nullptr, *sums = nullptr;
};

// y from the products u = h W2^T and z = h' Wg^T.   backward: du, dz, dx [R, d], sums [S, 4, d] of LN2's
// weight and bias, b2 and bg.
struct GateArgs {
  GatedUpdateSizes s;
  const void *x, *u, *z;         // [R, d]
  const void *bias, *gate_bias;  // [d]: b2, bg
  RowNorm norm;
  Noise noise;
  void* y = nullptr;         // forward
  const void* dy = nullptr;  // backward
  void *du = nullptr, *dz = nullptr, *dx = nullptr, *sums = nullptr;
};

void dropout_cpu(const DropoutArgs& args, int num_threads);
void gated_update_attended_fwd_cpu(const AttendedArgs& args, int num_threads);
void gated_update_attended_bwd_cpu(const AttendedArgs& args, int num_threads);
void gated_update_hidden_fwd_cpu(const HiddenArgs& args, int num_threads);
void gated_update_hidden_bwd_cpu(const HiddenArgs& args, int num_threads);
void gated_update_gate_fwd_cpu(const GateArgs& args, int num_threads);
void gated_update_gate_bwd_cpu(const GateArgs& args, int num_threads);

}  // namespace sysgen
