// Activation of the parts of an interface vector.
#pragma once
#include "dnc/dnc_cpu_math.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// to[i] = f(clamp(from[i]))
template <class A, class F>
inline void activate(const A* from, int64_t n, A clip, A* to, const F& f) {
  const Vector<A> high = splat<A>(clip), low = splat<A>(-clip);
  for (int64_t i = 0; i < n; i += kLanes<A>) {
    const Vector<A> x = load(from + i, n - i);
    store(to + i, f(x > high ? high : (x < low ? low : x)), n - i);
  }
}

// to[i] = 0 where from[i] was clamped, else slope(i, from) * grad[i]
template <class A, class F>
inline void activate_bwd(const A* from, const A* grad, int64_t n, A clip, A* to, const F& slope) {
  const Vector<A> high = splat<A>(clip), low = splat<A>(-clip), zero{};
  for (int64_t i = 0; i < n; i += kLanes<A>) {
    const Vector<A> x = load(from + i, n - i), d = load(grad + i, n - i) * slope(i, x);
    store(to + i, x > high ? zero : (x < low ? zero : d), n - i);
  }
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
