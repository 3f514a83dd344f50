// What becomes of a product's rows between the accumulators and memory, for all kernels of cvmm_fwd: bias,
// dot, activation or its slope, gate. Args are CvmmFwdKernelArgs, products those of cvmm_products.cuh.
#pragma once
#include "cvmm/activation_math.cuh"
#include "cvmm/cvmm_tiles.cuh"

namespace sysgen {

template <class P, class A, class Args>
__device__ __forceinline__ void add_bias(const Args& a, P& product, i64 expert, i64 n0) {
  if (!a.bias) return;
  const A* bias = a.bias + expert * a.h + n0;
#pragma unroll
  for (int j = 0; j < P::RUNS; ++j)
#pragma unroll
    for (int l = 0; l < P::LEN; ++l) {
      const int col = product.col(j) + l;
      const A b = n0 + col < a.h ? bias[col] : 0;
#pragma unroll
      for (int i = 0; i < P::ROWS; ++i) product.at(i, j, l) += b;
    }
}

// Neighbouring runs of one row, of 16 bytes of T: what goes through the epilogue at once.
template <class P, class T>
struct RowPart {
  using A = Acc<T>;
  static constexpr int LEN = P::LEN, RUN_STRIDE = P::RUN_STRIDE;
  static constexpr int ALL = sizeof(T) == 2 ? 4 : 4 / LEN, RUNS = P::RUNS < ALL ? P::RUNS : ALL;
  static constexpr int COUNT = P::RUNS / RUNS, SIZE = RUNS * LEN;  // parts of a row, elements of a part
  int first;
  A v[SIZE];
  __device__ __forceinline__ int col(int j) const { return first + j * RUN_STRIDE; }
  __device__ __forceinline__ A& at(int, int j, int l) { return v[j * LEN + l]; }
  __device__ __forceinline__ A at(int, int j, int l) const { return v[j * LEN + l]; }

