// Where a pass of a recurrence runs: on the CPU with threads over samples, or on a device with a stream. Its
// arguments have the sizes `s`, `scratch` and `threads`.
#pragma once
#include <pybind11/pybind11.h>

#include "common/run.h"

namespace sysgen {

// A weight [rows, columns] of backward: on the CPU, whose products read it either way, as it is; on CUDA
// transposed.
inline const void* check_bwd_weight(const char* op, const char* name, const TensorView& w, DType dtype,
                                    int64_t rows, int64_t columns, const TensorView& where) {
  if (runs_on_cpu(where)) return check_dense(op, name, w, dtype, {rows, columns}, where);
  return check_dense(op, cat(name, "^T").c_str(), w, dtype, {columns, rows}, where);
}
// [rows, columns], transposed; on the CPU null will do.
inline const void* check_bwd_transpose(const char* op, const char* name, const std::optional<TensorView>& w,
                                       DType dtype, int64_t rows, int64_t columns, const TensorView& where) {
  if (runs_on_cpu(where)) return nullptr;
  check(w.has_value(), op, ": on CUDA ", name, "^T is needed");
  return check_bwd_weight(op, name, *w, dtype, rows, columns, where);
}

// Null where a build has none.
template <class Args>
struct SequenceBackends {
  using Sizes = decltype(Args::s);
  int (*useful_threads)(const Sizes&, int threads);
  int64_t (*cpu_scratch)(const Sizes&, int threads);
  void (*cpu)(const Args&);
  int64_t (*cpu_checkpoint)(const Sizes&);
  int64_t (*cuda_scratch)(const Sizes&, int device_index);
  void (*cuda)(const Args&, int device_index, void* stream);
  int64_t (*cuda_checkpoint)(const Sizes&);

  // Elements of a sample's checkpoint.
  int64_t checkpoint_numel(const char* op, const Sizes& s, const TensorView& where) const {
    if (runs_on_cpu(where) && cpu) return cpu_checkpoint(s);
    if (!runs_on_cuda(where) || !cuda) no_device(op, where);
    return cuda_checkpoint(s);
  }
  int64_t scratch_bytes(const char* op, const Sizes& s, const TensorView& where, int threads) const {
    if (runs_on_cpu(where) && cpu) return cpu_scratch(s, useful_threads(s, threads));
    if (!runs_on_cuda(where) || !cuda) no_device(op, where);
    return cuda_scratch(s, where.device_index);
  }
  void run(const char* op, Args& a, const TensorView& where, const TensorView& scratch, int threads,
           uintptr_t stream) const {
    check_device(op, "scratch", scratch, where);
    check(scratch.numel() * size_of(scratch.dtype) >= scratch_bytes(op, a.s, where, threads), op,
          ": scratch too small");
    a.scratch = scratch.data;
    a.threads = useful_threads(a.s, threads);
    pybind11::gil_scoped_release release;
    runs_on_cpu(where) && cpu ? cpu(a) : cuda(a, where.device_index, reinterpret_cast<void*>(stream));
  }
};

}  // namespace sysgen
