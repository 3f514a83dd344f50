// Writing and reading on the CPU: a task takes a block of rows and goes along the words.
#pragma once
#include "content/content_cpu_rows.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// Calls f(b, block) for every block of every sample; 8 numbers of memory a nanosecond or so.
template <class A, class F>
void for_each_block_of_all(const MemorySizes& s, int64_t passes, int threads, const F& f) {
  const int64_t blocks = ceil_div(s.cells, kBlockRows);
  threads = useful_threads(threads, passes * s.batch * s.cells * s.width, 0);
  for_each_task(s.batch * blocks, threads,
                [&](int64_t task) SYSGEN_ONE_COPY { f(task / blocks, Block<A>(s, task % blocks)); });
}

template <class A>
struct MemoryWriteFwd {
  static void run(const MemoryWriteFwdArgs& a, int threads) {
    const MemorySizes& s = a.s;
    for_each_block_of_all<A>(s, 4, threads, [&](int64_t b, const Block<A>& block) {
      const A *const memory = block.of(a.memory, s, b, s.width), *const weights =
                                                                     block.of(a.weights, s, b, 1);
      const A* const retention = a.retention ? block.of(a.retention, s, b, 1) : nullptr;
      const A *const erase = in<A>(a.erase) + b * s.width, *const value = in<A>(a.value) + b * s.width;
      A* const to = block.of(a.written, s, b, s.width);
      for (int64_t i = 0; i < block.rows; ++i) {
        const A weight = weights[i], kept = retention ? retention[i] : A(1);
        each_vector<A>(s.width, [&](int64_t w, int64_t lanes) SYSGEN_INLINE {
          const Vector<A> old = load(memory + i * s.width + w, lanes);
          store(to + i * s.width + w,
                old * (A(1) - weight * load(erase + w, lanes)) * kept + weight * load(value + w, lanes),
                lanes);
        });
      }
    });
  }
};

template <class A>
struct MemoryWriteBwd {
  static constexpr int64_t L = kLanes<A>;

  static void run(const MemoryWriteBwdArgs& a, int threads) {
    const MemorySizes& s = a.s;
    const int64_t wide = padded<A>(s.width), blocks = ceil_div(s.cells, kBlockRows);
    for_each_sample(
        s.batch, useful_threads(threads, 12 * s.batch * s.cells * s.width, 0), [&](int64_t b, int inner) {
          A* const sums = static_cast<A*>(thread_scratch(kSlotSample, sizeof(A) * 2 * (blocks + 1) * wide));
          A* const partial = sums + 2 * wide;  // [blocks][2][wide]: of what was erased and what was written
          for_each_block<A>(
              s, inner, [&](const Block<A>& block) { rows(a, b, block, partial + 2 * block.index * wide); });
          sum_blocks(partial, blocks, 2 * wide, sums);
          copy(out<A>(a.derase) + b * s.width, sums, s.width);
          copy(out<A>(a.dvalue) + b * s.width, sums + wide, s.width);
        });
  }

 private:
  static void rows(const MemoryWriteBwdArgs& a, int64_t b, const Block<A>& block, A* partial) {
    const MemorySizes& s = a.s;
    const int64_t wide = padded<A>(s.width);
    const A *const memory = block.of(a.memory, s, b, s.width), *const dwritten =
                                                                   block.of(a.dwritten, s, b, s.width);
    const A* const weights = block.of(a.weights, s, b, 1);
    const A* const retention = a.retention ? block.of(a.retention, s, b, 1) : nullptr;
    const A *const erase = in<A>(a.erase) + b * s.width, *const value = in<A>(a.value) + b * s.width;
    A* const dmemory = block.of(a.dmemory, s, b, s.width);
    clear(partial, 2 * wide);
    for (int64_t first = 0; first < block.rows;
         first += L) {  // as many rows as lanes: their sums come together
      const int64_t rows = min_of(L, block.rows - first);
      Vector<A> by_weight[L] = {}, by_retention[L] = {};
      each_vector<A>(s.width, [&](int64_t w, int64_t lanes) SYSGEN_INLINE {
        const Vector<A> e = load(erase + w, lanes), v = load(value + w, lanes);
        Vector<A> derase = load(partial + w), dvalue = load(partial + wide + w);
        for (int64_t i = 0; i < rows; ++i) {
          const int64_t at = (first + i) * s.width + w;
          const A weight = weights[first + i], kept = retention ? retention[first + i] : A(1);
          const Vector<A> d = load(dwritten + at, lanes), old = d * load(memory + at, lanes);
          const Vector<A> rest = A(1) - weight * e;
          store(dmemory + at, d * rest * kept, lanes);
          by_retention[i] += old * rest;
          by_weight[i] += d * v - old * kept * e;
          derase -= old * (kept * weight);
          dvalue += weight * d;
        }
        store(partial + w, derase);
        store(partial + wide + w, dvalue);
      });
      store(block.of(a.dweights, s, b, 1) + first, sums_of_lanes<A>(by_weight), rows);
      if (a.dretention) store(block.of(a.dretention, s, b, 1) + first, sums_of_lanes<A>(by_retention), rows);
    }
  }
};

