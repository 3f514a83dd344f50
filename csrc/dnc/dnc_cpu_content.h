// Content addressing: softmax over the cells of strength * cosine(mask cell, mask key), for several heads at
// once, on a transposed memory [W][n]. The mask enters through its square q: <q k, m> / (|q^(1/2) k| |q^(1/2)
// m| + eps).
#pragma once
#include "dnc/dnc_cpu_rows.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// Up to four heads share one pass over the memory.
template <class F>
inline void by_heads(int64_t heads, const F& f) {
  int64_t r = 0;
  for (; r + 4 <= heads; r += 4) f.template operator()<4>(r);
  if (heads - r == 3) f.template operator()<3>(r);
  if (heads - r == 2) f.template operator()<2>(r);
  if (heads - r == 1) f.template operator()<1>(r);
}

template <class A>
inline Vector<A> vsqrt(Vector<A> x) {
  Vector<A> y{};
  for (int i = 0; i < kLanes<A>; ++i)
    y[i] = __is_same(A, double) ? A(__builtin_sqrt(x[i])) : A(__builtin_sqrtf(float(x[i])));
  return y;
}

// One side of content addressing (write: one head; read: R heads): activated inputs and what backward needs.
template <class A>
struct Content {
  A *mask, *key, *square, *product;  // [heads][W]: mask, key, mask^2 (1 without), mask^2 key
  A *strength, *key_norm;            // [heads]
  A *dot, *norm, *weight;            // [heads][n]: <mask^2 key, cell>, |mask cell|, the softmax

  template <class S>
  Content(Carver<A>& carver, const S& s, int64_t heads) {
    const int64_t n = padded<A>(s.cells), words = heads * s.width;
    mask = carver.take(words);
    key = carver.take(words);
    square = carver.take(words);
    product = carver.take(words);
    strength = carver.take(heads);
    key_norm = carver.take(heads);
    dot = carver.take(heads * n);
    norm = carver.take(heads * n);
    weight = carver.take(heads * n);
  }
};

// From mask (or null) and key to what the passes multiply with.
template <class A, class S>
void content_prepare(const Content<A>& c, const S& s, int64_t heads) {
  for (int64_t r = 0; r < heads; ++r) {
    A norm2 = 0;
    for (int64_t w = r * s.width; w < (r + 1) * s.width; ++w) {
      c.square[w] = s.masked ? c.mask[w] * c.mask[w] : A(1);
      c.product[w] = c.square[w] * c.key[w];
      norm2 += c.product[w] * c.key[w];
    }
    c.key_norm[r] = vsqrt<A>(splat<A>(norm2))[0];
  }
}

// dot and norm of HEADS heads with the cells i .. i + lanes, whose words `cell(w)` gives.
template <int HEADS, class A, class S, class F>
inline void content_scores(const Content<A>& c, const S& s, int64_t first, int64_t i, const F& cell) {
  const int64_t n = padded<A>(s.cells);
  const A* const product = c.product + first * s.width;
  const A* const square = c.square + first * s.width;
  Vector<A> dots[HEADS] = {}, norms[HEADS] = {};
  for (int64_t w = 0; w < s.width; ++w) {
    const Vector<A> m = cell(w), m2 = m * m;
    for (int r = 0; r < HEADS; ++r) {
      dots[r] += m * product[r * s.width + w];
      norms[r] += m2 * square[r * s.width + w];
    }
  }
  for (int r = 0; r < HEADS; ++r) {
    store(c.dot + (first + r) * n + i, dots[r]);
    store(c.norm + (first + r) * n + i, vsqrt<A>(norms[r]));
  }
}

// weight from dot and norm.
template <class A, class S>
void content_finish(const Content<A>& c, const S& s, int64_t heads) {
  const int64_t n = padded<A>(s.cells);
  const A eps = static_cast<A>(s.eps);
  for (int64_t r = 0; r < heads; ++r) {
    const A *const dots = c.dot + r * n, *const norms = c.norm + r * n;
    A* const weight = c.weight + r * n;
    for (int64_t i = 0; i < n; i += kLanes<A>)
      store(weight + i, load(dots + i) / (load(norms + i) * c.key_norm[r] + eps) * c.strength[r]);
    softmax(weight, weight, s.cells, n);
  }
}

