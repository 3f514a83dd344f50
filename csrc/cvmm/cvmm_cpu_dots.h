// The micro-kernel for few rows and a W whose elements along the contraction lie together: dot products, with
// W read once, in the order of memory, and never copied. Each sum is spread over the lanes of a vector.
#pragma once
#include "cvmm/cvmm_cpu_lanes.h"
#include "cvmm/cvmm_cpu_pack.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// As many sums as a vector has lanes: of M rows by kDotColumns<S, M> columns.
template <class S, int M>
inline constexpr int kDotColumns = kLanes<typename S::Acc> / M;
template <class S>
inline constexpr int kMostDotRows = kLanes<typename S::Acc> / 2;

// to[i * to_stride + j] = row i of x . column j of W. Rows of x are packed, `pitch` units apart, with zeros
// up to a whole vector; columns of W begin `stride` elements apart. Of columns beyond `columns`, at least
// one, the results mean nothing. `ahead`: bytes from an element of W to the one to fetch with it.
template <class T, class TW, int M>
void dot_kernel(int64_t depth, const typename Step<T>::Unit* x, int64_t pitch, const TW* w, int64_t stride,
                int64_t columns, int64_t ahead, typename Step<T>::Acc* to, int64_t to_stride) {
  using S = Step<T>;
  using Unit = typename S::Unit;
  using Acc = typename S::Acc;
  constexpr int J = kDotColumns<S, M>, kStep = kLanes<Unit> * S::kDepth;
  const TW* column[J];
  for (int j = 0; j < J; ++j) column[j] = w + min_of(j, columns - 1) * stride;
  Vector<Acc> sums[kLanes<Acc>] = {};
  const auto step = [&](int64_t k, int64_t left) SYSGEN_INLINE {
    Vector<Unit> row[M];
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) row[i] = load_as<Vector<Unit>>(x + i * pitch + k / S::kDepth);
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) {
      for (size_t line = 0; line < kStep * sizeof(TW); line += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(column[j] + k) + line + ahead, 0, 3);
      const Vector<Unit> unit = units_along<T>(column[j] + k, left);
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) sums[i * J + j] = S::fma(sums[i * J + j], row[i], unit);
    }
  };
  int64_t k = 0;
  for (; k + kStep <= depth; k += kStep) step(k, int64_t{kStep});
  if (k < depth) step(k, depth - k);
  Acc result[kLanes<Acc>];
  store(result, sums_of_lanes<Acc>(sums));
  for (int i = 0; i < M; ++i) __builtin_memcpy(to + i * to_stride, result + i * J, sizeof(Acc) * J);
}

template <class T, class TW>
using DotKernel = decltype(&dot_kernel<T, TW, 1>);

// The smallest one that has `rows` rows, at most kMostDotRows.
template <class T, class TW, int M = 1>
DotKernel<T, TW> dot_kernel_for(int rows, int& columns) {
  columns = kDotColumns<Step<T>, M>;
  if constexpr (2 * M <= kMostDotRows<Step<T>>)
    if (rows > M) return dot_kernel_for<T, TW, 2 * M>(rows, columns);
  return &dot_kernel<T, TW, M>;
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
