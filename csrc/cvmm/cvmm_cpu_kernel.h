// The micro-kernel: a block of M rows by NV vectors of columns of C = A . B, kept in registers over the
// contraction.
//
// The contraction advances in units: one element, or a pair of bfloat16 where the machine has a product of
// pairs.
#pragma once
#include "cvmm/cvmm_cpu_vector.h"

namespace sysgen::SYSGEN_ISA {
namespace {

template <class T>
struct Plain {
  using Unit = T;
  using Acc = T;
  static constexpr int kDepth = 1;  // elements of the contraction in a unit
  static Vector<T> fma(Vector<T> acc, T a, Vector<T> b) { return acc + a * b; }
  static Vector<T> fma(Vector<T> acc, Vector<T> a, Vector<T> b) { return acc + a * b; }
};

#if defined(__AVX512BF16__)
struct Bf16Pairs {
  using Unit = uint32_t;
  using Acc = float;
  static constexpr int kDepth = 2;
  static VectorF fma(VectorF acc, VectorU a, VectorU b) {
    return bits_as<VectorF>(
        _mm512_dpbf16_ps(bits_as<__m512>(acc), bits_as<__m512bh>(a), bits_as<__m512bh>(b)));
  }
  static VectorF fma(VectorF acc, uint32_t a, VectorU b) { return fma(acc, VectorU{} + a, b); }
};
#endif

template <class T>
struct StepOf {
  using type = Plain<Accumulator<T>>;
};
#if defined(__AVX512BF16__)
template <>
struct StepOf<bf16> {
  using type = Bf16Pairs;
};
#endif
template <class T>
using Step = typename StepOf<T>::type;

template <class S>
inline constexpr int kPanel = 2 * kLanes<typename S::Acc>;  // columns of a full panel of B

// Memory that is fetched into the second-level cache, or the first, piece by piece, while kernels run: rows
// of `bytes`, `stride` bytes apart. Default: none.
struct Ahead {
  const char* row = nullptr;
  int64_t stride = 0, rows = 0, bytes = 0;
  int64_t at = 0;    // bytes of the first row that were fetched
  int64_t pace = 0;  // lines that a kernel fetches every kAheadSteps steps
  bool first_level = false;

  int64_t lines() const { return rows * ((bytes + 63) / 64); }
  template <int kLocality = 2>  // 2: into the second-level cache, 3: into the first
  SYSGEN_INLINE void fetch(int64_t count) {
    for (; count > 0 && rows > 0; --count) {
      __builtin_prefetch(row + at, 0, kLocality);
      at += 64;
      if (at >= bytes) at = 0, row += stride, --rows;
    }
  }
};
constexpr int kAheadSteps = 4;

// What becomes of a block u = A . B. Null pointers: not wanted. In this order: u += bias; dot[i] += u[i] *
// other[i], lane by lane; relu; times scale[i]; plus c if add; into row c[i]. stream: past the caches, into
// rows that are aligned to vectors.
template <class Acc>
struct Results {
  Acc* const* c;
  bool add = false, relu = false, stream = false;
  const Acc* scale = nullptr;
  const Acc* bias = nullptr;
  const Acc* const* other = nullptr;
  Vector<Acc>* dot = nullptr;
  Ahead* ahead = nullptr;
};

// B has `ldb` units between its steps.
template <class S>
using Kernel = void (*)(int64_t depth, const typename S::Unit* a, const typename S::Unit* b, int64_t ldb,
                        const Results<typename S::Acc>& results);

// A(i, k) = a[i * kRowStride + k * kDepthStride]: known to the compiler, so that one pointer addresses all
// rows.
template <class S, int kRowStride, int kDepthStride, int M, int NV>
void cvmm_kernel(int64_t depth, const typename S::Unit* a, const typename S::Unit* b, int64_t ldb,
                 const Results<typename S::Acc>& results) {
  using Unit = typename S::Unit;
  using Acc = typename S::Acc;
  constexpr int L = kLanes<Acc>;
  Vector<Acc> u[M][NV] = {};
  for (int64_t k = 0; k < depth;) {
    int64_t stop = depth;
    if (results.ahead) {
      if (results.ahead->first_level)
        results.ahead->template fetch<3>(results.ahead->pace);
      else
        results.ahead->fetch(results.ahead->pace);
      stop = k + kAheadSteps < depth ? k + kAheadSteps : depth;
    }
    for (; k < stop; ++k, a += kDepthStride, b += ldb) {
      Vector<Unit> column[NV];
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) column[j] = load_as<Vector<Unit>>(b + j * L);
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < NV; ++j) u[i][j] = S::fma(u[i][j], a[i * kRowStride], column[j]);
    }
  }
  const Results<Acc> r = results;
  if (r.bias) {
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) {
      const Vector<Acc> bias = load(r.bias + j * L);
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) u[i][j] += bias;
    }
  }
  if (r.dot) {
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      Vector<Acc> dot = r.dot[i];
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) dot += u[i][j] * load(r.other[i] + j * L);
      r.dot[i] = dot;
    }
  }
  if (r.relu)
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) u[i][j] = u[i][j] < 0 ? Vector<Acc>{} : u[i][j];
  if (r.scale)
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) u[i][j] *= r.scale[i];
  if (r.stream) {
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) store_past_caches(r.c[i] + j * L, u[i][j]);
    return;
  }
  if (r.add) {  // row after row: two may be the same
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) store(r.c[i] + j * L, u[i][j] + load(r.c[i] + j * L));
    return;
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) store(r.c[i] + j * L, u[i][j]);
}

template <class S, int kRowStride, int kDepthStride, int M = kMaxRows>
Kernel<S> kernel_for(int rows, int vectors) {
  if (rows == M)
    return vectors == 1 ? &cvmm_kernel<S, kRowStride, kDepthStride, M, 1>
                        : &cvmm_kernel<S, kRowStride, kDepthStride, M, 2>;
  if constexpr (M > 1) return kernel_for<S, kRowStride, kDepthStride, M - 1>(rows, vectors);
  __builtin_unreachable();
}

// n rows as strips of at most `most`, as even as possible: a ragged end costs no half-empty strip.
struct Strips {
  int64_t count, rows, longer;  // the first `longer` strips have one row more than `rows`
  Strips(int64_t n, int64_t most)
      : count((n + most - 1) / most), rows(count ? n / count : 0), longer(n - rows * count) {}
  int64_t begin(int64_t s) const { return s * rows + (s < longer ? s : longer); }
  int size(int64_t s) const { return static_cast<int>(rows + (s < longer)); }
};

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
