// The link matrix: update, projections and their backward, each in one pass over its N^2 elements.
#pragma once
#include "dnc/dnc_cpu_content.h"
#include "dnc/dnc_cpu_samples.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// What the update of a row's links takes of its own cell.
template <class A>
struct LinkRow {
  A weight, left;
  LinkRow() {}
  explicit LinkRow(A w) : weight(w), left(A(1) - w) {}

  // Off the diagonal.
  Vector<A> updated(Vector<A> wj, Vector<A> pj, Vector<A> old) const {
    return multiply_add(left - wj, old, weight * pj);
  }
};

template <class A>
struct LinkPass {    // what forward and backward read; read_w is that of the step before
  int64_t cells, n;  // n: numbers from one row to the next, of which those behind `cells`, if any, are 0
  const A *link, *write_w, *precedence, *read_w;
  // Updates before this one that `link` lacks: what drives each lies `stride` numbers before that of the
  // next.
  int64_t behind = 0, stride = 0;

  // The links of row i and the columns j .. j + lanes after the update.
  Vector<A> updated(int64_t i, int64_t j, int64_t lanes, Vector<A> old) const {
    return without_diagonal(
        i, j, LinkRow<A>(write_w[i]).updated(load(write_w + j, lanes), load(precedence + j, lanes), old));
  }
  static Vector<A> without_diagonal(int64_t i, int64_t j, Vector<A> v) {
    // By a comparison of lanes: a lane chosen by a variable would send every vector through the stack.
    if (__builtin_expect(i - j >= 0 && i - j < kLanes<A>, 0))
      v = lane_numbers<A>() == static_cast<typename IntegerOf<A>::type>(i - j) ? Vector<A>{} : v;
    return v;
  }
  // The same for rows i .. i + ROWS: one branch, which is predicted wrongly once for all of them.
  template <int ROWS>
  static void without_diagonals(int64_t i, int64_t j, Vector<A> (&v)[ROWS]) {
    if (__builtin_expect(j < i + ROWS && i < j + kLanes<A>, 0))
      for (int k = 0; k < ROWS; ++k) v[k] = without_diagonal(i + k, j, v[k]);
  }
};

// What one vector of the gradient d of the links of row i after the update is worth before it: the links'
// gradient; that of w and p in their columns; and that of w[i], to be summed.
template <class A>
struct LinkUpdateShare {
  Vector<A> dlink, dwrite, dprecedence, dwrite_row;

  LinkUpdateShare(Vector<A> d, Vector<A> old, const LinkRow<A>& row, Vector<A> wj, Vector<A> pj) {
    const Vector<A> through = d * old;
    dlink = d * (row.left - wj);
    dwrite = -through;
    dprecedence = d * row.weight;
    dwrite_row = d * pj - through;
  }
};

// What the links are in a pass: given; or results of the update, which are stored or only used.
enum class Links { given, updated, stored };

// Sums over the links along and across their rows: along[i] += sum over j of links[i][j] by_column[j], and
// across[j] += sum over i of by_row[i] links[i][j].
template <class A>
struct LinkSums {
  const A *by_column, *by_row;  // [R][n]
  A *along, *across;            // [R][n]
};

