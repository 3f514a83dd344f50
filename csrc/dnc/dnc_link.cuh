// The link matrix: update, projections and their backward, in tiles of kDncLinkRows rows by 32 COLUMNS
// columns. A warp takes a tile, a lane every 32nd column; sums along rows and columns leave a tile as partial
// sums.
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

// forward_d = L r and backward_d = r L of HEADS heads; the first ones also write the new links.
template <int HEADS, bool UPDATE, class A>
__device__ __forceinline__ void link_fwd_tile(const DncLinkPass<A>& p, int row, int column, int first,
                                              A* link_out) {
  constexpr int COLUMNS = kDncLinkColumns<A>, BATCH = 4;
  const i64 n = p.cells;
  const DncLinkColumns<HEADS, COLUMNS, A> columns(p, column, first);
  A back[COLUMNS][HEADS] = {};
#pragma unroll 1
  for (int from = row; from < row + kDncLinkRows; from += BATCH) {
    A link[BATCH][COLUMNS], sums[BATCH * HEADS] = {};
#pragma unroll
    for (int k = 0; k < BATCH; ++k)
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c)
        link[k][c] = from + k < n && columns.there[c] ? p.link[(from + k) * n + columns.column[c]] : A(0);
#pragma unroll
    for (int k = 0; k < BATCH; ++k) {
      const int i = from + k;
      if (i >= n) break;
      const A wi = p.write_w[i];
      A read[HEADS];
#pragma unroll
      for (int h = 0; h < HEADS; ++h) read[h] = columns.head_entry(p, p.read_w, first + h, i);
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) {
        A l = link[k][c];
        if constexpr (UPDATE) {
          l = link_updated(l, wi, columns.write_w[c], columns.precedence[c], i == columns.column[c]);
          if (columns.there[c]) link_out[i * n + columns.column[c]] = l;
        }
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
          sums[k * HEADS + h] += l * columns.read_w[c][h];
          back[c][h] += l * read[h];
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

// Calls f(row, column) for the tiles in the rows that the group's block owns, one for each warp at a time.
template <int COLUMNS, class F>
__device__ __forceinline__ void link_tiles(const DncGroup& g, int cells, const F& f) {
  const int wide = 32 * COLUMNS, across = static_cast<int>(dnc_tiles(cells, wide)),
            down = static_cast<int>(dnc_tiles(g.last - g.first, kDncLinkRows));
  for (int unit = static_cast<int>(warp_id()); unit < across * down; unit += kDncWarps)
    f(g.first + unit / across * kDncLinkRows, unit % across * wide);
}

// link_out may be p.link.
template <class A>
__device__ __forceinline__ void link_fwd(const DncLinkPass<A>& p, const DncGroup& g, A* link_out) {
  link_tiles<kDncLinkColumns<A>>(g, p.cells, [&](int row, int column) {
    by_heads(p.heads, [&](auto part, int first) {
      constexpr int HEADS = decltype(part)::COUNT;
      if (first == 0) {
        link_fwd_tile<HEADS, true>(p, row, column, first, link_out);
      } else {
        DncLinkPass<A> later = p;
        later.link = link_out;
        link_fwd_tile<HEADS, false>(later, row, column, first, link_out);
      }
    });
  });
}

// The backward's rows of partial sums: those of the read weights by head, then the write weights, and then,
// of columns only, the precedence.
template <int HEADS, bool LAST, class A>
__device__ __forceinline__ void link_bwd_tile(const DncLinkPass<A>& p, int row, int column, int first,
                                              const A* dforward, const A* dbackward, A* dlink) {
  constexpr int COLUMNS = kDncLinkColumns<A>, BATCH = 2;
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
    A link[BATCH][COLUMNS], d[BATCH][COLUMNS], read_sums[BATCH * HEADS] = {}, write_sums[BATCH] = {};
#pragma unroll
    for (int k = 0; k < BATCH; ++k)
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) {
        const bool there = from + k < n && columns.there[c];
        const i64 at = (from + k) * n + columns.column[c];
        link[k][c] = there ? p.link[at] : A(0);
        d[k][c] = there ? dlink[at] : A(0);
      }
#pragma unroll
    for (int k = 0; k < BATCH; ++k) {
      const int i = from + k;
      if (i >= n) break;
      const A wi = p.write_w[i];
      A read[HEADS], df[HEADS];
#pragma unroll
      for (int h = 0; h < HEADS; ++h) {
        read[h] = columns.head_entry(p, p.read_w, first + h, i);
        df[h] = columns.head_entry(p, dforward, first + h, i);
      }
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) {
        const A wj = columns.write_w[c], pj = columns.precedence[c], old = link[k][c];
        const bool diagonal = i == columns.column[c];
        const A now = link_updated(old, wi, wj, pj, diagonal);
        A dl = d[k][c];
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
          dl += df[h] * columns.read_w[c][h] + read[h] * db[c][h];
          dread[c][h] += now * df[h];
          read_sums[k * HEADS + h] += now * db[c][h];
        }
        if constexpr (LAST) {
          dl = diagonal ? A(0) : dl;
          const A through = dl * old;
          dwrite[c] -= through;
          write_sums[k] += dl * pj - through;
          dprecedence[c] += dl * wi;
          dl *= (A(1) - wi) - wj;
        }
        if (columns.there[c]) dlink[i * n + columns.column[c]] = dl;
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

// dlink: of the new links on entry, of the old ones at the end.
template <class A>
__device__ __forceinline__ void link_bwd(const DncLinkPass<A>& p, const DncGroup& g, const A* dforward,
                                         const A* dbackward, A* dlink) {
  link_tiles<kDncLinkColumns<A>>(g, p.cells, [&](int row, int column) {
    by_heads(p.heads, [&](auto part, int first) {
      constexpr int HEADS = decltype(part)::COUNT;
      if (first + HEADS >= p.heads) {
        link_bwd_tile<HEADS, true>(p, row, column, first, dforward, dbackward, dlink);
      } else {
        link_bwd_tile<HEADS, false>(p, row, column, first, dforward, dbackward, dlink);
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
