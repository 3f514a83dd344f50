// The scan along distance. Lanes are consecutive rows; panel[d][r] belongs to row r and the key at signed
// distance d of it, so that all lanes of a vector are at the same place of their row's order.
//
// Weights: within a group of kGroup distances the chance that no key matched is a plain product, and the
// chance that one did is the sum of the weights: one of the two has a small relative error. From group to
// group the logarithm is carried. So an entry costs one exponential, and the rounding errors of a long row
// add up as slowly as those of a sum of logarithms.
#pragma once
#include "geometric_attention/geometric_attention_cpu_math.h"

namespace sysgen::SYSGEN_ISA {
namespace {

constexpr int kGroup = 8;

// to[n][r] = from[n + r][r] for n < count; columns of `from` exist for low <= column < high, others are
// `outside`. Lane r takes a column r later by one blend for each bit of r.
template <class A>
void skew(const A* from, int64_t stride, int64_t first, int64_t count, int64_t low, int64_t high, A outside,
          A* to) {
  constexpr int L = kLanes<A>, kChunk = 8, kLevels = L == 16 ? 4 : L == 8 ? 3 : L == 4 ? 2 : 1;
  using V = Vector<A>;
  const Integers<A> lane = lane_numbers<A>();
  V late[kLevels][L / 2 + kChunk];  // at level b: the last 2^b vectors of the chunk before, then this chunk
  for (int b = 0; b < kLevels; ++b)
    for (int i = 0; i < (1 << b); ++i) late[b][i] = V{};
  const int64_t warm_up = ceil_div(L - 1, kChunk) * kChunk;
  int64_t column = first + L - 1 - warm_up;
  for (int64_t n = -warm_up; n < count; n += kChunk, column += kChunk) {
    V now[kChunk];
    if (column >= low && column + kChunk <= high) {
#pragma GCC unroll 8
      for (int i = 0; i < kChunk; ++i) now[i] = load(from + (column + i) * stride);
    } else {
      for (int i = 0; i < kChunk; ++i)
        now[i] = column + i >= low && column + i < high ? load(from + (column + i) * stride) : splat(outside);
    }
#pragma GCC unroll 4
    for (int b = 0; b < kLevels; ++b) {
      const int step = 1 << b;
#pragma GCC unroll 8
      for (int i = 0; i < kChunk; ++i) late[b][step + i] = now[i];
#pragma GCC unroll 8
      for (int i = 0; i < kChunk; ++i) now[i] = (lane & step) != 0 ? late[b][step + i] : late[b][i];
#pragma GCC unroll 8
      for (int i = 0; i < step; ++i) late[b][i] = late[b][kChunk + i];
    }
    if (n < 0) continue;
    if (n + kChunk <= count) {
#pragma GCC unroll 8
      for (int i = 0; i < kChunk; ++i) store(to + (n + i) * L, now[i]);
    } else {
      for (int i = 0; n + i < count; ++i) store(to + (n + i) * L, now[i]);
    }
  }
}

// Distances at which some row of a strip has a key, on one side.
struct Reach {
  int64_t first = 1, last = 0;
  bool holds(int64_t d) const { return d >= first && d <= last; }
};

// The chance that no key so far matched.
template <class A>
class Survival {
 public:
  using V = Vector<A>;
  V log = {};  // without `low`

  // The weight of the next key with score s; `odds` gets min(P, 1 - P), negative where that is P.
  V meet(V s, V& odds) {
    const V e = exp_of(-absolute<A>(s)), small = e * reciprocal<A>(1 + e), large = 1 - small;
    const auto likely = s > 0;
    const V within = (likely ? large : small) * product;
    odds = likely ? small : -small;
    matched += within;
    product *= likely ? small : large;
    return within * before;
  }

  void close_group() {
    const auto rare = matched < A(0.5);
    const V left = 1 - matched, u = rare ? left : product;
    const V lost = (1 - left) - matched;  // by rounding 1 - matched
    const V more = log_of<A>(u) + (rare ? lost / u : V{}), sum = log + more;
    low += (log - sum) + more;  // what rounding the sum lost
    log = sum;
    const V e = exp_of(log);
    before = e + e * low;
    product = splat(A(1));
    matched = V{};
  }

  bool over(int64_t lanes) const {
    for (int64_t r = 0; r < lanes; ++r)
      if (!(before[r] == 0)) return false;
    return true;
  }
  V remaining() const { return before; }

 private:
  V before = splat(A(1)), product = splat(A(1)), matched = {}, low = {};
};

// ds of a key with the given odds: weight times its gradient is g, `farther` the sum of g beyond it.
template <class V, class A = __typeof__(V{}[0] + V{}[0])>
inline V score_gradient(V odds, V g, V farther) {
  const V small = absolute<A>(odds), large = 1 - small;
  const auto rare = bits_as<Integers<A>>(odds) < 0;
  return (rare ? large : small) * g - (rare ? small : large) * farther;
}

// 1 - exp(log): 1 - e where that is exact enough, else the series of expm1.
template <class A>
inline Vector<A> matched_of(Vector<A> log, Vector<A> e) {
  Vector<A> series = splat(A(1) / 20) * log + 1;
  for (int i = 19; i > 1; --i) series = series * log * (A(1) / i) + 1;
  return log > A(-0.7) ? -log * series : 1 - e;
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
