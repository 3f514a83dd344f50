// Stable counting sort of the routes by expert, least significant digit first: one pass for up to 2047
// experts, more beyond. A pass is histogram_kernel (keys of each tile by digit), scan_tiles_kernel (where a
// tile's share of a digit begins within the digit), scan_digits_kernel (where a digit begins) and
// scatter_kernel.
//
// A route's key is its expert id, or E if it is dropped; so the dropped ones end up at the tail.
#pragma once
#include "common/warp_scan.cuh"

namespace sysgen {

struct RouteTile {
  static constexpr int THREADS = 256, WARPS = THREADS / 32, ROUNDS = 8;
  static constexpr int SEGMENT = 32 * ROUNDS;   // keys of one warp, in order
  static constexpr int KEYS = WARPS * SEGMENT;  // keys of one block
  static constexpr int MAX_DIGITS = 2048;
};

struct RouteArgsDevice {
  const void* experts;  // [R] int32 or int64: the input of the first pass
  bool wide;            // int64
  const int* keys_in;   // [R] the input of the later passes
  const int* routes_in;
  i64 num_routes, num_experts, tiles;
  int shift, digits;  // of this pass
  bool first, last;
  int* histogram;   // [digits, tiles]
  int* bases;       // [digits]
  int* keys_out;    // [R], or null
  int* routes_out;  // [R]: `order` in the last pass
  int* inverse;     // [R]
  int* offsets;     // [E + 1]
};

__device__ __forceinline__ int route_key(const RouteArgsDevice& a, i64 i) {
  if (!a.first) return a.keys_in[i];
  const i64 e = a.wide ? static_cast<const i64*>(a.experts)[i] : static_cast<const int*>(a.experts)[i];
  return e >= 0 && e < a.num_experts ? e : a.num_experts;
}
__device__ __forceinline__ int route_digit(const RouteArgsDevice& a, int key) {
  return u32(key) >> a.shift & (RouteTile::MAX_DIGITS - 1);
}

__global__ void __launch_bounds__(RouteTile::THREADS) route_histogram_kernel(const RouteArgsDevice a) {
  SYSGEN_SHARED(int, counts, [RouteTile::MAX_DIGITS]);
  for (int d = threadIdx.x; d < a.digits; d += RouteTile::THREADS) counts[d] = 0;
  __syncthreads();
  const i64 begin = i64(blockIdx.x) * RouteTile::KEYS;
  for (int i = threadIdx.x; i < RouteTile::KEYS; i += RouteTile::THREADS)
    if (begin + i < a.num_routes) atomicAdd(&counts[route_digit(a, route_key(a, begin + i))], 1);
  __syncthreads();
  for (int d = threadIdx.x; d < a.digits; d += RouteTile::THREADS)
    a.histogram[d * a.tiles + blockIdx.x] = counts[d];
}

// One warp a digit: its counts become the exclusive sums over the tiles, its total goes to bases.
__global__ void __launch_bounds__(RouteTile::THREADS) route_scan_tiles_kernel(const RouteArgsDevice a) {
  const i64 digit = i64(blockIdx.x) * RouteTile::WARPS + warp_id();
  if (digit >= a.digits) return;
  int* counts = a.histogram + digit * a.tiles;
  int before = 0;
  for (i64 tile0 = 0; tile0 < a.tiles; tile0 += 32) {
    const i64 tile = tile0 + lane_id();
    const int count = tile < a.tiles ? counts[tile] : 0, sum = warp_sum(count);
    if (tile < a.tiles) counts[tile] = before + sum - count;
    before += __shfl_sync(~0u, sum, 31);
  }
  if (lane_id() == 0) a.bases[digit] = before;
}

// One block: bases become exclusive sums. With a single pass these are the offsets of the experts.
__global__ void __launch_bounds__(RouteTile::THREADS) route_scan_digits_kernel(const RouteArgsDevice a) {
  constexpr int EACH = RouteTile::MAX_DIGITS / RouteTile::THREADS;
  SYSGEN_SHARED(int, warp_totals, [RouteTile::WARPS]);
  int counts[EACH], total = 0;
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const int d = threadIdx.x * EACH + i;
    counts[i] = d < a.digits ? a.bases[d] : 0;
    total += counts[i];
  }
  const int sum = warp_sum(total);
  if (lane_id() == 31) warp_totals[warp_id()] = sum;
  __syncthreads();
  int base = sum - total;
#pragma unroll
  for (int w = 0; w < RouteTile::WARPS; ++w)
    if (u32(w) < warp_id()) base += warp_totals[w];
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const int d = threadIdx.x * EACH + i;
    if (d < a.digits) {
      a.bases[d] = base;
      if (a.first && a.last) a.offsets[d] = base;
    }
    base += counts[i];
  }
}

