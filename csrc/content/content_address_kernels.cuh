// Content addressing, see content.h. Each direction is one kernel of several phases: in one launch, where a
// block owns all of a sample, or one launch for each phase, where its work is shared by many blocks.
#pragma once
#include "content/content_rows.cuh"

namespace sysgen {

template <class A>
struct ContentHeads {
  MemoryShape s;
  const A *memory, *key, *strength, *mask;  // mask: or null
  A eps;
};

// Calls f(r, i, dot, norm, key_norm) once for each head and cell of sample b, in the lane that owns the cell.
template <class P, class A, class F>
__device__ __forceinline__ void content_scores(const ContentHeads<A>& c, i64 b, typename P::Rows& tile,
                                               typename P::Vectors& vectors, F f) {
  const MemoryShape& s = c.s;
  const i64 groups = s.template groups<P>();
  for_each_unit<P>(s.tiles() * groups, [&](i64 unit) {
    const i64 first = unit / groups * kTileRows, r0 = unit % groups * P::HEADS;
    A dot[P::HEADS], norm[P::HEADS], key_norm[P::HEADS] = {};
    row_products<P, true>(
        c.memory + (b * s.cells + first) * s.width, s.cells - first, s.width, tile, vectors,
        [&](int h, i64 w, A& p, A& q) {
          if (r0 + h >= s.heads) return;
          const i64 at = (b * s.heads + r0 + h) * s.width + w;
          const A key = c.key[at];
          q = c.mask ? c.mask[at] * c.mask[at] : A(1);
          p = q * key;
          key_norm[h] += p * key;
        },
        dot, norm);
    const i64 i = first + lane_id();
#pragma unroll
    for (int h = 0; h < P::HEADS; ++h) {
      const A length = sqrt_of(over_warp<Sum>(key_norm[h]));
      if (i < s.cells && r0 + h < s.heads) f(r0 + h, i, dot[h], sqrt_of(norm[h]), length);
    }
  });
}

// ---- forward

// The phases of a kernel that addresses: logits strength * cosine to rows [B, R, N], then finish(head, row)
// by a block for each head.
struct AddressingPhases {
  bool scores, rows;
};

template <class P, class A, class F>
__device__ __forceinline__ void address_in_phases(const ContentHeads<A>& c, A* logits,
                                                  AddressingPhases phases, F finish) {
  SYSGEN_SHARED(typename P::Rows, tiles, [P::WARPS]);
  SYSGEN_SHARED(typename P::Vectors, vectors, [P::WARPS]);
  const MemoryShape& s = c.s;
  for (i64 b = blockIdx.y; b < s.batch; b += gridDim.y) {
    if (phases.scores)
      content_scores<P>(c, b, tiles[warp_id()], vectors[warp_id()],
                        [&](i64 r, i64 i, A dot, A norm, A key_norm) {
                          const i64 head = b * s.heads + r;
                          logits[head * s.cells + i] = c.strength[head] * (dot / (key_norm * norm + c.eps));
                        });
    if (phases.scores && phases.rows) __syncthreads();
    if (!phases.rows) continue;
    for (i64 r = blockIdx.x; r < s.heads; r += gridDim.x) {
      const i64 head = b * s.heads + r;
      finish(head, logits + head * s.cells);
    }
  }
}

template <class A>
struct ContentAddressFwdDevice {
  ContentHeads<A> c;
  A* weights;
  AddressingPhases phases;
};

template <class P>
__global__ void __launch_bounds__(P::THREADS, P::MIN_BLOCKS)
    content_address_fwd_kernel(const ContentAddressFwdDevice<typename P::A> a) {
  using A = typename P::A;
  SYSGEN_SHARED(A, parts, [P::WARPS]);
  address_in_phases<P>(a.c, a.weights, a.phases,
                       [&](i64, A* row) { softmax_by_block<P>(row, a.c.s.cells, parts); });
}

// ---- backward

template <class A>
struct ContentBackward {
  ContentHeads<A> c;
  A *dmemory, *dkey, *dstrength, *dmask;  // dmask: or null
  // Scratch. Of each head and cell: dot and |cell|, later what the cell and its square are multiplied with;
  // of each head: |key|, later the derivative by it over it; partial sums [B, tiles, 2, R, W].
  A *by_dot, *by_norm, *of_key, *partial;

