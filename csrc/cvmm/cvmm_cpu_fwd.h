// cvmm_fwd on the CPU.
//
// Without reduce the sorted routes are cut into tasks of about equal size, so that a skewed routing still
// uses every thread; each task gathers the rows of an expert's routes strip by strip and multiplies them by
// the panels of W. With reduce a task owns a block of tokens by a block of columns and adds up its routes in
// the order of `order` (ascending expert): no [R, h] intermediate, and a sum that does not depend on the
// number of threads.
#pragma once
#include "common/cpu.h"
#include "cvmm/cvmm_cpu_tasks.h"

namespace sysgen::SYSGEN_ISA {
namespace {

template <class T, class TW>
class CvmmFwd {
 public:
  CvmmFwd(const CvmmFwdArgs& args, int max_threads)
      : a(args), q(args.route), num_routes(q.num_tokens * q.k), routed(q.offsets[q.num_experts]) {
    const int64_t weights = min_of(routed, q.num_experts) * a.d * a.h;
    threads = useful_threads(max_threads, routed * a.d * a.h,
                             weights * sizeof(TW) + num_routes * (a.d + a.h) * sizeof(T));
  }

  void run() {
    if (a.out && a.reduce)
      run_reduce();
    else
      run_routes();
    if (a.dot) finish_dots();
  }

 private:
  using S = Step<T>;
  using Unit = typename S::Unit;
  using Acc = typename S::Acc;
  using V = Vector<Acc>;

  static constexpr int kCols = kPanel<S>;
  static constexpr int kGroup = 128;                  // columns whose part of a dot product is summed first
  static constexpr int kBlockCols = 256;              // columns of W in use at a time (half of a 1 MiB L2)
  static constexpr int kDepth = 2048 / sizeof(Unit);  // units of the contraction in use at a time
  static constexpr int kPitch =
      kDepth + 64 / sizeof(Unit);                // of packed rows, so that they share no cache sets
  static constexpr int kBlockRows = 256;         // rows whose sums wait for the next kDepth units
  static constexpr int kSumTokens = 2048;        // tokens of a block whose sums are no part of `out`
  static constexpr int kFewRows = 3 * kMaxRows;  // fewer read a row-major W where it lies
  static constexpr bool kOutHoldsSums = __is_same(T, Acc);

  // Where a reduction is summed: rows from `first_token` on, addressed by the column of `out`. Null: no
  // reduction.
  struct Sums {
    Acc* data = nullptr;
    int64_t stride = 0, first_token = 0;
  };

  // The rows of one call of the micro-kernel.
  struct Strip {
    int rows;
    int64_t route[kMaxRows];
    const T* x[kMaxRows];
    const T* other[kMaxRows];
    T* out[kMaxRows];
    Acc* sum[kMaxRows];
    Acc gate[kMaxRows];
    V dot[kMaxRows];
  };

  // A block of W that is fetched into the second-level cache piece by piece. Default: nothing.
  struct WeightsAhead {
    const TW* first = nullptr;
    int64_t stride = 0, rows = 0, bytes = 0;  // of memory: rows of `bytes`, `stride` elements apart
    int64_t row = 0, at = 0;
    int64_t lines() const { return rows * ceil_div(bytes, 64); }
    void fetch(int64_t count) {
      for (; count > 0 && row < rows; --count) {
        __builtin_prefetch(reinterpret_cast<const char*>(first + row * stride) + at, 0, 2);
        at += 64;
        if (at >= bytes) at = 0, ++row;
      }
    }
  };

  WeightsAhead weights_ahead(int64_t e, int64_t n0, int64_t width) const {
    if (e >= q.num_experts) return {};
    const TW* const first = static_cast<const TW*>(a.w) + e * a.w_stride_e + n0 * a.w_stride_h;
    const int64_t size = sizeof(TW);
    if (a.w_stride_h == 1) return {first, a.w_stride_d, a.d, width * size};
    if (a.w_stride_d == 1) return {first, a.w_stride_h, width, a.d * size};
    return {};
  }

  const CvmmFwdArgs& a;
  const Routing& q;
  const int64_t num_routes;
  const int64_t routed;  // routes that are not dropped: order[0 : routed]
  int threads;
  int64_t column_blocks = 1, groups_per_block = 1;
  Acc* dot_parts = nullptr;  // [groups, R] if several tasks share a row

