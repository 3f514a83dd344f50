// Python entry points of the data generators: argument checks, then the host function.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <vector>

#include "common/arguments.h"
#include "common/tensor_caster.h"
#include "tasks/arithmetic.h"
#include "tasks/listops.h"

namespace sysgen {

// The arguments that all generators share, checked. tokens, offsets, targets, depths, tree_depths are
// outputs.
class Collection {
 public:
  Collection(const char* op, const TensorView& tokens, const TensorView& offsets, const TensorView& targets,
             const TensorView& depths, const TensorView& tree_depths, uint64_t key,
             const std::vector<int64_t>& quota, int min_depth, int max_depth, int max_length, bool held_out,
             int num_threads, int64_t patience, pybind11::object progress) {
    check(targets.ndim == 1, op, ": targets must have one dimension, got shape ", shape_of(targets));
    const int64_t num_samples = targets.numel();
    const auto check_out = [&](const char* name, const TensorView& t, DType dtype, int64_t n) {
      check_dtype(op, name, t, {dtype});
      check_shape(op, name, t, {n});
      check_contiguous(op, name, t);
      check(t.device == Device::cpu, op, ": ", name, " must be on the CPU");
    };
    check(1 <= max_length && max_length <= tasks::kMaxTokens, op, ": max_length must be in [1, ",
          tasks::kMaxTokens, "], got ", max_length);
    check(2 <= min_depth && min_depth <= max_depth && max_depth <= 32, op,
          ": depths must satisfy 2 <= min_depth <= max_depth <= 32, got ", min_depth, " and ", max_depth);
    check(num_threads >= 1, op, ": num_threads must be at least 1, got ", num_threads);
    check_out("tokens", tokens, DType::u8, num_samples * max_length);
    check_out("offsets", offsets, DType::i64, num_samples + 1);
    check_out("targets", targets, DType::u8, num_samples);
    check_out("depths", depths, DType::u8, num_samples);
    check_out("tree_depths", tree_depths, DType::u8, num_samples);
    int64_t total = 0;
    for (int64_t n : quota) total += std::max<int64_t>(n, 0);
    check(quota.size() == static_cast<size_t>(max_depth - min_depth + 1) && total >= num_samples, op,
          ": quota must hold a number for each depth from ", min_depth, " to ", max_depth,
          ", together at least ", num_samples);
    args = {key,
            min_depth,
            quota,
            num_samples,
            held_out ? tasks::Side::held_out : tasks::Side::train,
            static_cast<uint8_t*>(tokens.data),
            static_cast<int64_t*>(offsets.data),
            static_cast<uint8_t*>(targets.data),
            static_cast<uint8_t*>(depths.data),
            static_cast<uint8_t*>(tree_depths.data),
            num_threads,
            patience,
            {}};
    using clock = std::chrono::steady_clock;
    args.progress = [progress, num_samples, last = clock::now()](int64_t done) mutable {
      const auto now = clock::now();
      if (done < num_samples && now - last < std::chrono::milliseconds(100)) return;
      last = now;
      pybind11::gil_scoped_acquire gil;
      if (PyErr_CheckSignals()) throw pybind11::error_already_set();
      if (!progress.is_none()) progress(done);
    };
  }

  tasks::CollectArgs args;
};

inline void check_probability(const char* op, const char* name, double p) {
  check(0 <= p && p <= 1, op, ": ", name, " must be in [0, 1], got ", p);
}

inline void register_tasks(pybind11::module_& m) {
  namespace py = pybind11;
  m.def(
      "listops_generate",
      [](const TensorView& tokens, const TensorView& offsets, const TensorView& targets,
         const TensorView& depths, const TensorView& tree_depths, uint64_t key,
         const std::vector<int64_t>& quota, int min_depth, int max_depth, int max_length, int max_args,
         double op_probability, bool held_out, int num_threads, int64_t patience, py::object progress) {
        const char* op = "listops_generate";
        const Collection c(op, tokens, offsets, targets, depths, tree_depths, key, quota, min_depth,
                           max_depth, max_length, held_out, num_threads, patience, std::move(progress));
        check_probability(op, "op_probability", op_probability);
        check(3 <= max_args && max_args < tasks::ListOpsArgs::kMaxArgs, op, ": max_args must be in [3, ",
              tasks::ListOpsArgs::kMaxArgs - 1, "], got ", max_args);
        py::gil_scoped_release release;
        return tasks::listops_generate(c.args, {min_depth, max_depth, max_length, max_args, op_probability});
      },
      py::arg("tokens"), py::arg("offsets"), py::arg("targets"), py::arg("depths"), py::arg("tree_depths"),
      py::arg("key"), py::arg("quota"), py::arg("min_depth"), py::arg("max_depth"), py::arg("max_length"),
      py::arg("max_args"), py::arg("op_probability"), py::arg("held_out"), py::arg("num_threads"),
      py::arg("patience"), py::arg("progress").none(true));
  m.def(
      "arithmetic_generate",
      [](const TensorView& tokens, const TensorView& offsets, const TensorView& targets,
         const TensorView& depths, const TensorView& tree_depths, uint64_t key,
         const std::vector<int64_t>& quota, int min_depth, int max_depth, int max_length,
         double op_probability, double left_probability, bool held_out, int num_threads, int64_t patience,
         py::object progress) {
        const char* op = "arithmetic_generate";
        const Collection c(op, tokens, offsets, targets, depths, tree_depths, key, quota, min_depth,
                           max_depth, max_length, held_out, num_threads, patience, std::move(progress));
        check_probability(op, "op_probability", op_probability);
        check_probability(op, "left_probability", left_probability);
        py::gil_scoped_release release;
        return tasks::arithmetic_generate(
            c.args, {min_depth, max_depth, max_length, op_probability, left_probability});
      },
      py::arg("tokens"), py::arg("offsets"), py::arg("targets"), py::arg("depths"), py::arg("tree_depths"),
      py::arg("key"), py::arg("quota"), py::arg("min_depth"), py::arg("max_depth"), py::arg("max_length"),
      py::arg("op_probability"), py::arg("left_probability"), py::arg("held_out"), py::arg("num_threads"),
      py::arg("patience"), py::arg("progress").none(true));
}

}  // namespace sysgen
