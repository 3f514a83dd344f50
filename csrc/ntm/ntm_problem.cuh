// What the kernels of the Neural Turing Machine's recurrence work on: sizes, the interface vector, where
// state, tape and scratch lie. Controller, products and carvers are those of the DNC. A block takes a sample.
#pragma once
#include "common/kernel_math.cuh"
#include "dnc/dnc_controller.cuh"

namespace sysgen {

inline constexpr int kNtmTile = 8;  // cells whose sums over a word one thread adds up

// Offsets into the interface vector (ntm.h); keys are at 0.
struct NtmInterfaceMap {
  int erase, add, strength, gate, sharpness, shift, size;
};

template <class A>
struct NtmProblem {
  DncProblem<A> common;  // `reads`: pairs of heads
  int reach, shifts;
  bool memory_shared;  // the memory of forward, or its gradient, lies in shared memory
  NtmInterfaceMap at;

  __device__ __forceinline__ i64 cells() const { return common.cells; }
  __device__ __forceinline__ int width() const { return common.width; }
};

// The state of one sample, but for h and the reads.
template <class A>
struct NtmCells {
  A *memory, *weights[2], *c;  // [N, W]; of the read and the write heads [P, N]; [H]
};
template <class A>
__host__ __device__ NtmCells<A> ntm_cells(DncCarver<A>& carver, i64 n, i64 w, i64 pairs, i64 h) {
  NtmCells<A> s;
  s.memory = carver.take(n * w);
  s.weights[0] = carver.take(pairs * n);
  s.weights[1] = carver.take(pairs * n);
  s.c = carver.take(h);
  return s;
}

// What a step computes on its way and its backward needs. Heads are numbered 2 p (reads) and 2 p + 1
// (writes).
template <class A>
struct NtmTape {
  A *xi, *act;              // [I]: the interface before and after activation
  A* key_norm;              // [2 P]
  A *dot, *norm, *content;  // [2 P, N], [P, N], [2 P, N]: <key, cell>, |cell|, the softmax
  A *mixed, *shifted;       // [2 P, N]: content and last weights; after the shift
  A* between;  // [P - 1, N, W]: the memory behind each write but the last; null: it stays in place
};
template <class A>
__host__ __device__ NtmTape<A> ntm_tape(DncCarver<A>& carver, i64 n, i64 w, i64 pairs, i64 interface,
                                        bool keep) {
  NtmTape<A> t;
  t.xi = carver.take(interface);
  t.act = carver.take(interface);
  t.key_norm = carver.take(2 * pairs);
  t.dot = carver.take(2 * pairs * n);
  t.norm = carver.take(pairs * n);
  t.content = carver.take(2 * pairs * n);
  t.mixed = carver.take(2 * pairs * n);
  t.shifted = carver.take(2 * pairs * n);
  t.between = keep ? carver.take((pairs - 1) * n * w) : nullptr;
  return t;
}

// [N, W] for what a block changes in every step; null where that does not fit.
template <class A>
__device__ __forceinline__ A* memory_in_shared(const NtmProblem<A>& p) {
  Smem smem;
  return p.memory_shared ? smem.elements<A>(p.common.cells * p.common.width) : nullptr;
}

// Scratch of a block that no step leaves behind, but for the reads.
template <class A>
struct NtmWork {
  A* reads;                    // [P, W]: before the step; backward: their gradient
  A* z;                        // [2, N]: arguments of a softmax
  A* parts;                    // [tiles, W]: shares of the reads
  A* stats;                    // [8]
  A* dweights;                 // backward: [2, N], of the weights
  A *dshifted, *dmixed;        // [2, N]
  A *ddot, *dnorm;             // [2, N]: the gradient of dot, and the factor of a cell in the cell's gradient
  A* dshift;                   // [2, K]
  A *key_parts, *write_parts;  // [tiles, 2, W] each: of the two keys; of erase and add
};
template <class A>
__host__ __device__ NtmWork<A> ntm_work(DncCarver<A>& carver, i64 n, i64 w, i64 pairs, i64 shifts,
                                        bool backward) {
  const i64 tiles = dnc_tiles(n, kNtmTile);
  NtmWork<A> t{};
  t.reads = carver.take(pairs * w);
  t.z = carver.take(2 * n);
  t.parts = carver.take(tiles * w);
  t.stats = carver.take(8);
  if (backward) {
    t.dweights = carver.take(2 * n);
    t.dshifted = carver.take(2 * n);
    t.dmixed = carver.take(2 * n);
    t.ddot = carver.take(2 * n);
    t.dnorm = carver.take(2 * n);
    t.dshift = carver.take(2 * shifts);
    t.key_parts = carver.take(tiles * 2 * w);
    t.write_parts = carver.take(tiles * 2 * w);
  }
  return t;
}

template <class A>
__device__ __forceinline__ i64 ntm_cells_numel(const NtmProblem<A>& p) {
  DncCarver<A> count{nullptr, 0};
  ntm_cells(count, p.cells(), p.width(), p.common.reads, p.common.hidden);
  return count.used;
}
// Sample b of tensors [B, ...]; a null pointer stays one.
template <class A>
__device__ __forceinline__ NtmCells<A> cells_of(const NtmProblem<A>& p, const NtmCells<A>& all, i64 b) {
  const i64 n = p.cells(), pairs = p.common.reads;
  const auto of = [b](A* x, i64 each) { return x ? x + b * each : nullptr; };
  return {of(all.memory, n * p.width()),
          {of(all.weights[0], pairs * n), of(all.weights[1], pairs * n)},
          of(all.c, p.common.hidden)};
}
// By all threads; zeros from a null pointer.
template <class A>
__device__ __forceinline__ void import_array(const A* from, A* to, i64 count) {
  for (i64 i = threadIdx.x; i < count; i += kDncThreads) to[i] = from ? from[i] : A(0);
}
template <class A>
__device__ __forceinline__ void import_cells(const NtmProblem<A>& p, const NtmCells<A>& from,
                                             const NtmCells<A>& to) {
  const i64 n = p.cells();
  import_array(from.memory, to.memory, n * p.width());
  for (int side = 0; side < 2; ++side) import_array(from.weights[side], to.weights[side], n * p.common.reads);
  import_array(from.c, to.c, p.common.hidden);
}

}  // namespace sysgen
