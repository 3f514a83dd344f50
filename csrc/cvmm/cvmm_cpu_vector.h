// Element types and SIMD vectors of one instruction-set level. Written with the compiler's vector extensions,
// so that one source serves every width; intrinsics only where the extensions have no word for an
// instruction.
#pragma once
#include <cstddef>
#include <cstdint>
#if defined(__AVX2__)
#include <immintrin.h>  // always-inline functions only: none of them can be emitted for the wrong level
#endif

#include "common/always_inline.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// kMaxRows rows by two vectors of accumulators, two vectors of W and one broadcast fill the register file.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kMaxRows = 14;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kMaxRows = 6;
#else
constexpr int kVectorBytes = 16, kMaxRows = 6;
#endif

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class T>
inline constexpr bool is_half = __is_same(T, bf16) || __is_same(T, f16);

template <class T>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vector = typename VectorOf<T>::type;

using VectorF = Vector<float>;
using VectorU = Vector<uint32_t>;
typedef uint16_t VectorH __attribute__((vector_size(kVectorBytes / 2)));  // as many lanes as VectorF

template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

template <class To, class From>
inline To bits_as(From v) {
  static_assert(sizeof(To) == sizeof(From));
  return __builtin_bit_cast(To, v);
}

template <class V, class T>
inline V load_as(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

inline VectorF float_of_bf16(VectorH h) {
  return bits_as<VectorF>(__builtin_convertvector(h, VectorU) << 16);
}

// Round to nearest even; a NaN keeps its upper bits and becomes quiet.
inline VectorH bf16_of_float(VectorF v) {
  const VectorU u = bits_as<VectorU>(v);
  const VectorU rounded = u + 0x7fff + ((u >> 16) & 1), nan = u | 0x400000;
  return __builtin_convertvector((v != v ? nan : rounded) >> 16, VectorH);
}

#if defined(__AVX512F__)  // maskz: g++ 12 warns of an undefined operand inside the plain intrinsics
inline VectorF float_of_f16(VectorH h) {
  return bits_as<VectorF>(_mm512_maskz_cvtph_ps(0xffff, bits_as<__m256i>(h)));
}
inline VectorH f16_of_float(VectorF v) {
  return bits_as<VectorH>(_mm512_maskz_cvtps_ph(0xffff, bits_as<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__)
inline VectorF float_of_f16(VectorH h) { return bits_as<VectorF>(_mm256_cvtph_ps(bits_as<__m128i>(h))); }
inline VectorH f16_of_float(VectorF v) {
  return bits_as<VectorH>(_mm256_cvtps_ph(bits_as<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
}
#else
// The exponent moves by a product with 2^112, which also normalises subnormals; Inf and NaN get theirs back.
inline VectorF float_of_f16(VectorH h) {
  const VectorU u = __builtin_convertvector(h, VectorU);
  const VectorF scaled = bits_as<VectorF>((u & 0x7fff) << 13) * 0x1p112f;
  const VectorU bits = bits_as<VectorU>(scaled);
  return bits_as<VectorF>((scaled >= 65536.0f ? bits | 0x7f800000 : bits) | (u & 0x8000) << 16);
}
// Normal results: add half a unit (less one where the kept part is even), then cut. Subnormal ones: adding
// 0.5 lets the floating-point adder round at the right bit.
inline VectorH f16_of_float(VectorF v) {
  const VectorU u = bits_as<VectorU>(v), magnitude = u & 0x7fffffff;
  const VectorU normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  const VectorU subnormal = bits_as<VectorU>(bits_as<VectorF>(magnitude) + 0.5f) - 0x3f000000;
  const VectorU infinite = magnitude > 0x7f800000 ? VectorU{} + 0x7e00 : VectorU{} + 0x7c00;
  const VectorU finite = magnitude < 0x38800000 ? subnormal : normal;
  return __builtin_convertvector((magnitude >= 0x47800000 ? infinite : finite) | (u >> 16 & 0x8000), VectorH);
}
#endif

inline Vector<double> load(const double* p) { return load_as<Vector<double>>(p); }
inline VectorF load(const float* p) { return load_as<VectorF>(p); }
inline VectorF load(const bf16* p) { return float_of_bf16(load_as<VectorH>(p)); }
inline VectorF load(const f16* p) { return float_of_f16(load_as<VectorH>(p)); }

inline void store(double* p, Vector<double> v) { __builtin_memcpy(p, &v, sizeof v); }
inline void store(float* p, VectorF v) { __builtin_memcpy(p, &v, sizeof v); }
inline void store(bf16* p, VectorF v) {
  const VectorH h = bf16_of_float(v);
  __builtin_memcpy(p, &h, sizeof h);
}
inline void store(f16* p, VectorF v) {
  const VectorH h = f16_of_float(v);
  __builtin_memcpy(p, &h, sizeof h);
}

// The first n lanes, fewer than all.
#if defined(__AVX512F__)
inline unsigned lanes_below(int64_t n) { return n > 0 ? (1u << n) - 1 : 0; }
inline Vector<double> load_part(const double* p, int64_t n) {
  return bits_as<Vector<double>>(_mm512_maskz_loadu_pd(lanes_below(n), p));
}
inline VectorF load_part(const float* p, int64_t n) {
  return bits_as<VectorF>(_mm512_maskz_loadu_ps(lanes_below(n), p));
}
inline VectorF load_part(const bf16* p, int64_t n) {
  return float_of_bf16(bits_as<VectorH>(_mm256_maskz_loadu_epi16(lanes_below(n), p)));
}
inline VectorF load_part(const f16* p, int64_t n) {
  return float_of_f16(bits_as<VectorH>(_mm256_maskz_loadu_epi16(lanes_below(n), p)));
}
inline void store_part(double* p, Vector<double> v, int64_t n) {
  _mm512_mask_storeu_pd(p, lanes_below(n), bits_as<__m512d>(v));
}
inline void store_part(float* p, VectorF v, int64_t n) {
  _mm512_mask_storeu_ps(p, lanes_below(n), bits_as<__m512>(v));
}
inline void store_part(bf16* p, VectorF v, int64_t n) {
  _mm256_mask_storeu_epi16(p, lanes_below(n), bits_as<__m256i>(bf16_of_float(v)));
}
inline void store_part(f16* p, VectorF v, int64_t n) {
  _mm256_mask_storeu_epi16(p, lanes_below(n), bits_as<__m256i>(f16_of_float(v)));
}
#else
template <class T>
inline auto load_part(const T* p, int64_t n) {
  T part[kLanes<Accumulator<T>>] = {};
  for (int64_t i = 0; i < n; ++i) part[i] = p[i];
  return load(part);
}
template <class T>
inline void store_part(T* p, Vector<Accumulator<T>> v, int64_t n) {
  T part[kLanes<Accumulator<T>>];
  store(part, v);
  for (int64_t i = 0; i < n; ++i) p[i] = part[i];
}
#if defined(__AVX2__)
inline __m256i lanes_below(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline VectorF load_part(const float* p, int64_t n) {
  return bits_as<VectorF>(_mm256_maskload_ps(p, lanes_below(n)));
}
inline void store_part(float* p, VectorF v, int64_t n) {
  _mm256_maskstore_ps(p, lanes_below(n), bits_as<__m256>(v));
}
#endif
#endif

// The first n lanes (all if n is larger, none if it is negative); the others are read as zero and not
// written.
template <class T>
inline auto load(const T* p, int64_t n) {
  return n >= kLanes<Accumulator<T>> ? load(p) : load_part(p, n);
}
template <class T>
inline void store(T* p, Vector<Accumulator<T>> v, int64_t n) {
  n >= kLanes<Accumulator<T>> ? store(p, v) : store_part(p, v, n);
}

// For results that are not read soon: their lines are not fetched for being written. p is aligned to a
// vector. After the last one: finish_past_caches, before another thread may read.
template <class V>
inline void store_past_caches(void* p, V v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(static_cast<__m512i*>(p), bits_as<__m512i>(v));
#elif defined(__AVX2__)
  _mm256_stream_si256(static_cast<__m256i*>(p), bits_as<__m256i>(v));
#else
  __builtin_memcpy(p, &v, sizeof v);
#endif
}
// Two vectors of float, rounded to one of a half type.
#if defined(__AVX512F__)
inline VectorU joined(VectorH low, VectorH high) {
  return bits_as<VectorU>(
      _mm512_inserti64x4(_mm512_zextsi256_si512(bits_as<__m256i>(low)), bits_as<__m256i>(high), 1));
}
#else
inline VectorU joined(VectorH low, VectorH high) {
  VectorU both;
  __builtin_memcpy(&both, &low, sizeof low);
  __builtin_memcpy(reinterpret_cast<char*>(&both) + sizeof low, &high, sizeof high);
  return both;
}
#endif
inline void store_past_caches(f16* p, VectorF low, VectorF high) {
  store_past_caches(p, joined(f16_of_float(low), f16_of_float(high)));
}
#if defined(__AVX512BF16__)
// Subnormal numbers become zero, as they do in products of pairs.
inline void store_past_caches(bf16* p, VectorF low, VectorF high) {
  store_past_caches(p, _mm512_cvtne2ps_pbh(bits_as<__m512>(high), bits_as<__m512>(low)));
}
#else
inline void store_past_caches(bf16* p, VectorF low, VectorF high) {
  store_past_caches(p, joined(bf16_of_float(low), bf16_of_float(high)));
}
#endif
inline void finish_past_caches() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// Calls f(i, lanes) for the vectors that n numbers fill, and for the rest of them with fewer lanes. Both are
// inlined, if f is declared so too: what f captures stays in registers, and in all calls but the last `lanes`
// is a constant, which load and store then do not look at.
template <class A, class F>
SYSGEN_INLINE inline void each_vector(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + kLanes<A> <= n; i += kLanes<A>) f(i, int64_t{kLanes<A>});
  if (i < n) f(i, n - i);
}

// Rounds float32 master weights to T, the type that they are multiplied in.
template <class T>
inline VectorF round_to(VectorF v) {
  if constexpr (__is_same(T, bf16)) return float_of_bf16(bf16_of_float(v));
  if constexpr (__is_same(T, f16)) return float_of_f16(f16_of_float(v));
  return v;
}

// In registers: adding halves in memory waits for its own stores.
template <class A, int HALF = kLanes<A> / 2>
inline A sum_of_lanes(Vector<A> v) {
  decltype(v == v) upper = {};
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<A>; ++i) upper[i] = (i + HALF) % kLanes<A>;
  v += __builtin_shuffle(v, upper);
  if constexpr (HALF > 1)
    return sum_of_lanes<A, HALF / 2>(v);
  else
    return v[0];
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
