// cvmm_bwd_w on the CPU: dw[e] = X_e^T . dY_e, with the routes of expert e as the contraction.
//
// A task owns a tile of one dw[e] and walks its routes in chunks: rows of x and dy are gathered into panels
// once a chunk, the gate multiplied into dy. Pairs of bfloat16 round gate * dy to bfloat16; all other types
// multiply in full.
#pragma once
#include "common/cpu.h"
#include "cvmm/cvmm_cpu_tasks.h"

namespace sysgen::SYSGEN_ISA {
namespace {

template <class T, class TW>
class CvmmBwdW {
 public:
  CvmmBwdW(const CvmmBwdWArgs& args, int max_threads)
      : a(args), q(args.route), routed(q.offsets[q.num_experts]) {
    threads = useful_threads(max_threads, routed * a.d * a.h, q.num_experts * a.d * a.h * sizeof(TW));
  }

  void run() {
    if (a.d == 0 || a.h == 0) return;
    int64_t longest = 0;
    for (int64_t e = 0; e < q.num_experts; ++e) longest = max_of(longest, q.offsets[e + 1] - q.offsets[e]);
    // Each tile gathers its rows again: if one expert has all routes, one tile for each thread where these
    // are equal, else two.
    const int64_t all = max_of(routed, 1);
    choose_tile(threads == 1 ? 1 : ceil_div(threads * longest, all));
    if (threads > 1 && !(longest == routed && equal_tiles()))
      choose_tile(ceil_div(2 * threads * longest, all));
    const int64_t tiles_d = ceil_div(a.d, tile_d), tiles_h = ceil_div(a.h, tile_h), tiles = tiles_d * tiles_h;
    const auto tile_of = [&](int64_t task) {
      const int64_t e = task / tiles, i = task % tiles / tiles_h * tile_d, j = task % tiles_h * tile_h;
      return Block{q.offsets[e], q.offsets[e + 1], i, min_of(tile_d, a.d - i), j, min_of(tile_h, a.h - j)};
    };
    // Threads begin far from each other: two that first touch one page both wait for the system to clear it.
    const int64_t tasks = q.num_experts * tiles, part = ceil_div(tasks, threads);
    for_each_task(part * threads, threads, [&](int64_t n) {
      const int64_t task = n % threads * part + n / threads, e = task / tiles;
      if (task < tasks && segments_of(e) == 1)
        expert_tile(e, tile_of(task), task + 1 < tasks ? tile_of(task + 1) : Block{});
    });
    if (longest < 2 * kSegment) return;
    for (int64_t e = 0; e < q.num_experts; ++e)
      if (segments_of(e) > 1) segmented_expert(e);
  }

 private:
  using S = Step<T>;
  using Unit = typename S::Unit;
  using Acc = typename S::Acc;
  using V = Vector<Acc>;

  static constexpr int kCols = kPanel<S>;
  static constexpr int kSlot = kMaxRows > 8 ? 16 : 8;  // units between the steps of a packed strip of x
  static constexpr int kDepth = 1024 / sizeof(Unit);   // units of routes in a chunk
  static constexpr int kTile = 256;                    // most rows and columns of a tile
  static constexpr int kSkew = 64 / sizeof(Unit);      // between strips, so that they share no cache sets
  static constexpr int kSegment = 4096;                // routes of a segment, at least
  static constexpr int kMostSegments = 16;
  static constexpr int kSmallMatrix = 128 * 128;  // elements; larger ones have tiles enough
  static constexpr int64_t kCached = 8 << 20;     // bytes of dw; more are written past the caches

  const CvmmBwdWArgs& a;
  const Routing& q;
  const int64_t routed;
  int threads;
  int64_t tile_d, tile_h;

  // kCols columns, then the rest.
  struct Panels {
    int64_t width;
    int64_t count = ceil_div(width, kCols);
    int64_t begin(int64_t s) const { return s * kCols; }
    int size(int64_t s) const { return static_cast<int>(min_of(kCols, width - s * kCols)); }
  };

  // The product of positions [begin, end), by `rows` columns of x from i on and `columns` of dy from j on.
  struct Block {
    int64_t begin, end, i, rows, j, columns;
  };

  void choose_tile(int64_t wanted) {
    tile_d = min_of(a.d, kTile);
    tile_h = min_of(a.h, kTile);
    while (ceil_div(a.d, tile_d) * ceil_div(a.h, tile_h) < wanted) {
      if (tile_d > 4 * kMaxRows && tile_d >= tile_h)
        tile_d = ceil_div(tile_d, 2);
      else if (tile_h > 2 * kCols)
        tile_h = ceil_div(ceil_div(tile_h, 2), kCols) * kCols;
      else
        break;
    }
  }