  void run_routes() {
    const int64_t chunks = threads == 1 ? 1 : max_of(1, min_of(8 * threads, routed / 64));
    split_columns(threads == 1 ? 1 : ceil_div(4 * threads, chunks));
    for_each_task(chunks * column_blocks, threads, [&](int64_t task) {
      const int64_t chunk = task / column_blocks, block = task % column_blocks;
      for_each_expert(q, chunk_border(chunk, chunks), chunk_border(chunk + 1, chunks),
                      [&](int64_t e, int64_t next, int64_t begin, int64_t end) {
                        expert_block(e, next, begin, end, first_column(block), first_column(block + 1),
                                     Sums{});
                      });
    });
    if (a.out)
      for (int64_t p = routed; p < num_routes; ++p)
        __builtin_memset(static_cast<T*>(a.out) + q.order[p] * a.h, 0, sizeof(T) * a.h);
  }

  void run_reduce() {
    if (q.num_tokens == 0) return;
    const int64_t wanted = threads == 1 ? 1 : 4 * threads, groups = ceil_div(a.h, kGroup);
    // Each block of tokens packs all of W again, each block of columns gathers all rows of x again. The
    // latter is cheaper, so columns are split first, and tokens as far as an expert keeps rows enough in a
    // block.
    int64_t blocks = min_of(ceil_div(wanted, max_of(groups, 1)), routed / (128 * max_of(q.num_experts, 1)));
    if (!kOutHoldsSums) blocks = max_of(blocks, ceil_div(q.num_tokens, kSumTokens));
    blocks = max_of(1, max_of(blocks, min_of(threads / max_of(groups, 1), q.num_tokens)));
    split_columns(kOutHoldsSums ? ceil_div(wanted, blocks) : groups);
    const Strips tokens(q.num_tokens, ceil_div(q.num_tokens, blocks));
    for_each_task(tokens.count * column_blocks, threads, [&](int64_t task) {
      const int64_t t = task / column_blocks, block = task % column_blocks;
      reduce_block(tokens.begin(t), tokens.size(t), first_column(block), first_column(block + 1));
    });
  }

  // Columns are split only at the borders of the groups, so that dot products do not depend on the split.
  void split_columns(int64_t wanted) {
    const int64_t groups = ceil_div(a.h, kGroup);
    groups_per_block = max_of(1, groups / max_of(1, wanted));
    column_blocks = max_of(1, ceil_div(groups, groups_per_block));
    if (a.dot && column_blocks > 1)
      dot_parts = static_cast<Acc*>(thread_scratch(kSlotShared, sizeof(Acc) * groups * num_routes));
  }
  int64_t first_column(int64_t block) const { return min_of(a.h, block * groups_per_block * kGroup); }

  // Even cuts of the sorted routes, moved to a border between experts where one is near.
  int64_t chunk_border(int64_t chunk, int64_t chunks) const {
    const int64_t even = routed * chunk / chunks, reach = routed / chunks / 4;
    if (chunk == 0 || chunk == chunks) return even;
    const int64_t e = expert_at(q, even, 0);
    if (even - q.offsets[e] <= reach) return q.offsets[e];
    if (q.offsets[e + 1] - even <= reach) return q.offsets[e + 1];
    return even;
  }

  void reduce_block(int64_t first_token, int64_t tokens, int64_t n0, int64_t n1) {
    const int64_t width = n1 - n0;
    T* const out = static_cast<T*>(a.out) + first_token * a.h;
    Sums sums{nullptr, a.h, first_token};
    if constexpr (kOutHoldsSums)
      sums.data = out;
    else
      sums = {static_cast<Acc*>(thread_scratch(kSlotSums, sizeof(Acc) * tokens * width)) - n0, width,
              first_token};
    for (int64_t t = 0; t < tokens; ++t)
      __builtin_memset(sums.data + t * sums.stride + n0, 0, sizeof(Acc) * width);

    for_each_expert(q, 0, routed, [&](int64_t e, int64_t next, int64_t begin, int64_t end) {
      if (tokens < q.num_tokens) {
        begin = lower_bound(q.order, begin, end, first_token * q.k);
        end = lower_bound(q.order, begin, end, (first_token + tokens) * q.k);
      }
      if (begin < end) expert_block(e, next, begin, end, n0, n1, sums);
    });

    if constexpr (!kOutHoldsSums)
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t n = n0; n < n1; n += kLanes<Acc>)
          store(out + t * a.h + n, load(sums.data + t * sums.stride + n, n1 - n), n1 - n);
  }

