// Sharpening of one row of n projections: softmax(strength log(max(projection, 0) + eps)). Rows are padded to
// whole vectors.
#pragma once
#include "dnc/dnc_cpu_rows.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// `weights` may be `projection`; its padding becomes 0.
template <class A>
void sharpen_row(const A* projection, A strength, A eps, int64_t n, A* weights) {
  const int64_t wide = padded<A>(n);
  for (int64_t i = 0; i < wide; i += kLanes<A>) {
    const Vector<A> d = load(projection + i);
    store(weights + i, strength * vlog<A>((d < Vector<A>{} ? Vector<A>{} : d) + eps));
  }
  softmax(weights, weights, n, wide);
}

// `gradient` is that of the weights on entry, that of the projection at the end. Returns the gradient of the
// strength.
template <class A>
A sharpen_row_bwd(const A* projection, A strength, A eps, int64_t n, const A* weights, A* gradient) {
  const int64_t wide = padded<A>(n);
  softmax_bwd(weights, gradient, gradient, wide);
  Vector<A> total{};
  for (int64_t i = 0; i < wide; i += kLanes<A>) {
    const Vector<A> d = load(projection + i), zero{};
    const Vector<A> shifted = (d < zero ? zero : d) + eps, g = load(gradient + i);
    total += g * vlog<A>(shifted);
    store(gradient + i, d >= zero ? strength * g / shifted : zero);
  }
  return sum_of_lanes<A>(total);
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
