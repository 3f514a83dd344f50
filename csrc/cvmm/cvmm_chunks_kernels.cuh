// Chunks of tokens in sorted order. The routes of an expert ascend in it, so those of a chunk follow each
// other.
#pragma once
#include "common/warp_scan.cuh"

namespace sysgen {

struct CvmmChunksArgs {
  const int* order;
  const int* offsets;  // [E + 1]
  i64 num_experts, chunk_routes;
  int* begins;         // [C, E]: where the routes of a chunk and an expert begin in `order`
  int* chunk_offsets;  // [C, E + 1]: sums over the experts before of how many they are
};

// First place in [first, last) whose route is at least `route`; `last` if there is none.
__device__ __forceinline__ int first_place(const int* order, int first, int last, i64 route) {
  while (first < last) {
    const int middle = first + (last - first) / 2;
    if (order[middle] < route) {
      first = middle + 1;
    } else {
      last = middle;
    }
  }
  return first;
}

// A block, of one warp, does one chunk.
__global__ void __launch_bounds__(32) cvmm_chunks_kernel(const CvmmChunksArgs a) {
  const i64 c = blockIdx.x, route = c * a.chunk_routes;
  int* const begins = a.begins + c * a.num_experts;
  int* const offsets = a.chunk_offsets + c * (a.num_experts + 1);
  int before = 0;
  for (i64 e0 = 0; e0 < a.num_experts; e0 += 32) {
    const i64 e = e0 + lane_id();
    int begin = 0, count = 0;
    if (e < a.num_experts) {
      begin = first_place(a.order, a.offsets[e], a.offsets[e + 1], route);
      count = first_place(a.order, begin, a.offsets[e + 1], route + a.chunk_routes) - begin;
    }
    const int sum = warp_sum(count);
    if (e < a.num_experts) {
      begins[e] = begin;
      offsets[e] = before + sum - count;
    }
    before += __shfl_sync(~0u, sum, 31);
  }
  if (lane_id() == 0) offsets[a.num_experts] = before;
}

}  // namespace sysgen
