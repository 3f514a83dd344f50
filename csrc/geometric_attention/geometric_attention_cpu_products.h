// The matrix products of a block of rows. Scores are computed with rows in the lanes; the products with
// weights read them where the scan leaves them, at a[j * kDepth - r * kRow] for row r and key j.
#pragma once
#include "geometric_attention/geometric_attention_cpu_math.h"

namespace sysgen::SYSGEN_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kScoreColumns = 8, kTileRows = 8, kTileVectors = 3;
#elif defined(__AVX2__)
constexpr int kScoreColumns = 6, kTileRows = 4, kTileVectors = 3;
#else
constexpr int kScoreColumns = 6, kTileRows = 4, kTileVectors = 2;
#endif
constexpr int kStrips = 2;  // vectors of rows in a block

// n in parts of at most `most`, as even as possible.
struct Parts {
  int64_t count, size, longer;  // the first `longer` parts have one more than `size`
  Parts(int64_t n, int64_t most)
      : count(ceil_div(n, most)), size(count ? n / count : 0), longer(n - size * count) {}
  int64_t operator[](int64_t part) const { return size + (part < longer); }
};

// to[r / L][k][r % L] = rows[r][k] for r < count, 0 for the other rows of the last strip. Strips are
// interleaved: [k][strips][L].
template <class T>
void pack_rows(const T* rows, int64_t stride, int64_t count, int64_t depth, int strips, Accumulator<T>* to) {
  using A = Accumulator<T>;
  constexpr int L = kLanes<A>;
  for (int s = 0; s < strips; ++s)
    for (int64_t k = 0; k < depth; k += L) {
      Vector<A> v[L];
      for (int i = 0; i < L; ++i) {
        const int64_t r = s * L + i;
        v[i] = r < count ? load(rows + r * stride + k, depth - k) : Vector<A>{};
      }
      transpose<A>(v);
      const int64_t n = min_of(L, depth - k);
      for (int64_t i = 0; i < n; ++i) store(to + ((k + i) * strips + s) * L, v[i]);
    }
}

// out[c * pitch + s L] = sum over k of packed[k][s] * keys[c][k], for N keys.
template <class A, int S, int N>
void scores_kernel(int64_t depth, const A* packed, const A* keys, int64_t stride, A* out, int64_t pitch) {
  constexpr int L = kLanes<A>;
  const A* key[N];
#pragma GCC unroll 8
  for (int c = 0; c < N; ++c) key[c] = keys + c * stride;
  Vector<A> u[N][S] = {};
  for (int64_t k = 0; k < depth; ++k, packed += S * L) {
    Vector<A> row[S];
#pragma GCC unroll 2
    for (int s = 0; s < S; ++s) row[s] = load(packed + s * L);
#pragma GCC unroll 8
    for (int c = 0; c < N; ++c)
#pragma GCC unroll 2
      for (int s = 0; s < S; ++s) u[c][s] += key[c][k] * row[s];
  }
#pragma GCC unroll 8
  for (int c = 0; c < N; ++c)
#pragma GCC unroll 2
    for (int s = 0; s < S; ++s) store(out + c * pitch + s * L, u[c][s]);
}

template <class A>
using ScoresKernel = void (*)(int64_t, const A*, const A*, int64_t, A*, int64_t);
template <class A, int S, int N = kScoreColumns>
ScoresKernel<A> scores_kernel_for(int64_t columns) {
  if (columns == N) return &scores_kernel<A, S, N>;
  if constexpr (N > 1) return scores_kernel_for<A, S, N - 1>(columns);
  __builtin_unreachable();
}

// out[c * pitch + s L + r] = <row s L + r, key c> for c < count.
template <class A>
void scores(int64_t depth, const A* packed, int strips, const A* keys, int64_t stride, int64_t count, A* out,
            int64_t pitch) {
  const Parts parts(count, kScoreColumns);
  for (int64_t p = 0; p < parts.count; ++p) {
    const int64_t n = parts[p];
    (strips == 1 ? scores_kernel_for<A, 1>(n) : scores_kernel_for<A, 2>(n))(depth, packed, keys, stride, out,
                                                                            pitch);
    keys += n * stride;
    out += n * pitch;
  }
}

