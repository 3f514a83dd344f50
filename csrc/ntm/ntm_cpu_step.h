// One step of one sample's memory: from the interface vector and the state before to the state after.
#pragma once
#include "dnc/dnc_cpu_activate.h"
#include "ntm/ntm_cpu_address.h"

namespace sysgen::SYSGEN_ISA {
namespace {

template <class A>
inline constexpr A kNoClip = A(__builtin_inf());

// A sigmoid that reaches 0 where e^-x overflows: were there no weights before, any gate above 0 would mean
// those of the content.
template <class A>
inline Vector<A> gate_of(Vector<A> x) {
  const Vector<A> last = splat<A>(__is_same(A, double) ? A(-709.78) : A(-88.72));
  return x < last ? Vector<A>{} : vsigmoid<A>(x);
}

template <class A>
void activate_interface(const NtmSizes& s, const Interface& at, const A* xi, int64_t p, const Pair<A>& pair) {
  const auto same = [](Vector<A> x) { return x; };
  const auto gate = [](Vector<A> x) { return vsigmoid<A>(x); };
  const auto put = [&](int64_t from, int64_t each, A* to, const auto& f) {
    activate(xi + from + p * each, each, kNoClip<A>, to, f);
  };
  put(at.key, 2 * s.width, pair.content.key, same);
  put(at.erase, s.width, pair.erase, gate);
  put(at.add, s.width, pair.add, same);
  put(at.strength, 2, pair.content.strength, [](Vector<A> x) { return softplus<A>(x); });
  put(at.gate, 2, pair.gate, [](Vector<A> x) { return gate_of<A>(x); });
  put(at.sharpness, 2, pair.sharpness, [](Vector<A> x) { return oneplus<A>(x); });
  for (int q = 0; q < 2; ++q) {
    const int64_t size = s.shifts(), wide = padded<A>(size);
    A* const shift = pair.shift + q * wide;
    activate(xi + at.shift + (2 * p + q) * size, size, kNoClip<A>, shift, same);
    softmax(shift, shift, size, wide);
  }
}

// Memory before and behind the write of pair p.
template <class A>
const A* memory_before(const NtmSizes& s, const State<A>& prev, const Step<A>& step, int64_t p) {
  return p == 0 ? prev.memory : step.pair(s, p - 1).memory;
}
template <class A>
A* memory_after(const NtmSizes& s, const State<A>& next, const Step<A>& step, int64_t p) {
  return p + 1 == s.reads ? next.memory : step.pair(s, p).memory;
}

// `next` may share its arrays with `prev`. step.xi holds the interface vector. A step that is done again
// makes no reads.
template <class A>
void memory_step_fwd(const NtmSizes& s, const Interface& at, bool again, const State<A>& prev,
                     const State<A>& next, const Step<A>& step) {
  const int64_t n = padded<A>(s.cells);
  for (int64_t p = 0; p < s.reads; ++p) {
    const Pair<A> pair = step.pair(s, p);
    const A* const memory = memory_before(s, prev, step, p);
    A* const written = memory_after(s, next, step, p);
    activate_interface(s, at, step.xi, p, pair);
    content_prepare(pair.content, s, 2);
    for (int64_t i = 0; i < n; i += kLanes<A>)
      content_scores<2, A>(pair.content, s, 0, i, [&](int64_t w) { return load(memory + w * n + i); });
    content_finish(pair.content, s, 2);
    for (int q = 0; q < 2; ++q) {
      const int64_t row = (2 * p + q) * n;
      address_fwd(pair.head(s, q), prev.weights + row, next.weights + row);
    }
    const A *const reading = next.weights + 2 * p * n, *const writing = reading + n;
    for (int64_t w = 0; w < s.width; ++w) {
      Vector<A> sum{};
      for (int64_t i = 0; i < n; i += kLanes<A>) {
        const Vector<A> m = load(memory + w * n + i), weight = load(writing + i);
        sum += m * load(reading + i);
        store(written + w * n + i, m * (A(1) - weight * pair.erase[w]) + weight * pair.add[w]);
      }
      if (!again) next.reads[p * s.width + w] = sum_of_lanes<A>(sum);
    }
  }
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
