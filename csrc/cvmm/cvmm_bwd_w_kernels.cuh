// cvmm_bwd_w on the device: one block computes a [BM, BN] tile of dw[e] over one segment of the routes of e.
// The only segment of an expert is its dw; several are kept apart and summed in order by
// cvmm_segments_kernel, so that one expert with all routes keeps the machine busy and the result never
// depends on timing.
#pragma once
#include "cvmm/cvmm_products.cuh"

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

template <class P>
__global__ void __launch_bounds__(P::THREADS, P::MIN_BLOCKS)
    cvmm_bwd_w_kernel(const CvmmBwdWKernelArgs<typename P::T> a) {
  using T = typename P::T;
  static_assert(P::A_KM && P::B_KN && P::BK <= 32, "rows of both operands are routes; a lane holds one");
  SYSGEN_SHARED(Acc<T>, gates, [P::STAGES][P::BK]);
  Smem smem;
  auto& shared = smem.array<typename P::Shared>();

  const int tiles = a.m_tiles * a.n_tiles, tile = blockIdx.x % tiles;
  const i64 m0 = i64(tile / a.n_tiles) * P::BM, n0 = i64(tile % a.n_tiles) * P::BN;
  const i64 slot = blockIdx.x / tiles;
  const i64 e =
      warp_search(a.num_experts, [&](i64 i) { return segment_base(a.offsets, i, a.segment); }, slot);
  const i64 first = a.offsets[e], last = a.offsets[e + 1];
  const i64 index = slot - segment_base(a.offsets, e, a.segment), begin = first + index * a.segment;
  if (index > 0 && begin >= last) return;
  const int rows = last - begin < a.segment ? last - begin : a.segment;

  // Each lane fetches the route of one row of the next step, and shuffles hand it to who copies from that
  // row.
  const int lane = lane_id();
  int ahead = lane < rows ? a.order[begin + lane] : 0;
  const auto load = [&](int stage, int step) {
    const int row0 = step * P::BK, left = rows - row0, route = ahead;
    ahead = lane < left - P::BK ? a.order[begin + row0 + P::BK + lane] : 0;
    const int x_row = route / a.x.divisor, dy_row = route / a.dy.divisor;
    const auto same = [](int, int col) { return col; };
    load_rows<P::THREADS, P::BM>(
        shared.a[stage], m0, a.d, a.x.vec,
        [&](int i, bool& valid) {
          valid = i < left;
          return a.x.data + __shfl_sync(~0u, x_row, i) * a.x.stride;
        },
        same);
    load_rows<P::THREADS, P::BN>(
        shared.b[stage], n0, a.h, a.dy.vec,
        [&](int i, bool& valid) {
          valid = i < left;
          return a.dy.data + __shfl_sync(~0u, dy_row, i) * a.dy.stride;
        },
        same);
    if (a.gate && threadIdx.x < P::BK)
      cp_async<sizeof(Acc<T>)>(&gates[stage][lane], a.gate + route, lane < left);
  };

  P product;
  const bool active = m0 + product.warp_m < a.d && n0 + product.warp_n < a.h;
  pipeline<P::STAGES>(int((i64(rows) + P::BK - 1) / P::BK), load, [&](int stage) {
    if (active) product.multiply(shared, stage, a.gate ? gates[stage] : nullptr);
  });

  const bool whole = last - first <= a.segment;
  Acc<T>* acc_out = whole ? a.dw_acc ? a.dw_acc + e * a.d * a.h : nullptr
                          : a.segments + (kept_base(a.offsets, e, a.segment) + index) * a.d * a.h;
  T* out = whole && a.dw ? a.dw + e * a.d * a.h : nullptr;
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
