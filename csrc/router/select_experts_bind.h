// Python entry points of the selection of experts: argument checks, then the CPU or CUDA host function.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "common/run.h"
#include "common/tensor_caster.h"
#include "router/select_experts.h"

namespace sysgen {

struct SelectionChecker {
  const char* op;
  const TensorView& logits;
  SelectionSizes s{};
  Selection selection;

  SelectionChecker(const char* op_, const TensorView& logits_, const TensorView& experts, int selection_)
      : op(op_), logits(logits_), selection(static_cast<Selection>(selection_)) {
    check_dtype(op, "logits", logits, {DType::f64, DType::f32});
    check(logits.ndim == 2, op, ": logits must have 2 dimensions [T, E], got shape ", shape_of(logits));
    check_contiguous(op, "logits", logits);
    check(experts.ndim == 2, op, ": experts must have 2 dimensions [T, k], got shape ", shape_of(experts));
    s = {logits.dtype, logits.shape[0], logits.shape[1], experts.shape[1]};
    check(s.k >= 1 && s.k <= s.num_experts, op, ": k must be in [1, ", s.num_experts, "], got ", s.k);
    check(s.num_experts <= INT32_MAX, op, ": at most 2^31 - 1 experts, got ", s.num_experts);
    check(selection_ >= 0 && selection_ <= 2, op, ": selection must be 0, 1 or 2, got ", selection_);
  }
  void* of(const char* name, const std::optional<TensorView>& t, std::initializer_list<int64_t> shape) const {
    return check_dense(op, name, t, s.dtype, shape, logits);
  }
  void* by_slot(const char* name, const std::optional<TensorView>& t) const {
    return of(name, t, {s.tokens, s.k});
  }
  void* pair_by_token(const char* name, const std::optional<TensorView>& t) const {
    return of(name, t, {s.tokens, 2});
  }
  void* by_expert(const char* name, const std::optional<TensorView>& t) const {
    return of(name, t, {s.num_experts});
  }
  int64_t* ids(const TensorView& t) const {
    return static_cast<int64_t*>(check_dense(op, "experts", t, DType::i64, {s.tokens, s.k}, logits));
  }
};

inline SelectExpertsFwdArgs select_experts_fwd_args(const TensorView& logits, const MaybeTensor& seed,
                                                    const TensorView& experts, const TensorView& gate,
                                                    const MaybeTensor& lse, const MaybeTensor& log_sum,
                                                    int selection, double expert_dropout) {
  const SelectionChecker c("select_experts_fwd", logits, experts, selection);
  check(expert_dropout >= 0 && expert_dropout <= 1, c.op, ": expert_dropout must be in [0, 1], got ",
        expert_dropout);
  SelectExpertsFwdArgs a{c.s, c.selection, expert_dropout};
  check(seed || expert_dropout == 0, c.op, ": seed must be given with expert_dropout");
  a.seed = static_cast<const int64_t*>(check_dense(c.op, "seed", seed, DType::i64, {1}, logits));
  a.logits = logits.data;
  a.experts = c.ids(experts);
  a.gate = c.by_slot("gate", gate);
  a.lse = c.pair_by_token("lse", lse);
  a.log_sum = c.by_expert("log_sum", log_sum);
  check(lse || (!log_sum && c.selection != Selection::softmax), c.op,
        ": lse must be given with a log_sum and for softmax");
  return a;
}

inline SelectExpertsBwdArgs select_experts_bwd_args(const TensorView& logits, const TensorView& experts,
                                                    const TensorView& gate, const MaybeTensor& lse,
                                                    const MaybeTensor& log_sum, const MaybeTensor& dgate,
                                                    const MaybeTensor& dlog_sum, const TensorView& dlogits,
                                                    int selection) {
  const SelectionChecker c("select_experts_bwd", logits, experts, selection);
  SelectExpertsBwdArgs a{c.s, c.selection};
  a.logits = logits.data;
  a.experts = c.ids(experts);
  a.gate = c.by_slot("gate", gate);
  a.lse = c.pair_by_token("lse", lse);
  a.log_sum = c.by_expert("log_sum", log_sum);
  a.dgate = c.by_slot("dgate", dgate);
  a.dlog_sum = c.by_expert("dlog_sum", dlog_sum);
  a.dlogits = c.of("dlogits", dlogits, {c.s.tokens, c.s.num_experts});
  check(log_sum || !dlog_sum, c.op, ": log_sum must be given with a dlog_sum");
  check(lse || !has_dense_gradient(a), c.op, ": lse must be given with a dlog_sum and for softmax");
  return a;
}

inline void register_router(pybind11::module_& m) {
  using T = const TensorView&;
  using M = const MaybeTensor&;
  m.def("select_experts_fwd", [](T logits, M seed, T experts, T gate, M lse, M log_sum, M scratch,
                                 int selection, double expert_dropout, int num_threads, uintptr_t stream) {
    SelectExpertsFwdArgs a =
        select_experts_fwd_args(logits, seed, experts, gate, lse, log_sum, selection, expert_dropout);
    run_where("select_experts_fwd", a, logits, scratch, num_threads, stream,
              SYSGEN_IF_CPU(&select_experts_fwd_cpu), SYSGEN_IF_CUDA(&select_experts_fwd_cuda_scratch_bytes),
              SYSGEN_IF_CUDA(&select_experts_fwd_cuda));
  });
  m.def("select_experts_bwd", [](T logits, T experts, T gate, M lse, M log_sum, M dgate, M dlog_sum,
                                 T dlogits, M scratch, int selection, int num_threads, uintptr_t stream) {
    SelectExpertsBwdArgs a =
        select_experts_bwd_args(logits, experts, gate, lse, log_sum, dgate, dlog_sum, dlogits, selection);
    run_where("select_experts_bwd", a, logits, scratch, num_threads, stream,
              SYSGEN_IF_CPU(&select_experts_bwd_cpu), SYSGEN_IF_CUDA(&select_experts_bwd_cuda_scratch_bytes),
              SYSGEN_IF_CUDA(&select_experts_bwd_cuda));
  });
#if defined(SYSGEN_WITH_CUDA)
  m.def("select_experts_fwd_scratch_bytes",
        [](T logits, M seed, T experts, T gate, M lse, M log_sum, int selection, double expert_dropout) {
          return select_experts_fwd_cuda_scratch_bytes(
              select_experts_fwd_args(logits, seed, experts, gate, lse, log_sum, selection, expert_dropout));
        });
  m.def("select_experts_bwd_scratch_bytes",
        [](T logits, T experts, T gate, M lse, M log_sum, M dgate, M dlog_sum, T dlogits, int selection) {
          return select_experts_bwd_cuda_scratch_bytes(select_experts_bwd_args(
              logits, experts, gate, lse, log_sum, dgate, dlog_sum, dlogits, selection));
        });
#endif
}

}  // namespace sysgen
