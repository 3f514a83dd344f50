// Rows of one number per cell, padded with zeros to whole vectors, and the buffers that they lie in.
#pragma once
#include "dnc/dnc_cpu_math.h"

namespace sysgen::SYSGEN_ISA {
namespace {

template <class A>
inline int64_t padded(int64_t n) {
  return (n + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
}

// Hands out pieces of one buffer, each of whole vectors; with a null buffer it only counts.
template <class A>
struct Carver {
  A* at;
  int64_t used = 0;
  A* take(int64_t n) {
    A* const from = at ? at + used : nullptr;
    used += padded<A>(n);
    return from;
  }
};

// What of a recurrence's state a buffer has room for: all of it; a checkpoint: not h and the reads, which
// stand last in a state and which the outputs hold; a step that is done again: nor the links, which stand
// first.
enum class Holds { all, checkpoint, step };

template <class A>
const A* in(const void* p) {
  return static_cast<const A*>(p);
}
template <class A>
A* out(void* p) {
  return static_cast<A*>(p);
}

// Rows of `cells` entries, padded on the one side.
template <class A>
void pad_rows(const void* from, int64_t b, int64_t rows, int64_t n, A* to) {
  const int64_t wide = padded<A>(n);
  for (int64_t i = 0; i < rows; ++i) {
    if (from)
      copy(to + i * wide, in<A>(from) + (b * rows + i) * n, n);
    else
      clear(to + i * wide, n);
    clear(to + i * wide + n, wide - n);
  }
}
template <class A>
void unpad_rows(const A* from, int64_t b, int64_t rows, int64_t n, void* to) {
  for (int64_t i = 0; i < rows; ++i) copy(out<A>(to) + (b * rows + i) * n, from + i * padded<A>(n), n);
}

// to[j][i] = from[i][j] for i < rows, j < columns; behind them zeros up to a whole vector, where a row of
// `to` has room.
template <class A>
void transpose_rows(const A* from, int64_t from_stride, int64_t rows, int64_t columns, A* to,
                    int64_t to_stride) {
  for (int64_t i = 0; i < rows; i += kLanes<A>)
    for (int64_t j = 0; j < columns; j += kLanes<A>) {
      Vector<A> v[kLanes<A>];
      for (int64_t k = 0; k < kLanes<A>; ++k)
        v[k] = i + k < rows ? load(from + (i + k) * from_stride + j, columns - j) : Vector<A>{};
      transpose<A>(v);
      for (int64_t k = 0; k < kLanes<A> && j + k < columns; ++k)
        store(to + (j + k) * to_stride + i, v[k], to_stride - i);
    }
}

// Of sample b: [cells][width] on the one side, [width][cells, padded] on the other. Null: zeros.
template <class A>
void import_memory(const void* from, int64_t b, int64_t cells, int64_t width, A* to) {
  const int64_t n = padded<A>(cells);
  if (!from) return clear(to, width * n);
  transpose_rows(in<A>(from) + b * cells * width, width, cells, width, to, n);
}
template <class A>
void export_memory(const A* from, int64_t b, int64_t cells, int64_t width, void* to) {
  transpose_rows(from, padded<A>(cells), width, cells, out<A>(to) + b * cells * width, width);
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
