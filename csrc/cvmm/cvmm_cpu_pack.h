// Copies operands into the layouts that the micro-kernel reads: gather, conversion, rounding and
// transposition happen here, once for each element of a block. The contraction is padded with zeros to whole
// units on both sides.
#pragma once
#include "common/always_inline.h"
#include "common/cpu_tasks.h"
#include "cvmm/cvmm_cpu_kernel.h"
#include "cvmm/cvmm_cpu_lanes.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// `bytes` from p on into the second-level cache.
inline void prefetch_range(const void* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i, 0, 2);
}

template <class V, class U>
inline void store_units(U* to, V v) {
  __builtin_memcpy(to, &v, sizeof v);
}

#if defined(__AVX512BF16__)
inline VectorU bf16_bits(const bf16* p, int64_t n) { return bits_as<VectorU>(load(p, n)) >> 16; }
inline VectorU bf16_bits(VectorF v) { return __builtin_convertvector(bf16_of_float(v), VectorU); }
inline VectorU bf16_bits(const float* p, int64_t n) { return bf16_bits(load(p, n)); }
#endif

// One vector of units, n of them real, whose elements lie in rows `first` and (pairs only; null: zeros)
// `second`.
template <class T, class Source>
inline auto units_across(const Source* first, [[maybe_unused]] const Source* second, int64_t n) {
  if constexpr (Step<T>::kDepth == 1) {
    if constexpr (__is_same(T, Source))
      return load(first, n);
    else
      return round_to<T>(load(first, n));
  } else {
    const VectorU low = bf16_bits(first, n);
    return second ? low | bf16_bits(second, n) << 16 : low;
  }
}

// The same, each row times its scale. Pairs round the product to bfloat16.
template <class T>
inline auto scaled_units_across(const T* first, [[maybe_unused]] const T* second, int64_t n,
                                Accumulator<T> scale, [[maybe_unused]] Accumulator<T> second_scale) {
  if constexpr (Step<T>::kDepth == 1) {
    return load(first, n) * scale;
  } else {
    const VectorU low = bf16_bits(load(first, n) * scale);
    return second ? low | bf16_bits(load(second, n) * second_scale) << 16 : low;
  }
}

// One vector of units from n consecutive elements along the contraction.
template <class T, class Source>
inline auto units_along(const Source* p, int64_t n) {
  if constexpr (Step<T>::kDepth == 1) {
    return units_across<T>(p, p, n);
  } else {
    constexpr int kCount = kLanes<float>;
    if (__is_same(T, Source) && n >= 2 * kCount) return load_as<VectorU>(p);  // already pairs
    bf16 pairs[2 * kCount];
    store(pairs, load(p, n));
    store(pairs + kCount, load(p + (n > kCount ? kCount : 0), n - kCount));
    return load_as<VectorU>(pairs);
  }
}

// Whether what lies along a column of W are units already.
template <class T, class TW>
inline constexpr bool kColumnsAreUnits =
    __is_same(T, TW) && sizeof(TW) * Step<T>::kDepth == sizeof(typename Step<T>::Unit);

#if defined(__AVX2__)
constexpr int kSquare = 8;

// to[i * to_stride + j] = from[j * stride + i] for i, j < kSquare, `stride` in bytes: numbers of 4 bytes.
// Eight rows, because as many lines that are a power of two apart have room in the first cache. The exchange
// of halves happens while loading, so that half of the shuffles are left.
SYSGEN_INLINE inline void transpose_square(const void* from, int64_t stride, void* to, int64_t to_stride) {
  const char* const corner = static_cast<const char*>(from);
  const auto rows = [=](int i, int half) SYSGEN_INLINE {
    const auto part = [=](int row) SYSGEN_INLINE {
      return _mm_loadu_ps(reinterpret_cast<const float*>(corner + row * stride) + 4 * half);
    };
    return _mm256_insertf128_ps(_mm256_castps128_ps256(part(i)), part(i + 4), 1);
  };
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const __m256 a = rows(0, half), b = rows(1, half), c = rows(2, half), d = rows(3, half);
    const __m256 ab = _mm256_unpacklo_ps(a, b), cd = _mm256_unpacklo_ps(c, d);
    const __m256 ab_high = _mm256_unpackhi_ps(a, b), cd_high = _mm256_unpackhi_ps(c, d);
    float* const row = static_cast<float*>(to) + 4 * half * to_stride;
    _mm256_storeu_ps(row, _mm256_shuffle_ps(ab, cd, 0x44));
    _mm256_storeu_ps(row + to_stride, _mm256_shuffle_ps(ab, cd, 0xee));
    _mm256_storeu_ps(row + 2 * to_stride, _mm256_shuffle_ps(ab_high, cd_high, 0x44));
    _mm256_storeu_ps(row + 3 * to_stride, _mm256_shuffle_ps(ab_high, cd_high, 0xee));
  }
}
#endif

