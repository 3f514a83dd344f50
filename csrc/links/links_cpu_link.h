// The link matrix: its update, and the projections of the read weights through it, each forward and backward
// in one pass over its N^2 elements.
//
// A task is a block of rows of one sample. Sums over rows are partial sums of the blocks, added in their
// order; the blocks depend on N only.
#pragma once
#include "dnc/dnc_cpu_link.h"
#include "dnc/dnc_cpu_sharpen.h"
#include "links/links_cpu_cells.h"

namespace sysgen::SYSGEN_ISA {
namespace {

struct RowBlocks {
  int64_t batch, cells, rows, count;  // rows: of a block
  explicit RowBlocks(const LinksSizes& s)
      : batch(s.batch),
        cells(s.cells),
        rows(max_of(64, ceil_div(s.cells, 32 * 4) * 4)),
        count(max_of(1, ceil_div(s.cells, rows))) {}

  // f(b, block, first row, last row)
  template <class F>
  void for_each(int threads, const F& f) const {
    for_each_task(batch * count, threads, [&](int64_t task) {
      const int64_t block = task % count;
      f(task / count, block, block * rows, min_of(cells, (block + 1) * rows));
    });
  }
};

// Partial sums of the blocks of all samples: [batch][count][size]. They belong to the calling thread.
template <class A>
struct Partial {
  A* data;
  int64_t count, size;
  Partial(const RowBlocks& blocks, int64_t size_, int slot = kSlotPartial)
      : count(blocks.count), size(size_) {
    data =
        static_cast<A*>(thread_scratch(slot, sizeof(A) * static_cast<size_t>(blocks.batch * count * size)));
  }
  A* of(int64_t b, int64_t block) const { return data + (b * count + block) * size; }

