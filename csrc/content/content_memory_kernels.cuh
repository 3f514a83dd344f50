// Writing and reading, see content.h. A kernel with sums over the cells has two phases: with the rows, and
// with the partial sums of the tiles.
#pragma once
#include "content/content_rows.cuh"

namespace sysgen {

// The columns of one warp in the rows of one tile.
struct ContentStrip {
  i64 tile, first, w;  // the tile and its first row, the column of this lane
  int rows;
  bool inside;

  __device__ __forceinline__ ContentStrip(const MemoryShape& s, i64 unit)
      : tile(unit / s.chunks()), first(tile * kTileRows), w(unit % s.chunks() * 32 + lane_id()) {
    rows = s.cells - first < kTileRows ? static_cast<int>(s.cells - first) : kTileRows;
    inside = w < s.width;
  }
};

// total[b, e] = the sum of partial[b, tile, e] over the tiles, of `size` elements e.
template <class P, class A>
__device__ __forceinline__ void sum_tiles(const A* partial, i64 b, i64 tiles, i64 size, A* total) {
  for (i64 e = i64(blockIdx.x) * P::THREADS + threadIdx.x; e < size; e += i64(gridDim.x) * P::THREADS) {
    A sum = 0;
    for (i64 tile = 0; tile < tiles; ++tile) sum += partial[(b * tiles + tile) * size + e];
    total[b * size + e] = sum;
  }
}

// ---- writing

template <class A>
struct MemoryWriting {
  MemoryShape s;
  const A *memory, *weights, *erase, *value, *retention;  // retention: or null

