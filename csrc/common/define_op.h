// One operation of the core as Python sees it.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>

#include "common/run.h"
#include "common/tensor_caster.h"

namespace sysgen {

template <class... T>
struct Types {};

// Defines `name`(tensors .., scratch, options .., num_threads, stream) and, with CUDA,
// `name`_scratch_bytes(tensors .., options ..). `build` checks what it gets; there is nothing to do for a
// batch of 0.
template <class Args, class... T, class... O>
void define_op(pybind11::module_& m, const char* name, Types<T...>, Types<O...>,
               std::type_identity_t<Args (*)(const char* op, T..., O...)> build,
               void (*cpu)(const Args&, int), int64_t (*scratch_bytes)(const Args&),
               void (*cuda)(const Args&, int, void*)) {
  m.def(name, [=](T... tensors, const MaybeTensor& scratch, O... options, int num_threads, uintptr_t stream) {
    Args a = build(name, tensors..., options...);
    const TensorView& first = std::get<0>(std::forward_as_tuple(tensors...));
    if (a.s.batch > 0) run_where(name, a, first, scratch, num_threads, stream, cpu, scratch_bytes, cuda);
  });
#if defined(SYSGEN_WITH_CUDA)
  m.def((std::string(name) + "_scratch_bytes").c_str(), [=](T... tensors, O... options) {
    const Args a = build(name, tensors..., options...);
    return a.s.batch > 0 ? scratch_bytes(a) : 0;
  });
#endif
}

}  // namespace sysgen
