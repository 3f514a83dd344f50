// Matrix products of the recurrence: few rows, one per sample, times a weight that is read once a step.
//
// Weights are packed before the first step: strips of kStripVectors vectors of columns, in each strip one row
// of k after the other. A product then reads them in the order in which they lie, and a lane is a column, so
// that no sum goes across lanes.
#pragma once
#include "dnc/dnc_cpu_rows.h"
#include "dnc/dnc_cpu_samples.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// The accumulators of a block, a strip's vectors and a broadcast fit the register file.
inline constexpr int kStripVectors = 3, kRowsOfBlock = kVectorBytes == 64 ? 8 : 4;

// weight [columns, k], packed.
template <class A>
struct PackedWeight {
  const A* data;
  int64_t columns, k;

  static int64_t numel(int64_t columns, int64_t k) { return padded<A>(columns) * k; }
  int64_t strips() const { return ceil_div(columns, kStripVectors * kLanes<A>); }
};

template <class A>
PackedWeight<A> pack_weight(const A* weight, int64_t columns, int64_t k, int threads, A* to) {
  constexpr int64_t kWide = kStripVectors * kLanes<A>;
  for_each_task(ceil_div(columns, kWide), columns * k < 100000 ? 1 : threads, [&](int64_t strip) {
    const int64_t first = strip * kWide, wide = min_of(kWide, padded<A>(columns - first));
    A* const rows = to + first * k;
    for (int64_t j = 0; j < wide; j += kLanes<A>)
      for (int64_t i = 0; i < k; i += kLanes<A>) {
        Vector<A> v[kLanes<A>];
        for (int64_t c = 0; c < kLanes<A>; ++c) {
          const int64_t column = first + j + c;
          v[c] = column < columns ? load(weight + column * k + i, k - i) : Vector<A>{};
        }
        transpose<A>(v);
        for (int64_t c = 0; c < kLanes<A> && i + c < k; ++c) store(rows + (i + c) * wide + j, v[c]);
      }
  });
  return {to, columns, k};
}

// out[m, j] += sum over i of in[m, i] rows[i, j], in the order of i, for ROWS rows and the `columns` of a
// strip.
template <int ROWS, int VECTORS, class A>
inline void linear_block(const A* in, int64_t in_stride, const A* rows, int64_t k, int64_t columns, A* out,
                         int64_t out_stride) {
  Vector<A> sums[ROWS][VECTORS] = {};
  for (int64_t i = 0; i < k; ++i) {
    Vector<A> w[VECTORS];
    for (int v = 0; v < VECTORS; ++v) w[v] = load(rows + (i * VECTORS + v) * kLanes<A>);
    for (int m = 0; m < ROWS; ++m) {
      const A x = in[m * in_stride + i];
      for (int v = 0; v < VECTORS; ++v) sums[m][v] += w[v] * x;
    }
  }
  for (int m = 0; m < ROWS; ++m)
    for (int v = 0; v < VECTORS; ++v) {
      A* const to = out + m * out_stride + v * kLanes<A>;
      const int64_t lanes = columns - v * kLanes<A>;
      store(to, load(to, lanes) + sums[m][v], lanes);
    }
}

template <int ROWS, int VECTORS, class A>
inline void linear_strip(const A* in, int64_t in_stride, int64_t rows, const A* weight, int64_t k,
                         int64_t columns, A* out, int64_t out_stride) {
  for (; rows >= ROWS; rows -= ROWS, in += ROWS * in_stride, out += ROWS * out_stride)
    linear_block<ROWS, VECTORS>(in, in_stride, weight, k, columns, out, out_stride);
  if constexpr (ROWS > 1)
    linear_strip<ROWS / 2, VECTORS>(in, in_stride, rows, weight, k, columns, out, out_stride);
}

// out [rows, columns] += in [rows, k] . weight [columns, k]^T
template <class A>
void linear(const Team& team, const A* in, int64_t in_stride, int64_t rows, const PackedWeight<A>& weight,
            A* out, int64_t out_stride) {
  constexpr int64_t kWide = kStripVectors * kLanes<A>;
  const int64_t k = weight.k;
  team.over(weight.strips(), 1, rows * k * weight.columns, [&](int64_t strip, int64_t end) {
    for (; strip < end; ++strip) {
      const int64_t first = strip * kWide, columns = min_of(kWide, weight.columns - first);
      const A* const packed = weight.data + first * k;
      const int64_t vectors = ceil_div(columns, int64_t{kLanes<A>});
      const auto product = [&]<int VECTORS>() {
        linear_strip<kRowsOfBlock, VECTORS>(in, in_stride, rows, packed, k, columns, out + first, out_stride);
      };
      if (vectors == 3) product.template operator()<3>();
      if (vectors == 2) product.template operator()<2>();
      if (vectors == 1) product.template operator()<1>();
    }
  });
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
