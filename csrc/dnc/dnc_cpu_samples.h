// The samples of a recurrence: how many steps each runs, and which threads take them. `S`: the sizes of a
// family, with steps, batch and lengths.
#pragma once
#include "common/cpu_tasks.h"

namespace sysgen::SYSGEN_ISA {
namespace {

template <class S>
inline int64_t steps_of(const S& s, int64_t b) {
  const int64_t n = s.lengths ? s.lengths[b] : s.steps;
  return n < 0 ? 0 : (n > s.steps ? s.steps : n);
}

// With fewer samples than threads, one share holds all samples and its threads share the passes over a
// sample; else each thread has a share of its own.
template <class S>
inline int num_shares(const S& s, int threads) {
  return s.batch < threads ? 1 : threads;
}
template <class S>
inline int64_t largest_share(const S& s, int threads) {
  return ceil_div(s.batch, num_shares(s, threads));
}

// Calls f(first, last, scratch) for each share.
template <class A, class S, class F>
void share_samples(const S& s, int threads, A* scratch, int64_t each, const F& f) {
  const int shares = num_shares(s, threads);
  for_each_task(shares, shares, [&](int64_t t) SYSGEN_ONE_COPY {
    f(s.batch * t / shares, s.batch * (t + 1) / shares, scratch + t * each);
  });
}

// The threads that share a pass: f(begin, end) for the blocks of 0 .. n. `products`: multiplications in all;
// below some 10 us of them another thread costs more than it does.
struct Team {
  int threads;

  template <class F>
  void over(int64_t n, int64_t block, int64_t products, const F& f) const {
    for_each_task(ceil_div(n, block), products < 100000 ? 1 : threads,
                  [&](int64_t k) SYSGEN_ONE_COPY { f(k * block, min_of(n, (k + 1) * block)); });
  }
};

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