  __device__ __forceinline__ A kept(i64 cell) const { return retention ? retention[cell] : A(1); }
};

template <class A>
struct MemoryWriteFwdDevice {
  MemoryWriting<A> m;
  A* written;
};

template <class P>
__global__ void __launch_bounds__(P::THREADS, P::MIN_BLOCKS)
    memory_write_fwd_kernel(const MemoryWriteFwdDevice<typename P::A> a) {
  using A = typename P::A;
  const MemoryShape& s = a.m.s;
  for (i64 b = blockIdx.y; b < s.batch; b += gridDim.y)
    for_each_unit<P>(s.tiles() * s.chunks(), [&](i64 unit) {
      const ContentStrip strip(s, unit);
      if (!strip.inside) return;
      const A erase = a.m.erase[b * s.width + strip.w], value = a.m.value[b * s.width + strip.w];
#pragma unroll 4
      for (int i = 0; i < strip.rows; ++i) {
        const i64 cell = b * s.cells + strip.first + i, at = cell * s.width + strip.w;
        const A weight = a.m.weights[cell];
        a.written[at] = a.m.memory[at] * (1 - weight * erase) * a.m.kept(cell) + weight * value;
      }
    });
}

template <class A>
struct MemoryWriteBwdDevice {
  MemoryWriting<A> m;
  const A* dwritten;
  A *dmemory, *dweights, *derase, *dvalue, *dretention;  // dretention: or null
  A *erased, *added;                                     // scratch: partial sums [B, tiles, W]
  bool rows, sums;                                       // phases
};

// A warp owns whole rows: the lanes take their words, and then each lane the sums of one row.
template <class P>
__global__ void __launch_bounds__(P::THREADS, P::MIN_BLOCKS)
    memory_write_bwd_kernel(const MemoryWriteBwdDevice<typename P::A> a) {
  using A = typename P::A;
  SYSGEN_SHARED(typename P::Rows, by_weight, [P::WARPS]);
  SYSGEN_SHARED(typename P::Rows, by_retention, [P::WARPS]);
  const MemoryShape& s = a.m.s;
  const int lane = lane_id();
  for (i64 b = blockIdx.y; b < s.batch; b += gridDim.y) {
    if (a.rows)
      for_each_unit<P>(s.tiles(), [&](i64 tile) {
        auto &weight_sums = by_weight[warp_id()], &retention_sums = by_retention[warp_id()];
        const i64 first = b * s.cells + tile * kTileRows;
        const int rows =
            static_cast<int>(s.cells - tile * kTileRows < kTileRows ? s.cells - tile * kTileRows : kTileRows);
        for (int i = 0; i < rows; ++i) weight_sums[i][lane] = retention_sums[i][lane] = 0;
        for (i64 w = lane; w < s.width; w += 32) {
          const A erase = a.m.erase[b * s.width + w], value = a.m.value[b * s.width + w];
          A erased = 0, added = 0;
#pragma unroll 4
          for (int i = 0; i < rows; ++i) {
            const i64 at = (first + i) * s.width + w;
            const A weight = a.m.weights[first + i], kept = a.m.kept(first + i);
            const A d = a.dwritten[at], old = d * a.m.memory[at], rest = 1 - weight * erase;
            a.dmemory[at] = d * rest * kept;
            retention_sums[i][lane] += old * rest;
            weight_sums[i][lane] += d * value - old * kept * erase;
            erased -= old * kept * weight;
            added += weight * d;
          }
          const i64 partial = (b * s.tiles() + tile) * s.width + w;
          a.erased[partial] = erased;
          a.added[partial] = added;
        }
        __syncwarp();
        if (lane < rows) {
          A dweight = 0, dretention = 0;
          for (int c = 0; c < 32; ++c) {
            dweight += weight_sums[lane][c];
            dretention += retention_sums[lane][c];
          }
          a.dweights[first + lane] = dweight;
          if (a.dretention) a.dretention[first + lane] = dretention;
        }
        __syncwarp();
      });
    if (a.rows && a.sums) __syncthreads();
    if (a.sums) {
      sum_tiles<P>(a.erased, b, s.tiles(), s.width, a.derase);
      sum_tiles<P>(a.added, b, s.tiles(), s.width, a.dvalue);
    }
  }
}

// ---- reading

template <class A>
struct MemoryReadFwdDevice {
  MemoryShape s;
  const A *memory, *weights;
  A* reads;
  A* partial;       // scratch: [B, tiles, R, W]
  bool rows, sums;  // phases
};

template <class P>
__global__ void __launch_bounds__(P::THREADS, P::MIN_BLOCKS)
    memory_read_fwd_kernel(const MemoryReadFwdDevice<typename P::A> a) {
  using A = typename P::A;
  const MemoryShape& s = a.s;
  for (i64 b = blockIdx.y; b < s.batch; b += gridDim.y) {
    if (a.rows)
      for_each_unit<P>(s.tiles() * s.chunks(), [&](i64 unit) {
        const ContentStrip strip(s, unit);
        if (!strip.inside) return;
        const A* const memory = a.memory + (b * s.cells + strip.first) * s.width + strip.w;
        for (i64 r0 = 0; r0 < s.heads; r0 += P::HEADS) {
          const A* weights[P::HEADS];  // a head that is missing repeats the last one
          A read[P::HEADS];
#pragma unroll
          for (int h = 0; h < P::HEADS; ++h) {
            const i64 r = r0 + h < s.heads ? r0 + h : s.heads - 1;
            weights[h] = a.weights + (b * s.heads + r) * s.cells + strip.first;
            read[h] = 0;
          }
#pragma unroll 4
          for (int i = 0; i < strip.rows; ++i) {
            const A m = memory[i * s.width];
#pragma unroll
            for (int h = 0; h < P::HEADS; ++h) read[h] += weights[h][i] * m;
          }
#pragma unroll
          for (int h = 0; h < P::HEADS; ++h)
            if (r0 + h < s.heads)
              a.partial[((b * s.tiles() + strip.tile) * s.heads + r0 + h) * s.width + strip.w] = read[h];
        }
      });
    if (a.rows && a.sums) __syncthreads();
    if (a.sums) sum_tiles<P>(a.partial, b, s.tiles(), s.heads * s.width, a.reads);
  }
}

template <class A>
struct MemoryReadBwdDevice {
  MemoryShape s;
  const A *memory, *weights, *dreads;
  A *dmemory, *dweights;
};

// Two kinds of units: strips of dmemory, then rows and heads of dweights.
template <class P>
__global__ void __launch_bounds__(P::THREADS, P::MIN_BLOCKS)
    memory_read_bwd_kernel(const MemoryReadBwdDevice<typename P::A> a) {
  using A = typename P::A;
  SYSGEN_SHARED(typename P::Rows, tiles, [P::WARPS]);
  SYSGEN_SHARED(typename P::Vectors, vectors, [P::WARPS]);
  const MemoryShape& s = a.s;
  const i64 strips = s.tiles() * s.chunks(), groups = s.template groups<P>();
  for (i64 b = blockIdx.y; b < s.batch; b += gridDim.y)
    for_each_unit<P>(strips + s.tiles() * groups, [&](i64 unit) {
      const A* const dreads = a.dreads + b * s.heads * s.width;
      if (unit < strips) {
        const ContentStrip strip(s, unit);
        if (!strip.inside) return;
        const A* const weights = a.weights + b * s.heads * s.cells + strip.first;
        for (int i = 0; i < strip.rows; ++i) {
          A sum = 0;
          for (i64 r = 0; r < s.heads; ++r) sum += weights[r * s.cells + i] * dreads[r * s.width + strip.w];
          a.dmemory[(b * s.cells + strip.first + i) * s.width + strip.w] = sum;
        }
        return;
      }
      const i64 first = (unit - strips) / groups * kTileRows, r0 = (unit - strips) % groups * P::HEADS;
      A dot[P::HEADS], none[P::HEADS];
      row_products<P, false>(
          a.memory + (b * s.cells + first) * s.width, s.cells - first, s.width, tiles[warp_id()],
          vectors[warp_id()],
          [&](int h, i64 w, A& p, A&) {
            if (r0 + h < s.heads) p = dreads[(r0 + h) * s.width + w];
          },
          dot, none);
      const i64 i = first + lane_id();
#pragma unroll
      for (int h = 0; h < P::HEADS; ++h)
        if (i < s.cells && r0 + h < s.heads) a.dweights[(b * s.heads + r0 + h) * s.cells + i] = dot[h];
    });
}

}  // namespace sysgen
