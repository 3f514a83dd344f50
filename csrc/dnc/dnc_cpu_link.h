// The link matrix: update, projections and their backward, each in one pass over its N^2 elements.
#pragma once
#include "dnc/dnc_cpu_content.h"
#include "dnc/dnc_cpu_samples.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// Off the diagonal.
template <class A>
inline Vector<A> link_updated(A wi, Vector<A> wj, Vector<A> pj, Vector<A> old) {
  return multiply_add((A(1) - wi) - wj, old, wi * pj);
}

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
        i, j, link_updated(write_w[i], load(write_w + j, lanes), load(precedence + j, lanes), old));
  }
  static Vector<A> without_diagonal(int64_t i, int64_t j, Vector<A> v) {
    // By a comparison of lanes: a lane chosen by a variable would send every vector through the stack.
    if (__builtin_expect(i - j >= 0 && i - j < kLanes<A>, 0))
      v = lane_numbers<A>() == static_cast<typename IntegerOf<A>::type>(i - j) ? Vector<A>{} : v;
    return v;
  }
};

// What one vector of the gradient d of the links of row i after the update is worth before it: the links'
// gradient; that of w and p in their columns; and that of w[i], to be summed.
template <class A>
struct LinkUpdateShare {
  Vector<A> dlink, dwrite, dprecedence, dwrite_row;

  LinkUpdateShare(Vector<A> d, Vector<A> old, A wi, Vector<A> wj, Vector<A> pj) {
    const Vector<A> through = d * old;
    dlink = d * ((A(1) - wi) - wj);
    dwrite = -through;
    dprecedence = d * wi;
    dwrite_row = d * pj - through;
  }
};

