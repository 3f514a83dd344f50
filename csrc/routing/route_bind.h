// Python entry points of routing: argument checks, then the CPU or CUDA host function.
#pragma once
#include <pybind11/pybind11.h>

#include "common/arguments.h"
#include "common/tensor_caster.h"
#include "routing/route.h"

namespace sysgen {

// order [R], inverse [R], offsets [E + 1] are int32 outputs; scratch is null on the CPU.
inline void route_fwd(const TensorView& experts, int64_t num_experts, const TensorView& order,
                      const TensorView& inverse, const TensorView& offsets, std::optional<TensorView> scratch,
                      int num_threads, uintptr_t stream) {
  const char* op = "route";
  check_dtype(op, "experts", experts, {DType::i64, DType::i32});
  check_contiguous(op, "experts", experts);
  const int64_t num_routes = experts.numel();
  check(num_experts >= 0 && num_experts < INT32_MAX, op, ": num_experts must be in [0, 2^31 - 1), got ",
        num_experts);
  check(num_routes <= INT32_MAX, op, ": at most 2^31 - 1 routes, got ", num_routes);
  const auto check_out = [&](const char* name, const TensorView& t, int64_t n) {
    check_dtype(op, name, t, {DType::i32});
    if (t.numel() != n) throw ValueError(cat(op, ": ", name, " must have ", n, " elements, got ", t.numel()));
    check_contiguous(op, name, t);
    check_device(op, name, t, experts);
  };
  check_out("order", order, num_routes);
  check_out("inverse", inverse, num_routes);
  check_out("offsets", offsets, num_experts + 1);
  RouteArgs args{experts.data,
                 experts.dtype,
                 num_routes,
                 num_experts,
                 static_cast<int32_t*>(order.data),
                 static_cast<int32_t*>(inverse.data),
                 static_cast<int32_t*>(offsets.data),
                 scratch ? scratch->data : nullptr};
#if !defined(SYSGEN_EMULATOR)
  if (runs_on_cpu(experts)) return route_fwd_cpu(args, num_threads);
#endif
#if defined(SYSGEN_WITH_CUDA)
  if (runs_on_cuda(experts)) {
    check(scratch && scratch->numel() >= route_cuda_scratch_bytes(num_routes, num_experts), op,
          ": scratch too small");
    return route_fwd_cuda(args, experts.device_index, reinterpret_cast<void*>(stream));
  }
#endif
  (void)stream, (void)num_threads;
  no_device(op, experts);
}

inline void register_routing(pybind11::module_& m) {
  namespace py = pybind11;
  m.def("route_fwd", &route_fwd, py::arg("experts"), py::arg("num_experts"), py::arg("order"),
        py::arg("inverse"), py::arg("offsets"), py::arg("scratch").none(true), py::arg("num_threads"),
        py::arg("stream"), py::call_guard<py::gil_scoped_release>());
#if defined(SYSGEN_WITH_CUDA)
  m.def("route_scratch_bytes", &route_cuda_scratch_bytes, py::arg("num_routes"), py::arg("num_experts"));
#endif
}

}  // namespace sysgen
