// Python entry points of the DNC's recurrence: argument checks, then the host function.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <vector>

#include "common/run.h"
#include "common/tensor_caster.h"
#include "dnc/dnc.h"
#include "dnc/sequence_backends.h"

namespace sysgen {

struct DncOptions {  // in the order of the Python arguments
  bool masked, dealloc, sharpen, detach_write;
  double eps, clip, mask_min;
  int64_t chunk;
};

using StateViews = std::vector<std::optional<TensorView>>;

// h, c, memory, usage, link, precedence, write_w, read_w, reads; None where a gradient is zero.
inline DncState check_state(const char* op, const StateViews& t, const DncSizes& s, const TensorView& first) {
  if (t.size() != 9) throw ValueError(cat(op, ": a state has 9 tensors, got ", t.size()));
  const auto get = [&](int i, const char* name, std::initializer_list<int64_t> shape) {
    return check_dense(op, name, t[i], s.dtype, shape, first);
  };
  return {get(0, "state.hidden", {s.batch, s.hidden}),
          get(1, "state.cell", {s.batch, s.hidden}),
          get(2, "state.memory", {s.batch, s.cells, s.width}),
          get(3, "state.usage", {s.batch, s.cells}),
          get(4, "state.link", {s.batch, s.cells, s.cells}),
          get(5, "state.precedence", {s.batch, s.cells}),
          get(6, "state.write_weights", {s.batch, s.cells}),
          get(7, "state.read_weights", {s.batch, s.reads, s.cells}),
          get(8, "state.reads", {s.batch, s.reads, s.width})};
}

// Sizes from gates [T, B, 4 H] and the reads' output [T, B, R, W]; the number of cells is an argument.
inline DncSizes dnc_sizes(const char* op, const TensorView& gates, const TensorView& reads, int64_t cells,
                          const std::optional<TensorView>& lengths, const DncOptions& o) {
  check_dtype(op, "gates", gates, {DType::f64, DType::f32});
  check(gates.ndim == 3 && gates.shape[2] % 4 == 0, op, ": gates must have shape [T, B, 4 H], got ",
        shape_of(gates));
  check(reads.ndim == 4, op, ": reads must have shape [T, B, R, W], got ", shape_of(reads));
  check(o.chunk >= 1, op, ": checkpoint_every must be at least 1, got ", o.chunk);
  DncSizes s{};
  s.dtype = gates.dtype;
  s.steps = gates.shape[0];
  s.batch = gates.shape[1];
  s.hidden = gates.shape[2] / 4;
  s.cells = cells;
  s.reads = reads.shape[2];
  s.width = reads.shape[3];
  check(s.cells >= 1 && s.reads >= 1 && s.width >= 1 && s.hidden >= 1, op,
        ": needs at least one cell, read head, word and hidden unit, got ", s.cells, ", ", s.reads, ", ",
        s.width, ", ", s.hidden);
  check(s.cells <= INT32_MAX, op, ": at most 2^31 - 1 cells, got ", s.cells);
  s.masked = o.masked;
  s.dealloc = o.dealloc;
  s.sharpen = o.sharpen;
  s.detach_write = o.detach_write;
  s.eps = o.eps;
  s.clip = o.clip;
  s.mask_min = o.mask_min;
  s.chunk = o.chunk;
  if (lengths) {
    check_dtype(op, "lengths", *lengths, {DType::i64});
    check_shape(op, "lengths", *lengths, {s.batch});
    check_contiguous(op, "lengths", *lengths);
    check_device(op, "lengths", *lengths, gates);
    s.lengths = static_cast<const int64_t*>(lengths->data);
  }
  return s;
}

inline int64_t dnc_num_chunks(const DncSizes& s) { return (s.steps + s.chunk - 1) / s.chunk; }

// Threads share samples, or the passes of a step where samples are few and large; below some 20 us of work
// a thread more does not pay.
inline int dnc_threads(const DncSizes& s, int threads) {
  const int64_t one_step = s.cells * s.cells * (1 + 2 * s.reads) +
                           4 * s.hidden * (s.hidden + s.reads * s.width) + s.interface() * s.hidden +
                           s.cells * s.width * (3 + 3 * s.reads);
  const int64_t takers = one_step < 200000 ? s.batch : threads;
  const int64_t useful = std::min<int64_t>({threads, takers, 1 + s.steps * s.batch * one_step / 100000});
  return static_cast<int>(std::max<int64_t>(1, useful));
}

inline constexpr SequenceBackends<DncFwdArgs> kDncFwd{&dnc_threads,
                                                      SYSGEN_IF_CPU(&dnc_fwd_cpu_scratch_bytes),
                                                      SYSGEN_IF_CPU(&dnc_fwd_cpu),
                                                      SYSGEN_IF_CPU(&dnc_checkpoint_numel),
                                                      SYSGEN_IF_CUDA(&dnc_fwd_cuda_scratch_bytes),
                                                      SYSGEN_IF_CUDA(&dnc_fwd_cuda),
                                                      SYSGEN_IF_CUDA(&dnc_cuda_checkpoint_numel)};
inline constexpr SequenceBackends<DncBwdArgs> kDncBwd{&dnc_threads,
                                                      SYSGEN_IF_CPU(&dnc_bwd_cpu_scratch_bytes),
                                                      SYSGEN_IF_CPU(&dnc_bwd_cpu),
                                                      SYSGEN_IF_CPU(&dnc_checkpoint_numel),
                                                      SYSGEN_IF_CUDA(&dnc_bwd_cuda_scratch_bytes),
                                                      SYSGEN_IF_CUDA(&dnc_bwd_cuda),
                                                      SYSGEN_IF_CUDA(&dnc_cuda_checkpoint_numel)};

inline void register_dnc(pybind11::module_& m) {
  namespace py = pybind11;
  using T = const TensorView&;
  using M = const std::optional<TensorView>&;
  using S = const StateViews&;
  py::class_<DncOptions>(m, "DncOptions", py::module_local())  // the test builds have their own
      .def(py::init([](bool masked, bool dealloc, bool sharpen, bool detach_write, double eps, double clip,
                       double mask_min, int64_t chunk) {
        return DncOptions{masked, dealloc, sharpen, detach_write, eps, clip, mask_min, chunk};
      }));
#if !defined(SYSGEN_EMULATOR)
  m.def("dnc_vector_bytes", &dnc_vector_bytes);
#endif
  m.def("dnc_sequence_scratch_bytes",
        [](T gates, T reads, int64_t cells, const DncOptions& o, bool backward, int threads) {
          const char* op = backward ? "dnc_sequence_bwd" : "dnc_sequence";
          const DncSizes s = dnc_sizes(op, gates, reads, cells, std::nullopt, o);
          return backward ? kDncBwd.scratch_bytes(op, s, gates, threads)
                          : kDncFwd.scratch_bytes(op, s, gates, threads);
        });
  m.def("dnc_sequence_fwd", [](T gates, T w_hidden, T w_reads, T w_interface, T b_interface, M lengths,
                               S initial, S final, T h_out, T reads_out, M checkpoints, T scratch,
                               int64_t cells, const DncOptions& o, int threads, uintptr_t stream) {
    const char* op = "dnc_sequence";
    DncFwdArgs a{};
    a.s = dnc_sizes(op, gates, reads_out, cells, lengths, o);
    const DncSizes& s = a.s;
    const int64_t words = s.reads * s.width, size = s.interface();
    a.w.hidden = check_dense(op, "weight_hidden", w_hidden, s.dtype, {4 * s.hidden, s.hidden}, gates);
    a.w.reads = check_dense(op, "weight_reads", w_reads, s.dtype, {4 * s.hidden, words}, gates);
    a.w.interface = check_dense(op, "weight_interface", w_interface, s.dtype, {size, s.hidden}, gates);
    a.w.interface_bias = check_dense(op, "bias_interface", b_interface, s.dtype, {size}, gates);
    a.gates = check_dense(op, "gates", gates, s.dtype, {s.steps, s.batch, 4 * s.hidden}, gates);
    a.initial = check_state(op, initial, s, gates);
    a.final = check_state(op, final, s, gates);
    a.h_out = check_dense(op, "hidden", h_out, s.dtype, {s.steps, s.batch, s.hidden}, gates);
    a.reads_out = check_dense(op, "reads", reads_out, s.dtype, {s.steps, s.batch, s.reads, s.width}, gates);
    a.checkpoints = check_dense(op, "checkpoints", checkpoints, s.dtype,
                                {dnc_num_chunks(s), s.batch, kDncFwd.checkpoint_numel(op, s, gates)}, gates);
    kDncFwd.run(op, a, gates, scratch, threads, stream);
  });
  m.def("dnc_sequence_bwd", [](T gates, T w_hidden, T w_reads, T w_interface, M w_interface_t, T b_interface,
                               M lengths, T h_out, T reads_out, T checkpoints, M dh_out, M dreads_out,
                               S dfinal, T dgates, T dinterface, S dinitial, T scratch, int64_t cells,
                               const DncOptions& o, int threads, uintptr_t stream) {
    const char* op = "dnc_sequence_bwd";
    DncBwdArgs a{};
    a.s = dnc_sizes(op, gates, reads_out, cells, lengths, o);
    const DncSizes& s = a.s;
    const int64_t words = s.reads * s.width, size = s.interface();
    a.w.hidden = check_bwd_weight(op, "weight_hidden", w_hidden, s.dtype, 4 * s.hidden, s.hidden, gates);
    a.w.reads = check_bwd_weight(op, "weight_reads", w_reads, s.dtype, 4 * s.hidden, words, gates);
    a.w.interface = check_dense(op, "weight_interface", w_interface, s.dtype, {size, s.hidden}, gates);
    a.w.interface_t =
        check_bwd_transpose(op, "weight_interface", w_interface_t, s.dtype, size, s.hidden, gates);
    a.w.interface_bias = check_dense(op, "bias_interface", b_interface, s.dtype, {size}, gates);
    a.gates = check_dense(op, "gates", gates, s.dtype, {s.steps, s.batch, 4 * s.hidden}, gates);
    a.h_out = check_dense(op, "hidden", h_out, s.dtype, {s.steps, s.batch, s.hidden}, gates);
    a.reads_out = check_dense(op, "reads", reads_out, s.dtype, {s.steps, s.batch, s.reads, s.width}, gates);
    a.dh_out = check_dense(op, "dhidden", dh_out, s.dtype, {s.steps, s.batch, s.hidden}, gates);
    a.dreads_out =
        check_dense(op, "dreads", dreads_out, s.dtype, {s.steps, s.batch, s.reads, s.width}, gates);
    a.dfinal = check_state(op, dfinal, s, gates);
    a.dgates = check_dense(op, "dgates", dgates, s.dtype, {s.steps, s.batch, 4 * s.hidden}, gates);
    a.dinterface = check_dense(op, "dinterface", dinterface, s.dtype, {s.steps, s.batch, size}, gates);
    a.dinitial = check_state(op, dinitial, s, gates);
    a.checkpoints = check_dense(op, "checkpoints", checkpoints, s.dtype,
                                {dnc_num_chunks(s), s.batch, kDncBwd.checkpoint_numel(op, s, gates)}, gates);
    kDncBwd.run(op, a, gates, scratch, threads, stream);
  });
}

}  // namespace sysgen
