// cvmm_bwd_w on the device: a [BM, BN] tile of dw[e] is computed over one segment of the routes of e, and a
// persistent block goes through many of them. The only segment of an expert is its dw; several are kept apart
// and summed in order by cvmm_segments_kernel, so that one expert with all routes keeps the machine busy and
// the result never depends on timing.
#pragma once
#include "cvmm/cvmm_products.cuh"
#include "cvmm/cvmm_stream.cuh"

namespace sysgen {

template <class T>
struct CvmmBwdWKernelArgs {
  const int* order;
  const int* offsets;
  i64 num_experts, d, h, segment;
  int m_tiles, n_tiles;
  RowOperand<T> x, dy;
  const Acc<T>* gate;
  T* dw;             // [E, d, h], or null
  Acc<T>* dw_acc;    // the same, if dw is wider than T
  Acc<T>* segments;  // [2 * (R / segment), d, h]
  bool vec_out;
};

// Segments lie like the tiles of cvmm_fwd_kernel, at least one for every expert: R / segment + E in total.
__device__ __forceinline__ i64 segment_base(const int* offsets, i64 e, i64 segment) {
  return offsets[e] / segment + e;
}
// First of the kept-apart segments of an expert whose routes [a, a + n) are more than one segment: it has
// ceil(n / segment) <= 2 * floor(n / segment) of them, and those of the next expert begin at least that much
// later, since floor(a / segment) + floor(n / segment) <= floor((a + n) / segment).
__device__ __forceinline__ i64 kept_base(const int* offsets, i64 e, i64 segment) {
  return 2 * (offsets[e] / segment);
}

// A block's tile: the part of dw[expert] from row m_tile * BM and column n_tile * BN, over the routes
// [row0, row0 + rows), which are segment `index` of the expert and all of its routes if `whole`.
struct CvmmBwdWTile {
  i64 expert, row0, index;
  int rows, m_tile, n_tile;
  int steps;  // along the routes; 0: there is no such tile
  bool whole;
};

template <class P>
struct alignas(128) CvmmBwdWShared {
  typename P::Shared stages;
  Acc<typename P::T> gates[P::STAGES][P::BK];
  CvmmBwdWTile tile[kStreamSlots<P::STAGES>];
};

// Which tiles a block works on: every gridDim.x-th of a list that goes through the segments in order.
template <class P>
struct CvmmBwdWTiles {
  const CvmmBwdWKernelArgs<typename P::T>& a;
  CvmmBwdWShared<P>& shared;
  i64 index, expert;
  int first;  // route of row `lane` of the tile that was found last

  __device__ __forceinline__ CvmmBwdWTiles(const CvmmBwdWKernelArgs<typename P::T>& a_,
                                           CvmmBwdWShared<P>& shared_)
      : a(a_), shared(shared_), index(blockIdx.x), expert(0), first(0) {}