// One factor of a product, a part of the contraction.
template <class A>
struct Segment {
  const A* a;
  const A* x;
  int64_t depth;
};

// Where a product goes: rows of T, each times scale (and scales[row] if given), added to what is there if
// kAdd. past_caches: without kAdd, and rows of aligned whole vectors of T.
template <class T>
struct Target {
  T* rows;
  int64_t stride, width;
  Accumulator<T> scale = 1;
  const Accumulator<T>* scales = nullptr;
  bool past_caches = false;
};

template <class T, bool kAdd, int kRow, int kDepth, int M, int NV>
void product_kernel(const Segment<Accumulator<T>>* segments, int count, int64_t stride,
                    const Target<T>& target, int64_t row0, int64_t column) {
  using A = Accumulator<T>;
  constexpr int L = kLanes<A>;
  Vector<A> u[M][NV] = {};
  for (int s = 0; s < count; ++s) {
    const A *a = segments[s].a + row0 * kRow, *x = segments[s].x + column;
    for (int64_t k = segments[s].depth; k > 0; --k, a += kDepth, x += stride) {
      Vector<A> v[NV];
#pragma GCC unroll 3
      for (int j = 0; j < NV; ++j) v[j] = load(x + j * L);
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i)
#pragma GCC unroll 3
        for (int j = 0; j < NV; ++j) u[i][j] += a[i * kRow] * v[j];
    }
  }
  T* row = target.rows + row0 * target.stride + column;
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i, row += target.stride) {
    const A scale = target.scales ? target.scales[row0 + i] * target.scale : target.scale;
#pragma GCC unroll 3
    for (int j = 0; j < NV; ++j) {
      const int64_t left = target.width - column - j * L;
      Vector<A> v = u[i][j] * scale;
      if constexpr (kAdd) v += load(row + j * L, left);
      if constexpr (!kAdd && __is_same(T, A)) {
        if (target.past_caches) {
          store_past_caches(row + j * L, v);
          continue;
        }
      }
      store(row + j * L, v, left);
    }
  }
}

template <class T>
using ProductKernel = void (*)(const Segment<Accumulator<T>>*, int, int64_t, const Target<T>&, int64_t,
                               int64_t);
template <class T, bool kAdd, int kRow, int kDepth, int M = kTileRows, int NV = kTileVectors>
ProductKernel<T> product_kernel_for(int64_t rows, int64_t vectors) {
  if (rows == M && vectors == NV) return &product_kernel<T, kAdd, kRow, kDepth, M, NV>;
  if constexpr (NV > 1)
    if (vectors < NV) return product_kernel_for<T, kAdd, kRow, kDepth, M, NV - 1>(rows, vectors);
  if constexpr (M > 1)
    if (rows < M) return product_kernel_for<T, kAdd, kRow, kDepth, M - 1, NV>(rows, vectors);
  __builtin_unreachable();
}

// target[i] = sum over the segments and their k of a[i * kRow + k * kDepth] x[k], for i < rows.
template <bool kAdd, int kRow, int kDepth, class T>
void product(const Segment<Accumulator<T>>* segments, int count, int64_t stride, int64_t rows,
             const Target<T>& target) {
  constexpr int L = kLanes<Accumulator<T>>;
  const Parts tiles(rows, kTileRows), columns(ceil_div(target.width, L), kTileVectors);
  for (int64_t c = 0, column = 0; c < columns.count; column += columns[c++] * L)
    for (int64_t t = 0, row = 0; t < tiles.count; row += tiles[t++])
      product_kernel_for<T, kAdd, kRow, kDepth>(tiles[t], columns[c])(segments, count, stride, target, row,
                                                                      column);
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
