// What has one number per cell: retention, usage, allocation.
#pragma once
#include "common/cpu_tasks.h"
#include "dnc/dnc_cpu_allocation.h"
#include "links/links.h"

namespace sysgen::SYSGEN_ISA {
namespace {

enum Slot { kSlotOrder, kSlotRows, kSlotPartial, kSlotGradient };

// As many threads as have 10 us of work each, at 2 numbers of memory a nanosecond or so.
inline int useful_threads(int threads, int64_t numbers) {
  return static_cast<int>(max_of(1, min_of(threads, numbers / 20000)));
}

constexpr int64_t kChunk = 1024;  // cells of a task

template <class A>
void retention_fwd(const RetentionFwdArgs& a, int threads) {
  const int64_t n = a.s.cells, reads = a.s.reads, chunks = ceil_div(n, kChunk);
  threads = useful_threads(threads, a.s.batch * n * (reads + 1));
  for_each_task(a.s.batch * chunks, threads, [&](int64_t task) {
    const int64_t b = task / chunks, begin = task % chunks * kChunk;
    const A* const free = static_cast<const A*>(a.free_gate) + b * reads;
    const A* const weights = static_cast<const A*>(a.read_weights) + b * reads * n + begin;
    A* const retention = static_cast<A*>(a.retention) + b * n + begin;
    each_vector<A>(min_of(kChunk, n - begin), [&](int64_t i, int64_t lanes) SYSGEN_INLINE {
      Vector<A> kept = splat<A>(1);
      for (int64_t r = 0; r < reads; ++r) kept *= A(1) - free[r] * load(weights + r * n + i, lanes);
      store(retention + i, kept, lanes);
    });
  });
}

// The product of the other heads is that of the heads before times that of the heads behind: no division.
template <class A>
void retention_bwd(const RetentionBwdArgs& a, int threads) {
  constexpr int64_t L = kLanes<A>;
  const int64_t n = a.s.cells, reads = a.s.reads;
  threads = useful_threads(threads, a.s.batch * n * (3 * reads + 1));
  for_each_task(a.s.batch, threads, [&](int64_t b) {
    const A* const free = static_cast<const A*>(a.free_gate) + b * reads;
    const A* const weights = static_cast<const A*>(a.read_weights) + b * reads * n;
    const A* const dretention = static_cast<const A*>(a.dretention) + b * n;
    A* const dweights = static_cast<A*>(a.dread_weights) + b * reads * n;
    A* const dfree = static_cast<A*>(a.dfree_gate) + b * reads;
    A* const before = static_cast<A*>(thread_scratch(kSlotRows, sizeof(A) * 2 * reads * L));
    A* const sums = before + reads * L;
    clear(sums, reads * L);
    each_vector<A>(n, [&](int64_t i, int64_t lanes) SYSGEN_INLINE {
      Vector<A> product = splat<A>(1);
      for (int64_t r = 0; r < reads; ++r) {
        store(before + r * L, product);
        product *= A(1) - free[r] * load(weights + r * n + i, lanes);
      }
      Vector<A> behind = load(dretention + i, lanes);
      for (int64_t r = reads - 1; r >= 0; --r) {
        const Vector<A> w = load(weights + r * n + i, lanes), others = load(before + r * L) * behind;
        store(dweights + r * n + i, -(free[r] * others), lanes);
        store(sums + r * L, load(sums + r * L) - w * others);
        behind *= A(1) - free[r] * w;
      }
    });
    for (int64_t r = 0; r < reads; ++r) dfree[r] = sum_of_lanes<A>(load(sums + r * L));
  });
}

// f(first, count) for chunks of all cells of all samples.
template <class F>
void for_each_chunk(const LinksSizes& s, int threads, const F& f) {
  const int64_t total = s.batch * s.cells;
  for_each_task(ceil_div(total, kChunk), useful_threads(threads, 6 * total),
                [&](int64_t task) { f(task * kChunk, min_of(kChunk, total - task * kChunk)); });
}

template <class A>
void usage_update_fwd(const UsageUpdateFwdArgs& a, int threads) {
  for_each_chunk(a.s, threads, [&](int64_t first, int64_t count) {
    const auto at = [first](const void* p) { return static_cast<const A*>(p) + first; };
    A* const updated = static_cast<A*>(a.updated) + first;
    each_vector<A>(count, [&](int64_t i, int64_t lanes) SYSGEN_INLINE {
      const Vector<A> u = load(at(a.usage) + i, lanes), w = load(at(a.write_weights) + i, lanes);
      store(updated + i, (u + w * (A(1) - u)) * load(at(a.retention) + i, lanes), lanes);
    });
  });
}

template <class A>
void usage_update_bwd(const UsageUpdateBwdArgs& a, int threads) {
  for_each_chunk(a.s, threads, [&](int64_t first, int64_t count) {
    const auto at = [first](const void* p) { return static_cast<const A*>(p) + first; };
    const auto to = [first](void* p) { return static_cast<A*>(p) + first; };
    each_vector<A>(count, [&](int64_t i, int64_t lanes) SYSGEN_INLINE {
      const Vector<A> u = load(at(a.usage) + i, lanes), w = load(at(a.write_weights) + i, lanes),
                      d = load(at(a.dupdated) + i, lanes), kept = d * load(at(a.retention) + i, lanes);
      store(to(a.dusage) + i, kept * (A(1) - w), lanes);
      store(to(a.dwrite_weights) + i, kept * (A(1) - u), lanes);
      store(to(a.dretention) + i, d * (u + w * (A(1) - u)), lanes);
    });
  });
}

// Sorting takes about as long as 16 log2(cells) numbers of memory for each cell.
inline int allocation_threads(const LinksSizes& s, int threads) {
  int64_t rounds = 1;
  while (int64_t{1} << rounds < s.cells) ++rounds;
  return useful_threads(threads, 16 * rounds * s.batch * s.cells);
}

template <class A>
const int32_t* order_by_usage(const A* usage, int64_t cells) {
  int32_t* const order =
      static_cast<int32_t*>(thread_scratch(kSlotOrder, sizeof(int32_t) * 2 * static_cast<size_t>(cells)));
  sort_by_usage(usage, cells, order, order + cells);
  return order;
}

template <class A>
void allocation_fwd(const AllocationFwdArgs& a, int threads) {
  const int64_t n = a.s.cells;
  for_each_task(a.s.batch, allocation_threads(a.s, threads), [&](int64_t b) {
    const A* const usage = static_cast<const A*>(a.usage) + b * n;
    allocation_fwd(usage, n, static_cast<A>(a.eps), order_by_usage(usage, n),
                   static_cast<A*>(a.allocation) + b * n);
  });
}

template <class A>
void allocation_bwd(const AllocationBwdArgs& a, int threads) {
  const int64_t n = a.s.cells;
  for_each_task(a.s.batch, allocation_threads(a.s, threads), [&](int64_t b) {
    const A* const usage = static_cast<const A*>(a.usage) + b * n;
    A* const dusage = static_cast<A*>(a.dusage) + b * n;
    A* const before = static_cast<A*>(thread_scratch(kSlotRows, sizeof(A) * static_cast<size_t>(n)));
    clear(dusage, n);
    allocation_bwd(usage, n, static_cast<A>(a.eps), order_by_usage(usage, n),
                   static_cast<const A*>(a.dallocation) + b * n, dusage, before);
  });
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