  // Part `part` of row i, which need not be known at compile time: accumulators have no addresses, so they
  // are chosen among all.
  __device__ __forceinline__ RowPart(const P& product, int i, int part) : first(product.col(part * RUNS)) {
#pragma unroll
    for (int n = 0; n < P::ROWS * COUNT; ++n)
      if (n == 0 || n == i * COUNT + part)
#pragma unroll
        for (int e = 0; e < SIZE; ++e) v[e] = product.at(n / COUNT, n % COUNT * RUNS + e / LEN, e % LEN);
  }
};

// For loops that are not unrolled: the first COUNT elements move to the end.
template <int COUNT, int SIZE, class E>
__device__ __forceinline__ void rotate(E (&v)[SIZE]) {
  E old[SIZE];
#pragma unroll
  for (int n = 0; n < SIZE; ++n) old[n] = v[n];
#pragma unroll
  for (int n = 0; n < SIZE; ++n) v[n] = old[(n + COUNT) % SIZE];
}

// A part of row m of the tile, which is that of route r (-1: of none), to memory.
template <class T, class Args, class Part>
__device__ __forceinline__ void store_part(const Args& a, const Part& u, int m, int r, i64 row0, i64 n0) {
  if (a.out) {
    store_row<T>(u, 0, r >= 0 ? a.out + i64(r) * a.h : nullptr, n0, a.h, a.vec_out);
  } else if (a.sorted) {
    const i64 to = a.begins ? r - a.first_route : row0 + m;
    store_row<Acc<T>>(u, 0, r >= 0 ? a.sorted + to * a.h : nullptr, n0, a.h, a.vec_out);
  }
}

// Rows that are at most cut off at zero and multiplied with their gates.
template <class T, class P, class Args, class RouteOf>
__device__ __forceinline__ void finish_plain_rows(const Args& a, const P& product, i64 row0, i64 n0,
                                                  RouteOf route_of) {
  using A = Acc<T>;
  using Part = RowPart<P, T>;
#pragma unroll
  for (int i = 0; i < P::ROWS; ++i) {
    const int m = product.row(i), r = route_of(m);
    const A gate = a.gate && r >= 0 ? a.gate[r] : 1;
#pragma unroll
    for (int part = 0; part < Part::COUNT; ++part) {
      Part u(product, i, part);
#pragma unroll
      for (A& x : u.v) {
        if (a.activation == Activation::relu && x < 0) x = 0;
        x *= gate;
      }
      store_part<T>(a, u, m, r, row0, n0);
    }
  }
}

// The element of `other` at u, or else what goes into the activation, in y. u becomes the result, which is
// 0 where a slope is, whatever the gate; y what goes to a.second. Returns the share of dot.
template <bool SMOOTH, class T, class Args>
__device__ __forceinline__ Acc<T> finish_element(const Args& a, bool reads, Acc<T>& u, Acc<T>& y,
                                                 Acc<T> gate) {
  using A = Acc<T>;
  if (!reads) y = to_acc(from_acc<T>(u));  // as the backward will see it
  const A before = u, at = reads && !a.slope ? u : y;
  const bool relu = a.activation == Activation::relu;
  const Activated<A> f = activated(SMOOTH ? a.activation
                                   : relu ? Activation::relu
                                          : Activation::identity,
                                   at, a.slope);
  if (a.slope) y = to_acc(from_acc<T>(f.value));
  u = !a.slope ? f.value * gate : f.slope == 0 ? 0 : u * f.slope * gate;
  return before * y;
}

// The elements of word `w` of a part, of which `inside` says whether they are columns.
template <bool SMOOTH, class T, class Args, class Inside>
__device__ __forceinline__ Acc<T> finish_word(const Args& a, bool reads, Acc<T>* u,
                                              typename Word<T>::type& word, Acc<T> gate, Inside inside) {
  Acc<T> y[Word<T>::PER], dot = 0;
  Word<T>::unpack(word, y);
#pragma unroll
  for (int l = 0; l < Word<T>::PER; ++l) {
    const Acc<T> share = finish_element<SMOOTH, T>(a, reads, u[l], y[l], gate);
    if (inside(l)) dot += share;
  }
  word = Word<T>::pack(y);
  return dot;
}

// All others, in loops: unrolled they would be thousands of instructions.
template <class T, class P, class Args, class RouteOf, class KeepDot>
__device__ __forceinline__ void finish_any_rows(const Args& a, const P& product, i64 row0, i64 n0,
                                                RouteOf route_of, KeepDot keep_dot) {
  using A = Acc<T>;
  using Part = RowPart<P, T>;
  using Words = RowWords<T, Part>;
  constexpr int PER = Word<T>::PER;
  const bool reads = a.other.data, vec = a.other.vec == 16;
  A dot = 0;
#pragma unroll 1
  for (int n = 0; n < P::ROWS * Part::COUNT; ++n) {
    const int i = n / Part::COUNT, part = n % Part::COUNT, m = product.row(i), r = route_of(m);
    const A gate = a.gate && r >= 0 ? a.gate[r] : 1;
    Words y{};
    if (reads)
      y.start(r >= 0 ? a.other.data + r / a.other.divisor * a.other.stride : nullptr,
              n0 + product.col(part * Part::RUNS), a.h, vec);
    Part u(product, i, part);
    if (reads) y.arrive(vec);
    const auto inside = [&](int e) { return n0 + u.col(e / Part::LEN) + e % Part::LEN < a.h; };
    if (a.activation > Activation::relu) {
#pragma unroll 1
      for (int w = 0; w < Words::COUNT; ++w) {
        dot +=
            finish_word<true, T>(a, reads, u.v, y.word[0], gate, [&](int l) { return inside(w * PER + l); });
        rotate<PER>(u.v);
        rotate<1>(y.word);
      }
    } else {
#pragma unroll
      for (int w = 0; w < Words::COUNT; ++w)
        dot += finish_word<false, T>(a, reads, u.v + w * PER, y.word[w], gate,
                                     [&](int l) { return inside(w * PER + l); });
    }
    store_part<T>(a, u, m, r, row0, n0);
    if (a.second) {
#pragma unroll
      for (int w = 0; w < Words::COUNT; ++w) {
        A v[PER];
        Word<T>::unpack(y.word[w], v);
#pragma unroll
        for (int l = 0; l < PER; ++l) u.v[w * PER + l] = v[l];
      }
      store_row<T>(u, 0, r >= 0 ? a.second + i64(r) * a.h : nullptr, n0, a.h, a.vec_out);
    }
    if (part < Part::COUNT - 1 || !(a.dot || a.dot_tiles)) continue;
    dot += __shfl_xor_sync(~0u, dot, 1);
    dot += __shfl_xor_sync(~0u, dot, 2);
    if (lane_id() % 4 == 0) keep_dot(m, dot);
    dot = 0;
  }
}

// The rows of a tile from columns n0 on. route_of(m): the route of row m of the tile, -1 behind its last one.
// keep_dot(m, sum): one thread of those that hold row m has the sum over the product's columns.
template <class T, class P, class Args, class RouteOf, class KeepDot>
__device__ __forceinline__ void finish_rows(const Args& a, const P& product, i64 row0, i64 n0,
                                            RouteOf route_of, KeepDot keep_dot) {
  if (a.other.data || a.activation > Activation::relu) {
    finish_any_rows<T>(a, product, row0, n0, route_of, keep_dot);
  } else {
    finish_plain_rows<T>(a, product, row0, n0, route_of);
  }
}

}  // namespace sysgen
