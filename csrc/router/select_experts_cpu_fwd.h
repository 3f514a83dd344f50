// Forward pass on the CPU. A task owns a segment of the tokens and, for each expert, the sum of its
// probabilities over them.
#pragma once
#include "common/cpu_tasks.h"
#include "gated_update/gated_update_cpu_noise.h"
#include "router/select_experts.h"
#include "router/select_experts_cpu_ranking.h"

namespace sysgen::SYSGEN_ISA {
namespace {

enum Slot { kSlotRows, kSlotBits, kSlotRanking, kSlotChosen, kSlotSegments };

template <class A>
inline A* numbers(Slot slot, int64_t count) {
  return static_cast<A*>(thread_scratch(slot, sizeof(A) * static_cast<size_t>(count)));
}
// As many threads as have some 20 us of work.
inline int selection_threads(const SelectionSizes& s, int threads) {
  return static_cast<int>(max_of(1, min_of(threads, s.tokens * (s.num_experts + 16 * s.k) / 20000)));
}

template <class A>
inline constexpr A kInfinity = A(__builtin_inf());

template <class A>
inline Vector<A> first_lanes(Vector<A> v, int64_t n, A otherwise) {
  return lane_numbers<A>() < static_cast<Key<A>>(min_of(n, kLanes<A>)) ? v : splat<A>(otherwise);
}

// log(sum of e^x[i]) where get(i) is x[i], lane by lane; -infinity if all are.
template <class A, class F>
SYSGEN_INLINE inline Vector<A> log_sum_exp(int64_t begin, int64_t end, const F& get) {
  Vector<A> largest = splat<A>(-kInfinity<A>);
  for (int64_t i = begin; i < end; ++i) largest = select_max(get(i), largest);
  const Vector<A> base = largest > splat<A>(-kInfinity<A>) ? largest : Vector<A>{};
  Vector<A> sum{};
  for (int64_t i = begin; i < end; ++i) sum += vexp<A>(get(i) - base);
  return sum == Vector<A>{} ? splat<A>(-kInfinity<A>) : base + vlog<A>(sum);
}

template <class A>
class SelectExpertsFwd {
 public:
  static void run(const SelectExpertsFwdArgs& a, int threads) { SelectExpertsFwd(a).run(threads); }

 private:
  static constexpr int64_t L = kLanes<A>;
  // A sum of probabilities above it has lost nothing to underflow: what became 0 is below e^-87.
  static constexpr A kSafeSum = A(0x1p-60);

  const SelectExpertsFwdArgs& a;
  const int64_t num_experts = a.s.num_experts, k = a.s.k, width = padded<A>(num_experts);
  const int64_t segments = max_of(1, min_of(1024, ceil_div(a.s.tokens, 64)));
  const A* const logits = static_cast<const A*>(a.logits);
  A *const gate = static_cast<A*>(a.gate), *const lse = static_cast<A*>(a.lse);
  A* const partial = a.log_sum ? numbers<A>(kSlotSegments, segments* width) : nullptr;  // [segments, width]

  explicit SelectExpertsFwd(const SelectExpertsFwdArgs& args) : a(args) {}

  void run(int threads) const {
    for_each_task(segments, selection_threads(a.s, threads), [&](int64_t i) SYSGEN_ONE_COPY { segment(i); });
    if (!a.log_sum) return;
    A* const log_sum = static_cast<A*>(a.log_sum);
    for (int64_t e = 0; e < num_experts; e += L)
      store(
          log_sum + e,
          log_sum_exp<A>(0, segments, [&](int64_t i) SYSGEN_INLINE { return load(partial + i * width + e); }),
          num_experts - e);
  }

