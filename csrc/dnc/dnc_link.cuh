// The link matrix: update, projections and their backward, in tiles of kDncLinkRows rows by 32 COLUMNS
// columns. A warp takes a tile, a lane every 32nd column; sums along rows and columns leave a tile as partial
// sums. Tiles lie in shared memory: held there from step to step where all of a block fit, else copied for
// each step, the first one of each warp long before it is needed. A lane copies what it reads itself, so
// nobody waits for anybody. Either way the same operations come in the same order.
#pragma once
#include "dnc/dnc_group.cuh"

namespace sysgen {

template <class A>
struct DncLinkPass {
  int cells, heads;
  const A *link, *write_w, *precedence, *read_w;  // read_w, precedence and link: of the step before
  A *row_part, *column_part;                      // [column tiles, rows of part, N], [row tiles, ...]
};

template <class A>
__device__ __forceinline__ A link_updated(A old, A wi, A wj, A pj, bool diagonal) {
  const A now = ((A(1) - wi) - wj) * old + wi * pj;
  return diagonal ? A(0) : now;
}

template <class A>
using DncLinkTile = A[kDncLinkRows][32 * kDncLinkColumns<A>];

// Begins to copy the tile at a row and a column, zeros where the matrix ends.
template <class A>
__device__ __forceinline__ void copy_tile(const A* link, i64 n, int row, int column, DncLinkTile<A>& tile) {
#pragma unroll 4
  for (int k = 0; k < kDncLinkRows; ++k)
#pragma unroll
    for (int c = 0; c < kDncLinkColumns<A>; ++c) {
      const int lane = 32 * c + static_cast<int>(lane_id());
      const bool there = row + k < n && column + lane < n;
      cp_async<sizeof(A)>(&tile[k][lane], there ? link + (row + k) * n + column + lane : link, there);
    }
  cp_async_commit();
}

// Calls f(unit, row, column) for the tiles of this warp in the rows that the block owns.
template <class A, class F>
__device__ __forceinline__ void tiles_of_warp(const DncGroup& g, int cells, bool only_first, const F& f) {
  constexpr int WIDE = 32 * kDncLinkColumns<A>;
  const int across = static_cast<int>(dnc_tiles(cells, WIDE)),
            count = across * static_cast<int>(dnc_tiles(g.last - g.first, kDncLinkRows));
  for (int unit = warp_id(); unit < (only_first ? min(count, kDncWarps) : count); unit += kDncWarps)
    f(unit, g.first + unit / across * kDncLinkRows, unit % across * WIDE);
}
// Tiles of the block that owns most of them.
template <class A>
__host__ __device__ inline i64 dnc_link_tiles(i64 cells, i64 group) {
  const i64 most = dnc_tiles(dnc_tiles(cells, kDncTile), group) * kDncTile,
            rows = most < cells ? most : cells;
  return dnc_tiles(rows, kDncLinkRows) * dnc_tiles(cells, 32 * kDncLinkColumns<A>);
}
// Begins to copy all tiles of the block, one behind the other, or the first one of each warp.
template <class A>
__device__ __forceinline__ void copy_tiles(const A* link, const DncGroup& g, int cells, DncLinkTile<A>* tiles,
                                           bool all) {
  tiles_of_warp<A>(g, cells, !all,
                   [&](int unit, int row, int column) { copy_tile(link, cells, row, column, tiles[unit]); });
}
// Writes the held tiles out; they stay.
template <class A>
__device__ __forceinline__ void store_links(const DncLinkTile<A>* tiles, const DncGroup& g, int cells,
                                            A* link) {
  cp_async_wait<0>();  // if no step came since copy_tiles
  tiles_of_warp<A>(g, cells, false, [&](int unit, int row, int column) {
    for (int k = 0; k < min(kDncLinkRows, cells - row); ++k)
      for (int lane = lane_id(); lane < min(32 * kDncLinkColumns<A>, cells - column); lane += 32)
        link[i64(row + k) * cells + column + lane] = tiles[unit][k][lane];
  });
}

// Calls f(DncHeads<count>(), first) for parts of at most four heads; a part of three is taken as four.
template <int COUNT_>
struct DncHeads {
  static constexpr int COUNT = COUNT_;
};
template <class F>
__device__ __forceinline__ void by_heads(int heads, const F& f) {
  for (int first = 0; first < heads; first += 4) {
    const int rest = heads - first;
    if (rest == 1) {
      f(DncHeads<1>(), first);
    } else if (rest == 2) {
      f(DncHeads<2>(), first);
    } else {
      f(DncHeads<4>(), first);
    }
  }
}

// What a tile reads of each of its columns; zeros outside, so that nothing there counts.
template <int HEADS, int COLUMNS, class A>
struct DncLinkColumns {
  int column[COLUMNS];
  bool there[COLUMNS];
  A write_w[COLUMNS], precedence[COLUMNS], read_w[COLUMNS][HEADS];

