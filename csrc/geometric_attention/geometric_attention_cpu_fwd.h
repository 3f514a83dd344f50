// geometric_attention_fwd on the CPU: a task owns some rows of one (b, h).
#pragma once
#include "geometric_attention/geometric_attention_cpu_block.h"
#include "geometric_attention/geometric_attention_cpu_small.h"

namespace sysgen::SYSGEN_ISA {
namespace {

template <class T>
class Fwd {
 public:
  Fwd(const GeometricAttentionFwdArgs& args, int max_threads)
      : a(args), s(args.s), threads(useful_threads(s, max_threads, 2)) {}

  void run() {
    const int64_t heads = s.batch * s.heads, blocks = ceil_div(s.queries, kRows);
    if (heads == 0 || blocks == 0) return;
    if (is_small<T>(s)) {
      for_each_task(ceil_div(heads, L), threads,
                    [&](int64_t task) { small_fwd<T>(a, task * L, min_of(heads, (task + 1) * L)); });
      return;
    }
    const int64_t wanted = threads == 1 ? 1 : min_of(blocks, ceil_div(4 * threads, heads));
    const int64_t blocks_each = ceil_div(blocks, wanted), ranges = ceil_div(blocks, blocks_each);
    for_each_task(heads * ranges, threads, [&](int64_t task) {
      const int64_t first = task % ranges * blocks_each * kRows;
      run_rows(task / ranges, first, min_of(s.queries, first + blocks_each * kRows));
    });
  }

 private:
  using A = Accumulator<T>;
  static constexpr int L = kLanes<A>, kRows = kStrips * L;

  const GeometricAttentionFwdArgs& a;
  const GeometricAttentionScores& s;
  const int threads;

  void run_rows(int64_t index, int64_t begin, int64_t end) {
    const Head<T> head(s, index);
    Block<T> block(head, false);
    A* const packed = static_cast<A*>(thread_scratch(kSlotRows, sizeof(A) * kRows * s.width));
    for (int64_t i = begin; i < end; i += kRows) {
      block.open(i, min_of(kRows, end - i));
      pack_rows(row_of<T>(s.q, head.b, head.h, i), s.q.stride_n, block.rows, s.width, block.strips, packed);
      block.weigh(packed);
      for (int strip = 0; strip < block.strips; ++strip) {
        const Survival<A>& survival = block.survival[strip];
        const int64_t row = i + strip * L, rows = block.rows_of(strip);
        alignas(64) A scales[L];
        if (s.normalize) store(scales, block.share(strip));
        const Segment<A> segment{block.from_low(block.weights, strip), head.v[block.low],
                                 block.high - block.low};
        product<false, -(L - 1), L>(&segment, 1, head.v.stride, rows,
                                    Target<T>{row_of<T>(a.out, head.b, head.h, row), a.out.stride_n, s.width,
                                              1, s.normalize ? scales : nullptr});
        if (a.rem) store(static_cast<A*>(a.rem) + index * s.queries + row, survival.remaining(), rows);
      }
    }
  }
};

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