// A block of W, `depth` elements of the contraction by `width` columns, written as panels
// [panel][units][kPanel], zeros beyond the width. Row-major and column-major W are read in the order of
// memory; meanwhile `lines` of what is ahead are fetched.
template <class T, class TW>
void pack_weights(const TW* w, int64_t stride_d, int64_t stride_h, int64_t depth, int64_t width,
                  typename Step<T>::Unit* to, Ahead& ahead, int64_t lines) {
  using S = Step<T>;
  using Unit = typename S::Unit;
  constexpr int L = kLanes<Unit>;
  const int64_t units = ceil_div(depth, S::kDepth), padded = ceil_div(width, kPanel<S>) * kPanel<S>;
  const auto place = [=](int64_t column, int64_t unit) {
    return to + (column / kPanel<S> * units + unit) * kPanel<S> + column % kPanel<S>;
  };
  if (stride_h == 1) {
    const int64_t pace = ceil_div(lines, max_of(1, units));
    for (int64_t k = 0; k < units; ++k) {
      ahead.fetch(pace);
      const TW* const row = w + k * S::kDepth * stride_d;
      const TW* const second = (k + 1) * S::kDepth <= depth ? row + stride_d : nullptr;
      for (int64_t c = 0; c < padded; c += L)
        store_units(place(c, k), units_across<T>(row + c, second ? second + c : nullptr, width - c));
    }
  } else if (stride_d == 1) {
    int64_t whole_columns = 0, whole_units = 0;  // in squares without an edge of W
#if defined(__AVX2__)
    if constexpr (kColumnsAreUnits<T, TW> && sizeof(Unit) == 4) {
      whole_columns = width / L * L;
      whole_units = depth / S::kDepth / L * L;
      const int64_t pace = ceil_div(lines, max_of(1, whole_columns / kSquare * (whole_units / kSquare)));
      for (int64_t c = 0; c < whole_columns; c += kSquare)
        for (int64_t k = 0; k < whole_units; k += kSquare) {
          ahead.fetch(pace);
          transpose_square(w + c * stride_h + k * S::kDepth, stride_h * sizeof(TW), place(c, k), kPanel<S>);
        }
    }
#endif
    const int64_t pace =
        whole_columns && whole_units ? 0 : ceil_div(lines, max_of(1, padded / L * ceil_div(units, L)));
    for (int64_t c = 0; c < padded; c += L) {
      const TW* const corner = w + c * stride_h;
      for (int64_t k = c < whole_columns ? whole_units : 0; k < units; k += L) {
        ahead.fetch(pace);
        Vector<Unit> square[L] = {};
        const int64_t from = k * S::kDepth, rows = min_of(units - k, L);
        if (width - c >= L && depth - from >= L * S::kDepth) {
#pragma GCC unroll 16
          for (int j = 0; j < L; ++j) square[j] = units_along<T>(corner + j * stride_h + from, L * S::kDepth);
        } else {
          for (int64_t j = 0; j < min_of(width - c, L); ++j)
            square[j] = units_along<T>(corner + j * stride_h + from, depth - from);
        }
        transpose<Unit>(square);
        for (int64_t i = 0; i < rows; ++i) store_units(place(c, k + i), square[i]);
      }
    }
  } else {
    for (int64_t k = 0; k < units; ++k)
      for (int64_t c = 0; c < padded; c += L) {
        TW rows[S::kDepth][L] = {};
        for (int64_t i = 0; i < min_of(S::kDepth, depth - k * S::kDepth); ++i)
          for (int64_t j = 0; j < min_of(width - c, L); ++j)
            rows[i][j] = w[(k * S::kDepth + i) * stride_d + (c + j) * stride_h];
        store_units(place(c, k), units_across<T>(rows[0], rows[S::kDepth - 1], L));
      }
  }
}

// `depth` elements of one row, along the contraction.
template <class T>
void pack_row(const T* row, int64_t depth, typename Step<T>::Unit* to) {
  using S = Step<T>;
  using Unit = typename S::Unit;
  if constexpr (S::kDepth * sizeof(T) == sizeof(Unit)) {
    if (depth % S::kDepth) to[depth / S::kDepth] = 0;
    __builtin_memcpy(to, row, depth * sizeof(T));
  } else {
    int64_t i = 0;
    for (; i + kLanes<Unit> <= depth; i += kLanes<Unit>) store(to + i, load(row + i));
    if (i < depth) store(to + i, load(row + i, depth - i), depth - i);
  }
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