// Of rows i .. i + ROWS, for HEADS heads from `first`; `links` [ROWS][n] become `link_out` (Links::stored).
template <int HEADS, int ROWS, Links LINKS, class A>
inline void link_sum_rows(const LinkPass<A>& pass, const A* links, int64_t i, int64_t first,
                          const LinkSums<A>& sums, A* link_out = nullptr) {
  const LinkPass<A> p = pass;  // a copy: what is written cannot change it
  const int64_t n = p.n;
  const A *const by_column = sums.by_column + first * n, *const by_row = sums.by_row + first * n;
  A *const along = sums.along + first * n, *const across = sums.across + first * n;
  Vector<A> total[ROWS * HEADS] = {};
  // Read once: as far as a compiler knows, what is written could change them.
  LinkRow<A> row[ROWS];
  A weight[ROWS][HEADS];
  for (int k = 0; k < ROWS; ++k) {
    if constexpr (LINKS != Links::given) row[k] = LinkRow<A>(p.write_w[i + k]);
    for (int r = 0; r < HEADS; ++r) weight[k][r] = by_row[r * n + i + k];
  }
  each_vector<A>(n, [&](int64_t j, int64_t lanes) SYSGEN_INLINE {
    Vector<A> l[ROWS];
    for (int k = 0; k < ROWS; ++k) {
      __builtin_prefetch(links + (ROWS + k) * n + j, LINKS == Links::stored);
      l[k] = load(links + k * n + j, lanes);
    }
    if constexpr (LINKS != Links::given) {
      const Vector<A> wj = load(p.write_w + j, lanes), pj = load(p.precedence + j, lanes);
      for (int k = 0; k < ROWS; ++k) l[k] = row[k].updated(wj, pj, l[k]);
      p.without_diagonals(i, j, l);
    }
    if constexpr (LINKS == Links::stored)
      for (int k = 0; k < ROWS; ++k) store(link_out + k * n + j, l[k], lanes);
    for (int r = 0; r < HEADS; ++r) {
      const Vector<A> column = load(by_column + r * n + j, lanes);
      Vector<A> sum = load(across + r * n + j, lanes);
      for (int k = 0; k < ROWS; ++k) {
        total[k * HEADS + r] += l[k] * column;
        sum += l[k] * weight[k][r];
      }
      store(across + r * n + j, sum, lanes);
    }
  });
  A totals[ROWS * HEADS];
  sum_lanes_of_each(total, totals);
  for (int k = 0; k < ROWS; ++k)
    for (int r = 0; r < HEADS; ++r) along[r * n + i + k] += totals[k * HEADS + r];
}

// Rows of a block, whose part of the sums over a column is summed on its own.
inline constexpr int64_t kLinkRows = 64;
inline int64_t later_link_blocks(int64_t cells) { return cells > 0 ? ceil_div(cells, kLinkRows) - 1 : 0; }

// sums [count] += the `parts` arrays [count] behind one another, in order.
template <class A>
void add_parts(const A* parts, int64_t num_parts, int64_t count, A* sums) {
  for (int64_t k = 0; k < num_parts; ++k)
    for (int64_t i = 0; i < count; i += kLanes<A>)
      store(sums + i, load(sums + i) + load(parts + k * count + i));
}

template <int HEADS, Links LINKS, class A>
void link_fwd_pass(const LinkPass<A>& p, int64_t i, int64_t end, int64_t first, const LinkSums<A>& sums,
                   A* link_out) {
  const int64_t n = p.n;
  for (; i + 4 <= end; i += 4)
    link_sum_rows<HEADS, 4, LINKS>(p, p.link + i * n, i, first, sums, link_out + i * n);
  for (; i < end; ++i) link_sum_rows<HEADS, 1, LINKS>(p, p.link + i * n, i, first, sums, link_out + i * n);
}

// link_out may be p.link. Projections are padded with zeros. parts [later_link_blocks][heads][n]: scratch.
template <class A>
void link_fwd(const LinkPass<A>& p, int64_t heads, const Team& team, A* link_out, A* forward_d, A* backward_d,
              A* parts) {
  const int64_t numbers = heads * p.n;
  clear(forward_d, numbers);
  team.over(p.cells, kLinkRows, p.cells * p.n * (1 + 2 * heads), [&](int64_t begin, int64_t end) {
    const LinkSums<A> sums{p.read_w, p.read_w, forward_d,
                           begin == 0 ? backward_d : parts + (begin / kLinkRows - 1) * numbers};
    clear(sums.across, numbers);
    by_heads(heads, [&]<int HEADS>(int64_t first) {
      if (first == 0) return link_fwd_pass<HEADS, Links::stored>(p, begin, end, first, sums, link_out);
      LinkPass<A> later = p;
      later.link = link_out;
      link_fwd_pass<HEADS, Links::given>(later, begin, end, first, sums, link_out);
    });
  });
  add_parts(parts, later_link_blocks(p.cells), numbers, backward_d);
}

template <class A>
struct LinkGradient {
  const A *dforward, *dbackward;        // [R][n]: of the projections
  A* dlink;                             // [cells][n]: of the new links on entry, of the old ones at the end
  A *dread_w, *dwrite_w, *dprecedence;  // [R][n], [n], [n]: added to
};