  __device__ __forceinline__ DncLinkColumns(const DncLinkPass<A>& p, int from, int first) {
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
      const int j = from + 32 * c + static_cast<int>(lane_id());
      column[c] = j;
      there[c] = j < p.cells;
      write_w[c] = there[c] ? p.write_w[j] : A(0);
      precedence[c] = there[c] ? p.precedence[j] : A(0);
#pragma unroll
      for (int h = 0; h < HEADS; ++h) read_w[c][h] = head_entry(p, p.read_w, first + h, j);
    }
  }
  static __device__ __forceinline__ A head_entry(const DncLinkPass<A>& p, const A* x, int head, int i) {
    return head < p.heads && i < p.cells ? x[i64(head) * p.cells + i] : A(0);
  }
};

// forward_d = L r and backward_d = r L of HEADS heads; the first ones also make the new links.
template <int HEADS, bool UPDATE, class A>
__device__ __forceinline__ void link_fwd_tile(const DncLinkPass<A>& p, int row, int column, int first,
                                              DncLinkTile<A>& tile, A* link_out) {
  constexpr int COLUMNS = kDncLinkColumns<A>, BATCH = 4;
  const i64 n = p.cells;
  const DncLinkColumns<HEADS, COLUMNS, A> columns(p, column, first);
  A back[COLUMNS][HEADS] = {};
#pragma unroll 1
  for (int from = row; from < row + kDncLinkRows; from += BATCH) {
    A sums[BATCH * HEADS] = {}, write_w[BATCH], read[BATCH][HEADS], links[BATCH][COLUMNS];
#pragma unroll
    for (int k = 0; k < BATCH; ++k) {  // all loads before the first store, which they cannot pass
      const int i = from + k;
      write_w[k] = i < n ? p.write_w[i] : A(0);
#pragma unroll
      for (int h = 0; h < HEADS; ++h) read[k][h] = columns.head_entry(p, p.read_w, first + h, i);
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) links[k][c] = tile[i - row][32 * c + lane_id()];
    }
#pragma unroll
    for (int k = 0; k < BATCH; ++k) {
      const int i = from + k;
      if (i >= n) break;
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) {
        A l = links[k][c];
        if constexpr (UPDATE) {
          l = link_updated(l, write_w[k], columns.write_w[c], columns.precedence[c], i == columns.column[c]);
          if (link_out && columns.there[c]) link_out[i * n + columns.column[c]] = l;
          tile[i - row][32 * c + lane_id()] = l;
        }
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
          sums[k * HEADS + h] += l * columns.read_w[c][h];
          back[c][h] += l * read[k][h];
        }
      }
    }
    constexpr int EACH = 32 / (BATCH * HEADS);  // lanes that get the same sum
    const A sum = warp_sums(sums);
    const int which = lane_id() / EACH, i = from + which / HEADS, head = first + which % HEADS;
    if (lane_id() % EACH == 0 && i < n && head < p.heads)
      p.row_part[(column / (32 * COLUMNS) * i64(p.heads) + head) * n + i] = sum;
  }
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
    for (int h = 0; h < HEADS; ++h)
      if (columns.there[c] && first + h < p.heads)
        p.column_part[(row / kDncLinkRows * i64(p.heads) + first + h) * n + columns.column[c]] = back[c][h];
}

// Behind copy_tiles of p.link, all of which may be held. link_out may be p.link; null: nobody reads it.
template <class A>
__device__ __forceinline__ void link_fwd(const DncLinkPass<A>& p, const DncGroup& g, DncLinkTile<A>* tiles,
                                         bool held, A* link_out) {
  tiles_of_warp<A>(g, p.cells, false, [&](int unit, int row, int column) {
    DncLinkTile<A>& tile = tiles[held ? unit : warp_id()];
    if (!held && unit >= kDncWarps) copy_tile(p.link, p.cells, row, column, tile);
    cp_async_wait<0>();
    by_heads(p.heads, [&](auto part, int first) {
      constexpr int HEADS = decltype(part)::COUNT;
      if (first == 0) {
        link_fwd_tile<HEADS, true>(p, row, column, first, tile, link_out);
      } else {
        link_fwd_tile<HEADS, false>(p, row, column, first, tile, link_out);
      }
    });
  });
}

