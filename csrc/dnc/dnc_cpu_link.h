// The link matrix: update, projections and their backward, each in one pass over its N^2 elements.
#pragma once
#include "dnc/dnc_cpu_content.h"

namespace sysgen::SYSGEN_ISA {
namespace {

template <class A>
struct LinkPass {  // what forward and backward read; read_w is that of the step before
  int64_t cells, n;
  const A *link, *write_w, *precedence, *read_w;

  // The links of row i and the columns j .. j + lanes after the update.
  Vector<A> updated(int64_t i, int64_t j, Vector<A> old) const {
    const Vector<A> now = ((A(1) - write_w[i]) - load(write_w + j)) * old + write_w[i] * load(precedence + j);
    return without_diagonal(i, j, now);
  }
  static Vector<A> without_diagonal(int64_t i, int64_t j, Vector<A> v) {
    if (__builtin_expect(i - j >= 0 && i - j < kLanes<A>, 0)) v[i - j] = 0;
    return v;
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
  for (int64_t j = 0; j < n; j += kLanes<A>) {
    Vector<A> read[HEADS], back[HEADS];
    for (int r = 0; r < HEADS; ++r) {
      read[r] = load(p.read_w + (first + r) * n + j);
      back[r] = load(backward_d + (first + r) * n + j);
    }
    for (int k = 0; k < ROWS; ++k) {
      Vector<A> l = load(p.link + (i + k) * n + j);
      if constexpr (UPDATE) {
        l = p.updated(i + k, j, l);
        store(link_out + (i + k) * n + j, l);
      }
      for (int r = 0; r < HEADS; ++r) {
        sums[k][r] += l * read[r];
        back[r] += l * weight[k][r];
      }
    }
    for (int r = 0; r < HEADS; ++r) store(backward_d + (first + r) * n + j, back[r]);
  }
  for (int k = 0; k < ROWS; ++k)
    for (int r = 0; r < HEADS; ++r) forward_d[(first + r) * n + i + k] = sum_of_lanes<A>(sums[k][r]);
}

template <int HEADS, bool UPDATE, class A>
void link_fwd_pass(const LinkPass<A>& p, int64_t first, A* link_out, A* forward_d, A* backward_d) {
  int64_t i = 0;
  for (; i + 4 <= p.cells; i += 4)
    link_fwd_rows<HEADS, 4, UPDATE>(p, i, first, link_out, forward_d, backward_d);
  for (; i < p.cells; ++i) link_fwd_rows<HEADS, 1, UPDATE>(p, i, first, link_out, forward_d, backward_d);
}

// link_out may be p.link. Projections are padded with zeros.
template <class A>
void link_fwd(const LinkPass<A>& p, int64_t heads, A* link_out, A* forward_d, A* backward_d) {
  clear(forward_d, heads * p.n);
  clear(backward_d, heads * p.n);
  by_heads(heads, [&]<int HEADS>(int64_t first) {
    if (first == 0) return link_fwd_pass<HEADS, true>(p, first, link_out, forward_d, backward_d);
    LinkPass<A> later = p;
    later.link = link_out;
    link_fwd_pass<HEADS, false>(later, first, link_out, forward_d, backward_d);
  });
}

template <class A>
struct LinkGradient {
  const A *dforward, *dbackward;        // [R][n]: of the projections
  A* dlink;                             // [cells][n]: of the new links on entry, of the old ones at the end
  A *dread_w, *dwrite_w, *dprecedence;  // [R][n], [n], [n]: added to
};

// Rows i .. i + ROWS with HEADS heads from `first`. LAST: also through the update; else dlink gets the heads'
// share only.
template <int HEADS, int ROWS, bool LAST, class A>
inline void link_bwd_rows(const LinkPass<A>& p, int64_t i, int64_t first, const LinkGradient<A>& g) {
  const int64_t n = p.n;
  Vector<A> dread_row[ROWS][HEADS] = {}, dwrite_row[ROWS] = {};
  A read[ROWS][HEADS], df[ROWS][HEADS];
  for (int k = 0; k < ROWS; ++k)
    for (int r = 0; r < HEADS; ++r) {
      read[k][r] = p.read_w[(first + r) * n + i + k];
      df[k][r] = g.dforward[(first + r) * n + i + k];
    }
  for (int64_t j = 0; j < n; j += kLanes<A>) {
    const Vector<A> wj = load(p.write_w + j), pj = load(p.precedence + j);
    Vector<A> rj[HEADS], db[HEADS], dread[HEADS];
    for (int r = 0; r < HEADS; ++r) {
      rj[r] = load(p.read_w + (first + r) * n + j);
      db[r] = load(g.dbackward + (first + r) * n + j);
      dread[r] = load(g.dread_w + (first + r) * n + j);
    }
    Vector<A> dwrite = load(g.dwrite_w + j), dprecedence = load(g.dprecedence + j);
    for (int k = 0; k < ROWS; ++k) {
      const Vector<A> old = load(p.link + (i + k) * n + j), now = p.updated(i + k, j, old);
      Vector<A> d = load(g.dlink + (i + k) * n + j);
      for (int r = 0; r < HEADS; ++r) {
        d += df[k][r] * rj[r] + read[k][r] * db[r];
        dread[r] += now * df[k][r];
        dread_row[k][r] += now * db[r];
      }
      if constexpr (LAST) {
        d = p.without_diagonal(i + k, j, d);
        const Vector<A> through = d * old;
        dwrite -= through;
        dwrite_row[k] += d * pj - through;
        dprecedence += d * p.write_w[i + k];
        d *= (A(1) - p.write_w[i + k]) - wj;
      }
      store(g.dlink + (i + k) * n + j, d);
    }
    for (int r = 0; r < HEADS; ++r) store(g.dread_w + (first + r) * n + j, dread[r]);
    if constexpr (LAST) {
      store(g.dwrite_w + j, dwrite);
      store(g.dprecedence + j, dprecedence);
    }
  }
  for (int k = 0; k < ROWS; ++k) {
    for (int r = 0; r < HEADS; ++r) g.dread_w[(first + r) * n + i + k] += sum_of_lanes<A>(dread_row[k][r]);
    if constexpr (LAST) g.dwrite_w[i + k] += sum_of_lanes<A>(dwrite_row[k]);
  }
}

template <int HEADS, bool LAST, class A>
void link_bwd_pass(const LinkPass<A>& p, int64_t first, const LinkGradient<A>& g) {
  int64_t i = 0;
  for (; i + 2 <= p.cells; i += 2) link_bwd_rows<HEADS, 2, LAST>(p, i, first, g);
  for (; i < p.cells; ++i) link_bwd_rows<HEADS, 1, LAST>(p, i, first, g);
}

template <class A>
void link_bwd(const LinkPass<A>& p, int64_t heads, const LinkGradient<A>& g) {
  by_heads(heads, [&]<int HEADS>(int64_t first) {
    first + HEADS == heads ? link_bwd_pass<HEADS, true>(p, first, g)
                           : link_bwd_pass<HEADS, false>(p, first, g);
  });
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
