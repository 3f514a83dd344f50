// The samples of a recurrence: how many steps each runs, and which thread takes them. `S`: the sizes of a
// family, with steps, batch and lengths.
#pragma once
#include <cstdint>

namespace sysgen::SYSGEN_ISA {
namespace {

template <class S>
inline int64_t steps_of(const S& s, int64_t b) {
  const int64_t n = s.lengths ? s.lengths[b] : s.steps;
  return n < 0 ? 0 : (n > s.steps ? s.steps : n);
}

// Calls f(first, last, scratch) for each thread's samples.
template <class A, class S, class F>
void share_samples(const S& s, int threads, A* scratch, int64_t each, const F& f) {
  if (threads <= 1) return f(0, s.batch, scratch);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int t = 0; t < threads; ++t) f(s.batch * t / threads, s.batch * (t + 1) / threads, scratch + t * each);
}

template <class S>
inline int64_t largest_share(const S& s, int threads) {
  return (s.batch + threads - 1) / threads;
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
