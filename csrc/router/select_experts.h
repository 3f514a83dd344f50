// Selection of experts: which k of E experts serve a token, with which gates, and what the entropy
// regulariser needs to know of all tokens (Csordas 2023, Eq. 7.11 and 7.19-7.21), in one pass over the
// logits.
//
//   T  tokens    E  experts    k  experts a token
//
//   order     among the experts that are not dropped: by logit, equal ones by index; NaN comes first
//   gate      of an expert that was chosen, by its logit z:
//               sigmoid               1 / (1 + e^-z)
//               softmax               softmax over all E
//               softmax_after_topk    softmax over those that were chosen
//   lse       log sum over the experts of e^z, for each token, as two numbers whose sum it is: the largest z,
//             and the rest. z less both, one after the other, is log softmax(z) to an error that does not
//             grow with z; less their rounded sum it would.
//   log_sum   log sum over the tokens of softmax(z), for each expert, dropped or not
//
// Whether expert e is dropped for token t is a function of (seed, t, e) only: 16 bits of the stream `experts`
// of gated_update_cpu_noise.h, for a matrix [T, E]. The rate is rounded to a multiple of 2^-16.
//
// Types: float32 or float64, the same for all but experts and seed; everything is contiguous. Sums over
// tokens are made of segments of them, whose number depends on T only: results do not depend on threads or
// scheduling.
#pragma once
#include <cstdint>

#include "common/always_inline.h"
#include "common/tensor_view.h"

namespace sysgen {

enum class Selection : int { sigmoid = 0, softmax = 1, softmax_after_topk = 2 };

struct SelectionSizes {
  DType dtype;
  int64_t tokens, num_experts, k;  // 1 <= k <= E
};

struct SelectExpertsFwdArgs {
  SelectionSizes s;
  Selection selection;
  double expert_dropout;          // rate
  const int64_t* seed = nullptr;  // [1], where the logits are; may be null if the rate is 0
  const void* logits = nullptr;   // [T, E]
  int64_t* experts = nullptr;     // [T, k], -1 where no expert is left
  void* gate = nullptr;           // [T, k], 0 where no expert is left
  void* lse = nullptr;            // [T, 2], or null; saved for backward
  void* log_sum = nullptr;        // [E], or null; -infinity without tokens
  void* scratch = nullptr;        // CUDA only
};

// dlogits of dgate, dlog_sum or both. The mask of expert dropout shows in `experts`.
struct SelectExpertsBwdArgs {
  SelectionSizes s;
  Selection selection;
  const void* logits = nullptr;      // [T, E]
  const int64_t* experts = nullptr;  // [T, k]
  const void* gate = nullptr;        // [T, k]
  const void* lse = nullptr;         // [T, 2], or null if neither softmax nor dlog_sum needs it
  const void* log_sum = nullptr;     // [E], or null if there is no dlog_sum
  const void* dgate = nullptr;       // [T, k], or null: zeros
  const void* dlog_sum = nullptr;    // [E], or null: zeros
  void* dlogits = nullptr;           // [T, E]
  void* scratch = nullptr;           // CUDA only
};

// Is every logit of a token in the gradient, or only those of the experts that were chosen?
SYSGEN_INLINE inline bool has_dense_gradient(const SelectExpertsBwdArgs& a) {
  return a.dlog_sum || (a.dgate && a.selection == Selection::softmax);
}

void select_experts_fwd_cpu(const SelectExpertsFwdArgs& args, int num_threads);
void select_experts_bwd_cpu(const SelectExpertsBwdArgs& args, int num_threads);

int64_t select_experts_fwd_cuda_scratch_bytes(const SelectExpertsFwdArgs& args);
int64_t select_experts_bwd_cuda_scratch_bytes(const SelectExpertsBwdArgs& args);
void select_experts_fwd_cuda(const SelectExpertsFwdArgs& args, int device_index, void* stream);
void select_experts_bwd_cuda(const SelectExpertsBwdArgs& args, int device_index, void* stream);

}  // namespace sysgen
