// What the two launchers of geometric attention share: geometric_attention_cuda.cu, which chooses between the
// kernel for small sizes and the tiled one, and geometric_attention_tiled_cuda.cu.
#pragma once
#include <algorithm>
#include <initializer_list>

#include "cvmm/cvmm_launch.h"
#include "device/launch.h"
#include "geometric_attention/geometric_attention.h"
#include "geometric_attention/geometric_attention_scores.cuh"

namespace sysgen {

// For any shape; the device of `stream` is the current one. Whether the sizes are small is decided before.
int64_t geometric_attention_tiled_fwd_scratch_bytes(const GeometricAttentionFwdArgs& args);
int64_t geometric_attention_tiled_bwd_scratch_bytes(const GeometricAttentionBwdArgs& args);
void geometric_attention_tiled_fwd(const GeometricAttentionFwdArgs& args, void* stream);
void geometric_attention_tiled_bwd(const GeometricAttentionBwdArgs& args, void* stream);

template <class A>
GeometricScores<A> geometric_scores(const GeometricAttentionScores& s) {
  GeometricScores<A> g{};
  g.heads = s.heads;
  g.queries = s.queries;
  g.keys = s.keys;
  g.width = s.width;
  g.bias = static_cast<const A*>(s.bias);
  g.bias_stride_b = s.bias_stride_b;
  g.bias_stride_h = s.bias_stride_h;
  g.bias_stride_l = s.bias_stride_l;
  g.key_mask = s.key_mask;
  g.key_mask_stride_b = s.key_mask_stride_b;
  if (s.mask.additive) {
    g.added = static_cast<const A*>(s.mask.data);
  } else {
    g.hidden = static_cast<const unsigned char*>(s.mask.data);
  }
  g.mask_stride_b = s.mask.stride_b;
  g.mask_stride_h = s.mask.stride_h;
  g.mask_stride_l = s.mask.stride_l;
  g.mask_stride_s = s.mask.stride_s;
  g.q_offset = s.q_offset;
  g.scale = static_cast<A>(s.scale);
  g.eps = static_cast<A>(s.eps);
  g.normalize = s.normalize;
  g.include_self = s.include_self;
  g.causal = s.causal;
  g.early_stop = s.early_stop;
  return g;
}

// `rows` of them in each (b, h), queries or keys; T may be const. A dimension of size 1 may have any stride.
template <class T>
GeometricRows<T> geometric_rows(const Heads& x, const GeometricAttentionScores& s, int64_t rows) {
  const int64_t size = sizeof(T);
  return {static_cast<T*>(x.data), x.stride_b, x.stride_h, x.stride_n,
          copy_width(x.data, {s.width * size, s.batch > 1 ? x.stride_b * size : 0,
                              s.heads > 1 ? x.stride_h * size : 0, rows > 1 ? x.stride_n * size : 0})};
}

// Calls f(T()) with the element type.
template <class F>
void with_geometric_type(DType dtype, F f) {
  switch (dtype) {
    case DType::f64:
      return f(double());
    case DType::f32:
      return f(float());
    case DType::bf16:
      return f(bf16());
    case DType::f16:
      return f(f16());
    default:
      throw TypeError(cat("geometric_attention: unsupported dtype ", name_of(dtype)));
  }
}

}  // namespace sysgen
