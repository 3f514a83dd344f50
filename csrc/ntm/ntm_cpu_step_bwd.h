// Backward of one step of one sample's memory.
#pragma once
#include "ntm/ntm_cpu_step.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// Scratch of the backward of a pair.
template <class A>
struct StepScratch {
  A* dcontent;                     // [2][n]
  A* row;                          // [ring]
  A *dgate, *dsharpness, *dshift;  // [2], [2], [2][padded K]
  A *derase, *dadd;                // [W]
  ContentGradient<A> content;

  StepScratch(Carver<A>& carver, const NtmSizes& s)
      : dcontent(carver.take(2 * padded<A>(s.cells))),
        row(carver.take(ring<A>(s.cells, s.reach))),
        dgate(carver.take(2)),
        dsharpness(carver.take(2)),
        dshift(carver.take(2 * padded<A>(s.shifts()))),
        derase(carver.take(s.width)),
        dadd(carver.take(s.width)),
        content(carver, s, 2) {}
};

// `grad` holds the gradients of the state after the step on entry, of the one before at the end; its h and c
// are not used, its reads are overwritten by the caller. dxi [I]: gradient of step.xi.
template <class A>
void memory_step_bwd(const NtmSizes& s, const Interface& at, const State<A>& prev, const State<A>& next,
                     const Step<A>& step, const State<A>& grad, const StepScratch<A>& b, A* dxi) {
  const int64_t n = padded<A>(s.cells);
  for (int64_t p = s.reads - 1; p >= 0; --p) {
    const Pair<A> pair = step.pair(s, p);
    const A* const memory = memory_before(s, prev, step, p);
    const A *const reading = next.weights + 2 * p * n, *const writing = reading + n;
    A *const dreading = grad.weights + 2 * p * n, *const dwriting = dreading + n;

    // reads = w M and M' = M (1 - w e) + w a
    for (int64_t w = 0; w < s.width; ++w) {
      const A erase = pair.erase[w], add = pair.add[w], dread = grad.reads[p * s.width + w];
      Vector<A> derase{}, dadd{};
      for (int64_t i = 0; i < n; i += kLanes<A>) {
        const Vector<A> m = load(memory + w * n + i), d = load(grad.memory + w * n + i);
        const Vector<A> weight = load(writing + i), dm = d * m;
        store(dreading + i, load(dreading + i) + m * dread);
        store(dwriting + i, load(dwriting + i) + d * add - dm * erase);
        derase -= dm * weight;
        dadd += d * weight;
        store(grad.memory + w * n + i, d * (A(1) - weight * erase) + load(reading + i) * dread);
      }
      b.derase[w] = sum_of_lanes<A>(derase);
      b.dadd[w] = sum_of_lanes<A>(dadd);
    }

    for (int q = 0; q < 2; ++q) {
      const int64_t row = (2 * p + q) * n;
      const int64_t shifts = padded<A>(s.shifts());
      A* const dshift = b.dshift + q * shifts;
      clear(dshift, shifts);
      address_bwd(pair.head(s, q), prev.weights + row, next.weights + row, grad.weights + row,
                  b.dcontent + q * n, b.dgate + q, b.dsharpness + q, dshift, b.row);
      softmax_bwd(pair.shift + q * shifts, dshift, dshift, shifts);
    }
    content_bwd_prepare(pair.content, s, 2, b.dcontent, b.content);
    content_bwd_pass(pair.content, s, 2, 0, s.width, memory, grad.memory, b.content);

    const auto same = [](int64_t, Vector<A>) { return splat<A>(1); };
    const auto strength = [](int64_t, Vector<A> x) { return softplus_slope<A>(x); };
    const auto gate = [](int64_t, Vector<A> x) {
      const Vector<A> y = vsigmoid<A>(x);
      return y * (A(1) - y);
    };
    const auto put = [&](int64_t where, const A* grad_of, int64_t each, const auto& slope) {
      activate_bwd(step.xi + where + p * each, grad_of, each, kNoClip<A>, dxi + where + p * each, slope);
    };
    put(at.key, b.content.dkey, 2 * s.width, same);
    put(at.erase, b.derase, s.width, gate);
    put(at.add, b.dadd, s.width, same);
    put(at.strength, b.content.dstrength, 2, strength);
    put(at.gate, b.dgate, 2, gate);
    put(at.sharpness, b.dsharpness, 2, strength);
    for (int q = 0; q < 2; ++q)
      copy(dxi + at.shift + (2 * p + q) * s.shifts(), b.dshift + q * padded<A>(s.shifts()), s.shifts());
  }
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
