// Python entry points of the Neural Turing Machine's recurrence: argument checks, then the host function.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <vector>

#include "common/run.h"
#include "common/tensor_caster.h"
#include "dnc/sequence_backends.h"
#include "ntm/ntm.h"

namespace sysgen {

struct NtmOptions {  // in the order of the Python arguments
  int64_t max_shift;
  double eps;
  int64_t chunk;
};

using NtmStateViews = std::vector<std::optional<TensorView>>;

// hidden, cell, memory, read_weights, write_weights, reads; None where a gradient is zero.
inline NtmState check_ntm_state(const char* op, const NtmStateViews& t, const NtmSizes& s,
                                const TensorView& first) {
  if (t.size() != 6) throw ValueError(cat(op, ": a state has 6 tensors, got ", t.size()));
  const auto get = [&](int i, const char* name, std::initializer_list<int64_t> shape) {
    return check_dense(op, name, t[i], s.dtype, shape, first);
  };
  return {get(0, "state.hidden", {s.batch, s.hidden}),
          get(1, "state.cell", {s.batch, s.hidden}),
          get(2, "state.memory", {s.batch, s.cells, s.width}),
          get(3, "state.read_weights", {s.batch, s.reads, s.cells}),
          get(4, "state.write_weights", {s.batch, s.reads, s.cells}),
          get(5, "state.reads", {s.batch, s.reads, s.width})};
}

// Sizes from gates [T, B, 4 H] and the reads' output [T, B, P, W]; the number of cells is an argument.
inline NtmSizes ntm_sizes(const char* op, const TensorView& gates, const TensorView& reads, int64_t cells,
                          const std::optional<TensorView>& lengths, const NtmOptions& o) {
  check_dtype(op, "gates", gates, {DType::f64, DType::f32});
  check(gates.ndim == 3 && gates.shape[2] % 4 == 0, op, ": gates must have shape [T, B, 4 H], got ",
        shape_of(gates));
  check(reads.ndim == 4, op, ": reads must have shape [T, B, P, W], got ", shape_of(reads));
  check(o.chunk >= 1, op, ": checkpoint_every must be at least 1, got ", o.chunk);
  check(o.max_shift >= 0 && o.max_shift <= INT32_MAX, op, ": max_shift must be in [0, 2^31 - 1], got ",
        o.max_shift);
  NtmSizes s{};
  s.dtype = gates.dtype;
  s.steps = gates.shape[0];
  s.batch = gates.shape[1];
  s.hidden = gates.shape[2] / 4;
  s.cells = cells;
  s.reads = reads.shape[2];
  s.width = reads.shape[3];
  s.reach = o.max_shift;
  s.eps = o.eps;
  s.chunk = o.chunk;
  check(s.cells >= 1 && s.reads >= 1 && s.width >= 1 && s.hidden >= 1, op,
        ": needs at least one cell, pair of heads, word and hidden unit, got ", s.cells, ", ", s.reads, ", ",
        s.width, ", ", s.hidden);
  if (lengths) {
    s.lengths =
        static_cast<const int64_t*>(check_dense(op, "lengths", *lengths, DType::i64, {s.batch}, gates));
  }
  return s;
}

inline int64_t ntm_num_chunks(const NtmSizes& s) { return (s.steps + s.chunk - 1) / s.chunk; }

// Threads share samples; below some 20 us of work a thread more does not pay.
inline int ntm_threads(const NtmSizes& s, int threads) {
  const int64_t products = s.steps * s.batch *
                           (4 * s.hidden * (s.hidden + s.reads * s.width) + s.interface() * s.hidden +
                            s.reads * s.cells * (7 * s.width + 2 * s.shifts() + 20));
  const int64_t useful = std::min<int64_t>({threads, s.batch, 1 + products / 100000});
  return static_cast<int>(std::max<int64_t>(1, useful));
}

inline constexpr SequenceBackends<NtmFwdArgs> kNtmFwd{&ntm_threads,
                                                      SYSGEN_IF_CPU(&ntm_fwd_cpu_scratch_bytes),
                                                      SYSGEN_IF_CPU(&ntm_fwd_cpu),
                                                      SYSGEN_IF_CPU(&ntm_checkpoint_numel),
                                                      SYSGEN_IF_CUDA(&ntm_fwd_cuda_scratch_bytes),
                                                      SYSGEN_IF_CUDA(&ntm_fwd_cuda),
                                                      SYSGEN_IF_CUDA(&ntm_cuda_checkpoint_numel)};
inline constexpr SequenceBackends<NtmBwdArgs> kNtmBwd{&ntm_threads,
                                                      SYSGEN_IF_CPU(&ntm_bwd_cpu_scratch_bytes),
                                                      SYSGEN_IF_CPU(&ntm_bwd_cpu),
                                                      SYSGEN_IF_CPU(&ntm_checkpoint_numel),
                                                      SYSGEN_IF_CUDA(&ntm_bwd_cuda_scratch_bytes),
                                                      SYSGEN_IF_CUDA(&ntm_bwd_cuda),
                                                      SYSGEN_IF_CUDA(&ntm_cuda_checkpoint_numel)};

// What forward and backward have in common.
template <class Args>
void check_ntm_sequence(const char* op, Args& a, const TensorView& gates, const TensorView& w_interface,
                        const TensorView& b_interface, const TensorView& h_out, const TensorView& reads_out,
                        const std::optional<TensorView>& checkpoints,
                        const SequenceBackends<Args>& backends) {
  const NtmSizes& s = a.s;
  a.w.interface = check_dense(op, "weight_interface", w_interface, s.dtype, {s.interface(), s.hidden}, gates);
  a.w.interface_bias = check_dense(op, "bias_interface", b_interface, s.dtype, {s.interface()}, gates);
  a.gates = check_dense(op, "gates", gates, s.dtype, {s.steps, s.batch, 4 * s.hidden}, gates);
  a.h_out = check_dense(op, "hidden", h_out, s.dtype, {s.steps, s.batch, s.hidden}, gates);
  a.reads_out = check_dense(op, "reads", reads_out, s.dtype, {s.steps, s.batch, s.reads, s.width}, gates);
  a.checkpoints = check_dense(op, "checkpoints", checkpoints, s.dtype,
                              {ntm_num_chunks(s), s.batch, backends.checkpoint_numel(op, s, gates)}, gates);
}

inline void register_ntm(pybind11::module_& m) {
  namespace py = pybind11;
  using T = const TensorView&;
  using M = const std::optional<TensorView>&;
  using S = const NtmStateViews&;
  py::class_<NtmOptions>(m, "NtmOptions", py::module_local())  // the test builds have their own
      .def(py::init(
          [](int64_t max_shift, double eps, int64_t chunk) { return NtmOptions{max_shift, eps, chunk}; }));
#if !defined(SYSGEN_EMULATOR)
  m.def("ntm_vector_bytes", &ntm_vector_bytes);
#endif
  m.def("ntm_sequence_scratch_bytes",
        [](T gates, T reads, int64_t cells, const NtmOptions& o, bool backward, int threads) {
          const char* op = backward ? "ntm_sequence_bwd" : "ntm_sequence";
          const NtmSizes s = ntm_sizes(op, gates, reads, cells, std::nullopt, o);
          return backward ? kNtmBwd.scratch_bytes(op, s, gates, threads)
                          : kNtmFwd.scratch_bytes(op, s, gates, threads);
        });
  m.def("ntm_sequence_fwd", [](T gates, T w_hidden, T w_reads, T w_interface, T b_interface, M lengths,
                               S initial, S final, T h_out, T reads_out, M checkpoints, T scratch,
                               int64_t cells, const NtmOptions& o, int threads, uintptr_t stream) {
    const char* op = "ntm_sequence";
    NtmFwdArgs a{};
    a.s = ntm_sizes(op, gates, reads_out, cells, lengths, o);
    const NtmSizes& s = a.s;
    a.w.hidden = check_dense(op, "weight_hidden", w_hidden, s.dtype, {4 * s.hidden, s.hidden}, gates);
    a.w.reads = check_dense(op, "weight_reads", w_reads, s.dtype, {4 * s.hidden, s.reads * s.width}, gates);
    a.initial = check_ntm_state(op, initial, s, gates);
    a.final = check_ntm_state(op, final, s, gates);
    check_ntm_sequence(op, a, gates, w_interface, b_interface, h_out, reads_out, checkpoints, kNtmFwd);
    kNtmFwd.run(op, a, gates, scratch, threads, stream);
  });
  m.def("ntm_sequence_bwd", [](T gates, T w_hidden, T w_reads, T w_interface, M w_interface_t, T b_interface,
                               M lengths, T h_out, T reads_out, T checkpoints, M dh_out, M dreads_out,
                               S dfinal, T dgates, T dinterface, S dinitial, T scratch, int64_t cells,
                               const NtmOptions& o, int threads, uintptr_t stream) {
    const char* op = "ntm_sequence_bwd";
    NtmBwdArgs a{};
    a.s = ntm_sizes(op, gates, reads_out, cells, lengths, o);
    const NtmSizes& s = a.s;
    const int64_t words = s.reads * s.width, size = s.interface();
    a.w.hidden = check_bwd_weight(op, "weight_hidden", w_hidden, s.dtype, 4 * s.hidden, s.hidden, gates);
    a.w.reads = check_bwd_weight(op, "weight_reads", w_reads, s.dtype, 4 * s.hidden, words, gates);
    a.w.interface_t =
        check_bwd_transpose(op, "weight_interface", w_interface_t, s.dtype, size, s.hidden, gates);
    a.dh_out = check_dense(op, "dhidden", dh_out, s.dtype, {s.steps, s.batch, s.hidden}, gates);
    a.dreads_out =
        check_dense(op, "dreads", dreads_out, s.dtype, {s.steps, s.batch, s.reads, s.width}, gates);
    a.dfinal = check_ntm_state(op, dfinal, s, gates);
    a.dgates = check_dense(op, "dgates", dgates, s.dtype, {s.steps, s.batch, 4 * s.hidden}, gates);
    a.dinterface = check_dense(op, "dinterface", dinterface, s.dtype, {s.steps, s.batch, size}, gates);
    a.dinitial = check_ntm_state(op, dinitial, s, gates);
    check_ntm_sequence(op, a, gates, w_interface, b_interface, h_out, reads_out, checkpoints, kNtmBwd);
    kNtmBwd.run(op, a, gates, scratch, threads, stream);
  });
}

}  // namespace sysgen
