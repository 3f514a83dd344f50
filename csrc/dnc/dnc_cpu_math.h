// Elementary functions on vectors, and sums over padded rows.
//
// Every row over cells or words is padded with zeros to whole vectors, so that no loop has a tail.
#pragma once
#include "common/cpu.h"
#include "cvmm/cvmm_cpu_lanes.h"

namespace sysgen::SYSGEN_ISA {
namespace {

template <class A>
inline constexpr int kMantissaBits = __is_same(A, double) ? 52 : 23;
template <class A>
inline constexpr int kExponentBias = __is_same(A, double) ? 1023 : 127;

// a b + c, for what is computed twice and must come to the same bits: of a b + c d a compiler fuses either
// product with the sum, not always the same one.
#if defined(__AVX512F__)
inline VectorF multiply_add(VectorF a, VectorF b, VectorF c) {
  return bits_as<VectorF>(_mm512_fmadd_ps(bits_as<__m512>(a), bits_as<__m512>(b), bits_as<__m512>(c)));
}
inline Vector<double> multiply_add(Vector<double> a, Vector<double> b, Vector<double> c) {
  return bits_as<Vector<double>>(
      _mm512_fmadd_pd(bits_as<__m512d>(a), bits_as<__m512d>(b), bits_as<__m512d>(c)));
}
#elif defined(__FMA__)
inline VectorF multiply_add(VectorF a, VectorF b, VectorF c) {
  return bits_as<VectorF>(_mm256_fmadd_ps(bits_as<__m256>(a), bits_as<__m256>(b), bits_as<__m256>(c)));
}
inline Vector<double> multiply_add(Vector<double> a, Vector<double> b, Vector<double> c) {
  return bits_as<Vector<double>>(
      _mm256_fmadd_pd(bits_as<__m256d>(a), bits_as<__m256d>(b), bits_as<__m256d>(c)));
}
#else
template <class V>
inline V multiply_add(V a, V b, V c) {
  for (size_t i = 0; i < sizeof(V) / sizeof(a[0]); ++i) {
#if defined(__ARM_FEATURE_FMA)
    c[i] = sizeof(a[0]) == 8 ? __builtin_fma(a[i], b[i], c[i]) : __builtin_fmaf(a[i], b[i], c[i]);
#else
    c[i] = a[i] * b[i] + c[i];
#endif
  }
  return c;
}
#endif

template <class V>
inline V select_max(V a, V b) {
  return a > b ? a : b;
}

// e^r - 1 for |r| <= ln 2 / 2, by its series: the first term left out is below half a unit in the last place.
template <class A>
inline Vector<A> expm1_small(Vector<A> r) {
  constexpr int kTerms = __is_same(A, double) ? 14 : 8;
  Vector<A> sum = splat<A>(A(1) / kTerms);
  for (int n = kTerms - 1; n >= 1; --n) sum = (A(1) + r * sum) * (A(1) / A(n));
  return r * sum;
}

// e^x; 0 below the range of normal numbers, at most about their largest above it. A NaN stays one: the bits
// of its payload must not be taken for an exponent.
template <class A>
inline Vector<A> vexp(Vector<A> x) {
  constexpr A kLow = __is_same(A, double) ? A(-708.0) : A(-87.0), kHigh = -kLow;
  constexpr A kLn2High = __is_same(A, double) ? A(0x1.62e42fee00000p-1) : A(0x1.62e4p-1);
  constexpr A kLn2Low = A(0x1.62e42fefa39ef35793c8p-1L - static_cast<long double>(kLn2High));
  const Vector<A> low = splat<A>(kLow), high = splat<A>(kHigh);
  const Vector<A> y = x > high ? high : (x < low ? low : x);
  // Adding 1.5 * 2^mantissa rounds to the nearest integer.
  constexpr A kRound = __is_same(A, double) ? A(0x1.8p52) : A(0x1.8p23f);
  const Vector<A> shifted = y * A(1.4426950408889634074) + kRound;
  const Vector<A> n = shifted - kRound;
  const Vector<A> r = (y - n * kLn2High) - n * kLn2Low;
  const Integers<A> exponent = bits_as<Integers<A>>(shifted) << kMantissaBits<A>;
  const Vector<A> e = bits_as<Vector<A>>(bits_as<Integers<A>>(expm1_small<A>(r) + A(1)) + exponent);
  return x < low ? Vector<A>{} : (x == x ? e : x);
}

// ln x for normal positive x: 2 artanh of (m - 1) / (m + 1), sqrt(1/2) < m < sqrt(2), by its series. Infinity
// and NaN stay what they are.
template <class A>
inline Vector<A> vlog(Vector<A> x) {
  constexpr int kTerms = __is_same(A, double) ? 11 : 5;
  using I = Integers<A>;
  const I root = bits_as<I>(splat<A>(A(0.70710678118654752440)));
  const I exponent = (bits_as<I>(x) - root) >> kMantissaBits<A>;
  const Vector<A> m = bits_as<Vector<A>>(bits_as<I>(x) - (exponent << kMantissaBits<A>));
  const Vector<A> s = (m - A(1)) / (m + A(1)), s2 = s * s;
  Vector<A> sum = splat<A>(A(2) / (2 * kTerms + 1));
  for (int n = kTerms - 1; n >= 0; --n) sum = sum * s2 + A(2) / (2 * n + 1);
  const Vector<A> y = __builtin_convertvector(exponent, Vector<A>) * A(0.69314718055994530942) + s * sum;
  return x < splat<A>(A(__builtin_inf())) ? y : x;
}

template <class A>
inline Vector<A> vsigmoid(Vector<A> x) {
  return A(1) / (A(1) + vexp<A>(-x));
}

// Without cancellation near 0.
template <class A>
inline Vector<A> vtanh(Vector<A> x) {
  const Vector<A> twice = x < Vector<A>{} ? -(x + x) : x + x;
  const Vector<A> small = expm1_small<A>(twice < splat<A>(A(0.34)) ? twice : Vector<A>{});
  const Vector<A> e = vexp<A>(-twice);
  const Vector<A> t = twice < splat<A>(A(0.34)) ? small / (small + A(2)) : (A(1) - e) / (A(1) + e);
  return x < Vector<A>{} ? -t : t;
}

// ln(1 + e^x), torch's threshold of 20 included, 1 more, and the derivative of both.
template <class A>
inline Vector<A> softplus(Vector<A> x) {
  const Vector<A> magnitude = x < Vector<A>{} ? -x : x;
  const Vector<A> y = (x > Vector<A>{} ? x : Vector<A>{}) + vlog<A>(A(1) + vexp<A>(-magnitude));
  return x > splat<A>(A(20)) ? x : y;
}
template <class A>
inline Vector<A> oneplus(Vector<A> x) {
  return A(1) + softplus<A>(x);
}
template <class A>
inline Vector<A> softplus_slope(Vector<A> x) {
  return x > splat<A>(A(20)) ? splat<A>(A(1)) : vsigmoid<A>(x);
}

// f on one number, through a vector: one code for all widths.
template <class A, class F>
inline A scalar(A x, const F& f) {
  return f(splat<A>(x))[0];
}

template <class A>
inline A dot(const A* a, const A* b, int64_t padded) {
  Vector<A> sum{};
  for (int64_t i = 0; i < padded; i += kLanes<A>) sum += load(a + i) * load(b + i);
  return sum_of_lanes<A>(sum);
}
template <class A>
inline A sum(const A* a, int64_t padded) {
  Vector<A> total{};
  for (int64_t i = 0; i < padded; i += kLanes<A>) total += load(a + i);
  return sum_of_lanes<A>(total);
}
// to[i] = sum_of_lanes(v[i]), to the bit, but as many at once as there are lanes.
template <int COUNT, class A>
inline void sum_lanes_of_each(const Vector<A> (&v)[COUNT], A* to) {
  constexpr int L = kLanes<A>;
  int i = 0;
  for (; 2 * (COUNT - i) > L; i += L) {
    Vector<A> part[L] = {};
    for (int k = 0; k < L && i + k < COUNT; ++k) part[k] = v[i + k];
    store(to + i, sums_of_lanes<A>(part), COUNT - i);
  }
  for (; i < COUNT; ++i) to[i] = sum_of_lanes<A>(v[i]);
}
template <class A>
inline void clear(A* a, int64_t n) {
  __builtin_memset(a, 0, sizeof(A) * static_cast<size_t>(n));
}
template <class A>
inline void copy(A* to, const A* from, int64_t n) {
  __builtin_memcpy(to, from, sizeof(A) * static_cast<size_t>(n));
}

// Of n >= 1 numbers. A NaN among them may be lost.
template <class A>
inline A largest_of(const A* x, int64_t n) {
  Vector<A> by_lane = splat<A>(x[0]);
  int64_t i = 0;
  for (; i + kLanes<A> <= n; i += kLanes<A>) by_lane = select_max<Vector<A>>(load(x + i), by_lane);
  A largest = by_lane[0];
  for (int k = 1; k < kLanes<A>; ++k) largest = by_lane[k] > largest ? by_lane[k] : largest;
  for (; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

// y = softmax of x over the first n; the padding of y is 0.
template <class A>
inline void softmax(const A* x, A* y, int64_t n, int64_t padded) {
  const A largest = largest_of(x, n);
  for (int64_t i = 0; i < padded; i += kLanes<A>) store(y + i, vexp<A>(load(x + i) - largest));
  for (int64_t i = n; i < padded; ++i) y[i] = 0;
  const A scale = A(1) / sum(y, padded);
  for (int64_t i = 0; i < padded; i += kLanes<A>) store(y + i, load(y + i) * scale);
}

// Gradient of the argument of a softmax y, where dy is the gradient of y: y (dy - <dy, y>).
template <class A>
inline void softmax_bwd(const A* y, const A* dy, A* dx, int64_t padded) {
  const A mean = dot(y, dy, padded);
  for (int64_t i = 0; i < padded; i += kLanes<A>) store(dx + i, load(y + i) * (load(dy + i) - mean));
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