// Rows i .. i + ROWS of the links before this update, by the operations of the updates that p.link lacks, to
// `to` [ROWS][n]: up to kAgain updates in one pass.
template <int ROWS, class A>
inline void link_rows_again(const LinkPass<A>& pass, int64_t i, A* to) {
  constexpr int64_t kAgain = 8;
  const LinkPass<A> p = pass;
  const int64_t n = p.n, stride = p.stride;
  const A* from = p.link + i * n;
  for (int64_t behind = p.behind; behind > 0; behind -= kAgain) {
    const int64_t count = min_of(behind, kAgain);
    LinkRow<A> row[kAgain][ROWS];
    for (int64_t t = 0; t < count; ++t)
      for (int k = 0; k < ROWS; ++k) row[t][k] = LinkRow<A>(p.write_w[(t - behind) * stride + i + k]);
    each_vector<A>(n, [&](int64_t j, int64_t lanes) SYSGEN_INLINE {
      Vector<A> l[ROWS];
      for (int k = 0; k < ROWS; ++k) {
        __builtin_prefetch(from + (ROWS + k) * n + j);
        l[k] = load(from + k * n + j, lanes);
      }
      for (int64_t t = 0; t < count; ++t) {
        const int64_t at = (t - behind) * stride + j;
        const Vector<A> wj = load(p.write_w + at, lanes), pj = load(p.precedence + at, lanes);
        for (int k = 0; k < ROWS; ++k) l[k] = row[t][k].updated(wj, pj, l[k]);
      }
      p.without_diagonals(i, j, l);  // once, since a link depends on no other
      for (int k = 0; k < ROWS; ++k) store(to + k * n + j, l[k], lanes);
    });
    from = to;
  }
}

// The gradient of rows i .. i + ROWS, whose links before the update are `old` [ROWS][n], by HEADS heads from
// `first`; behind the last of them (UPDATE) it goes through the update.
template <int HEADS, int ROWS, bool UPDATE, class A>
inline void link_bwd_rows(const LinkPass<A>& pass, const A* old_links, int64_t i, int64_t first,
                          const LinkGradient<A>& gradient) {
  const LinkPass<A> p = pass;  // copies: what is written cannot change them
  const LinkGradient<A> g = gradient;
  const int64_t n = p.n;
  const A *const read_w = p.read_w + first * n, *const dforward = g.dforward + first * n,
                 *const dbackward = g.dbackward + first * n;
  A* const dlink = g.dlink + i * n;
  Vector<A> dwrite_row[ROWS] = {};
  LinkRow<A> row[ROWS];
  A read[ROWS][HEADS], df[ROWS][HEADS];
  for (int k = 0; k < ROWS; ++k) {
    if constexpr (UPDATE) row[k] = LinkRow<A>(p.write_w[i + k]);
    for (int r = 0; r < HEADS; ++r) {
      read[k][r] = read_w[r * n + i + k];
      df[k][r] = dforward[r * n + i + k];
    }
  }
  each_vector<A>(n, [&](int64_t j, int64_t lanes) SYSGEN_INLINE {
    Vector<A> d[ROWS];
    for (int k = 0; k < ROWS; ++k) {
      __builtin_prefetch(dlink + (ROWS + k) * n + j, 1);
      d[k] = load(dlink + k * n + j, lanes);
    }
    for (int r = 0; r < HEADS; ++r) {
      const Vector<A> rj = load(read_w + r * n + j, lanes), db = load(dbackward + r * n + j, lanes);
      for (int k = 0; k < ROWS; ++k) d[k] += df[k][r] * rj;
      for (int k = 0; k < ROWS; ++k) d[k] += read[k][r] * db;
    }
    if constexpr (UPDATE) {
      const Vector<A> wj = load(p.write_w + j, lanes), pj = load(p.precedence + j, lanes);
      Vector<A> dwrite = load(g.dwrite_w + j, lanes), dprecedence = load(g.dprecedence + j, lanes);
      p.without_diagonals(i, j, d);
      for (int k = 0; k < ROWS; ++k) {
        const LinkUpdateShare<A> share(d[k], load(old_links + k * n + j, lanes), row[k], wj, pj);
        dwrite += share.dwrite;
        dwrite_row[k] += share.dwrite_row;
        dprecedence += share.dprecedence;
        d[k] = share.dlink;
      }
      store(g.dwrite_w + j, dwrite, lanes);
      store(g.dprecedence + j, dprecedence, lanes);
    }
    for (int k = 0; k < ROWS; ++k) store(dlink + k * n + j, d[k], lanes);
  });
  if constexpr (UPDATE)
    for (int k = 0; k < ROWS; ++k) g.dwrite_w[i + k] += sum_of_lanes<A>(dwrite_row[k]);
}