// Moves every key to bases[digit] + tiles before + warps before + rounds before + lanes before with its
// digit.
__global__ void __launch_bounds__(RouteTile::THREADS) route_scatter_kernel(const RouteArgsDevice a) {
  SYSGEN_SHARED(int, starts, [RouteTile::MAX_DIGITS]);
  SYSGEN_SHARED(unsigned short, before, [RouteTile::WARPS][RouteTile::MAX_DIGITS]);
  const int warp = warp_id(), lane = lane_id();
  for (int d = threadIdx.x; d < a.digits; d += RouteTile::THREADS) {
    starts[d] = a.bases[d] + a.histogram[d * a.tiles + blockIdx.x];
#pragma unroll
    for (int w = 0; w < RouteTile::WARPS; ++w) before[w][d] = 0;
  }
  __syncthreads();

  const i64 begin = i64(blockIdx.x) * RouteTile::KEYS + warp * RouteTile::SEGMENT;
  int key[RouteTile::ROUNDS], rank[RouteTile::ROUNDS];
#pragma unroll
  for (int i = 0; i < RouteTile::ROUNDS; ++i) {
    const i64 place = begin + i * 32 + lane;
    const bool valid = place < a.num_routes;
    key[i] = valid ? route_key(a, place) : 0;
    const int digit = valid ? route_digit(a, key[i]) : -1;
    const u32 same = __match_any_sync(~0u, digit);
    const int below = __popc(same & ((1u << lane) - 1));
    rank[i] = valid ? before[warp][digit] + below : 0;
    __syncwarp();
    if (valid && below == 0) before[warp][digit] += __popc(same);
    __syncwarp();
  }
  __syncthreads();
  for (int d = threadIdx.x; d < a.digits; d += RouteTile::THREADS) {
    int sum = 0;
#pragma unroll
    for (int w = 0; w < RouteTile::WARPS; ++w) {
      const int count = before[w][d];
      before[w][d] = sum;
      sum += count;
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < RouteTile::ROUNDS; ++i) {
    const i64 place = begin + i * 32 + lane;
    if (place >= a.num_routes) continue;
    const int digit = route_digit(a, key[i]), to = starts[digit] + before[warp][digit] + rank[i];
    const int route = a.first ? place : a.routes_in[place];
    a.routes_out[to] = route;
    if (a.keys_out) a.keys_out[to] = key[i];
    if (a.last) a.inverse[route] = key[i] < a.num_experts ? to : -1;
  }
}

// After several passes: offsets[e] = number of keys below e, by binary search in the sorted keys.
__global__ void __launch_bounds__(RouteTile::THREADS) route_offsets_kernel(const RouteArgsDevice a) {
  const i64 first = i64(blockIdx.x) * RouteTile::THREADS + threadIdx.x;
  for (i64 e = first; e <= a.num_experts; e += i64(gridDim.x) * RouteTile::THREADS) {
    i64 low = 0, high = a.num_routes;
    while (low < high) {
      const i64 middle = (low + high) / 2;
      if (a.keys_out[middle] < e) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    a.offsets[e] = low;
  }
}

}  // namespace sysgen
