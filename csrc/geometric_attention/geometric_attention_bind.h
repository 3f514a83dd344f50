// Python entry points of geometric attention: argument checks, then the CPU or CUDA host function.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>

#include "common/run.h"
#include "common/tensor_caster.h"
#include "geometric_attention/geometric_attention.h"

namespace sysgen {

struct GeometricAttentionOptions {  // in the order of the Python arguments
  double scale;
  bool normalize;
  double eps;
  bool include_self, causal;
  int64_t q_offset;
  bool early_stop;
};

// The stride of a dimension of size 1 means nothing, and producers write anything there. 0 leaves the
// kernels' alignment checks to the strides that matter.
inline int64_t stride_of(const TensorView& t, int i) { return t.shape[i] > 1 ? t.stride[i] : 0; }

inline Heads check_heads(const char* op, const char* name, const TensorView& t, DType dtype,
                         std::initializer_list<int64_t> shape, const TensorView& first) {
  check_dtype(op, name, t, {dtype});
  check_shape(op, name, t, shape);
  check_device(op, name, t, first);
  check(t.shape[3] <= 1 || t.stride[3] == 1 || t.numel() == 0, op, ": ", name,
        " must have an inner stride of 1");
  return {t.data, stride_of(t, 0), stride_of(t, 1), stride_of(t, 2)};
}

inline GeometricAttentionScores check_scores(const char* op, const TensorView& q, const TensorView& k,
                                             const TensorView& v, const std::optional<TensorView>& bias,
                                             const std::optional<TensorView>& key_mask,
                                             const std::optional<TensorView>& mask,
                                             const GeometricAttentionOptions& options) {
  check_dtype(op, "query", q, {DType::f64, DType::f32, DType::bf16, DType::f16});
  check(q.ndim == 4, op, ": query must have 4 dimensions [B, H, L, D], got shape ", shape_of(q));
  check(k.ndim == 4, op, ": key must have 4 dimensions [B, H, S, D], got shape ", shape_of(k));
  GeometricAttentionScores s{};
  s.dtype = q.dtype;
  s.batch = q.shape[0];
  s.heads = q.shape[1];
  s.queries = q.shape[2];
  s.keys = k.shape[2];
  s.width = q.shape[3];
  s.q = check_heads(op, "query", q, q.dtype, {s.batch, s.heads, s.queries, s.width}, q);
  s.k = check_heads(op, "key", k, q.dtype, {s.batch, s.heads, s.keys, s.width}, q);
  s.v = check_heads(op, "value", v, q.dtype, {s.batch, s.heads, s.keys, s.width}, q);
  const DType accumulator = accumulator_of(q.dtype);
  if (bias) {
    check_dtype(op, "direction_bias", *bias, {accumulator});
    check_shape(op, "direction_bias", *bias, {s.batch, s.heads, s.queries, 2});
    check_device(op, "direction_bias", *bias, q);
    check(bias->stride[3] == 1 || bias->numel() == 0, op, ": direction_bias must have an inner stride of 1");
    s.bias = bias->data;
    s.bias_stride_b = stride_of(*bias, 0);
    s.bias_stride_h = stride_of(*bias, 1);
    s.bias_stride_l = stride_of(*bias, 2);
  }
  if (key_mask) {
    check_dtype(op, "key_mask", *key_mask, {DType::boolean, DType::u8});
    check_shape(op, "key_mask", *key_mask, {s.batch, s.keys});
    check_device(op, "key_mask", *key_mask, q);
    check(s.keys <= 1 || key_mask->stride[1] == 1 || key_mask->numel() == 0, op,
          ": key_mask must have an inner stride of 1");
    s.key_mask = static_cast<const uint8_t*>(key_mask->data);
    s.key_mask_stride_b = stride_of(*key_mask, 0);
  }
  if (mask) {
    check_dtype(op, "mask", *mask, {accumulator, DType::boolean, DType::u8});
    check_shape(op, "mask", *mask, {s.batch, s.heads, s.queries, s.keys});
    check_device(op, "mask", *mask, q);
    s.mask = {mask->data,          mask->dtype == accumulator, stride_of(*mask, 0),
              stride_of(*mask, 1), stride_of(*mask, 2),        stride_of(*mask, 3)};
  }
  check(std::isfinite(options.scale), op, ": scale must be finite, got ", options.scale);
  check(options.eps > 0, op, ": eps must be positive, got ", options.eps);
  s.scale = options.scale;
  s.normalize = options.normalize;
  s.eps = options.eps;
  s.include_self = options.include_self;
  s.causal = options.causal;
  // Beyond either end every offset gives the same order; clamped, no sum of positions overflows.
  s.q_offset = std::clamp(options.q_offset, -s.queries, s.keys);
  s.early_stop = options.early_stop;
  return s;
}

inline void register_geometric_attention(pybind11::module_& m) {
  using T = const TensorView&;
  using M = const std::optional<TensorView>&;
  using Options = GeometricAttentionOptions;
  static constexpr auto fwd_args = [](T q, T k, T v, M bias, M key_mask, M mask, T out, M rem,
                                      const Options& options) {
    const char* op = "geometric_attention";
    GeometricAttentionFwdArgs a{};
    a.s = check_scores(op, q, k, v, bias, key_mask, mask, options);
    const auto& s = a.s;
    a.out = check_heads(op, "out", out, s.dtype, {s.batch, s.heads, s.queries, s.width}, q);
    a.rem = check_dense(op, "remainder", rem, accumulator_of(s.dtype), {s.batch, s.heads, s.queries}, q);
    return a;
  };
  static constexpr auto bwd_args = [](T q, T k, T v, M bias, M key_mask, M mask, T dout, M drem, T dq, T dk,
                                      T dv, M dbias, M dmask, const Options& options) {
    const char* op = "geometric_attention_bwd";
    GeometricAttentionBwdArgs a{};
    a.s = check_scores(op, q, k, v, bias, key_mask, mask, options);
    const auto& s = a.s;
    const DType accumulator = accumulator_of(s.dtype);
    a.dout = check_heads(op, "dout", dout, s.dtype, {s.batch, s.heads, s.queries, s.width}, q);
    a.drem = check_dense(op, "dremainder", drem, accumulator, {s.batch, s.heads, s.queries}, q);
    a.dq = check_heads(op, "dquery", dq, s.dtype, {s.batch, s.heads, s.queries, s.width}, q);
    a.dk = check_heads(op, "dkey", dk, s.dtype, {s.batch, s.heads, s.keys, s.width}, q);
    a.dv = check_heads(op, "dvalue", dv, s.dtype, {s.batch, s.heads, s.keys, s.width}, q);
    a.dbias = check_dense(op, "dbias", dbias, accumulator, {s.batch, s.heads, s.queries, 2}, q);
    a.dmask = check_dense(op, "dmask", dmask, accumulator, {s.batch, s.heads, s.queries, s.keys}, q);
    return a;
  };
  m.def("geometric_attention_fwd",
        [](T q, T k, T v, M bias, M key_mask, M mask, T out, M rem, M scratch, double scale, bool normalize,
           double eps, bool include_self, bool causal, int64_t q_offset, bool early_stop, int num_threads,
           uintptr_t stream) {
          auto a = fwd_args(q, k, v, bias, key_mask, mask, out, rem,
                            {scale, normalize, eps, include_self, causal, q_offset, early_stop});
          if (a.s.batch * a.s.heads == 0) return;
          run_where("geometric_attention", a, q, scratch, num_threads, stream,
                    SYSGEN_IF_CPU(&geometric_attention_fwd_cpu),
                    SYSGEN_IF_CUDA(&geometric_attention_fwd_cuda_scratch_bytes),
                    SYSGEN_IF_CUDA(&geometric_attention_fwd_cuda));
        });
  m.def("geometric_attention_bwd",
        [](T q, T k, T v, M bias, M key_mask, M mask, T dout, M drem, T dq, T dk, T dv, M dbias, M dmask,
           M scratch, double scale, bool normalize, double eps, bool include_self, bool causal,
           int64_t q_offset, bool early_stop, int num_threads, uintptr_t stream) {
          auto a = bwd_args(q, k, v, bias, key_mask, mask, dout, drem, dq, dk, dv, dbias, dmask,
                            {scale, normalize, eps, include_self, causal, q_offset, early_stop});
          if (a.s.batch * a.s.heads == 0) return;
          run_where("geometric_attention_bwd", a, q, scratch, num_threads, stream,
                    SYSGEN_IF_CPU(&geometric_attention_bwd_cpu),
                    SYSGEN_IF_CUDA(&geometric_attention_bwd_cuda_scratch_bytes),
                    SYSGEN_IF_CUDA(&geometric_attention_bwd_cuda));
        });
#if defined(SYSGEN_WITH_CUDA)
  m.def("geometric_attention_fwd_scratch_bytes",
        [](T q, T k, T v, M bias, M key_mask, M mask, T out, M rem, double scale, bool normalize, double eps,
           bool include_self, bool causal, int64_t q_offset, bool early_stop) {
          return geometric_attention_fwd_cuda_scratch_bytes(
              fwd_args(q, k, v, bias, key_mask, mask, out, rem,
                       {scale, normalize, eps, include_self, causal, q_offset, early_stop}));
        });
  m.def("geometric_attention_bwd_scratch_bytes",
        [](T q, T k, T v, M bias, M key_mask, M mask, T dout, M drem, T dq, T dk, T dv, M dbias, M dmask,
           double scale, bool normalize, double eps, bool include_self, bool causal, int64_t q_offset,
           bool early_stop) {
          return geometric_attention_bwd_cuda_scratch_bytes(
              bwd_args(q, k, v, bias, key_mask, mask, dout, drem, dq, dk, dv, dbias, dmask,
                       {scale, normalize, eps, include_self, causal, q_offset, early_stop}));
        });
#endif
}

}  // namespace sysgen
