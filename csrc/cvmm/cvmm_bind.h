// Python entry points of the CVMM family: argument checks, then the CPU or CUDA host function.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/run.h"
#include "common/tensor_caster.h"
#include "cvmm/cvmm.h"

namespace sysgen {

// inverse is [T, k] and thereby tells the number of tokens and of routes a token.
inline Routing check_routing(const char* op, const TensorView& order, const TensorView& inverse,
                             const TensorView& offsets, int64_t num_experts, const TensorView& first) {
  check(inverse.ndim == 2, op, ": route.inverse must have shape [tokens, k], got ", shape_of(inverse));
  const auto check_one = [&](const char* name, const TensorView& t, int64_t n) {
    check_dtype(op, name, t, {DType::i32});
    check_contiguous(op, name, t);
    check_device(op, name, t, first);
    if (t.numel() != n) throw ValueError(cat(op, ": ", name, " must have ", n, " elements, got ", t.numel()));
  };
  check_one("route.inverse", inverse, inverse.numel());
  check_one("route.order", order, inverse.numel());
  check_one("route.offsets", offsets, num_experts + 1);
  return {static_cast<const int32_t*>(order.data),
          static_cast<const int32_t*>(inverse.data),
          static_cast<const int32_t*>(offsets.data),
          inverse.shape[0],
          inverse.shape[1],
          num_experts};
}

// A row operand: [T, width] (shared) or [T, k, width] (routed), with an inner stride of 1 and evenly spaced
// rows.
inline Rows check_rows(const char* op, const char* name, const TensorView& t, DType dtype,
                       const Routing& route, int64_t width, const TensorView& first) {
  check_dtype(op, name, t, {dtype});
  check_device(op, name, t, first);
  const bool routed = t.ndim == 3;
  if (routed) {
    check_shape(op, name, t, {route.num_tokens, route.k, width});
  } else {
    check_shape(op, name, t, {route.num_tokens, width});
  }
  const int inner = t.ndim - 1;
  const bool dense = width <= 1 || t.stride[inner] == 1;
  const bool even = !routed || route.num_tokens <= 1 || route.k <= 1 || t.stride[0] == route.k * t.stride[1];
  if (t.numel() > 0 && !(dense && even))
    throw ValueError(cat(op, ": ", name, " must have an inner stride of 1 and evenly spaced rows"));
  // The stride of a dimension of size 1 means nothing; the other one is then the distance between rows.
  return {t.data, routed && route.k > 1 ? t.stride[1] : t.stride[0], routed};
}

inline Precision check_precision(const char* op, int precision) {
  check(precision >= 0 && precision <= 2, op, ": precision must be 0 (ieee), 1 (tf32) or 2 (tf32x3), got ",
        precision);
  return static_cast<Precision>(precision);
}

inline void check_types(const char* op, const TensorView& x, const char* w_name, DType w_dtype) {
  check_dtype(op, "x", x, {DType::f64, DType::f32, DType::bf16, DType::f16});
  if (w_dtype != x.dtype && !(is_half(x.dtype) && w_dtype == DType::f32))
    throw TypeError(cat(op, ": ", w_name, " must be ", name_of(x.dtype),
                        is_half(x.dtype) ? " or float32" : "", " for x of ", name_of(x.dtype), ", got ",
                        name_of(w_dtype)));
}

inline CvmmFwdArgs cvmm_fwd_args(const TensorView& x, const TensorView& w, const TensorView& order,
                                 const TensorView& inverse, const TensorView& offsets,
                                 const MaybeTensor& gate, const MaybeTensor& bias, const MaybeTensor& out,
                                 const MaybeTensor& other, const MaybeTensor& dot, bool reduce,
                                 int activation, int precision) {
  const char* op = "cvmm";
  check(w.ndim == 3, op, ": weight must have 3 dimensions [E, d, h], got shape ", shape_of(w));
  check_types(op, x, "weight", w.dtype);
  check_device(op, "weight", w, x);
  CvmmFwdArgs a{};
  a.route = check_routing(op, order, inverse, offsets, w.shape[0], x);
  const DType acc = accumulator_of(x.dtype);
  a.dtype = x.dtype;
  a.w_dtype = w.dtype;
  a.d = w.shape[1];
  a.h = w.shape[2];
  a.x = check_rows(op, "x", x, x.dtype, a.route, a.d, x);
  a.w = w.data;
  a.w_stride_e = w.stride[0];
  a.w_stride_d = w.stride[1];
  a.w_stride_h = w.stride[2];
  a.gate = check_dense(op, "gate", gate, acc, {a.route.num_tokens, a.route.k}, x);
  a.bias = check_dense(op, "bias", bias, acc, {w.shape[0], a.h}, x);
  check(activation == 0 || activation == 1, op, ": activation must be 0 (identity) or 1 (relu), got ",
        activation);
  a.activation = static_cast<Activation>(activation);
  a.reduce = reduce;
  a.out = reduce ? check_dense(op, "out", out, x.dtype, {a.route.num_tokens, a.h}, x)
                 : check_dense(op, "out", out, x.dtype, {a.route.num_tokens, a.route.k, a.h}, x);
  if (other) a.other = check_rows(op, "other", *other, x.dtype, a.route, a.h, x);
  a.dot = check_dense(op, "dot", dot, acc, {a.route.num_tokens, a.route.k}, x);
  check(!dot || other, op, ": dot needs other");
  a.precision = check_precision(op, precision);
  return a;
}

inline CvmmBwdWArgs cvmm_bwd_w_args(const TensorView& x, const TensorView& dy, const TensorView& order,
                                    const TensorView& inverse, const TensorView& offsets,
                                    const MaybeTensor& gate, const TensorView& dw, int precision) {
  const char* op = "cvmm_bwd_w";
  check(dw.ndim == 3, op, ": dw must have 3 dimensions [E, d, h], got shape ", shape_of(dw));
  check_types(op, x, "dw", dw.dtype);
  check_contiguous(op, "dw", dw);
  check_device(op, "dw", dw, x);
  CvmmBwdWArgs a{};
  a.route = check_routing(op, order, inverse, offsets, dw.shape[0], x);
  a.dtype = x.dtype;
  a.w_dtype = dw.dtype;
  a.d = dw.shape[1];
  a.h = dw.shape[2];
  a.x = check_rows(op, "x", x, x.dtype, a.route, a.d, x);
  a.dy = check_rows(op, "dy", dy, x.dtype, a.route, a.h, x);
  a.gate = check_dense(op, "gate", gate, accumulator_of(x.dtype), {a.route.num_tokens, a.route.k}, x);
  a.dw = dw.data;
  a.precision = check_precision(op, precision);
  return a;
}

inline void register_cvmm(pybind11::module_& m) {
  using T = const TensorView&;
  using M = const MaybeTensor&;
  m.def("cvmm_fwd",
        [](T x, T w, T order, T inverse, T offsets, M gate, M bias, M out, M other, M dot, M scratch,
           bool reduce, int activation, int precision, int num_threads, uintptr_t stream) {
          CvmmFwdArgs a = cvmm_fwd_args(x, w, order, inverse, offsets, gate, bias, out, other, dot, reduce,
                                        activation, precision);
          run_where("cvmm", a, x, scratch, num_threads, stream, SYSGEN_IF_CPU(&cvmm_fwd_cpu),
                    SYSGEN_IF_CUDA(&cvmm_fwd_cuda_scratch_bytes), SYSGEN_IF_CUDA(&cvmm_fwd_cuda));
        });
  m.def("cvmm_bwd_w", [](T x, T dy, T order, T inverse, T offsets, M gate, T dw, M scratch, int precision,
                         int num_threads, uintptr_t stream) {
    CvmmBwdWArgs a = cvmm_bwd_w_args(x, dy, order, inverse, offsets, gate, dw, precision);
    run_where("cvmm_bwd_w", a, x, scratch, num_threads, stream, SYSGEN_IF_CPU(&cvmm_bwd_w_cpu),
              SYSGEN_IF_CUDA(&cvmm_bwd_w_cuda_scratch_bytes), SYSGEN_IF_CUDA(&cvmm_bwd_w_cuda));
  });
#if defined(SYSGEN_WITH_CUDA)
  m.def("cvmm_fwd_scratch_bytes", [](T x, T w, T order, T inverse, T offsets, M gate, M bias, M out, M other,
                                     M dot, bool reduce, int activation, int precision) {
    return cvmm_fwd_cuda_scratch_bytes(cvmm_fwd_args(x, w, order, inverse, offsets, gate, bias, out, other,
                                                     dot, reduce, activation, precision));
  });
  m.def("cvmm_bwd_w_scratch_bytes",
        [](T x, T dy, T order, T inverse, T offsets, M gate, T dw, int precision) {
          return cvmm_bwd_w_cuda_scratch_bytes(
              cvmm_bwd_w_args(x, dy, order, inverse, offsets, gate, dw, precision));
        });
#endif
}

}  // namespace sysgen