  // Between the phase of the scores and that of the rows.
  __device__ __forceinline__ A cosine(i64 head, i64 i) const {
    const i64 at = head * c.s.cells + i;
    return by_dot[at] / (of_key[head] * by_norm[at] + c.eps);
  }
};

// From scores to what the pass over the memory multiplies with, for one head.
template <class P, class A>
__device__ __forceinline__ void content_row_bwd(const ContentBackward<A>& a, i64 head, const A* dweights,
                                                A (&parts)[P::WARPS]) {
  const i64 n = a.c.s.cells;
  A *const by_dot = a.by_dot + head * n, *const by_norm = a.by_norm + head * n;
  const A strength = a.c.strength[head], key_norm = a.of_key[head];
  const auto cosine = [&](i64 i) { return a.cosine(head, i); };
  A largest = minus_infinity<A>();
  for (i64 i = threadIdx.x; i < n; i += P::THREADS) largest = Largest()(largest, strength * cosine(i));
  largest = over_block<Largest>(largest, parts);
  A sum = 0, mean = 0;
  for (i64 i = threadIdx.x; i < n; i += P::THREADS) {
    const A e = exp_of(strength * cosine(i) - largest);
    sum += e;
    mean += e * dweights[i];
  }
  sum = over_block<Sum>(sum, parts);
  mean = over_block<Sum>(mean, parts) / sum;
  A dstrength = 0, dkey_norm = 0;
  for (i64 i = threadIdx.x; i < n; i += P::THREADS) {
    const A norm = by_norm[i], d = cosine(i), weight = exp_of(strength * d - largest) / sum;
    const A dz = weight * (dweights[i] - mean);
    const A ddot = strength * dz / (key_norm * norm + a.c.eps), dlengths = -ddot * d;
    dstrength += dz * d;
    dkey_norm += dlengths * norm;
    by_dot[i] = ddot;
    by_norm[i] = norm > 0 ? dlengths * key_norm / norm : A(0);
  }
  dstrength = over_block<Sum>(dstrength, parts);
  dkey_norm = over_block<Sum>(dkey_norm, parts);
  if (threadIdx.x == 0) {
    a.dstrength[head] = dstrength;
    a.of_key[head] = key_norm > 0 ? dkey_norm / key_norm : A(0);
  }
}

// dmemory, and the partial sums of one tile for the columns of one warp.
template <class P, class A>
__device__ __forceinline__ void content_memory_bwd(const ContentBackward<A>& a, i64 b, i64 unit,
                                                   typename P::Vectors& factors) {
  const MemoryShape& s = a.c.s;
  const i64 tile = unit / s.chunks(), first = tile * kTileRows, w = unit % s.chunks() * 32 + lane_id();
  const int rows = s.cells - first < kTileRows ? static_cast<int>(s.cells - first) : kTileRows;
  const bool inside = w < s.width;
  const i64 at = (b * s.cells + first) * s.width + w;
  for (i64 r0 = 0; r0 == 0 || r0 < s.heads; r0 += P::HEADS) {
    A product[P::HEADS], square[P::HEADS], by_dot[P::HEADS], by_norm[P::HEADS];
    __syncwarp();
#pragma unroll
    for (int h = 0; h < P::HEADS; ++h) {
      const bool there = r0 + h < s.heads;
      const i64 head = b * s.heads + r0 + h, word = head * s.width + w;
      const A mask = there && inside && a.c.mask ? a.c.mask[word] : A(1);
      square[h] = mask * mask;
      product[h] = there && inside ? square[h] * a.c.key[word] : A(0);
      by_dot[h] = by_norm[h] = 0;
      const bool owns = there && static_cast<int>(lane_id()) < rows;
      factors[h][0][lane_id()] = owns ? a.by_dot[head * s.cells + first + lane_id()] : A(0);
      factors[h][1][lane_id()] = owns ? a.by_norm[head * s.cells + first + lane_id()] : A(0);
    }
    __syncwarp();
    if (!inside) continue;
#pragma unroll 4
    for (int i = 0; i < rows; ++i) {
      const A m = a.c.memory[at + i * s.width];
      A dm = r0 ? a.dmemory[at + i * s.width] : A(0);
#pragma unroll
      for (int h = 0; h < P::HEADS; ++h) {
        const A dot = factors[h][0][i], norm = factors[h][1][i] * m;
        dm += dot * product[h] + norm * square[h];
        by_dot[h] += dot * m;
        by_norm[h] += norm * m;
      }
      a.dmemory[at + i * s.width] = dm;
    }
#pragma unroll
    for (int h = 0; h < P::HEADS; ++h) {
      if (r0 + h >= s.heads) continue;
      const i64 sums = 2 * (b * s.tiles() + tile) * s.heads + r0 + h;
      a.partial[sums * s.width + w] = by_dot[h];
      a.partial[(sums + s.heads) * s.width + w] = by_norm[h];
    }
  }
}

// dkey and dmask of one word.
template <class A>
__device__ __forceinline__ void content_key_bwd(const ContentBackward<A>& a, i64 b, i64 word) {
  const MemoryShape& s = a.c.s;
  const i64 words = s.heads * s.width, at = b * words + word;
  A by_dot = 0, by_norm = 0;
  for (i64 tile = 0; tile < s.tiles(); ++tile) {
    const i64 sums = 2 * (b * s.tiles() + tile) * words + word;
    by_dot += a.partial[sums];
    by_norm += a.partial[sums + words];
  }
  const A key = a.c.key[at], mask = a.c.mask ? a.c.mask[at] : A(1), slope = a.of_key[at / s.width];
  a.dkey[at] = mask * mask * (by_dot + slope * key);
  if (a.dmask) a.dmask[at] = mask * (by_norm + key * (2 * by_dot + slope * key));
}

// The phases of a backward kernel; dweights(head), by the block, gives the gradient of the weights of a head.
struct AddressingBwdPhases {
  bool scores, rows, memory, sums;
};

template <class P, class A, class F>
__device__ __forceinline__ void address_bwd_in_phases(const ContentBackward<A>& a, AddressingBwdPhases phases,
                                                      A (&parts)[P::WARPS], F dweights) {
  SYSGEN_SHARED(typename P::Rows, tiles, [P::WARPS]);
  SYSGEN_SHARED(typename P::Vectors, vectors, [P::WARPS]);
  const MemoryShape& s = a.c.s;
  const bool one_launch = phases.scores && phases.rows;
  for (i64 b = blockIdx.y; b < s.batch; b += gridDim.y) {
    if (phases.scores)
      content_scores<P>(a.c, b, tiles[warp_id()], vectors[warp_id()],
                        [&](i64 r, i64 i, A dot, A norm, A key_norm) {
                          const i64 head = b * s.heads + r;
                          a.by_dot[head * s.cells + i] = dot;
                          a.by_norm[head * s.cells + i] = norm;
                          if (i == 0) a.of_key[head] = key_norm;
                        });
    if (one_launch) __syncthreads();
    if (phases.rows)
      for (i64 r = blockIdx.x; r < s.heads; r += gridDim.x) {
        const i64 head = b * s.heads + r;
        content_row_bwd<P>(a, head, dweights(head), parts);
      }
    if (one_launch) __syncthreads();
    if (phases.memory)
      for_each_unit<P>(s.tiles() * s.chunks(),
                       [&](i64 unit) { content_memory_bwd<P>(a, b, unit, vectors[warp_id()]); });
    if (one_launch) __syncthreads();
    if (phases.sums)
      for (i64 word = i64(blockIdx.x) * P::THREADS + threadIdx.x; word < s.heads * s.width;
           word += i64(gridDim.x) * P::THREADS)
        content_key_bwd(a, b, word);
  }
}

template <class A>
struct ContentAddressBwdDevice {
  ContentBackward<A> a;
  const A* dweights;
  AddressingBwdPhases phases;
};

template <class P>
__global__ void __launch_bounds__(P::THREADS, P::MIN_BLOCKS)
    content_address_bwd_kernel(const ContentAddressBwdDevice<typename P::A> k) {
  using A = typename P::A;
  SYSGEN_SHARED(A, parts, [P::WARPS]);
  address_bwd_in_phases<P>(k.a, k.phases, parts, [&](i64 head) { return k.dweights + head * k.a.c.s.cells; });
}

}  // namespace sysgen
