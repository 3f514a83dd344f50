// Content addressing on the CPU. The scores take the cells by vectors, so the rows of the memory are
// transposed on the way; backward goes along the words.
#pragma once
#include "content/content_cpu_rows.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// One sample at a time.
template <class A>
class Addressed {
 public:
  struct Sizes {
    int64_t cells, width;
    bool masked;
    double eps;
  };
  const ContentAddressing& a;
  const MemorySizes& s;
  const Sizes sizes;
  const Content<A> content;

  Addressed(const ContentAddressing& addressing, Carver<A>& carver)
      : a(addressing),
        s(a.s),
        sizes{s.cells, s.width, a.mask != nullptr, a.eps},
        content(carver, sizes, s.heads) {}

  // Everything up to the weights.
  void address(int64_t b, int threads) const {
    const int64_t words = s.heads * s.width;
    copy(content.key, in<A>(a.key) + b * words, words);
    if (a.mask) copy(content.mask, in<A>(a.mask) + b * words, words);
    copy(content.strength, in<A>(a.strength) + b * s.heads, s.heads);
    content_prepare(content, sizes, s.heads);
    for_each_block<A>(s, threads, [&](const Block<A>& block) { score(b, block); });
    if (s.cells > 0) content_finish(content, sizes, s.heads);
  }

 private:
  void score(int64_t b, const Block<A>& block) const {
    constexpr int64_t L = kLanes<A>;
    A* const tile = static_cast<A*>(thread_scratch(kSlotTile, sizeof(A) * L * padded<A>(s.width)));
    const A* const memory = block.of(a.memory, s, b, s.width);
    for (int64_t i = 0; i < block.rows; i += L) {
      transpose_rows(memory + i * s.width, s.width, min_of(L, block.rows - i), s.width, tile, L);
      by_heads(s.heads, [&]<int HEADS>(int64_t first) {
        content_scores<HEADS>(content, sizes, first, block.first + i,
                              [&](int64_t w) { return load(tile + w * L); });
      });
    }
  }
};

// What backward adds for one sample.
template <class A>
class AddressedGradient {
 public:
  const Addressed<A>& of;
  const int64_t wide;  // a row of words, padded
  A* const dweights;   // [R][n]; overwritten
  const ContentGradient<A> gradient;
  A* const blocks;  // [blocks][2][R][wide]: of the products with the memory and with its square
  A* const sums;    // [2][R][wide]

  AddressedGradient(const Addressed<A>& addressed, Carver<A>& carver)
      : of(addressed),
        wide(padded<A>(of.s.width)),
        dweights(carver.take(of.s.heads * padded<A>(of.s.cells))),
        gradient(carver, of.sizes, of.s.heads),
        blocks(carver.take(2 * ceil_div(of.s.cells, kBlockRows) * of.s.heads * wide)),
        sums(carver.take(2 * of.s.heads * wide)) {}

  // From dweights to all gradients.
  void run(int64_t b, void* dmemory, void* dkey, void* dstrength, void* dmask, int threads) const {
    const MemorySizes& s = of.s;
    content_bwd_prepare(of.content, of.sizes, s.heads, dweights, gradient);
    for_each_block<A>(s, threads, [&](const Block<A>& block) { pass(b, block, dmemory); });
    sum_blocks(blocks, ceil_div(s.cells, kBlockRows), 2 * s.heads * wide, sums);
    const Content<A>& c = of.content;
    for (int64_t r = 0; r < s.heads; ++r) {
      const A *const by_dot = sums + r * wide, *const by_norm = sums + (s.heads + r) * wide;
      const int64_t own = r * s.width, all = (b * s.heads + r) * s.width;
      each_vector<A>(s.width, [&](int64_t w, int64_t lanes) SYSGEN_INLINE {
        const Vector<A> dproduct = load(by_dot + w), dsquare = load(by_norm + w) * A(0.5);
        const Vector<A> square = load(c.square + own + w, lanes);
        store(out<A>(dkey) + all + w, load(gradient.dkey + own + w, lanes) + square * dproduct, lanes);
        if (!dmask) return;
        const Vector<A> key = load(c.key + own + w, lanes), mask = load(c.mask + own + w, lanes);
        store(out<A>(dmask) + all + w,
              load(gradient.dmask + own + w, lanes) + A(2) * mask * (dsquare + key * dproduct), lanes);
      });
    }
    copy(out<A>(dstrength) + b * s.heads, gradient.dstrength, s.heads);
  }

