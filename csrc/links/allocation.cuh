// Allocation of the cells of one sample by one block: in which order they are used, and products and
// recurrences along that order. No division, no atomics; ties go to the lower index and NaN counts as used
// most.
#pragma once
#include "device/device.cuh"

namespace sysgen {

template <class A>
__device__ __forceinline__ bool used_less(A a, int i, A b, int j) {
  return a < b || (a == a && b != b) || ((a == b || (a != a && b != b)) && i < j);
}

template <class A>
__device__ __forceinline__ A rescaled_usage(A usage, A eps) {
  return usage * (A(1) - eps) + eps;
}

// Allocation of cell i without a sort: one factor for every cell used less. `usage` of n cells is best in
// shared memory.
template <class A>
__device__ __forceinline__ A allocation_by_rank(const A* usage, int n, int i, A eps) {
  const A mine = usage[i];
  A product = A(1) - rescaled_usage(mine, eps);
  for (int j = 0; j < n; ++j)
    if (used_less(usage[j], j, mine, i)) product *= rescaled_usage(usage[j], eps);
  return product;
}

template <class A_, int CELLS_>
struct AllocationTile {  // a block for up to CELLS cells
  using A = A_;
  static constexpr int CELLS = CELLS_, THREADS = CELLS < 512 ? CELLS : 512, WARPS = THREADS / 32;
  static constexpr int EACH = CELLS / THREADS;   // consecutive cells, in order of usage, of a thread
  static constexpr bool BY_RANK = CELLS <= 512;  // comparing all pairs takes less time than sorting
  using Values = A[CELLS];
  using Order = int[CELLS];
};

// ascending[k] and order[k], the k-th least used cell, for k < n. All three are shared; a barrier comes last.
template <class P>
__device__ __forceinline__ void order_by_rank(const typename P::Values& usage, int n,
                                              typename P::Values& ascending, typename P::Order& order) {
  for (int i = threadIdx.x; i < n; i += P::THREADS) {
    const typename P::A mine = usage[i];
    int rank = 0;
    for (int j = 0; j < n; ++j) rank += used_less(usage[j], j, mine, i);
    ascending[rank] = mine;
    order[rank] = i;
  }
  __syncthreads();
}

// The same by a bitonic sort in place: usage and order must be set, order[i] = i, behind a barrier. What lies
// behind the n cells, up to the next power of two, is overwritten.
template <class P>
__device__ __forceinline__ void order_by_sorting(typename P::Values& usage, int n, typename P::Order& order) {
  using A = typename P::A;
  int size = 1;
  while (size < n) size *= 2;
  for (int i = n + threadIdx.x; i < size; i += P::THREADS) {
    usage[i] = static_cast<A>(__uint_as_float(0x7fc00000u));  // last, behind other NaN by its index
    order[i] = i;
  }
  __syncthreads();
  for (int run = 2; run <= size; run *= 2)
    for (int step = run / 2; step > 0; step /= 2) {
      for (int t = threadIdx.x; t < size / 2; t += P::THREADS) {
        const int i = 2 * t - (t & (step - 1)), j = i + step;
        const A a = usage[i], b = usage[j];
        const int first = order[i], second = order[j];
        if (used_less(b, second, a, first) == ((i & run) == 0)) {
          usage[i] = b, usage[j] = a;
          order[i] = second, order[j] = first;
        }
      }
      __syncthreads();
    }
}

// The product of x over all threads before this one. `totals` is free again behind the next barrier.
template <class P>
__device__ __forceinline__ typename P::A product_before(typename P::A x, typename P::A (&totals)[P::WARPS]) {
  using A = typename P::A;
  const int lane = lane_id(), warp = warp_id();
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const A below = __shfl_up_sync(~0u, x, d);
    if (lane >= d) x *= below;
  }
  if (lane == 31) totals[warp] = x;
  const A within = __shfl_up_sync(~0u, x, 1);
  __syncthreads();
  A product = lane > 0 ? within : A(1);
  for (int w = 0; w < warp; ++w) product *= totals[w];
  return product;
}

template <class A>
struct Affine {  // x -> shift + scale x
  A scale, shift;
  __device__ __forceinline__ A operator()(A x) const { return shift + scale * x; }
  // this one after `inner`
  __device__ __forceinline__ Affine after(const Affine& inner) const {
    return {scale * inner.scale, shift + scale * inner.shift};
  }
};

// What the maps of all threads behind this one make of 0, the last thread's map first. `totals` as above.
template <class P>
__device__ __forceinline__ typename P::A recurrence_behind(Affine<typename P::A> f,
                                                           Affine<typename P::A> (&totals)[P::WARPS]) {
  using A = typename P::A;
  const int lane = lane_id(), warp = warp_id();
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const Affine<A> above = {__shfl_down_sync(~0u, f.scale, d), __shfl_down_sync(~0u, f.shift, d)};
    if (lane + d < 32) f = f.after(above);
  }
  if (lane == 0) totals[warp] = f;
  const Affine<A> within = {__shfl_down_sync(~0u, f.scale, 1), __shfl_down_sync(~0u, f.shift, 1)};
  __syncthreads();
  A x = 0;
  for (int w = P::WARPS - 1; w > warp; --w) x = totals[w](x);
  return lane < 31 ? within(x) : x;
}

// The k-th least used cells that a thread has, k = threadIdx.x * EACH + e: their rescaled usage (1 behind the
// n cells) and the product of it over all cells before.
template <class P>
struct AllocationShare {
  using A = typename P::A;
  const typename P::Values& ascending;
  int cells, first;
  A eps, before[P::EACH];

  __device__ __forceinline__ AllocationShare(const typename P::Values& ascending_, int n, A eps_,
                                             A (&totals)[P::WARPS])
      : ascending(ascending_), cells(n), first(threadIdx.x * P::EACH), eps(eps_) {
    A product = 1;
#pragma unroll
    for (int e = 0; e < P::EACH; ++e) {
      before[e] = product;
      product *= usage(e);
    }
    const A earlier = product_before<P>(product, totals);
#pragma unroll
    for (int e = 0; e < P::EACH; ++e) before[e] *= earlier;
  }
  __device__ __forceinline__ bool has(int e) const { return first + e < cells; }
  __device__ __forceinline__ A usage(int e) const {
    return has(e) ? rescaled_usage(ascending[first + e], eps) : A(1);
  }
};

// gradient, in order of usage and shared: that of the allocation on entry, that of the usage at the end. A
// thread reads and writes those of its own cells.
template <class P>
__device__ __forceinline__ void allocation_gradient(const AllocationShare<P>& share,
                                                    typename P::Values& gradient,
                                                    Affine<typename P::A> (&totals)[P::WARPS]) {
  using A = typename P::A;
  // What the product before the next cell is worth: x -> dallocation (1 - usage) + usage x, from the last
  // cell.
  const auto map = [&](int e) -> Affine<A> {
    const A usage = share.usage(e);
    return {usage, share.has(e) ? gradient[share.first + e] * (A(1) - usage) : A(0)};
  };
  Affine<A> all = map(P::EACH - 1);
#pragma unroll
  for (int e = P::EACH - 2; e >= 0; --e) all = map(e).after(all);
  A behind = recurrence_behind<P>(all, totals);
#pragma unroll
  for (int e = P::EACH - 1; e >= 0; --e) {
    if (!share.has(e)) continue;
    const A next = map(e)(behind);
    A& mine = gradient[share.first + e];
    mine = share.before[e] * (behind - mine) * (A(1) - share.eps);
    behind = next;
  }
}

}  // namespace sysgen
