// Vectors of equal and of numbered lanes, integers of their size, and lanes of several vectors against each
// other.
#pragma once
#include "cvmm/cvmm_cpu_vector.h"

namespace sysgen::SYSGEN_ISA {
namespace {

template <class A>
struct IntegerOf {
  using type = int32_t;
};
template <>
struct IntegerOf<double> {
  using type = int64_t;
};
template <class A>
using Integers = Vector<typename IntegerOf<A>::type>;

template <class A>
inline Vector<A> splat(A x) {
  return x - Vector<A>{};  // keeps the sign of a zero
}

// 0, 1, 2 ...
template <class A>
inline Integers<A> lane_numbers() {
  Integers<A> lanes{};
  for (int i = 0; i < kLanes<A>; ++i) lanes[i] = i;
  return lanes;
}

// Exchanges the upper half of each block of 2 H lanes of `a` with the lower half of that of b.
template <class A, int H>
inline void exchange(Vector<A>& a, Vector<A>& b) {
  constexpr int L = kLanes<A>;
  decltype(a == b) low = {}, high = {};
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    low[i] = i & H ? L + i - H : i;
    high[i] = i & H ? L + i : i + H;
  }
  const Vector<A> lower = __builtin_shuffle(a, b, low);
  b = __builtin_shuffle(a, b, high);
  a = lower;
}

// v[i][j] <-> v[j][i].
template <class A, int H = kLanes<A> / 2>
inline void transpose(Vector<A> (&v)[kLanes<A>]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<A>; ++i)
    if ((i & H) == 0) exchange<A, H>(v[i], v[i + H]);
  if constexpr (H > 1) transpose<A, H / 2>(v);
}

// Lane i: the sum of the lanes of v[i].
template <class A, int H = kLanes<A> / 2>
inline Vector<A> sums_of_lanes(Vector<A> (&v)[kLanes<A>]) {
#pragma GCC unroll 8
  for (int i = 0; i < H; ++i) {
    exchange<A, H>(v[i], v[i + H]);
    v[i] += v[i + H];
  }
  if constexpr (H > 1) return sums_of_lanes<A, H / 2>(v);
  return v[0];
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
