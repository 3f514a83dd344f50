// geometric_attention_bwd on the CPU: a task owns a group of rows of one (b, h) and its own sums of dk and
// dv; the number of groups, and so the order of the sums, depends on the shapes only.
#pragma once
#include "geometric_attention/geometric_attention_cpu_block.h"
#include "geometric_attention/geometric_attention_cpu_small.h"

namespace sysgen::SYSGEN_ISA {
namespace {

template <class T>
class Bwd {
 public:
  Bwd(const GeometricAttentionBwdArgs& args, int max_threads)
      : a(args), s(args.s), threads(useful_threads(s, max_threads, 6)) {}

  void run() {
    const int64_t heads = s.batch * s.heads, blocks = ceil_div(s.queries, kRows);
    if (heads == 0) return;
    if (is_small<T>(s)) {
      for_each_task(ceil_div(heads, L), threads,
                    [&](int64_t task) { small_bwd<T>(a, task * L, min_of(heads, (task + 1) * L)); });
      return;
    }
    const int64_t wanted = max_of(1, min_of(blocks / kLeastBlocks, ceil_div(kTasks, heads)));
    const int64_t blocks_each = ceil_div(blocks, wanted);
    groups = max_of(1, ceil_div(blocks, max_of(1, blocks_each)));
    sums_size = s.keys * Sizes<T>::pitch(s.width);
    A* parts = nullptr;
    const size_t bytes = sizeof(A) * 2 * heads * groups * sums_size;
    const bool kept = bytes <= kKeptBytes;
    if (groups > 1) {
      parts = static_cast<A*>(kept ? thread_scratch(kSlotSums, bytes) : __builtin_malloc(bytes));
      if (!parts) __builtin_abort();
    }
    for_each_task(heads * groups, threads, [&](int64_t task) {
      const int64_t first = task % groups * blocks_each * kRows;
      run_rows(task / groups, first, min_of(s.queries, first + blocks_each * kRows),
               parts ? parts + task * 2 * sums_size : nullptr);
    });
    if (!parts) return;
    for_each_task(heads, threads, [&](int64_t index) {
      const Head<T> head(s, index, false);
      write_sums(head, parts + index * groups * 2 * sums_size);
    });
    if (!kept) __builtin_free(parts);
  }

 private:
  using A = Accumulator<T>;
  using V = Vector<A>;
  static constexpr int L = kLanes<A>, kRows = kStrips * L;
  static constexpr int64_t kTasks = 16, kLeastBlocks = 2;
  // A buffer of up to this size is kept from call to call: the pages of a new one cost a tenth of the time.
  static constexpr size_t kKeptBytes = 8 << 20;

  const GeometricAttentionBwdArgs& a;
  const GeometricAttentionScores& s;
  const int threads;
  int64_t groups, sums_size;

  // dk and dv, [key][width], from key head.begin on.
  struct Sums {
    A *dk, *dv;
    int64_t dk_stride, dv_stride;
  };

  void run_rows(int64_t index, int64_t begin, int64_t end, A* part) {
    const Head<T> head(s, index);
    const int64_t pitch = Sizes<T>::pitch(s.width), size = kRows * pitch;
    const bool own = !part;
    Sums sums;
    if (own && __is_same(T, A)) {
      for (int64_t j = 0; j < s.keys; ++j) clear_key(head, j);
      sums = {reinterpret_cast<A*>(row_of<T>(a.dk, head.b, head.h, head.begin)),
              reinterpret_cast<A*>(row_of<T>(a.dv, head.b, head.h, head.begin)), a.dk.stride_n,
              a.dv.stride_n};
    } else {
      if (own) part = static_cast<A*>(thread_scratch(kSlotSums, sizeof(A) * 2 * sums_size));
      __builtin_memset(part, 0, sizeof(A) * 2 * sums_size);
      sums = {part + head.begin * pitch, part + sums_size + head.begin * pitch, pitch, pitch};
    }
    A* const scratch = static_cast<A*>(thread_scratch(kSlotRows, sizeof(A) * 4 * size));
    Block<T> block(head, true);
    for (int64_t i = begin; i < end; i += kRows) {
      block.open(i, min_of(kRows, end - i));
      run_block(block, index, scratch, scratch + size, scratch + 2 * size, sums);
    }
    if (!own) return;
    if constexpr (__is_same(T, A)) {
      if (head.hidden)
        for (int64_t j = head.begin; j < head.end; ++j)
          if (head.hidden[j]) clear_key(head, j);
    } else {
      write_sums(head, part);
    }
  }