  bool equal_tiles() const {
    return a.d % tile_d == 0 && a.h % tile_h == 0 && a.d / tile_d * (a.h / tile_h) % threads == 0;
  }

  // A matrix too small for a tile to each thread splits its routes instead; by shape only, so that the sums
  // do not depend on the number of threads.
  int64_t segments_of(int64_t e) const {
    if (a.d * a.h > kSmallMatrix) return 1;
    return max_of(1, min_of(kMostSegments, (q.offsets[e + 1] - q.offsets[e]) / kSegment));
  }

  void segmented_expert(int64_t e) {
    const int64_t count = segments_of(e), size = a.d * a.h;
    const Strips routes(q.offsets[e + 1] - q.offsets[e], ceil_div(q.offsets[e + 1] - q.offsets[e], count));
    Acc* const parts = static_cast<Acc*>(thread_scratch(kSlotShared, sizeof(Acc) * count * size));
    const int64_t tiles_d = ceil_div(a.d, kTile), tiles_h = ceil_div(a.h, kTile), tiles = tiles_d * tiles_h;
    for_each_task(routes.count * tiles, threads, [&](int64_t task) {
      const int64_t s = task / tiles, i = task % tiles / tiles_h * kTile, j = task % tiles_h * kTile;
      const int64_t begin = q.offsets[e] + routes.begin(s);
      const Block block{begin, begin + routes.size(s), i, min_of(kTile, a.d - i), j, min_of(kTile, a.h - j)};
      sum_routes(block, {}, parts + s * size + i * a.h + j, a.h, false);
    });
    TW* const dw = static_cast<TW*>(a.dw) + e * size;
    for (int64_t n = 0; n < size; n += kLanes<Acc>) {
      V sum = load(parts + n, size - n);
      for (int64_t s = 1; s < routes.count; ++s) sum += load(parts + s * size + n, size - n);
      store(dw + n, sum, size - n);
    }
  }

  // `next` is the block that will probably follow in this thread.
  void expert_tile(int64_t e, const Block& block, const Block& next) {
    TW* const dw = static_cast<TW*>(a.dw) + (e * a.d + block.i) * a.h + block.j;
    if (block.begin == block.end) {
      for (int64_t i = 0; i < block.rows; ++i) __builtin_memset(dw + i * a.h, 0, sizeof(TW) * block.columns);
    } else if (__is_same(TW, Acc) || block.end - block.begin <= kDepth * S::kDepth) {
      sum_routes(block, next, dw, a.h, past_caches(dw));
      finish_past_caches();
    } else {
      Acc* const sums = static_cast<Acc*>(thread_scratch(kSlotSums, sizeof(Acc) * kTile * kTile));
      sum_routes(block, next, sums, kTile, false);
      for (int64_t i = 0; i < block.rows; ++i)
        for (int64_t j = 0; j < block.columns; j += kLanes<Acc>)
          store(dw + i * a.h + j, load(sums + i * kTile + j, block.columns - j), block.columns - j);
    }
  }

  // Whether dw is too large to be found in a cache later, and its vectors from `corner` on are aligned.
  bool past_caches(const TW* corner) const {
    return q.num_experts * a.d * a.h * int64_t{sizeof(TW)} > kCached &&
           a.h * sizeof(TW) % kVectorBytes == 0 && reinterpret_cast<uintptr_t>(corner) % kVectorBytes == 0;
  }

