// Addressing of the Neural Turing Machine on the CPU: content addressing, and then each head by itself.
#pragma once
#include "content/content_cpu_address.h"
#include "ntm/ntm_cpu_address.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// What one sample's heads compute behind their content weights. Rows of cells are padded to n; a ring has
// `reach` more numbers on either side, those of the other end.
template <class A>
class NtmHeads {
 public:
  const NtmAddressing& a;
  const MemorySizes& s;
  const int64_t n, reach, ring;
  A *const previous, *const interpolated;                // [n], [ring]
  A *const shifted, *const log_shifted, *const weights;  // [n]
  A* const dshifted;                                     // [ring]

  NtmHeads(const NtmAddressing& addressing, Carver<A>& carver)
      : a(addressing),
        s(a.s),
        n(padded<A>(s.cells)),
        reach(a.shifts / 2),
        ring(padded<A>(n + 2 * reach)),
        previous(carver.take(n)),
        interpolated(carver.take(ring)),
        shifted(carver.take(n)),
        log_shifted(carver.take(n)),
        weights(carver.take(n)),
        dshifted(carver.take(ring)) {}

  // head: b * R + r. From content weights [n] to weights.
  void forward(int64_t head, const A* content) const {
    const A gate = in<A>(a.gate)[head];
    const A* const shift = in<A>(a.shift) + head * a.shifts;
    pad_rows(a.previous, head, 1, s.cells, previous);
    each_vector<A>(n, [&](int64_t i, int64_t) SYSGEN_INLINE {
      store(interpolated + reach + i, gate * load(content + i) + (1 - gate) * load(previous + i));
    });
    close_ring(interpolated, s.cells, reach, ring);
    each_vector<A>(n, [&](int64_t i, int64_t) SYSGEN_INLINE {
      Vector<A> sum{};
      for (int64_t k = 0; k < a.shifts; ++k) sum += shift[k] * load(interpolated + i + k);
      store(shifted + i, sum);
    });
    clear(shifted + s.cells, n - s.cells);
    sharpen(shifted, in<A>(a.sharpness)[head], s.cells, log_shifted, weights);
  }

  // Behind forward. dweights [n] of the weights becomes that of the content weights.
  void backward(int64_t head, const A* content, A* dweights, void* dgate, void* dshift, void* dsharpness,
                void* dprevious) const {
    const A gate = in<A>(a.gate)[head], sharpness = in<A>(a.sharpness)[head];
    const A* const shift = in<A>(a.shift) + head * a.shifts;
    softmax_bwd(weights, dweights, dweights, n);
    Vector<A> by_sharpness{}, by_gate{};
    each_vector<A>(n, [&](int64_t i, int64_t) SYSGEN_INLINE {
      const Vector<A> g = load(dweights + i), x = load(shifted + i);
      by_sharpness += g * load(log_shifted + i);
      store(dshifted + reach + i, x <= Vector<A>{} ? Vector<A>{} : sharpness * g / x);
    });
    for (int64_t k = 0; k < a.shifts; ++k) {
      Vector<A> sum{};
      each_vector<A>(n, [&](int64_t i, int64_t) SYSGEN_INLINE {
        sum += load(dshifted + reach + i) * load(interpolated + i + k);
      });
      out<A>(dshift)[head * a.shifts + k] = sum_of_lanes<A>(sum);
    }
    close_ring(dshifted, s.cells, reach, ring);
    each_vector<A>(s.cells, [&](int64_t i, int64_t lanes) SYSGEN_INLINE {
      Vector<A> d{};
      for (int64_t k = 0; k < a.shifts; ++k) d += shift[k] * load(dshifted + i + 2 * reach - k);
      store(dweights + i, gate * d);
      store(out<A>(dprevious) + head * s.cells + i, (1 - gate) * d, lanes);
      by_gate += d * (load(content + i) - load(previous + i));
    });
    clear(dweights + s.cells, n - s.cells);
    out<A>(dsharpness)[head] = sum_of_lanes<A>(by_sharpness);
    out<A>(dgate)[head] = sum_of_lanes<A>(by_gate);
  }

  // Without a cell.
  void clear_gradients(int64_t head, void* dgate, void* dshift, void* dsharpness) const {
    out<A>(dgate)[head] = out<A>(dsharpness)[head] = 0;
    clear(out<A>(dshift) + head * a.shifts, a.shifts);
  }
};

template <class A>
struct NtmAddressFwd {
  static void run(const NtmAddressFwdArgs& a, int threads) {
    const MemorySizes& s = a.s;
    Carver<A> count{nullptr};
    Addressed<A> measured(a, count);
    NtmHeads<A> too(a, count);
    for_each_sample(s.batch, threads_for(s, threads, 2), [&](int64_t b, int inner) {
      Carver<A> carver{static_cast<A*>(thread_scratch(kSlotSample, sizeof(A) * count.used))};
      const Addressed<A> sample(a, carver);
      const NtmHeads<A> heads(a, carver);
      sample.address(b, inner);
      for (int64_t r = 0; r < s.heads && s.cells > 0; ++r) {
        heads.forward(b * s.heads + r, sample.content.weight + r * heads.n);
        copy(out<A>(a.weights) + (b * s.heads + r) * s.cells, heads.weights, s.cells);
      }
    });
  }
};

template <class A>
struct NtmAddressBwd {
  static void run(const NtmAddressBwdArgs& a, int threads) {
    const MemorySizes& s = a.s;
    Carver<A> count{nullptr};
    Addressed<A> measured(a, count);
    AddressedGradient<A> too(measured, count);
    NtmHeads<A> also(a, count);
    for_each_sample(s.batch, threads_for(s, threads, 6), [&](int64_t b, int inner) {
      Carver<A> carver{static_cast<A*>(thread_scratch(kSlotSample, sizeof(A) * count.used))};
      const Addressed<A> sample(a, carver);
      const AddressedGradient<A> gradient(sample, carver);
      const NtmHeads<A> heads(a, carver);
      sample.address(b, inner);
      pad_rows(a.dweights, b, s.heads, s.cells, gradient.dweights);
      for (int64_t r = 0; r < s.heads; ++r) {
        if (s.cells == 0) {
          heads.clear_gradients(b * s.heads + r, a.dgate, a.dshift, a.dsharpness);
          continue;
        }
        const A* const content = sample.content.weight + r * heads.n;
        heads.forward(b * s.heads + r, content);
        heads.backward(b * s.heads + r, content, gradient.dweights + r * heads.n, a.dgate, a.dshift,
                       a.dsharpness, a.dprevious);
      }
      gradient.run(b, a.dmemory, a.dkey, a.dstrength, nullptr, inner);
    });
  }
};

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
