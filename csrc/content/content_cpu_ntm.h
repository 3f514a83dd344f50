// Addressing of the Neural Turing Machine on the CPU: content addressing, and then each head by itself.
#pragma once
#include "content/content_cpu_address.h"
#include "ntm/ntm_cpu_address.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// The rows of one head after the other.
template <class A>
class NtmRows {
 public:
  const NtmAddressing& a;
  const MemorySizes& s;
  const int64_t n, reach;
  A *const previous, *const weights;                                            // [n]
  A *const interpolated, *const shifted, *const log_shifted, *const gradients;  // see RingHead; [ring]

  NtmRows(const NtmAddressing& addressing, Carver<A>& carver)
      : a(addressing),
        s(a.s),
        n(padded<A>(s.cells)),
        reach(a.shifts / 2),
        previous(carver.take(n)),
        weights(carver.take(n)),
        interpolated(carver.take(ring<A>(s.cells, reach))),
        shifted(carver.take(n)),
        log_shifted(carver.take(n)),
        gradients(carver.take(ring<A>(s.cells, reach))) {}

  // head: b * R + r. From content weights [n] to weights.
  RingHead<A> forward(int64_t head, const A* content) const {
    const RingHead<A> h{s.cells,
                        reach,
                        in<A>(a.gate)[head],
                        in<A>(a.sharpness)[head],
                        content,
                        in<A>(a.shift) + head * a.shifts,
                        interpolated,
                        shifted,
                        log_shifted};
    pad_rows(a.previous, head, 1, s.cells, previous);
    address_fwd(h, previous, weights);
    return h;
  }
};

template <class A>
struct NtmAddressFwd {
  static void run(const NtmAddressFwdArgs& a, int threads) {
    const MemorySizes& s = a.s;
    if (s.cells == 0) return;
    Carver<A> count{nullptr};
    Addressed<A> measured(a, count);
    NtmRows<A> too(a, count);
    for_each_sample(s.batch, threads_for(s, threads, 2), [&](int64_t b, int inner) {
      Carver<A> carver{static_cast<A*>(thread_scratch(kSlotSample, sizeof(A) * count.used))};
      const Addressed<A> sample(a, carver);
      const NtmRows<A> rows(a, carver);
      sample.address(b, inner);
      for (int64_t r = 0; r < s.heads; ++r) {
        rows.forward(b * s.heads + r, sample.content.weight + r * rows.n);
        unpad_rows(rows.weights, b * s.heads + r, 1, s.cells, a.weights);
      }
    });
  }
};

template <class A>
struct NtmAddressBwd {
  static void run(const NtmAddressBwdArgs& a, int threads) {
    const MemorySizes& s = a.s;
    if (s.cells == 0) return clear_gradients(a);
    Carver<A> count{nullptr};
    Addressed<A> measured(a, count);
    AddressedGradient<A> too(measured, count);
    NtmRows<A> also(a, count);
    count.take(padded<A>(s.cells));
    for_each_sample(s.batch, threads_for(s, threads, 6), [&](int64_t b, int inner) {
      Carver<A> carver{static_cast<A*>(thread_scratch(kSlotSample, sizeof(A) * count.used))};
      const Addressed<A> sample(a, carver);
      const AddressedGradient<A> gradient(sample, carver);
      const NtmRows<A> rows(a, carver);
      A* const dweights = carver.take(rows.n);
      sample.address(b, inner);
      for (int64_t r = 0; r < s.heads; ++r) {
        const int64_t head = b * s.heads + r;
        const RingHead<A> h = rows.forward(head, sample.content.weight + r * rows.n);
        pad_rows(a.dweights, head, 1, s.cells, dweights);
        address_bwd(h, rows.previous, rows.weights, dweights, gradient.dweights + r * rows.n,
                    out<A>(a.dgate) + head, out<A>(a.dsharpness) + head, out<A>(a.dshift) + head * a.shifts,
                    rows.gradients);
        unpad_rows(dweights, head, 1, s.cells, a.dprevious);
      }
      gradient.run(b, a.dmemory, a.dkey, a.dstrength, nullptr, inner);
    });
  }

 private:
  static void clear_gradients(const NtmAddressBwdArgs& a) {
    const int64_t heads = a.s.batch * a.s.heads;
    clear(out<A>(a.dkey), heads * a.s.width);
    clear(out<A>(a.dstrength), heads);
    clear(out<A>(a.dgate), heads);
    clear(out<A>(a.dsharpness), heads);
    clear(out<A>(a.dshift), heads * a.shifts);
  }
};

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