// What backward of one head multiplies the memory with: dot and norm arrive by dmemory += a product + b
// square memory.
template <class A>
struct ContentGradient {
  A *a, *b;                     // [heads][n]
  A *dkey, *dmask, *dstrength;  // [heads][W], [heads][W] (or unused), [heads]
  template <class S>
  ContentGradient(Carver<A>& carver, const S& s, int64_t heads) {
    const int64_t n = padded<A>(s.cells);
    a = carver.take(heads * n);
    b = carver.take(heads * n);
    dkey = carver.take(heads * s.width);
    dmask = carver.take(heads * s.width);
    dstrength = carver.take(heads);
  }
};

// dweight [heads][n] (overwritten) -> a, b, dstrength, and the part of dkey and dmask that comes from |key|.
template <class A, class S>
void content_bwd_prepare(const Content<A>& c, const S& s, int64_t heads, A* dweight,
                         const ContentGradient<A>& g) {
  const int64_t n = padded<A>(s.cells);
  const A eps = static_cast<A>(s.eps);
  for (int64_t r = 0; r < heads; ++r) {
    A* const dz = dweight + r * n;
    softmax_bwd(c.weight + r * n, dz, dz, n);
    const A strength = c.strength[r], key_norm = c.key_norm[r];
    Vector<A> dstrength{}, dkey_norm{};
    for (int64_t i = 0; i < n; i += kLanes<A>) {
      const Vector<A> norm = load(c.norm + r * n + i), d = load(c.dot + r * n + i), z = load(dz + i);
      const Vector<A> scale = A(1) / (norm * key_norm + eps), cosine = d * scale;
      dstrength += z * cosine;
      const Vector<A> ddot = z * strength * scale, dden = -(ddot * cosine);
      store(g.a + r * n + i, ddot);
      store(g.b + r * n + i,
            norm > Vector<A>{} ? dden * key_norm / (norm > Vector<A>{} ? norm : splat<A>(1)) : Vector<A>{});
      dkey_norm += dden * norm;
    }
    g.dstrength[r] = sum_of_lanes<A>(dstrength);
    const A slope = key_norm > 0 ? sum_of_lanes<A>(dkey_norm) / key_norm : A(0);
    for (int64_t w = r * s.width; w < (r + 1) * s.width; ++w) {
      g.dkey[w] = slope * c.product[w];
      if (s.masked) g.dmask[w] = slope * c.key[w] * c.key[w] * c.mask[w];
    }
  }
}

// The pass over the memory's words begin .. end: dmemory += ..., and the other parts of dkey and dmask.
template <class A, class S>
void content_bwd_pass(const Content<A>& c, const S& s, int64_t heads, int64_t begin, int64_t end,
                      const A* memory, A* dmemory, const ContentGradient<A>& g) {
  const int64_t n = padded<A>(s.cells);
  by_heads(heads, [&]<int HEADS>(int64_t first) {
    for (int64_t w = begin; w < end; ++w) {
      Vector<A> by_dot[HEADS] = {}, by_norm[HEADS] = {};
      A product[HEADS], square[HEADS];
      for (int r = 0; r < HEADS; ++r) {
        product[r] = c.product[(first + r) * s.width + w];
        square[r] = c.square[(first + r) * s.width + w];
      }
      for (int64_t i = 0; i < n; i += kLanes<A>) {
        const Vector<A> m = load(memory + w * n + i);
        Vector<A> dm = load(dmemory + w * n + i);
        const Vector<A> m2 = m * m;
        Vector<A> scale{};
        for (int r = 0; r < HEADS; ++r) {
          const Vector<A> a = load(g.a + (first + r) * n + i), b = load(g.b + (first + r) * n + i);
          dm += a * product[r];
          scale += b * square[r];
          by_dot[r] += a * m;
          by_norm[r] += b * m2;
        }
        store(dmemory + w * n + i, dm + scale * m);
      }
      for (int r = 0; r < HEADS; ++r) {
        const int64_t at = (first + r) * s.width + w;
        const A dproduct = sum_of_lanes<A>(by_dot[r]), dsquare = sum_of_lanes<A>(by_norm[r]) * A(0.5);
        g.dkey[at] += c.square[at] * dproduct;
        if (s.masked) g.dmask[at] += 2 * c.mask[at] * (dsquare + c.key[at] * dproduct);
      }
    }
  });
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