// Rows i .. i + ROWS: link_out (UPDATE), forward_d = L r and backward_d += r L for HEADS heads from `first`.
template <int HEADS, int ROWS, bool UPDATE, class A>
inline void link_fwd_rows(const LinkPass<A>& pass, int64_t i, int64_t first, A* link_out, A* forward_d,
                          A* backward_d) {
  const LinkPass<A> p = pass;  // a copy: what is written cannot change it
  const int64_t n = p.n;
  const A* const read_w = p.read_w + first * n;
  A* const backward = backward_d + first * n;
  Vector<A> sums[ROWS * HEADS] = {};
  A weight[ROWS][HEADS];
  for (int k = 0; k < ROWS; ++k)
    for (int r = 0; r < HEADS; ++r) weight[k][r] = read_w[r * n + i + k];
  each_vector<A>(n, [&](int64_t j, int64_t lanes) SYSGEN_INLINE {
    Vector<A> read[HEADS], back[HEADS];
    for (int r = 0; r < HEADS; ++r) {
      read[r] = load(read_w + r * n + j, lanes);
      back[r] = load(backward + r * n + j, lanes);
    }
    for (int k = 0; k < ROWS; ++k) {
      Vector<A> l = load(p.link + (i + k) * n + j, lanes);
      if constexpr (UPDATE) {
        l = p.updated(i + k, j, lanes, l);
        store(link_out + (i + k) * n + j, l, lanes);
      }
      for (int r = 0; r < HEADS; ++r) {
        sums[k * HEADS + r] += l * read[r];
        back[r] += l * weight[k][r];
      }
    }
    for (int r = 0; r < HEADS; ++r) store(backward + r * n + j, back[r], lanes);
  });
  A totals[ROWS * HEADS];
  sum_lanes_of_each(sums, totals);
  for (int k = 0; k < ROWS; ++k)
    for (int r = 0; r < HEADS; ++r) forward_d[(first + r) * n + i + k] = totals[k * HEADS + r];
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

template <int HEADS, bool UPDATE, class A>
void link_fwd_pass(const LinkPass<A>& p, int64_t i, int64_t end, int64_t first, A* link_out, A* forward_d,
                   A* backward_d) {
  for (; i + 4 <= end; i += 4) link_fwd_rows<HEADS, 4, UPDATE>(p, i, first, link_out, forward_d, backward_d);
  for (; i < end; ++i) link_fwd_rows<HEADS, 1, UPDATE>(p, i, first, link_out, forward_d, backward_d);
}

// link_out may be p.link. Projections are padded with zeros. parts [later_link_blocks][heads][n]: scratch.
template <class A>
void link_fwd(const LinkPass<A>& p, int64_t heads, const Team& team, A* link_out, A* forward_d, A* backward_d,
              A* parts) {
  const int64_t sums = heads * p.n;
  clear(forward_d, sums);
  team.over(p.cells, kLinkRows, p.cells * p.n * (1 + 2 * heads), [&](int64_t begin, int64_t end) {
    A* const back = begin == 0 ? backward_d : parts + (begin / kLinkRows - 1) * sums;
    clear(back, sums);
    by_heads(heads, [&]<int HEADS>(int64_t first) {
      if (first == 0) return link_fwd_pass<HEADS, true>(p, begin, end, first, link_out, forward_d, back);
      LinkPass<A> later = p;
      later.link = link_out;
      link_fwd_pass<HEADS, false>(later, begin, end, first, link_out, forward_d, back);
    });
  });
  add_parts(parts, later_link_blocks(p.cells), sums, backward_d);
}

template <class A>
struct LinkGradient {
  const A *dforward, *dbackward;        // [R][n]: of the projections
  A* dlink;                             // [cells][n]: of the new links on entry, of the old ones at the end
  A *dread_w, *dwrite_w, *dprecedence;  // [R][n], [n], [n]: added to
};

// What the links are in a backward pass: results of the update, with more heads to follow; the same with the
// last heads, so that the gradient goes through the update; or given.
enum class Links { updated, updated_last, given };

// Rows i .. i + ROWS of the links before this update, by the operations of the updates that p.link lacks, to
// `to` [ROWS][n].
template <int ROWS, class A>
inline void link_rows_again(const LinkPass<A>& pass, int64_t i, A* to) {
  const LinkPass<A> p = pass;
  const int64_t n = p.n, stride = p.stride, from = -p.behind * stride;
  each_vector<A>(n, [&](int64_t j, int64_t lanes) SYSGEN_INLINE {
    Vector<A> l[ROWS];
    for (int k = 0; k < ROWS; ++k) l[k] = load(p.link + (i + k) * n + j, lanes);
    for (int64_t at = from; at < 0; at += stride) {
      const Vector<A> wj = load(p.write_w + at + j, lanes), pj = load(p.precedence + at + j, lanes);
      for (int k = 0; k < ROWS; ++k) l[k] = link_updated(p.write_w[at + i + k], wj, pj, l[k]);
    }
    // A link depends on no other: the diagonal is cleared once.
    for (int k = 0; k < ROWS; ++k) store(to + k * n + j, p.without_diagonal(i + k, j, l[k]), lanes);
  });
}

// Rows i .. i + ROWS, whose links before the update are `old` [ROWS][n], with HEADS heads from `first`.
template <int HEADS, int ROWS, Links LINKS, class A>
inline void link_bwd_rows(const LinkPass<A>& pass, const A* old_links, int64_t i, int64_t first,
                          const LinkGradient<A>& gradient) {
  const LinkPass<A> p = pass;  // copies: what is written cannot change them
  const LinkGradient<A> g = gradient;
  const int64_t n = p.n;
  const A *const read_w = p.read_w + first * n, *const dforward = g.dforward + first * n,
                 *const dbackward = g.dbackward + first * n;
  A *const dread_w = g.dread_w + first * n, *const dlink = g.dlink + i * n;
  constexpr bool LAST = LINKS == Links::updated_last;
  Vector<A> dread_row[ROWS][HEADS] = {}, dwrite_row[ROWS] = {};
  A read[ROWS][HEADS], df[ROWS][HEADS];
  for (int k = 0; k < ROWS; ++k)
    for (int r = 0; r < HEADS; ++r) {
      read[k][r] = read_w[r * n + i + k];
      df[k][r] = dforward[r * n + i + k];
    }
  each_vector<A>(n, [&](int64_t j, int64_t lanes) SYSGEN_INLINE {
    Vector<A> rj[HEADS], db[HEADS], dread[HEADS];
    for (int r = 0; r < HEADS; ++r) {
      rj[r] = load(read_w + r * n + j, lanes);
      db[r] = load(dbackward + r * n + j, lanes);
      dread[r] = load(dread_w + r * n + j, lanes);
    }
    Vector<A> wj{}, pj{}, dwrite{}, dprecedence{};
    if constexpr (LAST) {
      wj = load(p.write_w + j, lanes);
      pj = load(p.precedence + j, lanes);
      dwrite = load(g.dwrite_w + j, lanes);
      dprecedence = load(g.dprecedence + j, lanes);
    }
    for (int k = 0; k < ROWS; ++k) {
      __builtin_prefetch(dlink + (ROWS + k) * n + j, 1);
      const Vector<A> old = load(old_links + k * n + j, lanes);
      Vector<A> now = old;
      if constexpr (LINKS != Links::given) now = p.updated(i + k, j, lanes, old);
      Vector<A> d = load(dlink + k * n + j, lanes);
      for (int r = 0; r < HEADS; ++r) {
        d += df[k][r] * rj[r];
        d += read[k][r] * db[r];
        dread[r] += now * df[k][r];
        dread_row[k][r] += now * db[r];
      }
      if constexpr (LAST) {
        const LinkUpdateShare<A> share(p.without_diagonal(i + k, j, d), old, p.write_w[i + k], wj, pj);
        dwrite += share.dwrite;
        dwrite_row[k] += share.dwrite_row;
        dprecedence += share.dprecedence;
        d = share.dlink;
      }
      store(dlink + k * n + j, d, lanes);
    }
    for (int r = 0; r < HEADS; ++r) store(dread_w + r * n + j, dread[r], lanes);
    if constexpr (LAST) {
      store(g.dwrite_w + j, dwrite, lanes);
      store(g.dprecedence + j, dprecedence, lanes);
    }
  });
  for (int k = 0; k < ROWS; ++k) {
    for (int r = 0; r < HEADS; ++r) dread_w[r * n + i + k] += sum_of_lanes<A>(dread_row[k][r]);
    if constexpr (LAST) g.dwrite_w[i + k] += sum_of_lanes<A>(dwrite_row[k]);
  }
}

// Links that are repeated come through `again` [4][n].
template <int HEADS, Links LINKS, class A>
void link_bwd_pass(const LinkPass<A>& p, int64_t i, int64_t end, int64_t first, const LinkGradient<A>& g,
                   A* again) {
  const auto rows = [&]<int ROWS>() {
    const A* const old = p.behind > 0 ? again : p.link + i * p.n;
    if (p.behind > 0) link_rows_again<ROWS>(p, i, again);
    for (int k = 0; k < ROWS; k += 2)
      link_bwd_rows < HEADS, ROWS<2 ? 1 : 2, LINKS>(p, old + k * p.n, i + k, first, g);
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
      first + HEADS == heads ? link_bwd_pass<HEADS, Links::updated_last>(p, begin, end, first, mine, again)
                             : link_bwd_pass<HEADS, Links::updated>(p, begin, end, first, mine, again);
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