 private:
  void pass(int64_t b, const Block<A>& block, void* dmemory) const {
    const MemorySizes& s = of.s;
    const Content<A>& c = of.content;
    const int64_t n = padded<A>(s.cells);
    const A* const memory = block.of(of.a.memory, s, b, s.width);
    A* const to = block.of(dmemory, s, b, s.width);
    A* const partial = blocks + 2 * block.index * s.heads * wide;
    if (s.heads == 0) return clear(to, block.rows * s.width);
    each_vector<A>(s.width, [&](int64_t w, int64_t lanes) SYSGEN_INLINE {
      by_heads(s.heads, [&]<int HEADS>(int64_t first) SYSGEN_INLINE {
        Vector<A> product[HEADS], square[HEADS], by_dot[HEADS] = {}, by_norm[HEADS] = {};
        for (int r = 0; r < HEADS; ++r) {
          product[r] = load(c.product + (first + r) * s.width + w, lanes);
          square[r] = load(c.square + (first + r) * s.width + w, lanes);
        }
        for (int64_t i = 0; i < block.rows; ++i) {
          const Vector<A> m = load(memory + i * s.width + w, lanes);
          Vector<A> dm = first ? load(to + i * s.width + w, lanes) : Vector<A>{};
          for (int r = 0; r < HEADS; ++r) {
            const int64_t at = (first + r) * n + block.first + i;
            const A dot = gradient.a[at];
            const Vector<A> norm = gradient.b[at] * m;
            dm += dot * product[r] + norm * square[r];
            by_dot[r] += dot * m;
            by_norm[r] += norm * m;
          }
          store(to + i * s.width + w, dm, lanes);
        }
        for (int r = 0; r < HEADS; ++r) {
          store(partial + (first + r) * wide + w, by_dot[r]);
          store(partial + (s.heads + first + r) * wide + w, by_norm[r]);
        }
      });
    });
  }
};

template <class A>
struct ContentAddressFwd {
  static void run(const ContentAddressFwdArgs& a, int threads) {
    const MemorySizes& s = a.s;
    Carver<A> count{nullptr};
    Addressed<A> measured(a, count);
    for_each_sample(s.batch, threads_for(s, threads, 2), [&](int64_t b, int inner) {
      Carver<A> carver{static_cast<A*>(thread_scratch(kSlotSample, sizeof(A) * count.used))};
      const Addressed<A> sample(a, carver);
      sample.address(b, inner);
      unpad_rows(sample.content.weight, b, s.heads, s.cells, a.weights);
    });
  }
};

template <class A>
struct ContentAddressBwd {
  static void run(const ContentAddressBwdArgs& a, int threads) {
    const MemorySizes& s = a.s;
    Carver<A> count{nullptr};
    Addressed<A> measured(a, count);
    AddressedGradient<A> too(measured, count);
    for_each_sample(s.batch, threads_for(s, threads, 6), [&](int64_t b, int inner) {
      Carver<A> carver{static_cast<A*>(thread_scratch(kSlotSample, sizeof(A) * count.used))};
      const Addressed<A> sample(a, carver);
      const AddressedGradient<A> gradient(sample, carver);
      sample.address(b, inner);
      pad_rows(a.dweights, b, s.heads, s.cells, gradient.dweights);
      gradient.run(b, a.dmemory, a.dkey, a.dstrength, a.dmask, inner);
    });
  }
};

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
