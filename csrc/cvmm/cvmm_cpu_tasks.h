// How work is divided: independent tasks over OpenMP threads, and the walk over the experts that have routes.
#pragma once
#include "cvmm/cvmm.h"
#include "cvmm/cvmm_cpu_pack.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// Scratch slots of a thread.
enum Slot { kSlotA, kSlotB, kSlotC, kSlotSums, kSlotShared, kSlotHalves };

// As many threads as have 10 us of work each, by a rough estimate of the machine.
inline int useful_threads(int threads, int64_t products, int64_t bytes) {
  const int64_t microseconds = products / 30000 + bytes / 10000;
  return static_cast<int>(max_of(1, min_of(threads, microseconds / 10)));
}

// The expert whose routes contain position p, at or after `from`: offsets[e] <= p < offsets[e + 1].
inline int64_t expert_at(const Routing& q, int64_t p, int64_t from) {
  int64_t low = from, step = 1;
  while (low + step < q.num_experts && q.offsets[low + step] <= p) {
    low += step;
    step *= 2;
  }
  int64_t high = min_of(low + step, q.num_experts);
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (q.offsets[middle] <= p ? low : high) = middle;
  }
  return low;
}

// The border between experts that has about as many routes before it as behind it.
inline int64_t middle_expert(const int32_t* offsets, int64_t num_experts) {
  const int64_t sum = int64_t{offsets[0]} + offsets[num_experts];
  int64_t low = 0, high = num_experts;  // 2 offsets[low] <= sum <= 2 offsets[high]
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (2 * int64_t{offsets[middle]} <= sum ? low : high) = middle;
  }
  return sum - 2 * int64_t{offsets[low]} <= 2 * int64_t{offsets[high]} - sum ? low : high;
}

// Calls f(e, next, begin, end) for each expert with positions of [begin, end) in `order`; next: the expert
// after it, or the number of experts.
template <class F>
void for_each_expert(const Routing& q, int64_t begin, int64_t end, const F& f) {
  if (begin >= end) return;
  int64_t e = expert_at(q, begin, 0);
  for (int64_t p = begin; p < end;) {
    const int64_t stop = min_of(q.offsets[e + 1], end),
                  next = stop < end ? expert_at(q, stop, e) : q.num_experts;
    f(e, next, p, stop);
    p = stop;
    e = next;
  }
}

// First position of [begin, end) whose route is at or after `route`; an expert's routes ascend.
inline int64_t lower_bound(const int32_t* order, int64_t begin, int64_t end, int64_t route) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (order[middle] < route)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
