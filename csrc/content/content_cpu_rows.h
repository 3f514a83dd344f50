// What the operations share on the CPU. The memory lies as it came, [N][W]; a task takes a block of rows of
// one sample. Sums over the rows are made of a partial sum of each block, in the order of the blocks, so that
// the number of threads changes no bit.
#pragma once
#include "common/cpu.h"
#include "common/cpu_tasks.h"
#include "content/content.h"
#include "cvmm/cvmm_cpu_lanes.h"
#include "dnc/dnc_cpu_content.h"

namespace sysgen::SYSGEN_ISA {
namespace {

enum Slot { kSlotSample, kSlotTile };

constexpr int64_t kBlockRows = 64;

// As many threads as have 10 us of work each, by a rough estimate of the machine.
inline int useful_threads(int threads, int64_t products, int64_t bytes) {
  return static_cast<int>(max_of(1, min_of(threads, products / 100000 + bytes / 100000)));
}

inline int threads_for(const MemorySizes& s, int threads, int64_t passes) {
  const int64_t numbers = s.batch * s.cells * s.width;
  return useful_threads(threads, passes * numbers * s.heads, 8 * numbers);
}

// Calls sample(b, t) for each b; t is the number of threads that the sample may use itself.
template <class F>
void for_each_sample(int64_t batch, int threads, const F& sample) {
  const auto one = [&](int64_t b, int inner) SYSGEN_ONE_COPY { sample(b, inner); };
  if (batch >= threads) return for_each_task(batch, threads, [&](int64_t b) { one(b, 1); });
  for (int64_t b = 0; b < batch; ++b) one(b, threads);
}

// One block of rows of a sample.
template <class A>
struct Block {
  int64_t index, first, rows;
  Block(const MemorySizes& s, int64_t i)
      : index(i), first(i * kBlockRows), rows(min_of(kBlockRows, s.cells - first)) {}
  // The part of a tensor [B, N, width] that belongs to the block's first row.
  A* of(void* p, const MemorySizes& s, int64_t b, int64_t width) const {
    return out<A>(p) + (b * s.cells + first) * width;
  }
  const A* of(const void* p, const MemorySizes& s, int64_t b, int64_t width) const {
    return in<A>(p) + (b * s.cells + first) * width;
  }
};

template <class A, class F>
void for_each_block(const MemorySizes& s, int threads, const F& f) {
  for_each_task(ceil_div(s.cells, kBlockRows), threads,
                [&](int64_t i) SYSGEN_ONE_COPY { f(Block<A>(s, i)); });
}

// sum[i] = the sum of blocks[..][i] in their order.
template <class A>
void sum_blocks(const A* blocks, int64_t count, int64_t size, A* sum) {
  clear(sum, size);
  for (int64_t block = 0; block < count; ++block)
    for (int64_t i = 0; i < size; i += kLanes<A>)
      store(sum + i, load(sum + i) + load(blocks + block * size + i));
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
