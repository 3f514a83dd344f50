// Backward pass on the CPU, token by token.
//
//   dlogits = u - p (sum of u + inner) + what the gates of the chosen experts give
//   p = softmax(z), u[e] = dlog_sum[e] p[e] / e^log_sum[e], inner = <dgate, gate> for softmax
#pragma once
#include "router/select_experts_cpu_fwd.h"

namespace sysgen::SYSGEN_ISA {
namespace {

template <class A>
class SelectExpertsBwd {
 public:
  static void run(const SelectExpertsBwdArgs& a, int threads) {
    SelectExpertsBwd b(a);
    if (a.dlog_sum) b.scale_sums();
    const int64_t segments = ceil_div(a.s.tokens, 64);
    for_each_task(segments, selection_threads(a.s, threads),
                  [&](int64_t i) SYSGEN_ONE_COPY { b.segment(i * 64, min_of(a.s.tokens, (i + 1) * 64)); });
  }

 private:
  static constexpr int64_t L = kLanes<A>;

  const SelectExpertsBwdArgs& a;
  const int64_t num_experts = a.s.num_experts, k = a.s.k, width = padded<A>(num_experts);
  const bool dense = has_dense_gradient(a);
  const A *const logits = static_cast<const A*>(a.logits), *const gate = static_cast<const A*>(a.gate),
                 *const lse = static_cast<const A*>(a.lse), *const dgate = static_cast<const A*>(a.dgate),
                 *const dlog_sum = static_cast<const A*>(a.dlog_sum);
  A* const dlogits = static_cast<A*>(a.dlogits);
  // [E]: dlog_sum / e^log_sum where all of that can be represented, else log_sum, infinite where no token
  // counts.
  A* const factors = a.dlog_sum ? numbers<A>(kSlotSegments, width) : nullptr;
  bool scaled = true;

  explicit SelectExpertsBwd(const SelectExpertsBwdArgs& args) : a(args) {}

  void scale_sums() {
    const A* const log_sum = static_cast<const A*>(a.log_sum);
    // Then what p loses to underflow is 2^-24 and less of the largest u of its expert.
    constexpr A kLowest = -60, kHighest = A(0x1p100);
    clear(factors, width);
    for (int64_t e = 0; e < num_experts; ++e) {
      factors[e] = dlog_sum[e] * scalar<A>(-log_sum[e], vexp<A>);
      scaled = scaled && log_sum[e] >= kLowest && factors[e] < kHighest && factors[e] > -kHighest;
    }
    if (scaled) return;
    for (int64_t e = 0; e < num_experts; ++e)
      factors[e] = log_sum[e] == -kInfinity<A> ? kInfinity<A> : log_sum[e];
  }

  void segment(int64_t begin, int64_t end) const {
    A* const p = numbers<A>(kSlotRows, 2 * width);
    for (int64_t t = begin; t < end; ++t) {
      A* const dz = dlogits + t * num_experts;
      const A inner = dgate && a.selection != Selection::sigmoid ? inner_product(t) : A(0);
      if (dense)
        all_experts(t, a.selection == Selection::softmax ? inner : A(0), p, p + width, dz);
      else
        clear(dz, num_experts);
      if (dgate) chosen_experts(t, inner, dz);
    }
  }

  A inner_product(int64_t t) const {
    A sum = 0;
    for (int64_t i = t * k; i < (t + 1) * k; ++i)
      if (a.experts[i] >= 0) sum += dgate[i] * gate[i];
    return sum;
  }

  void all_experts(int64_t t, A inner, A* p, A* u, A* dz) const {
    const A* const z = logits + t * num_experts;
    const A top = lse[2 * t], rest = lse[2 * t + 1];
    Vector<A> sum{};
    each_vector<A>(num_experts, [&](int64_t e, int64_t n) SYSGEN_INLINE {
      const Vector<A> l = load(z + e, n) - top - rest, x = vexp<A>(l);
      store(p + e, x);
      if (!factors) return;
      const Vector<A> v =
          scaled ? x * load(factors + e) : vexp<A>(l - load(factors + e)) * load(dlog_sum + e, n);
      store(u + e, v);
      sum += first_lanes<A>(v, n, A(0));
    });
    inner += sum_of_lanes<A>(sum);
    each_vector<A>(num_experts, [&](int64_t e, int64_t n) SYSGEN_INLINE {
      const Vector<A> v = factors ? load(u + e) : Vector<A>{};
      store(dz + e, v - load(p + e) * inner, n);
    });
  }

  void chosen_experts(int64_t t, A inner, A* dz) const {
    for (int64_t i = t * k; i < (t + 1) * k; ++i) {
      if (a.experts[i] < 0) continue;
      const A g = gate[i];
      A d = dgate[i] * g;  // softmax: `inner` is subtracted from all experts
      if (a.selection == Selection::sigmoid) d *= 1 - g;
      if (a.selection == Selection::softmax_after_topk) d = g * (dgate[i] - inner);
      dz[a.experts[i]] += d;
    }
  }
};

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