  // to[i] = start[i] (or 0) + the blocks' numbers `from` + i, for i < n
  void sum(int64_t b, int64_t from, int64_t n, const A* start, A* to) const {
    each_vector<A>(n, [&](int64_t i, int64_t lanes) SYSGEN_INLINE {
      Vector<A> total = start ? load(start + i, lanes) : Vector<A>{};
      for (int64_t block = 0; block < count; ++block) total += load(of(b, block) + from + i, lanes);
      store(to + i, total, lanes);
    });
  }
};

template <class A>
A sum_of(const A* x, int64_t n) {
  Vector<A> total{};
  each_vector<A>(n, [&](int64_t i, int64_t lanes) SYSGEN_INLINE { total += load(x + i, lanes); });
  return sum_of_lanes<A>(total);
}

// ---- update

template <class A>
void link_update_fwd(const LinkUpdateFwdArgs& a, int threads) {
  const int64_t n = a.s.cells;
  const RowBlocks blocks(a.s);
  blocks.for_each(useful_threads(threads, 2 * a.s.batch * n * n), [&](int64_t b, int64_t block, int64_t begin,
                                                                      int64_t end) {
    const LinkPass<A> pass{n,
                           n,
                           static_cast<const A*>(a.link) + b * n * n,
                           static_cast<const A*>(a.write_weights) + b * n,
                           static_cast<const A*>(a.precedence) + b * n,
                           nullptr};
    A* const updated = static_cast<A*>(a.updated_link) + b * n * n;
    for (int64_t i = begin; i < end; ++i)
      each_vector<A>(n, [&](int64_t j, int64_t lanes) SYSGEN_INLINE {
        store(updated + i * n + j, pass.updated(i, j, lanes, load(pass.link + i * n + j, lanes)), lanes);
      });
    if (block > 0) return;
    A* const precedence = static_cast<A*>(a.updated_precedence) + b * n;
    const A left = 1 - sum_of(pass.write_w, n);
    each_vector<A>(n, [&](int64_t i, int64_t lanes) SYSGEN_INLINE {
      store(precedence + i, left * load(pass.precedence + i, lanes) + load(pass.write_w + i, lanes), lanes);
    });
  });
}

// Of row i; dwrite and dprecedence, by column, are added to.
template <class A>
void link_update_bwd_row(const LinkPass<A>& p, int64_t i, const A* dupdated, A* dlink, A* dwrite,
                         A* dprecedence) {
  const LinkRow<A> cell(p.write_w[i]);
  Vector<A> row{};
  each_vector<A>(p.n, [&](int64_t j, int64_t lanes) SYSGEN_INLINE {
    const Vector<A> d = p.without_diagonal(i, j, load(dupdated + i * p.n + j, lanes));
    const LinkUpdateShare<A> share(d, load(p.link + i * p.n + j, lanes), cell, load(p.write_w + j, lanes),
                                   load(p.precedence + j, lanes));
    store(dlink + i * p.n + j, share.dlink, lanes);
    store(dwrite + j, load(dwrite + j, lanes) + share.dwrite, lanes);
    store(dprecedence + j, load(dprecedence + j, lanes) + share.dprecedence, lanes);
    row += share.dwrite_row;
  });
  dwrite[i] += sum_of_lanes<A>(row);
}

template <class A>
void link_update_bwd(const LinkUpdateBwdArgs& a, int threads) {
  const int64_t n = a.s.cells;
  const RowBlocks blocks(a.s);
  const Partial<A> partial(blocks, 2 * n);  // dwrite, dprecedence
  threads = useful_threads(threads, 3 * a.s.batch * n * n);
  const auto weights = [&](int64_t b) { return static_cast<const A*>(a.write_weights) + b * n; };
  const auto precedence = [&](int64_t b) { return static_cast<const A*>(a.precedence) + b * n; };
  blocks.for_each(threads, [&](int64_t b, int64_t block, int64_t begin, int64_t end) {
    const LinkPass<A> pass{n,      n, static_cast<const A*>(a.link) + b * n * n, weights(b), precedence(b),
                           nullptr};
    A *const dwrite = partial.of(b, block), *const dlink = static_cast<A*>(a.dlink) + b * n * n;
    clear(dwrite, 2 * n);
    if (!a.dupdated_link) return clear(dlink + begin * n, (end - begin) * n);
    const A* const dupdated = static_cast<const A*>(a.dupdated_link) + b * n * n;
    for (int64_t i = begin; i < end; ++i) link_update_bwd_row(pass, i, dupdated, dlink, dwrite, dwrite + n);
  });
  for_each_task(a.s.batch, useful_threads(threads, 2 * a.s.batch * n * blocks.count), [&](int64_t b) {
    A *const dwrite = static_cast<A*>(a.dwrite_weights) + b * n, *const dprecedence =
                                                                     static_cast<A*>(a.dprecedence) + b * n;
    partial.sum(b, 0, n, nullptr, dwrite);
    partial.sum(b, n, n, nullptr, dprecedence);
    if (!a.dupdated_precedence) return;
    const A* const d = static_cast<const A*>(a.dupdated_precedence) + b * n;
    const A left = 1 - sum_of(weights(b), n);
    Vector<A> along{};
    each_vector<A>(n, [&](int64_t i, int64_t lanes)
                          SYSGEN_INLINE { along += load(d + i, lanes) * load(precedence(b) + i, lanes); });
    const A total = sum_of_lanes<A>(along);
    each_vector<A>(n, [&](int64_t i, int64_t lanes) SYSGEN_INLINE {
      store(dwrite + i, load(dwrite + i, lanes) + (load(d + i, lanes) - total), lanes);
      store(dprecedence + i, load(dprecedence + i, lanes) + left * load(d + i, lanes), lanes);
    });
  });
}

// ---- read

// One head's row of cells in a buffer of whole vectors.
template <class A>
void pad_row(const A* from, int64_t n, A* to) {
  copy(to, from, n);
  clear(to + n, padded<A>(n) - n);
}

// f(b, direction, r) for every head, forward and backward.
template <class F>
void for_each_head(const LinksSizes& s, int threads, const F& f) {
  for_each_task(s.batch * 2 * s.reads, threads,
                [&](int64_t task) { f(task / (2 * s.reads), task / s.reads % 2, task % s.reads); });
}

template <class A>
void link_read_fwd(const LinkReadFwdArgs& a, int threads) {
  const int64_t n = a.s.cells, reads = a.s.reads;
  const RowBlocks blocks(a.s);
  const Partial<A> partial(blocks, reads * n);
  const auto projection = [&](int64_t direction) {
    return static_cast<A*>(a.projection[direction] ? a.projection[direction] : a.weights[direction]);
  };
  threads = useful_threads(threads, (1 + reads) * a.s.batch * n * n);
  blocks.for_each(threads, [&](int64_t b, int64_t block, int64_t begin, int64_t end) {
    const LinkPass<A> pass{n,       n,       static_cast<const A*>(a.link) + b * n * n,
                           nullptr, nullptr, static_cast<const A*>(a.read_weights) + b * reads * n};
    const LinkSums<A> sums{pass.read_w, pass.read_w, projection(0) + b * reads * n, partial.of(b, block)};
    for (int64_t r = 0; r < reads; ++r) clear(sums.along + r * n + begin, end - begin);
    clear(sums.across, reads * n);
    for (int64_t i = begin; i < end;) {  // all heads while the rows are at hand
      const int64_t rows = i + 4 <= end ? 4 : 1;
      by_heads(reads, [&]<int HEADS>(int64_t first) {
        rows == 4 ? link_sum_rows<HEADS, 4, Links::given>(pass, pass.link + i * n, i, first, sums)
                  : link_sum_rows<HEADS, 1, Links::given>(pass, pass.link + i * n, i, first, sums);
      });
      i += rows;
    }
  });
  threads = useful_threads(threads, a.s.batch * reads * n * (blocks.count + 20));
  for_each_head(a.s, threads, [&](int64_t b, int64_t direction, int64_t r) {
    const int64_t row = (b * reads + r) * n;
    A* const d = projection(direction) + row;
    if (direction == 1) partial.sum(b, r * n, n, nullptr, d);
    if (!a.sharpness[direction] || n == 0) return;
    A* const weights = static_cast<A*>(thread_scratch(kSlotRows, sizeof(A) * padded<A>(n)));
    pad_row(d, n, weights);
    sharpen_row(weights, static_cast<const A*>(a.sharpness[direction])[b * reads + r], static_cast<A>(a.eps),
                n, weights);
    copy(static_cast<A*>(a.weights[direction]) + row, weights, n);
  });
}

// dprojection [2][B][R][N] from the gradients of the weights, and those of the sharpness.
template <class A>
void link_read_bwd_weights(const LinkReadBwdArgs& a, int threads, A* dprojection) {
  const int64_t n = a.s.cells, reads = a.s.reads, wide = padded<A>(n);
  for_each_head(a.s, threads, [&](int64_t b, int64_t direction, int64_t r) {
    const int64_t head = b * reads + r;
    A* const to = dprojection + (direction * a.s.batch * reads + head) * n;
    A* const dsharpness = static_cast<A*>(a.dsharpness[direction]);
    const A* const dweights = static_cast<const A*>(a.dweights[direction]);
    if (!dweights || n == 0) {
      clear(to, n);
      if (dsharpness) dsharpness[head] = 0;
      return;
    }
    if (!a.sharpness[direction]) return copy(to, dweights + head * n, n);
    A* const d = static_cast<A*>(thread_scratch(kSlotRows, sizeof(A) * 3 * wide));
    A *const weights = d + wide, *const gradient = weights + wide;
    const A s = static_cast<const A*>(a.sharpness[direction])[head], eps = static_cast<A>(a.eps);
    pad_row(static_cast<const A*>(a.projection[direction]) + head * n, n, d);
    pad_row(dweights + head * n, n, gradient);
    sharpen_row(d, s, eps, n, weights);
    dsharpness[head] = sharpen_row_bwd(d, s, eps, n, weights, gradient);
    copy(to, gradient, n);
  });
}

template <class A>
void link_read_bwd(const LinkReadBwdArgs& a, int threads) {
  const int64_t n = a.s.cells, reads = a.s.reads, heads = a.s.batch * reads;
  A* const dprojection = static_cast<A*>(thread_scratch(kSlotGradient, sizeof(A) * 2 * heads * n));
  link_read_bwd_weights(a, useful_threads(threads, 40 * heads * n), dprojection);
  const RowBlocks blocks(a.s);
  const Partial<A> partial(blocks, reads * n);
  threads = useful_threads(threads, (2 + 2 * reads) * a.s.batch * n * n);
  blocks.for_each(threads, [&](int64_t b, int64_t block, int64_t begin, int64_t end) {
    const LinkPass<A> pass{n,       n,       static_cast<const A*>(a.link) + b * n * n,
                           nullptr, nullptr, static_cast<const A*>(a.read_weights) + b * reads * n};
    const LinkGradient<A> gradient{dprojection + b * reads * n,
                                   dprojection + (heads + b * reads) * n,
                                   static_cast<A*>(a.dlink) + b * n * n,
                                   partial.of(b, block),
                                   nullptr,
                                   nullptr};
    const LinkSums<A> sums{gradient.dbackward, gradient.dforward, gradient.dread_w, gradient.dread_w};
    clear(gradient.dread_w, reads * n);
    for (int64_t i = begin; i < end;) {
      const int64_t rows = i + 2 <= end ? 2 : 1;
      clear(gradient.dlink + i * n, rows * n);
      by_heads(reads, [&]<int HEADS>(int64_t first) {
        const A* const link = pass.link + i * n;
        rows == 2 ? link_sum_rows<HEADS, 2, Links::given>(pass, link, i, first, sums)
                  : link_sum_rows<HEADS, 1, Links::given>(pass, link, i, first, sums);
        rows == 2 ? link_bwd_rows<HEADS, 2, false>(pass, link, i, first, gradient)
                  : link_bwd_rows<HEADS, 1, false>(pass, link, i, first, gradient);
      });
      i += rows;
    }
  });
  for_each_task(a.s.batch, useful_threads(threads, heads * n * blocks.count), [&](int64_t b) {
    partial.sum(b, 0, reads * n, nullptr, static_cast<A*>(a.dread_weights) + b * reads * n);
  });
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