  void run_block(Block<T>& block, int64_t index, A* packed_q, A* packed_dout, A* copies, const Sums& sums) {
    const Head<T>& head = block.head;
    const int64_t i = block.row;
    const T *const q = row_of<T>(s.q, head.b, head.h, i), *const dout = row_of<T>(a.dout, head.b, head.h, i);
    pack_rows(q, s.q.stride_n, block.rows, s.width, block.strips, packed_q);
    pack_rows(dout, a.dout.stride_n, block.rows, s.width, block.strips, packed_dout);
    block.weigh(packed_q);
    const int64_t low = block.low, high = block.high;
    block.values(packed_dout);
    for (int strip = 0; strip < block.strips; ++strip) {
      const int64_t row = index * s.queries + i + strip * L, rows = block.rows_of(strip);
      const V drem = a.drem ? load(static_cast<const A*>(a.drem) + row, rows) : V{};
      V side[2];
      block.differentiate(strip, drem, side);
      if (a.dbias)
        for (int64_t r = 0; r < rows; ++r)
          for (int n = 0; n < 2; ++n) static_cast<A*>(a.dbias)[(row + r) * 2 + n] = side[n][r];
      if (a.dmask)
        for (int64_t r = 0; r < rows; ++r)
          write_scores(block, strip, r, static_cast<A*>(a.dmask) + (row + r) * s.keys);
      const Segment<A> segment{block.from_low(block.gradients, strip), head.k[low], high - low};
      product<false, -(L - 1), L>(&segment, 1, head.k.stride, rows,
                                  Target<T>{row_of<T>(a.dq, head.b, head.h, i + strip * L), a.dq.stride_n,
                                            s.width, static_cast<A>(s.scale)});
    }
    const Rows<A> q_rows = rows_as_sums(q, s.q.stride_n, block.rows, copies),
                  dout_rows = rows_as_sums(dout, a.dout.stride_n, block.rows,
                                           copies + kRows * Sizes<T>::pitch(s.width));
    Segment<A> of_keys[kStrips], of_values[kStrips];
    for (int strip = 0; strip < block.strips; ++strip) {
      of_keys[strip] = {block.from_low(block.gradients, strip), q_rows[strip * L], block.rows_of(strip)};
      of_values[strip] = {block.from_low(block.weights, strip), dout_rows[strip * L], block.rows_of(strip)};
    }
    product<true, L, -(L - 1)>(
        of_keys, block.strips, q_rows.stride, high - low,
        Target<A>{sums.dk + low * sums.dk_stride, sums.dk_stride, s.width, static_cast<A>(s.scale)});
    product<true, L, -(L - 1)>(of_values, block.strips, dout_rows.stride, high - low,
                               Target<A>{sums.dv + low * sums.dv_stride, sums.dv_stride, s.width});
  }

  Rows<A> rows_as_sums(const T* rows, int64_t stride, int64_t count, A* to) const {
    if constexpr (__is_same(T, A))
      if (Sizes<T>::in_place(s.width)) return {rows, stride};
    return copy_rows(rows, stride, count, s.width, nullptr, to);
  }

  void write_scores(const Block<T>& block, int strip, int64_t r, A* to) const {
    const int64_t p = block.position_of(strip), begin = block.head.begin;
    for (int64_t j = 0; j < s.keys; ++j) {
      const int64_t n = j - begin;
      // + 0: no negative zeros, which an early stop would not write.
      to[j] = n >= block.low && n < block.high ? block.at(block.gradients, strip, n - p - r)[r] + 0 : 0;
    }
  }

  void clear_key(const Head<T>& head, int64_t j) const {
    __builtin_memset(row_of<T>(a.dk, head.b, head.h, j), 0, sizeof(T) * s.width);
    __builtin_memset(row_of<T>(a.dv, head.b, head.h, j), 0, sizeof(T) * s.width);
  }

  // dk and dv of a head: the sums of its groups in order.
  void write_sums(const Head<T>& head, const A* parts) const {
    const int64_t pitch = Sizes<T>::pitch(s.width);
    for (int64_t j = 0; j < s.keys; ++j) {
      if (j < head.begin || j >= head.end || (head.hidden && head.hidden[j])) {
        clear_key(head, j);
        continue;
      }
      for (int n = 0; n < 2; ++n) {
        const A* const from = parts + n * sums_size + j * pitch;
        T* const to = row_of<T>(n == 0 ? a.dk : a.dv, head.b, head.h, j);
        for (int64_t d = 0; d < s.width; d += L) {
          V sum = load(from + d);
          for (int64_t g = 1; g < groups; ++g) sum += load(from + 2 * g * sums_size + d);
          store(to + d, sum, s.width - d);
        }
      }
    }
  }
};

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