template <class A>
struct MemoryReadFwd {
  static void run(const MemoryReadFwdArgs& a, int threads) {
    const MemorySizes& s = a.s;
    const int64_t wide = padded<A>(s.width), blocks = ceil_div(s.cells, kBlockRows);
    for_each_sample(s.batch, threads_for(s, threads, 1), [&](int64_t b, int inner) {
      A* const sums = static_cast<A*>(thread_scratch(kSlotSample, sizeof(A) * (blocks + 1) * s.heads * wide));
      A* const partial = sums + s.heads * wide;  // [blocks][R][wide]
      for_each_block<A>(s, inner, [&](const Block<A>& block) {
        const A* const memory = block.of(a.memory, s, b, s.width);
        const A* const weights = in<A>(a.weights) + b * s.heads * s.cells + block.first;
        A* const to = partial + block.index * s.heads * wide;
        each_vector<A>(s.width, [&](int64_t w, int64_t lanes) SYSGEN_INLINE {
          by_heads(s.heads, [&]<int HEADS>(int64_t first) SYSGEN_INLINE {
            Vector<A> read[HEADS] = {};
            for (int64_t i = 0; i < block.rows; ++i) {
              const Vector<A> m = load(memory + i * s.width + w, lanes);
              for (int r = 0; r < HEADS; ++r) read[r] += weights[(first + r) * s.cells + i] * m;
            }
            for (int r = 0; r < HEADS; ++r) store(to + (first + r) * wide + w, read[r]);
          });
        });
      });
      sum_blocks(partial, blocks, s.heads * wide, sums);
      for (int64_t r = 0; r < s.heads; ++r)
        copy(out<A>(a.reads) + (b * s.heads + r) * s.width, sums + r * wide, s.width);
    });
  }
};

template <class A>
struct MemoryReadBwd {
  static constexpr int64_t L = kLanes<A>;

  static void run(const MemoryReadBwdArgs& a, int threads) {
    const MemorySizes& s = a.s;
    for_each_block_of_all<A>(s, 2 * s.heads, threads, [&](int64_t b, const Block<A>& block) {
      dmemory(a, b, block);
      dweights(a, b, block);
    });
  }

 private:
  static void dmemory(const MemoryReadBwdArgs& a, int64_t b, const Block<A>& block) {
    const MemorySizes& s = a.s;
    const A* const weights = in<A>(a.weights) + b * s.heads * s.cells + block.first;
    const A* const dreads = in<A>(a.dreads) + b * s.heads * s.width;
    A* const to = block.of(a.dmemory, s, b, s.width);
    each_vector<A>(s.width, [&](int64_t w, int64_t lanes) SYSGEN_INLINE {
      for (int64_t i = 0; i < block.rows; ++i) {
        Vector<A> sum{};
        for (int64_t r = 0; r < s.heads; ++r)
          sum += weights[r * s.cells + i] * load(dreads + r * s.width + w, lanes);
        store(to + i * s.width + w, sum, lanes);
      }
    });
  }

  static void dweights(const MemoryReadBwdArgs& a, int64_t b, const Block<A>& block) {
    const MemorySizes& s = a.s;
    A* const tile = static_cast<A*>(thread_scratch(kSlotTile, sizeof(A) * L * padded<A>(s.width)));
    const A* const memory = block.of(a.memory, s, b, s.width);
    for (int64_t i = 0; i < block.rows; i += L) {
      transpose_rows(memory + i * s.width, s.width, min_of(L, block.rows - i), s.width, tile, L);
      by_heads(s.heads, [&]<int HEADS>(int64_t first) {
        const A* const dreads = in<A>(a.dreads) + (b * s.heads + first) * s.width;
        Vector<A> sums[HEADS] = {};
        for (int64_t w = 0; w < s.width; ++w) {
          const Vector<A> m = load(tile + w * L);
          for (int r = 0; r < HEADS; ++r) sums[r] += m * dreads[r * s.width + w];
        }
        A* const to = out<A>(a.dweights) + (b * s.heads + first) * s.cells + block.first + i;
        for (int r = 0; r < HEADS; ++r) store(to + r * s.cells, sums[r], block.rows - i);
      });
    }
  }
};

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