  void segment(int64_t index) const {
    const int64_t begin = index * a.s.tokens / segments, end = (index + 1) * a.s.tokens / segments;
    A* const row = numbers<A>(kSlotRows, 2 * width);
    A* const sums = row + width;
    uint16_t* const bits = numbers<uint16_t>(kSlotBits, RowNoise<A>::scratch_bytes(num_experts) / 2);
    const RowNoise<A> noise({a.expert_dropout > 0 ? static_cast<uint64_t>(*a.seed) : 0, a.expert_dropout},
                            NoiseStream::experts, num_experts, bits);
    const Ranking<A> ranking(num_experts, k, kSlotRanking);
    A* const chosen_logits = numbers<A>(kSlotChosen, padded<A>(k));
    clear(sums, width);
    for (int64_t first = begin; first < end; first += ranking.rows) {
      const int64_t last = min_of(end, first + ranking.rows);
      for (int64_t t = first; t < last; ++t) {
        noise.draw(t);
        const A top = read(t - first, logits + t * num_experts, noise, ranking, row);
        if (lse) lse[2 * t] = top, lse[2 * t + 1] = normalise(row, top, sums);
      }
      ranking.take(last - first, a.experts + first * k);
      for (int64_t t = first; t < last; ++t) set_gates(t, chosen_logits);
    }
    if (partial) finish_sums(begin, end, sums, partial + index * width);
  }

  // Keys for the ranking, and for a softmax the row, -infinity behind it, and its largest element.
  A read(int64_t index, const A* z, const RowNoise<A>& noise, const Ranking<A>& ranking, A* row) const {
    Vector<A> largest = splat<A>(-kInfinity<A>);
    each_vector<A>(num_experts, [&](int64_t e, int64_t n) SYSGEN_INLINE {
      const Vector<A> v = first_lanes<A>(load(z + e, n), n, -kInfinity<A>);
      Integers<A> keys = keys_of<A>(v);
      if (noise.on) keys = noise.drops(e) ? Integers<A>{} + kAbsent<A> : keys;
      if (n < L) keys = lane_numbers<A>() < static_cast<Key<A>>(n) ? keys : Integers<A>{} + kAbsent<A>;
      ranking.set(index, e, keys);
      store(row + e, v);
      largest = select_max(v, largest);
    });
    A top = largest[0];
    for (int i = 1; i < L; ++i) top = largest[i] > top ? largest[i] : top;
    return top;
  }

  // The row's log-sum-exp less top; adds its softmax to the sums, if they are wanted.
  A normalise(A* row, A top, A* sums) const {
    Vector<A> sum{};
    for (int64_t e = 0; e < width; e += L) {
      const Vector<A> x = vexp<A>(load(row + e) - top);
      store(row + e, x);
      sum += x;
    }
    const A total = sum_of_lanes<A>(sum), scale = A(1) / total;
    if (partial)
      for (int64_t e = 0; e < width; e += L) store(sums + e, load(sums + e) + load(row + e) * scale);
    return scalar<A>(total, vlog<A>);
  }

  void set_gates(int64_t t, A* z) const {
    const int64_t* const chosen = a.experts + t * k;
    A* const g = gate + t * k;
    int64_t count = 0;
    for (; count < k && chosen[count] >= 0; ++count) z[count] = logits[t * num_experts + chosen[count]];
    for (int64_t s = count; s < padded<A>(k); ++s) z[s] = -kInfinity<A>;
    A base = 0, rest = 0, scale = 1;
    if (a.selection == Selection::softmax) base = lse[2 * t], rest = lse[2 * t + 1];
    if (a.selection == Selection::softmax_after_topk && count > 0) {
      base = z[0];
      Vector<A> sum{};
      for (int64_t s = 0; s < k; s += L) sum += vexp<A>(load(z + s) - base);
      scale = A(1) / sum_of_lanes<A>(sum);
    }
    const bool sigmoid = a.selection == Selection::sigmoid;
    each_vector<A>(k, [&](int64_t s, int64_t n) SYSGEN_INLINE {
      const Vector<A> x = load(z + s);
      store(g + s, sigmoid ? vsigmoid<A>(x) : vexp<A>(x - base - rest) * scale, n);
    });
    for (int64_t s = count; s < k; ++s) g[s] = 0;
  }

  // Logarithms of a segment's sums; those that may have underflowed are taken again, from logarithms.
  void finish_sums(int64_t begin, int64_t end, const A* sums, A* out) const {
    for (int64_t e = 0; e < width; e += L) {
      Vector<A> y = vlog<A>(load(sums + e));
      bool small = false;
      for (int64_t i = 0; i < min_of(L, num_experts - e); ++i) small |= sums[e + i] < kSafeSum;
      if (small)
        y = log_sum_exp<A>(begin, end, [&](int64_t t) SYSGEN_INLINE {
          return load(logits + t * num_experts + e, num_experts - e) - lse[2 * t] - lse[2 * t + 1];
        });
      store(out + e, y);
    }
  }
};

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
