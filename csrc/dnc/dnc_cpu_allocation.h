// Allocation: a = (1 - u~) times the product of u~ over the cells used less, u~ = eps + (1 - eps) usage.
#pragma once
#include "common/cpu_tasks.h"
#include "dnc/dnc_cpu_rows.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// NaN comes last, as in torch.sort.
template <class A>
inline bool used_less(A a, A b) {
  return a < b || (b != b && a == a);
}

// Sorts the cells begin .. end, a vector of them at most: each has its place from the number of those before
// it.
template <class A>
inline void sort_vector(const A* usage, int64_t begin, int64_t end, int32_t* order) {
  const Vector<A> mine = load(usage + begin, end - begin);
  const Integers<A> lane = lane_numbers<A>(), mine_nan = mine != mine;
  Integers<A> place{};
  for (int64_t i = begin; i < end; ++i) {
    const Vector<A> other = splat<A>(usage[i]);
    const Integers<A> nan = other != other,
                      earlier = lane > static_cast<typename IntegerOf<A>::type>(i - begin);
    place -= (other < mine) | (mine_nan & ~nan) | (((other == mine) | (mine_nan & nan)) & earlier);
  }
  for (int64_t i = begin; i < end; ++i) order[begin + place[i - begin]] = static_cast<int32_t>(i);
}

// order: the cells by ascending usage, ties by index. A merge sort from the bottom, where vectors are sorted
// at once: stable, and with `spare` [cells] as its second buffer.
template <class A>
void sort_by_usage(const A* usage, int64_t cells, int32_t* order, int32_t* spare) {
  for (int64_t i = 0; i < cells; i += kLanes<A>) sort_vector(usage, i, min_of(cells, i + kLanes<A>), order);
  int32_t *from = order, *to = spare;
  for (int64_t width = kLanes<A>; width < cells; width *= 2) {
    for (int64_t begin = 0; begin < cells; begin += 2 * width) {
      const int64_t middle = begin + width < cells ? begin + width : cells;
      const int64_t end = begin + 2 * width < cells ? begin + 2 * width : cells;
      int64_t a = begin, b = middle;
      for (int64_t k = begin; k < end; ++k) {
        const bool right = a >= middle || (b < end && used_less(usage[from[b]], usage[from[a]]));
        to[k] = right ? from[b++] : from[a++];
      }
    }
    int32_t* const swapped = from;
    from = to;
    to = swapped;
  }
  if (from != order) __builtin_memcpy(order, from, sizeof(int32_t) * static_cast<size_t>(cells));
}

template <class A>
void allocation_fwd(const A* usage, int64_t cells, A eps, const int32_t* order, A* allocation) {
  A before = 1;
  for (int64_t k = 0; k < cells; ++k) {
    const A u = usage[order[k]] * (1 - eps) + eps;
    allocation[order[k]] = (1 - u) * before;
    before *= u;
  }
}

// dusage += ..., without a division: exact at usage 0 and 1. `before` [cells]: scratch.
template <class A>
void allocation_bwd(const A* usage, int64_t cells, A eps, const int32_t* order, const A* dallocation,
                    A* dusage, A* before) {
  A product = 1;
  for (int64_t k = 0; k < cells; ++k) {
    before[k] = product;
    product *= usage[order[k]] * (1 - eps) + eps;
  }
  A behind = 0;  // what the product before the next cell is worth
  for (int64_t k = cells - 1; k >= 0; --k) {
    const int32_t i = order[k];
    const A u = usage[i] * (1 - eps) + eps;
    dusage[i] += before[k] * (behind - dallocation[i]) * (1 - eps);
    behind = dallocation[i] * (1 - u) + u * behind;
  }
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
