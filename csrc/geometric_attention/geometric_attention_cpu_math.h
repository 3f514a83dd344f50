// Vector functions of the scan. What is smaller than the smallest normal number counts as 0.
#pragma once
#include "cvmm/cvmm_cpu_lanes.h"

namespace sysgen::SYSGEN_ISA {
namespace {

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class A>
inline Vector<A> absolute(Vector<A> x) {
  constexpr typename IntegerOf<A>::type kMost = sizeof(A) == 8 ? 0x7fffffffffffffff : 0x7fffffff;
  return bits_as<Vector<A>>(bits_as<Integers<A>>(x) & kMost);
}

// 1 / d for d in [1, 2].
template <class A>
inline Vector<A> reciprocal(Vector<A> d) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) {
    const VectorF y = bits_as<VectorF>(_mm512_maskz_rcp14_ps(0xffff, bits_as<__m512>(d)));
    return y + y * (1 - d * y);
  }
#endif
  return 1 / d;
}

// exp(x) for x <= 0, to an ulp: x = n log 2 + r with |r| <= log(2) / 2. The magic number rounds to integers
// and leaves n in the lowest bits. Float: minimax polynomial (3e-9), double: Taylor (4e-18).
inline VectorF exp_of(VectorF x) {
  constexpr float kMagic = 0x1.8p23f, kLowest = -87.33654f;
  const auto zero = x < kLowest;
  x = zero ? splat(kLowest) : x;
  const VectorF z = x * 1.44269504f + kMagic, n = z - kMagic;
  const VectorF r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  VectorF p = r * 0.00138146f + 0.00836872f;
  p = p * r + 0.04166839f;
  p = p * r + 0.16666521f;
  p = p * r + 0.49999993f;
  p = p * r + 1;
  p = p * r + 1;
  const VectorF power = bits_as<VectorF>((bits_as<Integers<float>>(z) << 23) + (127 << 23));
  return zero ? VectorF{} : p * power;
}
inline Vector<double> exp_of(Vector<double> x) {
  using V = Vector<double>;
  constexpr double kMagic = 0x1.8p52, kLowest = -708.396418532264;
  const auto zero = x < kLowest;
  x = zero ? splat(kLowest) : x;
  const V z = x * 1.4426950408889634 + kMagic, n = z - kMagic;
  const V r = (x - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6;
  V p = r * (1 / 6227020800.) + 1 / 479001600.;
  p = p * r + 1 / 39916800.;
  p = p * r + 1 / 3628800.;
  p = p * r + 1 / 362880.;
  p = p * r + 1 / 40320.;
  p = p * r + 1 / 5040.;
  p = p * r + 1 / 720.;
  p = p * r + 1 / 120.;
  p = p * r + 1 / 24.;
  p = p * r + 1 / 6.;
  p = p * r + .5;
  p = p * r + 1;
  p = p * r + 1;
  const V power = bits_as<V>((bits_as<Integers<double>>(z) << 52) + (1023ll << 52));
  return zero ? V{} : p * power;
}

// log(u) for u in [0, 1], to an ulp or two, also near 1: u = 2^k m, m in [2/3, 4/3), log m = 2 atanh(t),
// t = (m - 1) / (m + 1). log(0) is -10^4: small enough, and sums of it stay finite.
template <class A>
inline Vector<A> log_of(Vector<A> u) {
  using V = Vector<A>;
  using I = typename IntegerOf<A>::type;
  constexpr bool kDouble = sizeof(A) == 8;
  constexpr int kMantissa = kDouble ? 52 : 23, kTerms = kDouble ? 11 : 5;
  constexpr I kTwoThirds = kDouble ? 0x3fe5555555555555 : 0x3f2aaaab;
  constexpr A kHigh = kDouble ? A(6.93145751953125e-1) : A(0.693359375);
  constexpr A kLow = kDouble ? A(1.42860682030941723212e-6) : A(-2.12194440e-4);
  constexpr A kSmallest = kDouble ? A(0x1p-1022) : A(0x1p-126f);
  const Integers<A> bits = bits_as<Integers<A>>(u), k = (bits - kTwoThirds) >> kMantissa;
  const V f = bits_as<V>(bits - (k << kMantissa)) - 1, n = __builtin_convertvector(k, V);
  const V t = f / (f + 2), z = t * t;
  V p = splat(A(1) / (2 * kTerms + 1));
#pragma GCC unroll 16
  for (int i = kTerms - 1; i > 0; --i) p = p * z + A(1) / (2 * i + 1);
  const V log = n * kHigh + (n * kLow + (2 * t + 2 * t * z * p));
  return u < kSmallest ? splat(A(-1e4)) : log;
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
