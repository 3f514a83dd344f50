// What the kernels of the DNC's recurrence work on: sizes, the interface vector, where state, tape and
// scratch lie.
#pragma once
#include "device/device.cuh"

namespace sysgen {

inline constexpr int kDncThreads = 256, kDncWarps = kDncThreads / 32;
inline constexpr int kDncTile = 32;      // cells that one block of a group owns together
inline constexpr int kDncLinkRows = 16;  // rows of the link matrix that a warp takes at a time

template <class A>
inline constexpr int kDncLinkColumns =
    sizeof(A) == 8 ? 1 : 2;  // of a lane of such a warp: registers hold no more

// Offsets into the interface vector (dnc.h); a part that is absent is empty.
struct DncInterfaceMap {
  int write_key, erase, value, free, write_strength, allocation_gate, write_gate;  // the write mask is at 0
  int read_mask, read_key, read_strength, mode, sharp_forward, sharp_backward, size;
};

template <class A>
struct DncProblem {
  i64 steps, batch, chunk;
  const i64* lengths;  // [B] or null
  u32* counters;       // [groups], zeros: the barriers of each group
  int hidden, cells, width, reads;
  int group;  // blocks that share a sample
  // Tiles of shared memory for the links of the rows that a block owns. Held: all of them, for the whole
  // sequence; else one for each warp, through which they come. And of the backward, for the links before a
  // step: all of them, which come ahead, or one for each warp.
  bool held, ahead;
  int link_tiles, prev_tiles;
  bool masked, dealloc, sharpen, detach_write;
  A eps, clip, mask_min;
  DncInterfaceMap at;
};

// Hands out pieces of one buffer; with a null buffer it only counts.
template <class A>
struct DncCarver {
  A* at;
  i64 used;
  __host__ __device__ A* take(i64 n) {
    A* const from = at ? at + used : nullptr;
    used += n;
    return from;
  }
  // What follows is aligned to 16 bytes if the buffer is.
  __host__ __device__ void align() { used = (used + 3) / 4 * 4; }
};

// The state of one sample, but for h and the reads.
template <class A>
struct DncCells {
  A *link, *memory, *usage, *precedence, *write_w, *read_w, *c;
};
template <class A>
__host__ __device__ DncCells<A> dnc_cells(DncCarver<A>& carver, i64 n, i64 w, i64 r, i64 h) {
  DncCells<A> s;
  s.link = carver.take(n * n);
  s.memory = carver.take(n * w);
  s.usage = carver.take(n);
  s.precedence = carver.take(n);
  s.write_w = carver.take(n);
  s.read_w = carver.take(r * n);
  s.c = carver.take(h);
  return s;
}

// What a step computes on its way and its backward needs. Heads of content addressing: 0 writes, 1 .. R read.
template <class A>
struct DncTape {
  A *xi, *act;                         // [I]: the interface before and after activation (modes: clamped)
  A *retention, *allocation, *before;  // [N]; before: product of the usages before a cell
  int* order;                          // [N]: cells by ascending usage
  A *key_norm, *dot, *norm, *weight;   // [1 + R], [1 + R, N]: <q key, cell>, |cell|, the softmax
  A *forward_d, *backward_d;           // [R, N]: projections
  A *forward_w, *backward_w;           // [R, N]: after sharpening
};
template <class A>
__host__ __device__ DncTape<A> dnc_tape(DncCarver<A>& carver, i64 n, i64 r, i64 interface, bool sharpen) {
  DncTape<A> t;
  t.xi = carver.take(interface);
  t.act = carver.take(interface);
  t.retention = carver.take(n);
  t.allocation = carver.take(n);
  t.before = carver.take(n);
  t.order = reinterpret_cast<int*>(carver.take(n));
  t.key_norm = carver.take(1 + r);
  t.dot = carver.take((1 + r) * n);
  t.norm = carver.take((1 + r) * n);
  t.weight = carver.take((1 + r) * n);
  t.forward_d = carver.take(r * n);
  t.backward_d = carver.take(r * n);
  t.forward_w = sharpen ? carver.take(r * n) : t.forward_d;
  t.backward_w = sharpen ? carver.take(r * n) : t.backward_d;
  carver.align();
  return t;
}

// Scratch of a group that no step leaves behind. Partial sums over tiles make every result independent of the
// number of blocks.
template <class A>
struct DncWork {
  A *content_z, *forward_z, *backward_z;  // [1 + R, N], [R, N]: arguments of the softmaxes
  A *row_part, *column_part;  // [column tiles, R (+ 1), N], [row tiles, R (+ 2), N]: of the link pass
  A* read_part;               // [tiles, R, W]
  // Backward only, by head of content addressing: ddot, and the factor of q cell in the cell's gradient.
  A *ddot, *dnorm;                       // [1 + R, N]
  A *dforward, *dbackward;               // [R, N]: of the projections
  A *dretention, *dwrite, *dallocation;  // [N]
  A *dot_part, *norm_part;               // [tiles, 1 + R, W]
  A *erase_part, *value_part;            // [tiles, W]
};
__host__ __device__ inline i64 dnc_tiles(i64 n, i64 size) { return (n + size - 1) / size; }
template <class A>
__host__ __device__ DncWork<A> dnc_work(DncCarver<A>& carver, i64 n, i64 w, i64 r, bool backward) {
  const i64 tiles = dnc_tiles(n, kDncTile), more = backward ? 1 : 0;
  DncWork<A> t{};
  t.content_z = carver.take((1 + r) * n);
  t.forward_z = carver.take(r * n);
  t.backward_z = carver.take(r * n);
  t.row_part = carver.take(dnc_tiles(n, 32 * kDncLinkColumns<A>) * (r + more) * n);
  t.column_part = carver.take(dnc_tiles(n, kDncLinkRows) * (r + 2 * more) * n);
  t.read_part = carver.take(tiles * r * w);
  if (backward) {
    t.ddot = carver.take((1 + r) * n);
    t.dnorm = carver.take((1 + r) * n);
    t.dforward = carver.take(r * n);
    t.dbackward = carver.take(r * n);
    t.dretention = carver.take(n);
    t.dwrite = carver.take(n);
    t.dallocation = carver.take(n);
    t.dot_part = carver.take(tiles * (1 + r) * w);
    t.norm_part = carver.take(tiles * (1 + r) * w);
    t.erase_part = carver.take(tiles * w);
    t.value_part = carver.take(tiles * w);
  }
  carver.align();
  return t;
}

// Scratch of one block: what all blocks of a group compute for themselves, where that costs less than to
// wait.
template <class A>
struct DncOwn {
  A* stats;  // [6 R + 2]
  A* reads;  // [R, W]: the reads before the step; backward: their gradient
};
template <class A>
__host__ __device__ DncOwn<A> dnc_own(DncCarver<A>& carver, i64 w, i64 r) {
  DncOwn<A> t;
  t.stats = carver.take(6 * r + 2);
  carver.align();
  t.reads = carver.take(r * w);
  carver.align();
  return t;
}

}  // namespace sysgen
