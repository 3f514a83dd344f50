// Matrix products of the recurrence: few rows, one per sample, times a weight that is read once.
#pragma once
#include "dnc/dnc_cpu_math.h"
#include "dnc/dnc_cpu_samples.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// out[m, j] += <in[m], weight[j]> for ROWS rows and COLUMNS columns. A row's sums do not depend on its
// neighbours.
template <int ROWS, int COLUMNS, class A>
inline void linear_tile(const A* in, int64_t in_stride, const A* weight, int64_t k, A* out,
                        int64_t out_stride) {
  Vector<A> sums[ROWS * COLUMNS] = {};
  const auto add = [&](int64_t i, int64_t n) {
    Vector<A> x[ROWS];
    for (int m = 0; m < ROWS; ++m) x[m] = load(in + m * in_stride + i, n);
    for (int j = 0; j < COLUMNS; ++j) {
      const Vector<A> w = load(weight + j * k + i, n);
      for (int m = 0; m < ROWS; ++m) sums[m * COLUMNS + j] += x[m] * w;
    }
  };
  int64_t i = 0;
  for (; i + kLanes<A> <= k; i += kLanes<A>) add(i, kLanes<A>);
  if (i < k) add(i, k - i);
  A totals[ROWS * COLUMNS];
  sum_lanes_of_each(sums, totals);
  for (int m = 0; m < ROWS; ++m)
    for (int j = 0; j < COLUMNS; ++j) out[m * out_stride + j] += totals[m * COLUMNS + j];
}

template <int COLUMNS, class A>
inline void linear_rows(const A* in, int64_t in_stride, int64_t rows, const A* weight, int64_t k, A* out,
                        int64_t out_stride) {
  int64_t m = 0;
  for (; m + 4 <= rows; m += 4)
    linear_tile<4, COLUMNS>(in + m * in_stride, in_stride, weight, k, out + m * out_stride, out_stride);
  if (rows - m == 3)
    linear_tile<3, COLUMNS>(in + m * in_stride, in_stride, weight, k, out + m * out_stride, out_stride);
  if (rows - m == 2)
    linear_tile<2, COLUMNS>(in + m * in_stride, in_stride, weight, k, out + m * out_stride, out_stride);
  if (rows - m == 1)
    linear_tile<1, COLUMNS>(in + m * in_stride, in_stride, weight, k, out + m * out_stride, out_stride);
}

// out [rows, columns] += in [rows, k] . weight [columns, k]^T
template <class A>
void linear(const Team& team, const A* in, int64_t in_stride, int64_t rows, const A* weight, int64_t k,
            int64_t columns, A* out, int64_t out_stride) {
  team.over(columns, 64, rows * k * columns, [&](int64_t j, int64_t end) {
    for (; j + 4 <= end; j += 4) linear_rows<4>(in, in_stride, rows, weight + j * k, k, out + j, out_stride);
    for (; j < end; ++j) linear_rows<1>(in, in_stride, rows, weight + j * k, k, out + j, out_stride);
  });
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
