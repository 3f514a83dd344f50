// Matrix products of the recurrence: few rows, one per sample, times a weight that is read once a step.
//
// A lane is a column of the result, so that no sum goes across lanes, and each is summed in the order of k
// from 0: what it comes to does not depend on how the weight lies. A weight that is used often is packed
// first: strips of kStripVectors vectors of columns, in each strip one row of k after the other.
#pragma once
#include "dnc/dnc_cpu_rows.h"
#include "dnc/dnc_cpu_samples.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// The accumulators of a block, a strip's vectors and a broadcast fit the register file.
inline constexpr int kStripVectors = 3, kRowsOfBlock = kVectorBytes == 64 ? 8 : 4;

// From so many uses on, each by a block of rows, packing pays.
inline constexpr int64_t kUsesToPack = 3;

// How a weight lies: packed; [columns][k]; or [k][columns].
enum class Lies { packed, by_column, by_row };

template <class A>
struct Weight {
  const A* data;
  int64_t columns, k;
  Lies lies;

  static int64_t packed_numel(int64_t columns, int64_t k) { return padded<A>(columns) * k; }
};

template <class A>
Weight<A> pack_weight(const Weight<A>& from, int threads, A* to) {
  constexpr int64_t kWide = kStripVectors * kLanes<A>;
  const int64_t columns = from.columns, k = from.k;
  for_each_task(ceil_div(columns, kWide), columns * k < 100000 ? 1 : threads, [&](int64_t strip) {
    const int64_t first = strip * kWide, n = min_of(kWide, columns - first), wide = padded<A>(n);
    A* const rows = to + first * k;
    if (from.lies == Lies::by_column) return transpose_rows(from.data + first * k, k, n, k, rows, wide);
    for (int64_t i = 0; i < k; ++i) {
      copy(rows + i * wide, from.data + i * columns + first, n);
      clear(rows + i * wide + n, wide - n);
    }
  });
  return {to, columns, k, Lies::packed};
}

// Rows of a product: ROWS of `in` become sums of `out`.
template <class A>
struct LinearRows {
  const A* in;
  int64_t in_stride;
  A* out;
  int64_t out_stride;

  void advance(int64_t rows) {
    in += rows * in_stride;
    out += rows * out_stride;
  }
  template <int ROWS, int VECTORS>
  void add(int64_t columns, const Vector<A> (&sums)[ROWS][VECTORS]) const {
    for (int m = 0; m < ROWS; ++m)
      for (int v = 0; v < VECTORS; ++v) {
        A* const to = out + m * out_stride + v * kLanes<A>;
        const int64_t lanes = columns - v * kLanes<A>;
        store(to, load(to, lanes) + sums[m][v], lanes);
      }
  }
};

// out[m, j] += sum over i of in[m, i] rows[i, j], for ROWS rows and the `columns` of VECTORS vectors. WHOLE:
// the last vector may be read as a whole.
template <int ROWS, int VECTORS, bool WHOLE, class A>
inline void linear_block(const LinearRows<A>& m, const A* rows, int64_t stride, int64_t k, int64_t columns) {
  const LinearRows<A> p = m;
  Vector<A> sums[ROWS][VECTORS] = {};
  for (int64_t i = 0; i < k; ++i) {
    Vector<A> w[VECTORS];
    for (int v = 0; v < VECTORS; ++v) {
      const A* const from = rows + i * stride + v * kLanes<A>;
      w[v] = WHOLE || v + 1 < VECTORS ? load(from) : load(from, columns - v * kLanes<A>);
    }
    for (int r = 0; r < ROWS; ++r) {
      const A x = p.in[r * p.in_stride + i];
      for (int v = 0; v < VECTORS; ++v) sums[r][v] += w[v] * x;
    }
  }
  p.add(columns, sums);
}