  __device__ __forceinline__ void find(int slot) {
    CvmmBwdWTile tile{};
    const i64 tiles = i64(a.m_tiles) * a.n_tiles;
    const i64 end = segment_base(a.offsets, a.num_experts, a.segment) * tiles;
#pragma unroll 1
    for (; tile.steps == 0 && index < end; index += gridDim.x) {
      const i64 segment = index / tiles, from = expert;
      expert += warp_search(
          a.num_experts - from, [&](i64 e) { return segment_base(a.offsets, from + e, a.segment); }, segment);
      const i64 begin = a.offsets[expert], routes = a.offsets[expert + 1] - begin;
      tile.index = segment - segment_base(a.offsets, expert, a.segment);
      const i64 left = routes - tile.index * a.segment;
      if (tile.index > 0 && left <= 0) continue;
      tile.row0 = begin + tile.index * a.segment;
      tile.rows = left < a.segment ? left : a.segment;
      tile.whole = routes <= a.segment;
      tile.steps = tile.rows > P::BK ? (i64(tile.rows) + P::BK - 1) / P::BK : 1;  // 1: zeros, or one step
    }
    if (tile.steps > 0) {
      const int place = (index - gridDim.x) % tiles;
      tile.expert = expert;
      tile.m_tile = place / a.n_tiles;
      tile.n_tile = place % a.n_tiles;
      first = int(lane_id()) < tile.rows ? a.order[tile.row0 + lane_id()] : 0;
    }
    if (threadIdx.x == 0) shared.tile[slot] = tile;
  }
};

template <class P>
__device__ __forceinline__ void store_weight_gradient(const CvmmBwdWKernelArgs<typename P::T>& a,
                                                      const P& product, const CvmmBwdWTile& tile) {
  using T = typename P::T;
  const i64 e = tile.expert, m0 = i64(tile.m_tile) * P::BM, n0 = i64(tile.n_tile) * P::BN;
  Acc<T>* acc_out = tile.whole ? a.dw_acc ? a.dw_acc + e * a.d * a.h : nullptr
                               : a.segments + (kept_base(a.offsets, e, a.segment) + tile.index) * a.d * a.h;
  T* out = tile.whole && a.dw ? a.dw + e * a.d * a.h : nullptr;
#pragma unroll
  for (int i = 0; i < P::ROWS; ++i) {
    const i64 m = m0 + product.row(i);
    if (acc_out) {
      store_row<Acc<T>>(product, i, m < a.d ? acc_out + m * a.h : nullptr, n0, a.h, a.vec_out);
    } else {
      store_row<T>(product, i, m < a.d ? out + m * a.h : nullptr, n0, a.h, a.vec_out);
    }
  }
}

template <class P>
__global__ void __launch_bounds__(P::THREADS, P::MIN_BLOCKS)
    cvmm_bwd_w_kernel(const CvmmBwdWKernelArgs<typename P::T> a) {
  using T = typename P::T;
  static_assert(P::A_KM && P::B_KN && P::BK <= 32, "rows of both operands are routes; a lane holds one");
  Smem smem;
  auto& shared = smem.array<CvmmBwdWShared<P>>();
  CvmmBwdWTiles<P> tiles(a, shared);

  // Each lane fetches the route of one row of the next step, and shuffles hand it to who copies from that
  // row.
  int ahead = 0;
  const auto load = [&](int stage, int slot, int step) {
    const CvmmBwdWTile& tile = shared.tile[slot];
    const int lane = lane_id(), row0 = step * P::BK, left = tile.rows - row0;
    const int route = step == 0 ? tiles.first : ahead;
    ahead = lane < left - P::BK ? a.order[tile.row0 + row0 + P::BK + lane] : 0;
    const int x_row = route / a.x.divisor, dy_row = route / a.dy.divisor;
    load_rows<P::THREADS, P::BM>(
        shared.stages.a[stage], i64(tile.m_tile) * P::BM, a.d, a.x.vec,
        [&](int i, bool& valid) {
          valid = i < left;
          return a.x.data + __shfl_sync(~0u, x_row, i) * a.x.stride;
        },
        P::place_a);
    load_rows<P::THREADS, P::BN>(
        shared.stages.b[stage], i64(tile.n_tile) * P::BN, a.h, a.dy.vec,
        [&](int i, bool& valid) {
          valid = i < left;
          return a.dy.data + __shfl_sync(~0u, dy_row, i) * a.dy.stride;
        },
        P::place_b);
    if (a.gate && threadIdx.x < P::BK)
      cp_async<sizeof(Acc<T>)>(&shared.gates[stage][lane], a.gate + route, lane < left);
  };

  P product;
  stream_tiles<P::STAGES>([&](int slot) { tiles.find(slot); }, [](int) {},
                          [&](int slot) { return shared.tile[slot].steps; }, load,
                          [&](int stage, int slot) {
                            const CvmmBwdWTile& tile = shared.tile[slot];
                            if (i64(tile.m_tile) * P::BM + product.warp_m < a.d &&
                                i64(tile.n_tile) * P::BN + product.warp_n < a.h)
                              product.multiply(shared.stages, stage, a.gate ? shared.gates[stage] : nullptr);
                          },
                          [&](int slot) {
                            store_weight_gradient(a, product, shared.tile[slot]);
                            product = P();
                          });
}

template <class T>
struct CvmmSegmentsArgs {
  const int* offsets;
  i64 num_experts, elements, segment;  // elements: d * h
  const Acc<T>* segments;
  T* dw;
  Acc<T>* dw_acc;
};

// Block (i, y) sums the segments of the expert whose kept_base is 2 * i, if there is one: the last expert
// that begins before (i + 1) * segment, since an expert with several segments pushes the next one past that.
template <class T>
__global__ void __launch_bounds__(256) cvmm_segments_kernel(const CvmmSegmentsArgs<T> a) {
  const i64 i = blockIdx.x;
  const i64 e = warp_search(a.num_experts, [&](i64 j) { return a.offsets[j] / a.segment; }, i);
  const i64 routes = a.offsets[e + 1] - a.offsets[e];
  if (a.offsets[e] / a.segment != i || routes <= a.segment) return;
  const i64 count = (routes + a.segment - 1) / a.segment;
  const Acc<T>* source = a.segments + kept_base(a.offsets, e, a.segment) * a.elements;
  for (i64 j = blockIdx.y * 256ll + threadIdx.x; j < a.elements; j += gridDim.y * 256ll) {
    Acc<T> sum = source[j];
    for (i64 s = 1; s < count; ++s) sum += source[s * a.elements + j];
    if (a.dw_acc) {
      a.dw_acc[e * a.elements + j] = sum;
    } else {
      a.dw[e * a.elements + j] = from_acc<T>(sum);
    }
  }
}

}  // namespace sysgen
