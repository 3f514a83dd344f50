// Products of a few rows with a few keys, and the rows that are read next: many short sequences take less
// time to compute than to fetch, and the lines of the next one are under way meanwhile.
#pragma once
#include "geometric_attention/geometric_attention_cpu_products.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// Rows that are read soon. A walk in `steps` steps fetches each(steps) of them a step, evenly: lines that are
// asked for at once wait for each other, and the arithmetic behind them too.
template <class T>
class Ahead {
 public:
  static constexpr int kEach = 4;

  void clear() { count = 0; }
  void add(const T* row, int64_t stride, int64_t num_rows) {
    for (int64_t i = 0; i < num_rows && count < kMost; ++i) rows[count++] = row + i * stride;
  }
  int64_t each(int64_t steps) const { return min_of(kEach, ceil_div(count, max_of(1, steps))); }
  // The rows of a step go to `to`; how many.
  int64_t of_step(int64_t step, int64_t each, const T* (&to)[kEach]) const {
    const int64_t n = max_of(0, min_of(each, count - step * each));
    for (int64_t i = 0; i < n; ++i) to[i] = rows[step * each + i];
    return n;
  }

 private:
  static constexpr int64_t kMost = 160;
  const T* rows[kMost];
  int64_t count = 0;
};

// out[c * pitch + r] = <row r, key c>: the contraction runs over the lanes, and the sums of as many tiles'
// lanes as a vector has are added up at once. Writes whole groups of kDotRows rows.
constexpr int kDotRows = kVectorBytes / 8 < 4 ? 2 : 4;

template <class A, class T>
void dots(const Ahead<T>& ahead, int64_t depth, const A* rows, int64_t row_stride, int64_t num_rows,
          const A* keys, int64_t key_stride, int64_t num_keys, A* out, int64_t pitch) {
  constexpr int L = kLanes<A>, R = kDotRows, K = L / R;
  const int64_t each = ahead.each(ceil_div(num_rows, R) * ceil_div(num_keys, K));
  int64_t tile = 0;
  for (int64_t c = 0; c < num_keys; c += K) {
    const A* key[K];
#pragma GCC unroll 8
    for (int j = 0; j < K; ++j) key[j] = keys + min_of(c + j, num_keys - 1) * key_stride;
    for (int64_t r = 0; r < num_rows; r += R, ++tile) {
      const A* row[R];
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) row[i] = rows + min_of(r + i, num_rows - 1) * row_stride;
      const T* soon[Ahead<T>::kEach];
      const int64_t num_soon = ahead.of_step(tile, each, soon);
      Vector<A> u[L] = {};
      for (int64_t k = 0; k < depth; k += L) {
        for (int64_t i = 0; i < num_soon; ++i) __builtin_prefetch(soon[i] + k);
        Vector<A> x[R];
#pragma GCC unroll 4
        for (int i = 0; i < R; ++i) x[i] = load(row[i] + k);
#pragma GCC unroll 8
        for (int j = 0; j < K; ++j) {
          const Vector<A> y = load(key[j] + k);
#pragma GCC unroll 4
          for (int i = 0; i < R; ++i) u[j * R + i] += x[i] * y;
        }
      }
      alignas(64) A sums[L];
      store(sums, sums_of_lanes<A>(u));
      for (int64_t j = 0; j < min_of(K, num_keys - c); ++j)
        __builtin_memcpy(out + (c + j) * pitch + r, sums + j * R, sizeof(A) * R);
    }
  }
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