// The same where weight [columns][k] is transposed in registers.
template <int ROWS, int VECTORS, class A>
inline void linear_across(const LinearRows<A>& m, const A* weight, int64_t k, int64_t columns) {
  constexpr int L = kLanes<A>;
  const LinearRows<A> p = m;
  Vector<A> sums[ROWS][VECTORS] = {};
  each_vector<A>(k, [&](int64_t i, int64_t lanes) SYSGEN_INLINE {
    for (int v = 0; v < VECTORS; ++v) {
      Vector<A> w[L];
      for (int64_t c = 0; c < L; ++c) {
        const int64_t column = min_of(v * L + c, columns - 1);  // of those behind the last nothing is stored
        w[c] = load(weight + column * k + i, lanes);
      }
      transpose<A>(w);
      if (lanes == L)
        for (int c = 0; c < L; ++c)
          for (int r = 0; r < ROWS; ++r) sums[r][v] += w[c] * p.in[r * p.in_stride + i + c];
      else
        for (int c = 0; c < L; ++c)
          for (int r = 0; r < ROWS && c < lanes; ++r) sums[r][v] += w[c] * p.in[r * p.in_stride + i + c];
    }
  });
  p.add(columns, sums);
}

// f<ROWS>(LinearRows) for all rows, ROWS at once and then fewer.
template <int ROWS, class A, class F>
inline void by_rows(LinearRows<A> m, int64_t rows, const F& f) {
  for (; rows >= ROWS; rows -= ROWS, m.advance(ROWS)) f.template operator()<ROWS>(m);
  if constexpr (ROWS > 1) by_rows<ROWS / 2>(m, rows, f);
}

// f<VECTORS>() for `columns` columns, at most MOST vectors of them.
template <int MOST, class A, class F>
inline void by_vectors(int64_t columns, const F& f) {
  if constexpr (MOST > 1)
    if (columns <= (MOST - 1) * kLanes<A>) return by_vectors<MOST - 1, A>(columns, f);
  f.template operator()<MOST>();
}

// out [rows, columns] += in [rows, k] . weight
template <class A>
void linear(const Team& team, const A* in, int64_t in_stride, int64_t rows, const Weight<A>& weight, A* out,
            int64_t out_stride) {
  const int64_t k = weight.k, columns = weight.columns;
  const auto strips = [&]<int VECTORS>(const auto& strip) {
    team.over(columns, VECTORS * kLanes<A>, rows * k * columns, [&](int64_t first, int64_t end) {
      by_vectors<VECTORS, A>(end - first, [&]<int V>() {
        strip.template operator()<V>(LinearRows<A>{in, in_stride, out + first, out_stride}, first,
                                     end - first);
      });
    });
  };
  switch (weight.lies) {
    case Lies::packed:
      return strips.template operator()<kStripVectors>([&]<int V>(const auto& m, int64_t first, int64_t n) {
        by_rows<kRowsOfBlock>(m, rows, [&]<int ROWS>(const auto& block) {
          linear_block<ROWS, V, true>(block, weight.data + first * k, V * kLanes<A>, k, n);
        });
      });
    case Lies::by_row:
      return strips.template operator()<4>([&]<int V>(const auto& m, int64_t first, int64_t n) {
        by_rows<kRowsOfBlock / 2>(m, rows, [&]<int ROWS>(const auto& block) {
          linear_block<ROWS, V, false>(block, weight.data + first, columns, k, n);
        });
      });
    case Lies::by_column:
      return strips.template operator()<2>([&]<int V>(const auto& m, int64_t first, int64_t n) {
        by_rows<kRowsOfBlock>(m, rows, [&]<int ROWS>(const auto& block) {
          // Two chains of sums hide their latency; with more rows there are as many.
          constexpr int kAtOnce = ROWS == 1 ? V : 1;
          auto part = block;
          for (int64_t j = 0; j < n; j += kAtOnce * kLanes<A>, part.out += kAtOnce * kLanes<A>)
            linear_across<ROWS, kAtOnce>(part, weight.data + (first + j) * k, k, n - j);
        });
      });
  }
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
