// The link matrix: update, projections and their backward, each in one pass over its N^2 elements.
#pragma once
#include "dnc/dnc_cpu_content.h"
#include "dnc/dnc_cpu_samples.h"

namespace sysgen::SYSGEN_ISA {
namespace {

template <class A>
struct LinkPass {    // what forward and backward read; read_w is that of the step before
  int64_t cells, n;  // n: numbers from one row to the next, of which those behind `cells`, if any, are 0
  const A *link, *write_w, *precedence, *read_w;

  // The links of row i and the columns j .. j + lanes after the update.
  Vector<A> updated(int64_t i, int64_t j, int64_t lanes, Vector<A> old) const {
    const Vector<A> now =
        ((A(1) - write_w[i]) - load(write_w + j, lanes)) * old + write_w[i] * load(precedence + j, lanes);
    return without_diagonal(i, j, now);
  }
  static Vector<A> without_diagonal(int64_t i, int64_t j, Vector<A> v) {
    if (__builtin_expect(i - j >= 0 && i - j < kLanes<A>, 0)) v[i - j] = 0;
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
inline void link_fwd_rows(const LinkPass<A>& p, int64_t i, int64_t first, A* link_out, A* forward_d,
                          A* backward_d) {
  const int64_t n = p.n;
  Vector<A> sums[ROWS][HEADS] = {};
  A weight[ROWS][HEADS];
  for (int k = 0; k < ROWS; ++k)
    for (int r = 0; r < HEADS; ++r) weight[k][r] = p.read_w[(first + r) * n + i + k];
  each_vector<A>(n, [&](int64_t j, int64_t lanes) SYSGEN_INLINE {
    Vector<A> read[HEADS], back[HEADS];
    for (int r = 0; r < HEADS; ++r) {
      read[r] = load(p.read_w + (first + r) * n + j, lanes);
      back[r] = load(backward_d + (first + r) * n + j, lanes);
    }
    for (int k = 0; k < ROWS; ++k) {
      Vector<A> l = load(p.link + (i + k) * n + j, lanes);
      if constexpr (UPDATE) {
        l = p.updated(i + k, j, lanes, l);
        store(link_out + (i + k) * n + j, l, lanes);
      }
      for (int r = 0; r < HEADS; ++r) {
        sums[k][r] += l * read[r];
        back[r] += l * weight[k][r];
      }
    }
    for (int r = 0; r < HEADS; ++r) store(backward_d + (first + r) * n + j, back[r], lanes);
  });
  for (int k = 0; k < ROWS; ++k)
    for (int r = 0; r < HEADS; ++r) forward_d[(first + r) * n + i + k] = sum_of_lanes<A>(sums[k][r]);
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

// Rows i .. i + ROWS with HEADS heads from `first`.
template <int HEADS, int ROWS, Links LINKS, class A>
inline void link_bwd_rows(const LinkPass<A>& p, int64_t i, int64_t first, const LinkGradient<A>& g) {
  const int64_t n = p.n;
  constexpr bool LAST = LINKS == Links::updated_last;
  Vector<A> dread_row[ROWS][HEADS] = {}, dwrite_row[ROWS] = {};
  A read[ROWS][HEADS], df[ROWS][HEADS];
  for (int k = 0; k < ROWS; ++k)
    for (int r = 0; r < HEADS; ++r) {
      read[k][r] = p.read_w[(first + r) * n + i + k];
      df[k][r] = g.dforward[(first + r) * n + i + k];
    }
  each_vector<A>(n, [&](int64_t j, int64_t lanes) SYSGEN_INLINE {
    Vector<A> rj[HEADS], db[HEADS], dread[HEADS];
    for (int r = 0; r < HEADS; ++r) {
      rj[r] = load(p.read_w + (first + r) * n + j, lanes);
      db[r] = load(g.dbackward + (first + r) * n + j, lanes);
      dread[r] = load(g.dread_w + (first + r) * n + j, lanes);
    }
    Vector<A> wj{}, pj{}, dwrite{}, dprecedence{};
    if constexpr (LAST) {
      wj = load(p.write_w + j, lanes);
      pj = load(p.precedence + j, lanes);
      dwrite = load(g.dwrite_w + j, lanes);
      dprecedence = load(g.dprecedence + j, lanes);
    }
    for (int k = 0; k < ROWS; ++k) {
      const Vector<A> old = load(p.link + (i + k) * n + j, lanes);
      Vector<A> now = old;
      if constexpr (LINKS != Links::given) now = p.updated(i + k, j, lanes, old);
      Vector<A> d = load(g.dlink + (i + k) * n + j, lanes);
      for (int r = 0; r < HEADS; ++r) {
        d += df[k][r] * rj[r] + read[k][r] * db[r];
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
      store(g.dlink + (i + k) * n + j, d, lanes);
    }
    for (int r = 0; r < HEADS; ++r) store(g.dread_w + (first + r) * n + j, dread[r], lanes);
    if constexpr (LAST) {
      store(g.dwrite_w + j, dwrite, lanes);
      store(g.dprecedence + j, dprecedence, lanes);
    }
  });
  for (int k = 0; k < ROWS; ++k) {
    for (int r = 0; r < HEADS; ++r) g.dread_w[(first + r) * n + i + k] += sum_of_lanes<A>(dread_row[k][r]);
    if constexpr (LAST) g.dwrite_w[i + k] += sum_of_lanes<A>(dwrite_row[k]);
  }
}

template <int HEADS, Links LINKS, class A>
void link_bwd_pass(const LinkPass<A>& p, int64_t i, int64_t end, int64_t first, const LinkGradient<A>& g) {
  for (; i + 2 <= end; i += 2) link_bwd_rows<HEADS, 2, LINKS>(p, i, first, g);
  for (; i < end; ++i) link_bwd_rows<HEADS, 1, LINKS>(p, i, first, g);
}

// parts [later_link_blocks][heads + 2][n]: scratch.
template <class A>
void link_bwd(const LinkPass<A>& p, int64_t heads, const Team& team, const LinkGradient<A>& g, A* parts) {
  const int64_t sums = (heads + 2) * p.n;
  team.over(p.cells, kLinkRows, p.cells * p.n * (3 + 4 * heads), [&](int64_t begin, int64_t end) {
    LinkGradient<A> mine = g;
    if (begin > 0) {
      A* const part = parts + (begin / kLinkRows - 1) * sums;
      clear(part, sums);
      mine.dread_w = part;
      mine.dwrite_w = part + heads * p.n;
      mine.dprecedence = part + (heads + 1) * p.n;
    }
    by_heads(heads, [&]<int HEADS>(int64_t first) {
      first + HEADS == heads ? link_bwd_pass<HEADS, Links::updated_last>(p, begin, end, first, mine)
                             : link_bwd_pass<HEADS, Links::updated>(p, begin, end, first, mine);
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