  // c[0 : rows, 0 : columns] of a block that is not empty. A c of another type than the sums takes no more
  // routes than a chunk has. past_caches: if there is one chunk.
  template <class C>
  void sum_routes(const Block& block, const Block& next, C* c, int64_t ldc, bool past_caches) {
    constexpr bool kHoldsSums = __is_same(C, Acc);
    const Strips strips(block.rows, kMaxRows);
    const Panels panels{block.columns};
    constexpr int64_t kMostStrips = kTile / kMaxRows + 1, kMostPanels = ceil_div(kTile, kCols);
    Unit* const packed_x =
        static_cast<Unit*>(thread_scratch(kSlotA, sizeof(Unit) * kMostStrips * (kDepth * kSlot + kSkew)));
    Unit* const packed_dy =
        static_cast<Unit*>(thread_scratch(kSlotB, sizeof(Unit) * kMostPanels * (kDepth * kCols + kSkew)));
    alignas(64) Acc tile[kMaxRows * kCols];
    const bool stream = past_caches && block.end - block.begin <= kDepth * S::kDepth;
    for (int64_t p = block.begin; p < block.end; p += kDepth * S::kDepth) {
      const int64_t routes = min_of(block.end - p, kDepth * S::kDepth), units = ceil_div(routes, S::kDepth);
      const int64_t strip_pitch = units * kSlot + kSkew, panel_pitch = units * kCols + kSkew;
      const bool add = p > block.begin;
      gather<kSlot>(a.x, p, routes, block.i, a.d, strips, nullptr, packed_x, strip_pitch);
      gather<kCols>(a.dy, p, routes, block.j, a.h, panels, static_cast<const Acc*>(a.gate), packed_dy,
                    panel_pitch);
      // The rows of the next routes arrive while the kernels run.
      Block ahead = next;
      if (p + routes < block.end) ahead = block, ahead.begin = p + routes;
      const int64_t calls = strips.count * panels.count,
                    rows_ahead = min_of(ahead.end - ahead.begin, kDepth * S::kDepth);
      for (int64_t s = 0; s < strips.count; ++s) {
        const int m = strips.size(s);
        for (int64_t j = 0; j < panels.count; ++j) {
          const int n = panels.size(j);
          const int64_t call = s * panels.count + j;
          for (int64_t i = rows_ahead * call / calls; i < rows_ahead * (call + 1) / calls; ++i) {
            prefetch_range(row_of(a.x, ahead.begin + i) + ahead.i, ahead.rows * sizeof(T));
            prefetch_range(row_of(a.dy, ahead.begin + i) + ahead.j, ahead.columns * sizeof(T));
          }
          C* const corner = c + strips.begin(s) * ldc + j * kCols;
          const bool direct = kHoldsSums && n == kCols;
          Acc* to[kMaxRows];
          for (int i = 0; i < m; ++i) {
            if (!stream) prefetch_range(corner + i * ldc, n * sizeof(C));
            to[i] = tile + i * kCols;
            if constexpr (kHoldsSums)
              if (direct) to[i] = corner + i * ldc;
          }
          Results<Acc> results{to};
          results.add = add && direct;
          results.stream = stream && direct;
          kernel_for<S, 1, kSlot>(m, n > kLanes<Acc> ? 2 : 1)(units, packed_x + s * strip_pitch,
                                                              packed_dy + j * panel_pitch, kCols, results);
          if (direct) continue;
          for (int i = 0; i < m; ++i) {
            if constexpr (!kHoldsSums)
              if (stream && n == kCols) {
                store_past_caches(corner + i * ldc, load(tile + i * kCols),
                                  load(tile + i * kCols + kLanes<Acc>));
                continue;
              }
            for (int v = 0; v < n; v += kLanes<Acc>) {
              C* const at = corner + i * ldc + v;
              V sum = load(tile + i * kCols + v);
              if (add) sum += load(at, n - v);
              store(at, sum, n - v);
            }
          }
        }
      }
    }
  }

  const T* row_of(const Rows& source, int64_t p) const {
    const int64_t r = q.order[p];
    const int64_t index = source.routed ? r : static_cast<uint32_t>(r) / static_cast<uint32_t>(q.k);
    return static_cast<const T*>(source.data) + index * source.stride;
  }

  // Rows of the routes at positions p.., columns from `first` on, as [part][unit][kWidth]. Lanes beyond a
  // part hold whatever follows in the row: they only meet results that are not used. Some rows at a time,
  // part by part, so that one place after the other is written.
  template <int kWidth, class Parts>
  void gather(const Rows& source, int64_t p, int64_t routes, int64_t first, int64_t width, const Parts& parts,
              const Acc* gate, Unit* to, int64_t pitch) const {
    constexpr int kUnits = 16, kRows = kUnits * S::kDepth;
    for (int64_t k = 0; k < routes; k += kRows, to += kUnits * kWidth) {
      const T* row[kRows + 1] = {};  // null: none
      Acc scale[kRows + 1] = {};
      const int count = static_cast<int>(min_of(kRows, routes - k));
      for (int i = 0; i < count; ++i) {
        row[i] = row_of(source, p + k + i) + first;
        if (gate) scale[i] = gate[q.order[p + k + i]];
      }
      for (int64_t s = 0; s < parts.count; ++s)
        for (int v = 0; v < parts.size(s); v += kLanes<Unit>) {
          const int64_t column = parts.begin(s) + v, left = width - first - column;
          Unit* at = to + s * pitch + v;
          for (int i = 0; i < count; i += S::kDepth, at += kWidth) {
            const T* const second = row[i + S::kDepth - 1];
            const T* const next = second ? second + column : nullptr;
            if (gate)
              store_units(at, scaled_units_across<T>(row[i] + column, next, left, scale[i],
                                                     scale[i + S::kDepth - 1]));
            else
              store_units(at, units_across<T>(row[i] + column, next, left));
          }
        }
    }
  }
};

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
