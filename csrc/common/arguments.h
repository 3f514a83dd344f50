// Checks that the bind headers share. Each message names the operation, the argument, what was expected and
// what came.
#pragma once
#include <initializer_list>
#include <optional>

#include "common/check.h"
#include "common/tensor_view.h"

namespace sysgen {

using MaybeTensor = std::optional<TensorView>;

inline std::string shape_of(const TensorView& t) {
  std::string s = "[";
  for (int i = 0; i < t.ndim; ++i) s += (i ? ", " : "") + std::to_string(t.shape[i]);
  return s + "]";
}

inline void check_dtype(const char* op, const char* name, const TensorView& t,
                        std::initializer_list<DType> allowed) {
  std::string names;
  for (DType a : allowed) {
    if (t.dtype == a) return;
    names += (names.empty() ? "" : ", ") + std::string(name_of(a));
  }
  throw TypeError(cat(op, ": ", name, " must be ", names, ", got ", name_of(t.dtype)));
}

inline void check_shape(const char* op, const char* name, const TensorView& t,
                        std::initializer_list<int64_t> shape) {
  bool ok = t.ndim == static_cast<int>(shape.size());
  int i = 0;
  std::string expected;
  for (int64_t n : shape) {
    if (ok && t.shape[i] != n) ok = false;
    expected += (i++ ? ", " : "") + std::to_string(n);
  }
  if (!ok) throw ValueError(cat(op, ": ", name, " must have shape [", expected, "], got ", shape_of(t)));
}

inline void check_contiguous(const char* op, const char* name, const TensorView& t) {
  if (!t.contiguous()) throw ValueError(cat(op, ": ", name, " must be contiguous, got shape ", shape_of(t)));
}

inline void check_device(const char* op, const char* name, const TensorView& t, const TensorView& first) {
  if (t.device != first.device || t.device_index != first.device_index)
    throw ValueError(cat(op, ": ", name, " is on another device than the first argument"));
}

// Data of a contiguous tensor of this type and shape, or null if there is none.
inline void* check_dense(const char* op, const char* name, const MaybeTensor& t, DType dtype,
                         std::initializer_list<int64_t> shape, const TensorView& first) {
  if (!t) return nullptr;
  check_dtype(op, name, *t, {dtype});
  check_shape(op, name, *t, shape);
  check_contiguous(op, name, *t);
  check_device(op, name, *t, first);
  return t->data;
}

inline bool is_half(DType t) { return t == DType::bf16 || t == DType::f16; }
inline DType accumulator_of(DType t) { return t == DType::f64 ? DType::f64 : DType::f32; }

// In the test build for the emulator the CUDA kernels take CPU tensors.
#if defined(SYSGEN_EMULATOR)
inline constexpr bool kEmulated = true;
#else
inline constexpr bool kEmulated = false;
#endif
inline bool runs_on_cpu(const TensorView& t) { return t.device == Device::cpu && !kEmulated; }
inline bool runs_on_cuda(const TensorView& t) { return t.device == (kEmulated ? Device::cpu : Device::cuda); }

[[noreturn]] inline void no_device(const char* op, const TensorView& t) {
  if (t.device == Device::cuda)
    throw NotImplementedError(cat(
        op,
        ": this build of sysgen has no CUDA kernels (neither nvcc nor GCC 12 was there to build them); move "
        "the tensors to the CPU, or reinstall with SYSGEN_CUDA=on"));
  throw NotImplementedError(cat(op, ": only CPU and CUDA tensors are supported"));
}

}  // namespace sysgen