// Links that are repeated come through `again` [4][n].
template <int HEADS, bool LAST, class A>
void link_bwd_pass(const LinkPass<A>& p, int64_t i, int64_t end, int64_t first, const LinkGradient<A>& g,
                   A* again) {
  const LinkSums<A> sums{g.dbackward, g.dforward, g.dread_w, g.dread_w};
  const auto rows = [&]<int ROWS>() {
    const A* const old = p.behind > 0 ? again : p.link + i * p.n;
    if (p.behind > 0) link_rows_again<ROWS>(p, i, again);
    link_sum_rows<HEADS, ROWS, Links::updated>(p, old, i, first, sums);
    for (int k = 0; k < ROWS; k += 2)
      link_bwd_rows < HEADS, ROWS<2 ? 1 : 2, LAST>(p, old + k * p.n, i + k, first, g);
    i += ROWS;
  };
  while (i + 4 <= end) rows.template operator()<4>();
  if (i + 2 <= end) rows.template operator()<2>();
  if (i < end) rows.template operator()<1>();
}

// The links before p's update, where p.link lacks earlier ones, to `to` [cells][n].
template <class A>
void links_again(const LinkPass<A>& p, const Team& team, A* to) {
  team.over(p.cells, kLinkRows, p.cells * p.n * 2 * p.behind, [&](int64_t i, int64_t end) {
    for (; i + 4 <= end; i += 4) link_rows_again<4>(p, i, to + i * p.n);
    for (; i < end; ++i) link_rows_again<1>(p, i, to + i * p.n);
  });
}

// Scratch of link_bwd: for each block of rows but the first, its part of the sums [heads + 2][n]; for each,
// rows that are repeated.
template <class A>
int64_t link_bwd_scratch(int64_t cells, int64_t heads) {
  return padded<A>(cells) * (later_link_blocks(cells) * (heads + 2) + (later_link_blocks(cells) + 1) * 4);
}

template <class A>
void link_bwd(const LinkPass<A>& p, int64_t heads, const Team& team, const LinkGradient<A>& g, A* scratch) {
  const int64_t sums = (heads + 2) * p.n;
  A *const parts = scratch, *const rows = scratch + later_link_blocks(p.cells) * sums;
  team.over(p.cells, kLinkRows, p.cells * p.n * (3 + 4 * heads), [&](int64_t begin, int64_t end) {
    LinkGradient<A> mine = g;
    A* const again = rows + begin / kLinkRows * 4 * p.n;
    if (begin > 0) {
      A* const part = parts + (begin / kLinkRows - 1) * sums;
      clear(part, sums);
      mine.dread_w = part;
      mine.dwrite_w = part + heads * p.n;
      mine.dprecedence = part + (heads + 1) * p.n;
    }
    by_heads(heads, [&]<int HEADS>(int64_t first) {
      first + HEADS == heads ? link_bwd_pass<HEADS, true>(p, begin, end, first, mine, again)
                             : link_bwd_pass<HEADS, false>(p, begin, end, first, mine, again);
    });
  });
  for (int64_t k = 0; k < later_link_blocks(p.cells); ++k) {
    const A* const part = parts + k * sums;
    add_parts(part, 1, heads * p.n, g.dread_w);
    add_parts(part + heads * p.n, 1, p.n, g.dwrite_w);
    add_parts(part + (heads + 1) * p.n, 1, p.n, g.dprecedence);
  }
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