  // Positions [begin, end) of `order`, all of expert e, by columns [n0, n1). `next` is the expert after this
  // one.
  void expert_block(int64_t e, int64_t next, int64_t begin, int64_t end, int64_t n0, int64_t n1,
                    const Sums& sums) {
    const Strips depths(ceil_div(a.d, S::kDepth), kDepth);
    const int64_t most_rows = depths.count > 1 ? kBlockRows : end - begin;
    for (int64_t n = n0; n < n1; n += kBlockCols) {
      const int64_t after = n + kBlockCols;
      const WeightsAhead ahead = depths.count > 1 ? WeightsAhead{}
                                 : after < n1     ? weights_ahead(e, after, min_of(n1 - after, kBlockCols))
                                                  : weights_ahead(next, n0, min_of(n1 - n0, kBlockCols));
      for (int64_t p = begin; p < end; p += most_rows)
        row_block(e, p, min_of(end - p, most_rows), n, min_of(n1 - n, kBlockCols), depths, ahead, sums);
    }
  }

  // As expert_block, for rows and columns that fit the scratch.
  void row_block(int64_t e, int64_t begin, int64_t rows, int64_t n0, int64_t width, const Strips& depths,
                 WeightsAhead ahead, const Sums& sums) {
    Unit* const packed_x = static_cast<Unit*>(thread_scratch(kSlotA, sizeof(Unit) * kMaxRows * kPitch));
    Unit* const packed_w = static_cast<Unit*>(thread_scratch(kSlotB, sizeof(Unit) * kDepth * kBlockCols));
    const bool deep = depths.count > 1;
    Acc* const waiting =
        deep ? static_cast<Acc*>(thread_scratch(kSlotC, sizeof(Acc) * kBlockRows * kBlockCols)) : nullptr;
    alignas(64) Acc tile[kMaxRows * kCols];
    const bool from_registers = a.out && !deep && (sums.data ? kOutHoldsSums || !a.dot : kOutHoldsSums);
    const TW* const w = static_cast<const TW*>(a.w) + e * a.w_stride_e + n0 * a.w_stride_h;
    const bool in_place = __is_same(T, Unit) && a.w_stride_h == 1 && rows <= kFewRows;
    const int64_t panels = ceil_div(width, kCols);
    const Strips strips(rows, kMaxRows);
    const int64_t lines_ahead = in_place ? 0 : ahead.lines() / (strips.count * panels) + 1;

    for (int64_t block = 0; block < max_of(1, depths.count); ++block) {
      const bool last = block + 1 >= depths.count;
      const int64_t units = depths.count ? depths.size(block) : 0, k0 = depths.begin(block) * S::kDepth;
      const int64_t depth = min_of(units * S::kDepth, a.d - k0);
      const TW* const corner = w + k0 * a.w_stride_d;
      const int64_t unpacked = in_place ? width / kCols * kCols : 0;
      pack_weights<T>(corner + unpacked * a.w_stride_h, a.w_stride_d, a.w_stride_h, depth, width - unpacked,
                      packed_w + unpacked * units);
      Strip pair[2];
      open_strip(pair[0], begin, strips.size(0), sums);
      for (int64_t s = 0; s < strips.count; ++s) {
        Strip &strip = pair[s % 2], &next = pair[(s + 1) % 2];
        next.rows = 0;
        if (s + 1 < strips.count) open_strip(next, begin + strips.begin(s + 1), strips.size(s + 1), sums);
        for (int i = 0; i < strip.rows; ++i) pack_row(strip.x[i] + k0, depth, packed_x + i * kPitch);
        for (int64_t j = 0; j < panels; ++j) {
          const int64_t n = j * kCols, columns = min_of(width - n, kCols);
          const bool full = columns == kCols, direct = from_registers && full;
          Acc* c[kMaxRows];
          const Acc* other[kMaxRows];
          Results<Acc> results{c};
          if (direct) {
            for (int i = 0; i < strip.rows; ++i)
              c[i] = (sums.data ? strip.sum[i] : reinterpret_cast<Acc*>(strip.out[i])) + n0 + n;
            results.add = sums.data;
            results.relu = a.activation == Activation::relu;
            if (a.gate) results.scale = strip.gate;
            if (a.bias) results.bias = static_cast<const Acc*>(a.bias) + e * a.h + n0 + n;
            if (a.dot) {
              for (int i = 0; i < strip.rows; ++i)
                other[i] = reinterpret_cast<const Acc*>(strip.other[i]) + n0 + n;
              results.other = other;
              results.dot = strip.dot;
            }
          } else {
            for (int i = 0; i < strip.rows; ++i)
              c[i] = deep ? waiting + (strips.begin(s) + i) * kBlockCols + n : tile + i * kCols;
            results.add = block > 0;
          }
          // The next strip's rows, what its results meet in memory and the next block of W arrive while the
          // kernel runs.
          for (int64_t i = next.rows * j / panels; i < next.rows * (j + 1) / panels; ++i) {
            prefetch_range(next.x[i] + k0, depth * sizeof(T));
            if (last) prefetch_results(next, i, n0, width, sums);
          }
          ahead.fetch(lines_ahead);

          const bool here = in_place && full;
          kernel_for<S, kPitch, 1>(strip.rows, columns > kLanes<Acc> ? 2 : 1)(
              units, packed_x, here ? reinterpret_cast<const Unit*>(corner + n) : packed_w + n * units,
              here ? a.w_stride_d : kCols, results);
          if (last && !direct) {
            full ? finish_tile<true>(strip, e, c, n0 + n, columns, sums.data)
                 : finish_tile<false>(strip, e, c, n0 + n, columns, sums.data);
          }
          if (last && a.dot && ((n0 + n + columns) % kGroup == 0 || n0 + n + columns == a.h))
            close_dots(strip, (n0 + n) / kGroup);
        }
      }
    }
  }

