// cvmm_fwd on the CPU.
//
// Without reduce the sorted routes are cut into tasks of about equal size, so that a skewed routing still
// uses every thread; each task gathers the rows of an expert's routes strip by strip and multiplies them by
// the panels of W. With reduce a task owns a block of tokens by a block of columns, maybe of the first or the
// second half of the experts only, and adds up its routes in the order of `order` (ascending expert): no
// [R, h] intermediate, and a sum that does not depend on the number of threads.
#pragma once
#include "common/cpu.h"
#include "cvmm/cvmm_cpu_dots.h"
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
    if (!a.out || !a.reduce || q.k == 1)
      run_routes();
    else if (q.num_experts > 1 && 2 * a.h < q.k * a.d)
      run_halves();
    else
      run_reduce();
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
  static constexpr int kShallowBytes = 256 << 10;     // of W with so few units that it has more columns
  static constexpr int kPitch =
      kDepth + 64 / sizeof(Unit);                   // of packed rows, so that they share no cache sets
  static constexpr int kBlockRows = 256;            // rows whose sums wait for the next kDepth units
  static constexpr int kSumTokens = 2048;           // tokens of a block whose sums are no part of `out`
  static constexpr int64_t kOwnSumBytes = 8 << 20;  // of a block's sums, if `out` could hold them as well
  static constexpr int64_t kHalfBytes = 8 << 20;    // of one of two sums
  static constexpr int kPlaceRows = 5 * kMaxRows;   // not more read a row-major W where it lies,
  static constexpr int64_t kPlaceCols = 4096 / sizeof(Unit);  // so many columns
  static constexpr int64_t kPlaceBytes = 16 << 10;  // and bytes of it at a time (more for many rows)
  static constexpr int64_t kLeastPlaceUnits = 16;   // at a time
  static constexpr int kDotRows = kMostDotRows<S>;  // not more, and W the other way: dot products
  static constexpr int kFewRows = 3 * kMaxRows;     // not more use a packed W
  static constexpr int kFewBytes = 128 << 10;       // of so many bytes at a time
  static constexpr int64_t kRowBytesAhead = 1024;   // of a row of x of the next expert
  static constexpr int64_t kDotBytesAhead = 8192;   // of W
  static constexpr int kPackCost = 6;               // of an element of W, in products of a row
  static constexpr int kLeastUnits = 64;            // at a time, so that partial sums are seldom moved
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

  // A part of W: columns from n0 on, and `depth` elements of the contraction from k0 on.
  struct WeightsBlock {
    int64_t e, n0, width, k0, depth;
  };

  const TW* corner_of(const WeightsBlock& b) const {
    return static_cast<const TW*>(a.w) + b.e * a.w_stride_e + b.n0 * a.w_stride_h + b.k0 * a.w_stride_d;
  }

  Ahead ahead_of(const WeightsBlock& b) const {
    if (b.e >= q.num_experts) return {};
    const int64_t size = sizeof(TW);
    const char* const corner = reinterpret_cast<const char*>(corner_of(b));
    Ahead ahead;
    if (a.w_stride_h == 1)
      ahead = {corner, a.w_stride_d * size, b.depth, b.width * size};
    else if (a.w_stride_d == 1)
      ahead = {corner, a.w_stride_h * size, b.width, b.depth * size};
    if (ahead.stride == ahead.bytes) ahead.bytes *= ahead.rows, ahead.rows = ahead.rows > 0;
    return ahead;
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
    const int64_t groups = ceil_div(a.h, kGroup);
    // Each block of tokens packs all of W again, each block of columns gathers all rows of x again. The
    // latter is cheaper, so columns are split first, and that is all if each thread gets an equal share of
    // them. Else they are split as long as a block keeps kBlockCols, and then tokens as far as an expert
    // keeps rows enough in a block.
    const bool equal = groups % threads == 0;
    const int64_t wanted = equal ? threads : 2 * threads;
    const int64_t wide = equal ? threads : max_of(1, ceil_div(a.h, kBlockCols));
    int64_t blocks = min_of(ceil_div(wanted, wide), routed / (128 * max_of(q.num_experts, 1)));
    if (!kOutHoldsSums) blocks = max_of(blocks, ceil_div(q.num_tokens, kSumTokens));
    blocks = max_of(1, max_of(blocks, min_of(threads / max_of(groups, 1), q.num_tokens)));
    split_columns(kOutHoldsSums ? ceil_div(wanted, blocks) : groups);
    const Strips tokens(q.num_tokens, ceil_div(q.num_tokens, blocks));
    for_each_task(tokens.count * column_blocks, threads, [&](int64_t task) {
      const int64_t t = task / column_blocks, block = task % column_blocks;
      reduce_block(tokens.begin(t), tokens.size(t), first_column(block), first_column(block + 1));
    });
  }

  // Sums narrower than the rows of x, which would be gathered again for each block of columns: the routes of
  // the first half of the experts are summed apart from the others, and both sums are added. By the shape
  // only, and the cut by the whole routing, so that no bit depends on how the work is divided.
  void run_halves() {
    const int32_t* const offsets = a.whole_offsets ? a.whole_offsets : q.offsets;
    const int64_t middle = q.offsets[middle_expert(offsets, q.num_experts)];
    const int64_t uneven = middle * 2 > routed ? middle * 2 - routed : routed - middle * 2;
    const int64_t wanted = 4 * uneven <= routed ? ceil_div(threads, 2) : threads;
    split_columns(min_of(wanted, ceil_div(a.h, kGroup)));
    const int64_t blocks = ceil_div(wanted, column_blocks);
    const int64_t row = a.h * int64_t{sizeof(Acc)}, most = max_of(1, kHalfBytes / max_of(1, row));
    for (int64_t first = 0; first < q.num_tokens; first += most) {
      const int64_t count = min_of(most, q.num_tokens - first);
      Acc* const memory =
          static_cast<Acc*>(thread_scratch(kSlotHalves, (kOutHoldsSums ? 1 : 2) * count * row));
      const Sums second{memory, a.h, first};
      Sums sums{memory + count * a.h, a.h, first};
      if constexpr (kOutHoldsSums) sums.data = static_cast<T*>(a.out) + first * a.h;
      const Strips tokens(count, ceil_div(count, min_of(blocks, count)));
      for_each_task(2 * tokens.count * column_blocks, threads, [&](int64_t task) {
        const int64_t part = task / 2 / column_blocks, block = task / 2 % column_blocks;
        const bool before = task % 2 == 0;
        sum_routes(before ? 0 : middle, before ? middle : routed, first + tokens.begin(part),
                   tokens.size(part), first_column(block), first_column(block + 1), before ? sums : second);
      });
      const Strips parts(count, ceil_div(count, threads));
      for_each_task(parts.count, threads, [&](int64_t part) {
        const int64_t begin = parts.begin(part) * a.h, end = begin + parts.size(part) * a.h;
        T* const out = static_cast<T*>(a.out) + first * a.h;
        for (int64_t i = begin; i < end; i += kLanes<Acc>)
          store(out + i, load(sums.data + i, end - i) + load(second.data + i, end - i), end - i);
      });
    }
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
    // Neighbours in `out` of what another thread adds to would be fetched from each other's caches all the
    // time.
    const int64_t own_bytes = sizeof(Acc) * tokens * width;
    const bool own = !kOutHoldsSums || (threads > 1 && column_blocks > 1 && own_bytes <= kOwnSumBytes);
    Sums sums{nullptr, a.h, first_token};
    if (own)
      sums = {static_cast<Acc*>(thread_scratch(kSlotSums, own_bytes)) - n0, width, first_token};
    else if constexpr (kOutHoldsSums)
      sums.data = out;
    sum_routes(0, routed, first_token, tokens, n0, n1, sums);

    if (own)
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t n = n0; n < n1; n += kLanes<Acc>)
          store(out + t * a.h + n, load(sums.data + t * sums.stride + n, n1 - n), n1 - n);
  }

  // Of positions [from, to) of `order`, whole experts, the routes of some tokens.
  void sum_routes(int64_t from, int64_t to, int64_t first_token, int64_t tokens, int64_t n0, int64_t n1,
                  const Sums& sums) {
    Acc* const rows = sums.data + (first_token - sums.first_token) * sums.stride + n0;
    for (int64_t t = 0; t < tokens; ++t) __builtin_memset(rows + t * sums.stride, 0, sizeof(Acc) * (n1 - n0));
    for_each_expert(q, from, to, [&](int64_t e, int64_t next, int64_t begin, int64_t end) {
      if (tokens < q.num_tokens) {
        begin = lower_bound(q.order, begin, end, first_token * q.k);
        end = lower_bound(q.order, begin, end, (first_token + tokens) * q.k);
      }
      if (begin < end) expert_block(e, next, begin, end, n0, n1, sums);
    });
  }

  // Positions [begin, end) of `order`, all of expert e, by columns [n0, n1). `next` is the expert after this
  // one.
  void expert_block(int64_t e, int64_t next, int64_t begin, int64_t end, int64_t n0, int64_t n1,
                    const Sums& sums) {
    // By the rows of the expert and all columns, not those of this call: sums must not depend on how the work
    // is divided.
    const int32_t* const offsets = a.whole_offsets ? a.whole_offsets : q.offsets;
    const int64_t all_rows = offsets[e + 1] - offsets[e];
    if (all_rows <= kDotRows && a.w_stride_d == 1 && a.w_stride_h != 1 && a.d >= kLanes<Acc>)
      return dot_block(e, next, begin, end, n0, n1, sums);
    if constexpr (__is_same(T, Unit) && __is_same(TW, Unit))
      if (all_rows <= kPlaceRows && a.w_stride_h == 1)
        return place_block(e, next, begin, end, n0, n1, all_rows, sums);
    const bool few = all_rows <= kFewRows;
    const int64_t units = ceil_div(a.d, S::kDepth);
    const int64_t few_units = kFewBytes / sizeof(Unit) / max_of(1, min_of(a.h, kBlockCols));
    const int64_t most_units = few ? min_of(kDepth, max_of(kLeastUnits, few_units)) : kDepth;
    const Strips depths(units, most_units);
    // Rows of x are packed again for each block of columns.
    const int64_t block_columns =
        few || depths.count > 1
            ? kBlockCols
            : max_of(kBlockCols, kShallowBytes / int64_t{sizeof(Unit)} / max_of(1, units) / kGroup * kGroup);
    const int64_t first_depth = depths.count ? min_of(depths.size(0) * S::kDepth, a.d) : 0;
    const int64_t most_rows = depths.count > 1 ? kBlockRows : end - begin;
    for (int64_t n = n0; n < n1; n += block_columns) {
      const int64_t after = n + block_columns;
      const WeightsBlock beyond =
          after < n1 ? WeightsBlock{e, after, min_of(n1 - after, block_columns), 0, first_depth}
                     : WeightsBlock{next, n0, min_of(n1 - n0, block_columns), 0, first_depth};
      for (int64_t p = begin; p < end; p += most_rows)
        row_block(e, p, min_of(end - p, most_rows), n, min_of(n1 - n, block_columns), depths, beyond, sums);
    }
  }

  // As expert_block, for rows and columns that fit the scratch. `beyond` is the block of W that follows.
  void row_block(int64_t e, int64_t begin, int64_t rows, int64_t n0, int64_t width, const Strips& depths,
                 const WeightsBlock& beyond, const Sums& sums) {
    Unit* const packed_x = static_cast<Unit*>(thread_scratch(kSlotA, sizeof(Unit) * kMaxRows * kPitch));
    Unit* const packed_w = static_cast<Unit*>(thread_scratch(kSlotB, sizeof(Unit) * kDepth * kBlockCols));
    const bool deep = depths.count > 1;
    Acc* const waiting =
        deep ? static_cast<Acc*>(thread_scratch(kSlotC, sizeof(Acc) * kBlockRows * kBlockCols)) : nullptr;
    alignas(64) Acc tile[kMaxRows * kCols];
    const bool from_registers = a.out && !deep && (sums.data ? kOutHoldsSums || !a.dot : kOutHoldsSums);
    const int64_t panels = ceil_div(width, kCols);
    const Strips strips(rows, kMaxRows);

    for (int64_t block = 0; block < max_of(1, depths.count); ++block) {
      const bool last = block + 1 >= depths.count;
      const int64_t units = depths.count ? depths.size(block) : 0, k0 = depths.begin(block) * S::kDepth;
      const int64_t depth = min_of(units * S::kDepth, a.d - k0);
      const TW* const corner = corner_of({e, n0, width, k0, depth});
      const int64_t after = k0 + units * S::kDepth;
      Ahead ahead = ahead_of(
          last ? beyond
               : WeightsBlock{e, n0, width, after, min_of(depths.size(block + 1) * S::kDepth, a.d - after)});
      pack_weights<T>(corner, a.w_stride_d, a.w_stride_h, depth, width, packed_w, ahead,
                      ahead.lines() * kPackCost / (kPackCost + rows));
      ahead.pace = ceil_div(ahead.lines(), max_of(1, strips.count * panels * ceil_div(units, kAheadSteps)));
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
          results.ahead = &ahead;
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
          // The next strip's rows and what its results meet in memory arrive while the kernel runs.
          for (int64_t i = next.rows * j / panels; i < next.rows * (j + 1) / panels; ++i) {
            prefetch_range(next.x[i] + k0, depth * sizeof(T));
            if (last) prefetch_results(next, i, n0, width, sums);
          }

          kernel_for<S, kPitch, 1>(strip.rows, columns > kLanes<Acc> ? 2 : 1)(
              units, packed_x, packed_w + n * units, kCols, results);
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

  // As expert_block, for few rows and a row-major W of units, which is read where it lies, as far as possible
  // in the order of memory: a block of it stays in the first-level cache for all rows, while the next one is
  // fetched there.
  void place_block(int64_t e, int64_t next, int64_t begin, int64_t end, int64_t n0, int64_t n1,
                   int64_t all_rows, const Sums& sums) {
    Unit* const packed_x = static_cast<Unit*>(thread_scratch(kSlotA, sizeof(Unit) * kPlaceRows * kPitch));
    Unit* const packed_w = static_cast<Unit*>(thread_scratch(kSlotB, sizeof(Unit) * kDepth * kCols));
    const int64_t most_columns = min_of(a.h, kPlaceCols);  // not of this call: see expert_block
    const int64_t pitch = ceil_div(most_columns, kCols) * kCols + kLanes<Acc>;
    Acc* const waiting = static_cast<Acc*>(thread_scratch(kSlotC, sizeof(Acc) * kPlaceRows * pitch));
    const int64_t block_bytes = kPlaceBytes << min_of(3, (all_rows - 1) / kMaxRows);
    int64_t most_units = kDepth;
    while (most_units > kLeastPlaceUnits && most_units * most_columns * int64_t{sizeof(Unit)} > block_bytes)
      most_units /= 2;
    const Strips strips(end - begin, kMaxRows);
    Strip strip[kPlaceRows / kMaxRows];
    for (int64_t s = 0; s < strips.count; ++s)
      open_strip(strip[s], begin + strips.begin(s), strips.size(s), sums);
    prefetch_rows(next);

    for (int64_t n = n0; n < n1; n += kPlaceCols) {
      const int64_t width = min_of(n1 - n, kPlaceCols), panels = ceil_div(width, kCols);
      for (int64_t k = 0; k == 0 || k < a.d; k += most_units) {
        const int64_t units = min_of(a.d - k, most_units), after = k + units;
        if (k % kDepth == 0)
          for (int64_t s = 0; s < strips.count; ++s)
            for (int i = 0; i < strip[s].rows; ++i) {
              pack_row(strip[s].x[i] + k, min_of(a.d - k, kDepth), packed_x + (strips.begin(s) + i) * kPitch);
              if (k == 0) prefetch_results(strip[s], i, n, width, sums);
            }
        const TW* const corner = corner_of({e, n, width, k, units});
        const int64_t whole = width / kCols * kCols;
        const int64_t later = n + kPlaceCols;
        WeightsBlock beyond{e, n, width, after, min_of(a.d - after, most_units)};
        if (after == a.d) {
          const bool same = later < n1;
          const int64_t first = same ? later : n0;
          beyond = {same ? e : next, first, min_of(n1 - first, kPlaceCols), 0, min_of(a.d, most_units)};
        }
        Ahead none, ahead = ahead_of(beyond);
        ahead.first_level = true;
        ahead.pace = ceil_div(ahead.lines(), max_of(1, strips.count * panels * ceil_div(units, kAheadSteps)));
        if (whole < width)
          pack_weights<T>(corner + whole, a.w_stride_d, 1, units, width - whole, packed_w, none, 0);
        for (int64_t s = 0; s < strips.count; ++s)
          for (int64_t j = 0; j < width; j += kCols) {
            Acc* c[kMaxRows];
            for (int i = 0; i < strip[s].rows; ++i) c[i] = waiting + (strips.begin(s) + i) * pitch + j;
            Results<Acc> results{c};
            results.add = k > 0;
            results.ahead = &ahead;
            const bool here = j < whole;
            kernel_for<S, kPitch, 1>(strip[s].rows, width - j > kLanes<Acc> ? 2 : 1)(
                units, packed_x + strips.begin(s) * kPitch + k % kDepth,
                here ? reinterpret_cast<const Unit*>(corner + j) : packed_w, here ? a.w_stride_d : kCols,
                results);
          }
      }
      for (int64_t s = 0; s < strips.count; ++s)
        for (int64_t j = 0; j < width; j += kGroup) {
          Acc* c[kMaxRows];
          for (int i = 0; i < strip[s].rows; ++i) c[i] = waiting + (strips.begin(s) + i) * pitch + j;
          finish_tile<false>(strip[s], e, c, n + j, min_of(width - j, kGroup), sums.data);
          if (a.dot) close_dots(strip[s], (n + j) / kGroup);
        }
    }
  }

  // The beginnings of the rows of expert e.
  void prefetch_rows(int64_t e) const {
    if (e < q.num_experts)
      for (int64_t p = q.offsets[e]; p < min_of(q.offsets[e + 1], q.offsets[e] + kDotRows); ++p)
        prefetch_range(row_of(q.order[p], token_of(q.order[p])),
                       min_of(a.d * int64_t{sizeof(T)}, kRowBytesAhead));
  }

  // As expert_block, by dot products.
  void dot_block(int64_t e, int64_t next, int64_t begin, int64_t end, int64_t n0, int64_t n1,
                 const Sums& sums) {
    constexpr int L = kLanes<Unit>, kTilePitch = kGroup + kLanes<Acc>;
    const int64_t units = ceil_div(a.d, S::kDepth), padded = ceil_div(units, L) * L, pitch = padded + L;
    Unit* const packed_x = static_cast<Unit*>(thread_scratch(kSlotA, sizeof(Unit) * kDotRows * pitch));
    alignas(64) Acc tile[kDotRows * kTilePitch];
    Strip strip;
    open_strip(strip, begin, static_cast<int>(end - begin), sums);
    for (int i = 0; i < strip.rows; ++i) {
      pack_row(strip.x[i], a.d, packed_x + i * pitch);
      __builtin_memset(packed_x + i * pitch + units, 0, sizeof(Unit) * (padded - units));
    }
    prefetch_rows(next);
    int columns;  // of a call
    const auto kernel = dot_kernel_for<T, TW>(strip.rows, columns);
    const int64_t bytes = columns * a.w_stride_h * int64_t{sizeof(TW)};
    const int64_t columns_ahead = bytes > kDotBytesAhead ? 0 : kDotBytesAhead / max_of(1, bytes) * columns;
    // Bytes from a column to what is fetched with it: of a long one what follows in it, else a column some
    // calls later, of the next expert after the last.
    const auto ahead_of_column = [&](int64_t column) -> int64_t {
      if (columns_ahead == 0) return kRowBytesAhead;
      const int64_t later = column + columns_ahead;
      const bool of_next = later >= n1 && next < q.num_experts;
      const TW* const to =
          of_next ? corner_of({next, n0 + later - n1, 0, 0, 0}) : corner_of({e, later, 0, 0, 0});
      return (to - corner_of({e, column, 0, 0, 0})) * int64_t{sizeof(TW)};
    };
    Acc* c[kMaxRows];
    for (int i = 0; i < strip.rows; ++i) c[i] = tile + i * kTilePitch;
    for (int64_t n = n0; n < n1; n += kGroup) {
      const int64_t width = min_of(n1 - n, kGroup);
      for (int i = 0; i < strip.rows; ++i) prefetch_results(strip, i, n, width, sums);
      for (int64_t j = 0; j < width; j += columns)
        kernel(a.d, packed_x, pitch, corner_of({e, n + j, 0, 0, 0}), a.w_stride_h, width - j,
               ahead_of_column(n + j), tile + j, kTilePitch);
      finish_tile<false>(strip, e, c, n, width, sums.data);
      if (a.dot) close_dots(strip, n / kGroup);
    }
  }

  void prefetch_results(const Strip& strip, int64_t i, int64_t n, int64_t columns, const Sums& sums) const {
    if (a.dot) prefetch_range(strip.other[i] + n, columns * sizeof(T));
    if (sums.data)
      prefetch_range(strip.sum[i] + n, columns * sizeof(Acc));
    else if (a.out)
      prefetch_range(strip.out[i] + n, columns * sizeof(T));
  }

  int64_t token_of(int64_t r) const { return static_cast<uint32_t>(r) / static_cast<uint32_t>(q.k); }
  const T* row_of(int64_t r, int64_t t) const {
    return static_cast<const T*>(a.x.data) + (a.x.routed ? r : t) * a.x.stride;
  }

  void open_strip(Strip& strip, int64_t begin, int rows, const Sums& sums) const {
    strip.rows = rows;
    for (int i = 0; i < rows; ++i) {
      const int64_t r = q.order[begin + i], t = token_of(r);
      strip.route[i] = r;
      strip.x[i] = row_of(r, t);
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
