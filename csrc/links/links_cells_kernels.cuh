// What has one number per cell: retention, usage, allocation.
#pragma once
#include "common/kernel_math.cuh"
#include "links/allocation.cuh"

namespace sysgen {

constexpr int kCellsThreads = 256;

// Calls f(i) for every i < count, in any grid.
template <class F>
__device__ __forceinline__ void for_each_cell(i64 count, F f) {
  for (i64 i = i64(blockIdx.x) * kCellsThreads + threadIdx.x; i < count; i += i64(gridDim.x) * kCellsThreads)
    f(i);
}

template <class A>
struct RetentionArgs {
  const A *read_weights, *free_gate, *dretention;  // the last one for backward
  A *retention, *dread_weights, *dfree_gate;       // the first one for forward, the others for backward
  i64 batch, cells, reads;
};

template <class A>
__global__ void __launch_bounds__(kCellsThreads) retention_fwd_kernel(const RetentionArgs<A> a) {
  for_each_cell(a.batch * a.cells, [&](i64 at) {
    const i64 b = at / a.cells, i = at % a.cells;
    A kept = 1;
    for (i64 r = b * a.reads; r < (b + 1) * a.reads; ++r)
      kept *= A(1) - a.free_gate[r] * a.read_weights[r * a.cells + i];
    a.retention[at] = kept;
  });
}

// One block a sample. The product over the other heads is that over the heads before times that over the
// heads behind; until the sums over the cells are done, dread_weights holds it times dretention.
template <class A>
__global__ void __launch_bounds__(kCellsThreads, 1) retention_bwd_kernel(const RetentionArgs<A> a) {
  const i64 b = blockIdx.x, n = a.cells;
  const A* const weights = a.read_weights + b * a.reads * n;
  const A* const free = a.free_gate + b * a.reads;
  A* const dweights = a.dread_weights + b * a.reads * n;
  for (i64 i = threadIdx.x; i < n; i += kCellsThreads) {
    A before = 1;
    for (i64 r = 0; r < a.reads; ++r) {
      dweights[r * n + i] = before;
      before *= A(1) - free[r] * weights[r * n + i];
    }
    A behind = a.dretention[b * n + i];
    for (i64 r = a.reads - 1; r >= 0; --r) {
      dweights[r * n + i] *= behind;
      behind *= A(1) - free[r] * weights[r * n + i];
    }
  }
  __syncthreads();
  for (i64 r = warp_id(); r < a.reads; r += kCellsThreads / 32) {
    A sum = 0;
    for (i64 i = lane_id(); i < n; i += 32) {
      const A others = dweights[r * n + i];
      sum -= weights[r * n + i] * others;
      dweights[r * n + i] = -(free[r] * others);
    }
    sum = over_warp<Sum>(sum);
    if (lane_id() == 0) a.dfree_gate[b * a.reads + r] = sum;
  }
}

template <class A>
struct UsageUpdateArgs {
  const A *usage, *write_weights, *retention, *dupdated;  // the last one for backward
  A *updated, *dusage, *dwrite_weights, *dretention;  // the first one for forward, the others for backward
  i64 count;
};

template <class A>
__global__ void __launch_bounds__(kCellsThreads) usage_update_fwd_kernel(const UsageUpdateArgs<A> a) {
  for_each_cell(a.count, [&](i64 i) {
    a.updated[i] = (a.usage[i] + a.write_weights[i] * (A(1) - a.usage[i])) * a.retention[i];
  });
}

template <class A>
__global__ void __launch_bounds__(kCellsThreads) usage_update_bwd_kernel(const UsageUpdateArgs<A> a) {
  for_each_cell(a.count, [&](i64 i) {
    const A u = a.usage[i], w = a.write_weights[i], d = a.dupdated[i], kept = d * a.retention[i];
    a.dusage[i] = kept * (A(1) - w);
    a.dwrite_weights[i] = kept * (A(1) - u);
    a.dretention[i] = d * (u + w * (A(1) - u));
  });
}

template <class A>
struct AllocationArgs {
  const A *usage, *dallocation;  // [B, N]; the second for backward
  A* out;                        // [B, N]: allocation, or dusage
  int cells;
  A eps;
};

template <class P>
__global__ void __launch_bounds__(P::THREADS) allocation_fwd_kernel(const AllocationArgs<typename P::A> a) {
  using A = typename P::A;
  const i64 row = i64(blockIdx.x) * a.cells;
  Smem smem;
  auto& usage = smem.array<typename P::Values>();
  for (int i = threadIdx.x; i < a.cells; i += P::THREADS) usage[i] = a.usage[row + i];
  if constexpr (P::BY_RANK) {
    __syncthreads();
    for (int i = threadIdx.x; i < a.cells; i += P::THREADS)
      a.out[row + i] = allocation_by_rank<A>(usage, a.cells, i, a.eps);
  } else {
    auto& order = smem.array<typename P::Order>();
    auto& totals = smem.array<A[P::WARPS]>();
    for (int i = threadIdx.x; i < a.cells; i += P::THREADS) order[i] = i;
    order_by_sorting<P>(usage, a.cells, order);
    const AllocationShare<P> share(usage, a.cells, a.eps, totals);
#pragma unroll
    for (int e = 0; e < P::EACH; ++e)
      if (share.has(e)) a.out[row + order[share.first + e]] = (A(1) - share.usage(e)) * share.before[e];
  }
}

template <class P>
__global__ void __launch_bounds__(P::THREADS, 1)
    allocation_bwd_kernel(const AllocationArgs<typename P::A> a) {
  using A = typename P::A;
  const i64 row = i64(blockIdx.x) * a.cells;
  Smem smem;
  auto& ascending = smem.array<typename P::Values>();
  auto& gradient = smem.array<typename P::Values>();
  auto& order = smem.array<typename P::Order>();
  auto& totals = smem.array<A[P::WARPS]>();
  auto& maps = smem.array<Affine<A>[P::WARPS]>();
  if constexpr (P::BY_RANK) {
    auto& usage = gradient;
    for (int i = threadIdx.x; i < a.cells; i += P::THREADS) usage[i] = a.usage[row + i];
    __syncthreads();
    order_by_rank<P>(usage, a.cells, ascending, order);
  } else {
    for (int i = threadIdx.x; i < a.cells; i += P::THREADS) {
      ascending[i] = a.usage[row + i];
      order[i] = i;
    }
    order_by_sorting<P>(ascending, a.cells, order);
  }
  for (int k = threadIdx.x; k < a.cells; k += P::THREADS) gradient[k] = a.dallocation[row + order[k]];
  const AllocationShare<P> share(ascending, a.cells, a.eps, totals);  // behind a barrier that it has
  allocation_gradient<P>(share, gradient, maps);
  __syncthreads();
  for (int k = threadIdx.x; k < a.cells; k += P::THREADS) a.out[row + order[k]] = gradient[k];
}

}  // namespace sysgen