  void prefetch_results(const Strip& strip, int64_t i, int64_t n, int64_t columns, const Sums& sums) const {
    if (a.dot) prefetch_range(strip.other[i] + n, columns * sizeof(T));
    if (sums.data)
      prefetch_range(strip.sum[i] + n, columns * sizeof(Acc));
    else if (a.out)
      prefetch_range(strip.out[i] + n, columns * sizeof(T));
  }

  void open_strip(Strip& strip, int64_t begin, int rows, const Sums& sums) const {
    strip.rows = rows;
    for (int i = 0; i < rows; ++i) {
      const int64_t r = q.order[begin + i], t = static_cast<uint32_t>(r) / static_cast<uint32_t>(q.k);
      strip.route[i] = r;
      strip.x[i] = static_cast<const T*>(a.x.data) + (a.x.routed ? r : t) * a.x.stride;
      strip.other[i] = static_cast<const T*>(a.other.data) + (a.other.routed ? r : t) * a.other.stride;
      strip.dot[i] = V{};
      if (sums.data)
        strip.sum[i] = sums.data + (t - sums.first_token) * sums.stride;
      else
        strip.out[i] = static_cast<T*>(a.out) + r * a.h;
      strip.gate[i] = a.gate ? static_cast<const Acc*>(a.gate)[r] : Acc(1);
    }
  }

  // Takes the products c[i][0 : columns] of columns n.. to where they go; kFull: all lanes are real.
  template <bool kFull>
  void finish_tile(Strip& strip, int64_t e, Acc* const* c, int64_t n, int64_t columns, bool sum) {
    constexpr int L = kLanes<Acc>;
    const Acc* const bias = a.bias ? static_cast<const Acc*>(a.bias) + e * a.h + n : nullptr;
    const bool dots = a.dot, relu = a.activation == Activation::relu, gate = a.gate, write = a.out;
    const int rows = strip.rows;
    for (int i = 0; i < rows; ++i) {
      const Acc* const from = c[i];
      const T* const other = dots ? strip.other[i] + n : nullptr;
      Acc* const to_sum = sum ? strip.sum[i] + n : nullptr;
      T* const to = sum ? nullptr : strip.out[i] + n;
      const Acc scale = strip.gate[i];
      V dot = strip.dot[i];
      for (int j = 0; j < (kFull ? kCols : columns); j += L) {
        const int64_t left = kFull ? L : columns - j;
        V u = load(from + j, left);
        if (bias) u += load(bias + j, left);
        if (dots) dot += u * load(other + j, left);
        if (!write) continue;
        if (relu) u = u < 0 ? V{} : u;
        if (gate) u *= scale;
        if (sum)
          store(to_sum + j, load(to_sum + j, left) + u, left);
        else
          store(to + j, u, left);
      }
      strip.dot[i] = dot;
    }
  }

  void close_dots(Strip& strip, int64_t group) {
    Acc* const dot = static_cast<Acc*>(a.dot);
    for (int i = 0; i < strip.rows; ++i) {
      const int64_t r = strip.route[i];
      const Acc part = sum_of_lanes<Acc>(strip.dot[i]);
      if (dot_parts)
        dot_parts[group * num_routes + r] = part;
      else
        dot[r] = group ? dot[r] + part : part;
      strip.dot[i] = V{};
    }
  }

  void finish_dots() {
    Acc* const dot = static_cast<Acc*>(a.dot);
    if (dot_parts)
      for (int64_t r = 0; r < num_routes; ++r) {
        dot[r] = dot_parts[r];
        for (int64_t group = 1; group * kGroup < a.h; ++group) dot[r] += dot_parts[group * num_routes + r];
      }
    for (int64_t p = a.h ? routed : 0; p < num_routes; ++p) dot[q.order[p]] = 0;
  }
};

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
