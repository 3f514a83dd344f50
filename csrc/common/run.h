// Runs an operation where its tensors are: what the bind headers do after their checks.
#pragma once
#include <pybind11/pybind11.h>

#include <optional>
#include <type_traits>

#include "common/arguments.h"

namespace sysgen {

// A host function as a build has it: null where its kernels are missing.
#if defined(SYSGEN_WITH_CUDA)
#define SYSGEN_IF_CUDA(F) F
#else
#define SYSGEN_IF_CUDA(F) nullptr
#endif
#if defined(SYSGEN_EMULATOR)
#define SYSGEN_IF_CPU(F) nullptr
#else
#define SYSGEN_IF_CPU(F) F
#endif

// Calls cpu(args, num_threads), or cuda(args, device, stream) after a check of the scratch's size, without
// the GIL.
template <class Args>
void run_where(const char* op, Args& args, const TensorView& first, const MaybeTensor& scratch,
               int num_threads, uintptr_t stream, std::type_identity_t<void (*)(const Args&, int)> cpu,
               std::type_identity_t<int64_t (*)(const Args&)> scratch_bytes,
               std::type_identity_t<void (*)(const Args&, int, void*)> cuda) {
  if (runs_on_cpu(first) && cpu) {
    pybind11::gil_scoped_release release;
    return cpu(args, num_threads);
  }
  if (!runs_on_cuda(first) || !cuda) no_device(op, first);
  if (scratch) check_device(op, "scratch", *scratch, first);
  check(scratch_bytes(args) <= (scratch ? scratch->numel() * size_of(scratch->dtype) : 0), op,
        ": scratch too small");
  args.scratch = scratch ? scratch->data : nullptr;
  pybind11::gil_scoped_release release;
  cuda(args, first.device_index, reinterpret_cast<void*>(stream));
}

}  // namespace sysgen