// The backward's rows of partial sums: those of the read weights by head, then the write weights, and then,
// of columns only, the precedence.
template <int HEADS, bool LAST, class A>
__device__ __forceinline__ void link_bwd_tile(const DncLinkPass<A>& p, int row, int column, int first,
                                              const A* dforward, const A* dbackward, DncLinkTile<A>& tile,
                                              DncLinkTile<A>& dtile, A* dlink) {
  constexpr int COLUMNS = kDncLinkColumns<A>, BATCH = sizeof(A) == 8 ? 1 : 2;  // registers hold no more
  const i64 n = p.cells;
  const DncLinkColumns<HEADS, COLUMNS, A> columns(p, column, first);
  A db[COLUMNS][HEADS], dread[COLUMNS][HEADS] = {}, dwrite[COLUMNS] = {}, dprecedence[COLUMNS] = {};
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
    for (int h = 0; h < HEADS; ++h) db[c][h] = columns.head_entry(p, dbackward, first + h, columns.column[c]);
  const int column_tile = column / (32 * COLUMNS), row_tile = row / kDncLinkRows;
#pragma unroll 1
  for (int from = row; from < row + kDncLinkRows; from += BATCH) {
    A read_sums[BATCH * HEADS] = {}, write_sums[BATCH] = {};
    A write_w[BATCH], read[BATCH][HEADS], df[BATCH][HEADS], links[BATCH][COLUMNS], dlinks[BATCH][COLUMNS];
#pragma unroll
    for (int k = 0; k < BATCH; ++k) {  // as in link_fwd_tile
      const int i = from + k;
      write_w[k] = i < n ? p.write_w[i] : A(0);
#pragma unroll
      for (int h = 0; h < HEADS; ++h) {
        read[k][h] = columns.head_entry(p, p.read_w, first + h, i);
        df[k][h] = columns.head_entry(p, dforward, first + h, i);
      }
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) {
        links[k][c] = tile[i - row][32 * c + lane_id()];
        dlinks[k][c] = dtile[i - row][32 * c + lane_id()];
      }
    }
#pragma unroll
    for (int k = 0; k < BATCH; ++k) {
      const int i = from + k;
      if (i >= n) break;
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) {
        const A wi = write_w[k], wj = columns.write_w[c], pj = columns.precedence[c], old = links[k][c];
        const bool diagonal = i == columns.column[c];
        const A now = link_updated(old, wi, wj, pj, diagonal);
        A dl = dlinks[k][c];
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
          dl += df[k][h] * columns.read_w[c][h] + read[k][h] * db[c][h];
          dread[c][h] += now * df[k][h];
          read_sums[k * HEADS + h] += now * db[c][h];
        }
        if constexpr (LAST) {
          dl = diagonal ? A(0) : dl;
          const A through = dl * old;
          dwrite[c] -= through;
          write_sums[k] += dl * pj - through;
          dprecedence[c] += dl * wi;
          dl *= (A(1) - wi) - wj;
          if (dlink && columns.there[c]) dlink[i * n + columns.column[c]] = dl;
        }
        dtile[i - row][32 * c + lane_id()] = dl;
      }
    }
    constexpr int EACH = 32 / (BATCH * HEADS);
    const A sum = warp_sums(read_sums);
    const int which = lane_id() / EACH, i = from + which / HEADS, head = first + which % HEADS;
    A* const row_part = p.row_part + column_tile * i64(p.heads + 1) * n;
    if (lane_id() % EACH == 0 && i < n && head < p.heads) row_part[head * n + i] = sum;
    if constexpr (LAST) {
      const A written = warp_sums(write_sums);
      const int row_of_lane = from + static_cast<int>(lane_id()) / (32 / BATCH);
      if (lane_id() % (32 / BATCH) == 0 && row_of_lane < n) row_part[p.heads * n + row_of_lane] = written;
    }
  }
  A* const column_part = p.column_part + row_tile * i64(p.heads + 2) * n;
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) {
    if (!columns.there[c]) continue;
#pragma unroll
    for (int h = 0; h < HEADS; ++h)
      if (first + h < p.heads) column_part[(first + h) * n + columns.column[c]] = dread[c][h];
    if constexpr (LAST) {
      column_part[p.heads * n + columns.column[c]] = dwrite[c];
      column_part[(p.heads + 1) * n + columns.column[c]] = dprecedence[c];
    }
  }
}

// dlink: of the new links on entry, of the old ones at the end; null: dtiles holds it. Behind copy_tiles of
// the links, `ahead` of all, and of dlink.
template <class A>
__device__ __forceinline__ void link_bwd(const DncLinkPass<A>& p, const DncGroup& g, const A* dforward,
                                         const A* dbackward, DncLinkTile<A>* tiles, DncLinkTile<A>* dtiles,
                                         bool ahead, A* dlink) {
  tiles_of_warp<A>(g, p.cells, false, [&](int unit, int row, int column) {
    DncLinkTile<A>&tile = tiles[ahead ? unit : warp_id()], &dtile = dtiles[dlink ? warp_id() : unit];
    if (unit >= kDncWarps) {
      if (!ahead) copy_tile(p.link, p.cells, row, column, tile);
      if (dlink) copy_tile(static_cast<const A*>(dlink), p.cells, row, column, dtile);
    }
    cp_async_wait<0>();
    by_heads(p.heads, [&](auto part, int first) {
      constexpr int HEADS = decltype(part)::COUNT;
      if (first + HEADS >= p.heads) {
        link_bwd_tile<HEADS, true>(p, row, column, first, dforward, dbackward, tile, dtile, dlink);
      } else {
        link_bwd_tile<HEADS, false>(p, row, column, first, dforward, dbackward, tile, dtile, dlink);
      }
    });
  });
}

// The sum over the tiles of one row of partial sums, for cell i.
template <class A>
__device__ __forceinline__ A tile_sum(const A* part, i64 tiles, int rows, int row, i64 cells, int i) {
  A sum = 0;
#pragma unroll 4
  for (i64 t = 0; t < tiles; ++t) sum += part[(t * rows + row) * cells + i];
  return sum;
}

}  // namespace sysgen
