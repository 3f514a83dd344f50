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
    choose_tile(threads == 1 ? 1 : ceil_div(8 * threads * longest, max_of(routed, 1)));
    const int64_t tiles_d = ceil_div(a.d, tile_d), tiles_h = ceil_div(a.h, tile_h), tiles = tiles_d * tiles_h;
    for_each_task(q.num_experts * tiles, threads, [&](int64_t task) {
      const int64_t e = task / tiles, i = task % tiles / tiles_h * tile_d, j = task % tiles_h * tile_h;
      if (segments_of(e) == 1) expert_tile(e, i, min_of(tile_d, a.d - i), j, min_of(tile_h, a.h - j));
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
  static constexpr int kAhead = 4;                     // routes whose rows are fetched ahead of their packing
  static constexpr int kSkew = 64 / sizeof(Unit);      // between strips, so that they share no cache sets
  static constexpr int kSegment = 4096;                // routes of a segment, at least
  static constexpr int kMostSegments = 16;
  static constexpr int kSmallMatrix = 128 * 128;  // elements; larger ones have tiles enough

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
      sum_routes(begin, begin + routes.size(s), i, min_of(kTile, a.d - i), j, min_of(kTile, a.h - j),
                 parts + s * size + i * a.h + j, a.h);
    });
    TW* const dw = static_cast<TW*>(a.dw) + e * size;
    for (int64_t n = 0; n < size; n += kLanes<Acc>) {
      V sum = load(parts + n, size - n);
      for (int64_t s = 1; s < routes.count; ++s) sum += load(parts + s * size + n, size - n);
      store(dw + n, sum, size - n);
    }
  }

  void expert_tile(int64_t e, int64_t i0, int64_t rows, int64_t j0, int64_t columns) {
    const int64_t begin = q.offsets[e], end = q.offsets[e + 1];
    TW* const dw = static_cast<TW*>(a.dw) + (e * a.d + i0) * a.h + j0;
    if (begin == end) {
      for (int64_t i = 0; i < rows; ++i) __builtin_memset(dw + i * a.h, 0, sizeof(TW) * columns);
    } else if constexpr (__is_same(TW, Acc)) {
      sum_routes(begin, end, i0, rows, j0, columns, dw, a.h);
    } else {
      Acc* const sums = static_cast<Acc*>(thread_scratch(kSlotSums, sizeof(Acc) * kTile * kTile));
      sum_routes(begin, end, i0, rows, j0, columns, sums, kTile);
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; j += kLanes<Acc>)
          store(dw + i * a.h + j, load(sums + i * kTile + j, columns - j), columns - j);
    }
  }

  // c[0 : rows, 0 : columns] = sum over positions [begin, end), not empty, of x[i0 : , ] dy[j0 : , ]^T.
  void sum_routes(int64_t begin, int64_t end, int64_t i0, int64_t rows, int64_t j0, int64_t columns, Acc* c,
                  int64_t ldc) {
    constexpr int64_t kStripPitch = kDepth * kSlot + kSkew, kPanelPitch = kDepth * kCols + kSkew;
    const Strips strips(rows, kMaxRows);
    const Panels panels{columns};
    Unit* const packed_x =
        static_cast<Unit*>(thread_scratch(kSlotA, sizeof(Unit) * (kTile / kMaxRows + 1) * kStripPitch));
    Unit* const packed_dy =
        static_cast<Unit*>(thread_scratch(kSlotB, sizeof(Unit) * ceil_div(kTile, kCols) * kPanelPitch));
    alignas(64) Acc tile[kMaxRows * kCols];
    for (int64_t p = begin; p < end; p += kDepth * S::kDepth) {
      const int64_t routes = min_of(end - p, kDepth * S::kDepth), units = ceil_div(routes, S::kDepth);
      const bool add = p > begin;
      gather<kSlot>(a.x, p, routes, i0, a.d, strips, nullptr, packed_x, kStripPitch);
      gather<kCols>(a.dy, p, routes, j0, a.h, panels, static_cast<const Acc*>(a.gate), packed_dy,
                    kPanelPitch);
      for (int64_t s = 0; s < strips.count; ++s) {
        const int m = strips.size(s);
        for (int64_t j = 0; j < panels.count; ++j) {
          const int n = panels.size(j);
          Acc* const corner = c + strips.begin(s) * ldc + j * kCols;
          Acc* to[kMaxRows];
          for (int i = 0; i < m; ++i) {
            to[i] = n == kCols ? corner + i * ldc : tile + i * kCols;
            prefetch_range(corner + i * ldc, n * sizeof(Acc));
          }
          Results<Acc> results{to};
          results.add = add && n == kCols;
          kernel_for<S, 1, kSlot>(m, n > kLanes<Acc> ? 2 : 1)(units, packed_x + s * kStripPitch,
                                                              packed_dy + j * kPanelPitch, kCols, results);
          if (n == kCols) continue;
          for (int i = 0; i < m; ++i)
            for (int v = 0; v < n; v += kLanes<Acc>) {
              Acc* const at = corner + i * ldc + v;
              V sum = load(tile + i * kCols + v);
              if (add) sum += load(at, n - v);
              store(at, sum, n - v);
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
  // part hold whatever follows in the row: they only meet results that are not used.
  template <int kWidth, class Parts>
  void gather(const Rows& source, int64_t p, int64_t routes, int64_t first, int64_t width, const Parts& parts,
              const Acc* gate, Unit* to, int64_t pitch) const {
    const int64_t columns = parts.begin(parts.count - 1) + parts.size(parts.count - 1);
    for (int64_t k = 0; k < routes; k += S::kDepth, to += kWidth) {
      const T* row[S::kDepth] = {};
      Acc scale[S::kDepth] = {};
      for (int i = 0; i < S::kDepth && k + i < routes; ++i) {
        row[i] = row_of(source, p + k + i);
        if (gate) scale[i] = gate[q.order[p + k + i]];
        if (k + i + kAhead < routes)
          prefetch_range(row_of(source, p + k + i + kAhead) + first, columns * sizeof(T));
      }
      const T* const second = row[S::kDepth - 1];
      for (int64_t s = 0; s < parts.count; ++s)
        for (int v = 0; v < parts.size(s); v += kLanes<Unit>) {
          const int64_t column = first + parts.begin(s) + v;
          const T* const next = second ? second + column : nullptr;
          Unit* const at = to + s * pitch + v;
          if (gate)
            store_units(at, scaled_units_across<T>(row[0] + column, next, width - column, scale[0],
                                                   scale[S::kDepth - 1]));
          else
            store_units(at, units_across<T>(row[0] + column, next, width - column));
        }
    }
  }
};

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
