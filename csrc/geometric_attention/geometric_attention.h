// Geometric attention (Csordas 2023, section 5.1.2): every query takes the keys in order of their distance
// and stops at the first match. With P = sigmoid(s) and c = log(1 - P), for query i at position i + q_offset,
//
//   log A[i, j] = log P[i, j] + sum of c[i, m] over the keys m closer to i than j
//
//   out[i] = sum_j A[i, j] v[j]
//
//   s[i, j] = scale * <q[i], k[j]> + bias[i, j < p] + mask[i, j],   p = i + q_offset
//
// Order: distance 1 right, 1 left, 2 right, 2 left, ... (right wins ties). The key at distance 0 takes no
// part, or comes first with include_self (it gets no bias). What takes no part has P = 0 and c = 0.
//
// Backward, with g = A * <dout, v>, U[i, j] = sum of g[i, m] over the keys m farther than j (+ rem * drem),
//
//   ds = (1 - P) g - P U;   dq = scale ds k;   dk = scale ds^T q;   dv = A^T dout;   dbias = row sums by side
//
// U is accumulated from far to near, and c outwards from the query, each in the accumulator type: a
// difference of two large sums loses the small ones. normalize: W = A / max(Z, eps), Z = sum_j A = 1 - rem,
// takes the place of A, with g = W (<dout, v> - <dout, out>) (the second term only where Z > eps).
//
//   B  batch    H  heads    L  queries    S  keys    D  width of a head
//
// Types: q, k, v, out and their gradients have `dtype`; scores, bias, additive mask, rem and their gradients
// have the accumulator type (float64 for float64, else float32). Nothing is saved for backward but the
// inputs.
#pragma once
#include <cstdint>

#include "common/tensor_view.h"

namespace sysgen {

struct Heads {  // [B, H, N, D] with an inner stride of 1; the other strides, in elements, are free
  void* data = nullptr;
  int64_t stride_b = 0, stride_h = 0, stride_n = 0;
};

struct ScoreMask {  // [B, H, L, S], any strides (0 where broadcast)
  const void* data = nullptr;
  bool additive =
      false;  // accumulator type, added to s (-inf: takes no part); else one byte, not 0: takes no part
  int64_t stride_b = 0, stride_h = 0, stride_l = 0, stride_s = 0;
};

struct GeometricAttentionScores {  // what determines A
  DType dtype;
  int64_t batch, heads, queries, keys, width;
  Heads q, k, v;
  const void* bias =
      nullptr;  // [B, H, L, 2] or null: [..., 0] for keys left of the query, [..., 1] for right
  int64_t bias_stride_b = 0, bias_stride_h = 0, bias_stride_l = 0;  // inner stride 1
  const uint8_t* key_mask =
      nullptr;                    // [B, S] or null; not 0: the key takes no part and its k, v are never used
  int64_t key_mask_stride_b = 0;  // inner stride 1
  ScoreMask mask;
  double scale;
  bool normalize;
  double eps;  // of normalize
  bool include_self;
  bool causal;  // keys right of the query take no part
  int64_t q_offset;
  bool early_stop;  // may skip keys whose weight underflows to 0; the results are the same bits (tests switch
                    // it off)
};

struct GeometricAttentionFwdArgs {
  GeometricAttentionScores s;
  Heads out;
  void* rem;      // [B, H, L], contiguous: 1 - sum_j A[i, j] without cancellation; or null
  void* scratch;  // CUDA: geometric_attention_fwd_cuda_scratch_bytes; need not survive
};

struct GeometricAttentionBwdArgs {
  GeometricAttentionScores s;
  Heads dout;
  const void* drem;  // [B, H, L], contiguous, or null (zeros)
  Heads dq, dk, dv;
  void* dbias;    // [B, H, L, 2], contiguous, or null
  void* dmask;    // [B, H, L, S], contiguous: ds; or null
  void* scratch;  // CUDA: geometric_attention_bwd_cuda_scratch_bytes; need not survive
};

// Every element of every output is written. Sums run in an order that depends on the shapes only, never on
// the number of threads: results are bitwise repeatable.
void geometric_attention_fwd_cpu(const GeometricAttentionFwdArgs& args, int num_threads);
void geometric_attention_bwd_cpu(const GeometricAttentionBwdArgs& args, int num_threads);

// Scratch sizes depend on shapes, types and null-ness of the arguments only.
int64_t geometric_attention_fwd_cuda_scratch_bytes(const GeometricAttentionFwdArgs& args);
int64_t geometric_attention_bwd_cuda_scratch_bytes(const GeometricAttentionBwdArgs& args);
void geometric_attention_fwd_cuda(const GeometricAttentionFwdArgs& args, int device_index, void* stream);
void geometric_attention_bwd_cuda(const GeometricAttentionBwdArgs& args, int device_index, void* stream);

}  // namespace sysgen
