// Many short sequences: one (b, h) in each lane. All lanes are at the same row and key, so no lane is ever
// idle beyond the ends of a row. Scores and gradients are computed head by head into `raw`, [head][key][row],
// and transposed into panels, [key][row][head]; the products read the transposed weights head by head again.
#pragma once
#include "geometric_attention/geometric_attention_cpu_block.h"
#include "geometric_attention/geometric_attention_cpu_dots.h"

namespace sysgen::SYSGEN_ISA {
namespace {

constexpr int kSmallRows = 32;   // pitch of the keys in `raw`
constexpr int kPanelPitch = 33;  // in panels, in vectors: keys share no cache sets
constexpr int64_t kSmallKeys = 64;

template <class T>
inline bool is_small(const GeometricAttentionScores& s) {
  return s.queries <= kSmallRows && s.keys <= kSmallKeys && s.batch * s.heads >= 2 * kLanes<Accumulator<T>>;
}

// From this size of a tensor on, all of them together are not in the caches when they are read: their rows
// are fetched ahead, and results are written to memory without fetching the lines first.
constexpr int64_t kFromMemory = 3 << 20;

template <class T>
inline bool from_memory(const GeometricAttentionScores& s, int64_t rows) {
  return s.batch * s.heads * rows * s.width * static_cast<int64_t>(sizeof(T)) >= kFromMemory;
}
template <class T>
inline bool past_caches(const GeometricAttentionScores& s, const Heads& x, int64_t rows) {
  const auto whole = [](int64_t n) { return n % kLanes<T> == 0; };
  return __is_same(T, Accumulator<T>) && from_memory<T>(s, rows) &&
         reinterpret_cast<uint64_t>(x.data) % kVectorBytes == 0 && whole(s.width) && whole(x.stride_b) &&
         whole(x.stride_h) && whole(x.stride_n);
}

// f(d) for the signed distances of the keys of a row at position p, from near to far, without 0; `close`
// after each group of them.
template <class F, class G>
inline void outwards(int64_t p, int64_t keys, bool causal, const F& f, const G& close) {
  const Reach r = causal ? Reach{} : Reach{max_of(1, -p), keys - 1 - p}, l{max_of(1, p - (keys - 1)), p};
  const int64_t last = max_of(r.last, l.last);
  for (int64_t d = min_of(r.first, l.first); d <= last;) {
    for (int64_t end = min_of(last, d + kGroup - 1); d <= end; ++d) {
      if (r.holds(d)) f(d);
      if (l.holds(d)) f(-d);
    }
    close();
  }
}
template <class F>
inline void inwards(int64_t p, int64_t keys, bool causal, const F& f) {
  const Reach r = causal ? Reach{} : Reach{max_of(1, -p), keys - 1 - p}, l{max_of(1, p - (keys - 1)), p};
  for (int64_t d = max_of(r.last, l.last); d >= min_of(r.first, l.first); --d) {
    if (l.holds(d)) f(-d);
    if (r.holds(d)) f(d);
  }
}

// Heads [first, first + count), count <= lanes.
template <class T>
class SmallHeads {
 public:
  using A = Accumulator<T>;
  using V = Vector<A>;
  static constexpr int L = kLanes<A>;

  const GeometricAttentionScores& s;
  const int64_t first, count;

  SmallHeads(const GeometricAttentionScores& scores, int64_t begin, int64_t end, bool backward)
      : s(scores), first(begin), count(end - begin), raw_pitch(s.keys * kSmallRows + L) {
    const int64_t panel = s.keys * kPanelPitch * L, raws = raw_pitch * L;
    A* const to = static_cast<A*>(
        thread_scratch(kSlotPanels, sizeof(A) * (backward ? 2 * raws + 3 * panel : raws + panel)));
    raw = to;
    weights = raw + raws;
    odds = backward ? weights + panel : nullptr;
    gradients = backward ? odds + panel : nullptr;
    raw_gradients = backward ? gradients + panel : nullptr;
    offset = s.q_offset < -s.queries ? -s.queries : s.q_offset > s.keys ? s.keys : s.q_offset;
  }

  A *raw, *raw_gradients;
  A *weights, *odds, *gradients;
  Ahead<T> ahead;
  int64_t raw_pitch, offset;

  A* raw_of(A* of, int64_t lane) const { return of + lane * raw_pitch; }
  A* at(A* panel, int64_t i, int64_t j) const { return panel + (j * kPanelPitch + i) * L; }

  void add_ahead(const Heads& x, int64_t lane, int64_t rows) {
    if (lane >= count || !from_memory<T>(s, rows)) return;
    ahead.add(row_of<T>(x, (first + lane) / s.heads, (first + lane) % s.heads, 0), x.stride_n, rows);
  }

  // <q, k> becomes the scores of a head, -inf for the keys that are hidden from all rows.
  void scores_of(int64_t lane) {
    const Head<T> head(s, first + lane);
    A* const to = raw_of(raw, lane);
    const A never = -static_cast<A>(__builtin_inf());
    for (int64_t j = 0; j < s.keys; ++j)
      if (j < head.begin || j >= head.end)
        for (int64_t i = 0; i < s.queries; i += L) store(to + j * kSmallRows + i, splat(never));
    dot_products(row_of<T>(s.q, head.b, head.h, 0), s.q.stride_n, head.k, head.keys(),
                 to + head.begin * kSmallRows);
    ScoreColumns<T> columns(head, nullptr);
    for (int64_t i = 0; i < s.queries; i += kStrips * L) {
      columns.columns = to + head.begin * kSmallRows + i;
      columns.open(i, min_of(kStrips * L, s.queries - i), kSmallRows);
      columns.finish(0, head.keys());
    }
  }

  // <dout, v> of a head, 0 for the keys that are hidden from all rows.
  void values_of(int64_t lane, const Heads& dout) {
    const Head<T> head(s, first + lane);
    A* const to = raw_of(raw, lane);
    for (int64_t j = 0; j < s.keys; ++j)
      if (j < head.begin || j >= head.end)
        for (int64_t i = 0; i < s.queries; i += L) store(to + j * kSmallRows + i, V{});
    dot_products(row_of<T>(dout, head.b, head.h, 0), dout.stride_n, head.v, head.keys(),
                 to + head.begin * kSmallRows);
  }

  void to_panel(const A* from, A* panel) const {
    for (int64_t j = 0; j < s.keys; ++j)
      for (int64_t i = 0; i < s.queries; i += L) {
        V v[L];
        for (int h = 0; h < L; ++h) v[h] = h < count ? load(from + h * raw_pitch + j * kSmallRows + i) : V{};
        transpose<A>(v);
        A* const to = at(panel, i, j);
#pragma GCC unroll 16
        for (int r = 0; r < L; ++r) store(to + r * L, v[r]);
      }
  }
  void from_panel(const A* panel, A* to) const {
    for (int64_t j = 0; j < s.keys; ++j)
      for (int64_t i = 0; i < s.queries; i += L) {
        V v[L];
        const A* const from = panel + (j * kPanelPitch + i) * L;
#pragma GCC unroll 16
        for (int r = 0; r < L; ++r) v[r] = load(from + r * L);
        transpose<A>(v);
        for (int h = 0; h < count; ++h) store(to + h * raw_pitch + j * kSmallRows + i, v[h]);
      }
  }

  // Weights of row i, from the scores in their place; the odds where they are wanted.
  Survival<A> weigh(int64_t i) {
    const int64_t p = i + offset;
    Survival<A> state;
    const auto meet = [&](int64_t d) {
      V odd;
      A* const score = at(weights, i, p + d);
      store(score, state.meet(load(score), odd));
      if (odds) store(at(odds, i, p + d), odd);
    };
    const bool here = p >= 0 && p < s.keys;
    if (here && s.include_self) meet(0);
    outwards(p, s.keys, s.causal, meet, [&] { state.close_group(); });
    state.close_group();
    if (s.normalize) {
      const V scale = 1 / denominator(state);
      const auto divide = [&](int64_t d) {
        store(at(weights, i, p + d), load(at(weights, i, p + d)) * scale);
      };
      if (here && s.include_self) divide(0);
      inwards(p, s.keys, s.causal, divide);
    }
    clear_rest(weights, i);
    return state;
  }

  // ds of row i in place of <dout, v>, its sums left and right of the row into `side`.
  void differentiate(int64_t i, const Survival<A>& state, V drem, V (&side)[2]) {
    const int64_t p = i + offset;
    const bool self = s.include_self && p >= 0 && p < s.keys;
    V mean = {};
    if (s.normalize) {
      const auto add = [&](int64_t d) {
        mean += load(at(weights, i, p + d)) * load(at(gradients, i, p + d));
      };
      inwards(p, s.keys, s.causal, add);
      if (self) add(0);
      const V z = matched_of<A>(state.log, state.remaining());
      mean = z > static_cast<A>(s.eps) ? mean : V{};
    }
    V farther = state.remaining() * drem;
    const auto visit = [&](int64_t d) {
      A* const gradient = at(gradients, i, p + d);
      const V g = load(at(weights, i, p + d)) * (load(gradient) - mean);
      const V ds = score_gradient(load(at(odds, i, p + d)), g, farther);
      farther += g;
      store(gradient, ds);
      return ds;
    };
    side[0] = side[1] = V{};
    inwards(p, s.keys, s.causal, [&](int64_t d) { side[d > 0] += visit(d); });
    if (self) visit(0);
    clear_rest(gradients, i);
  }

 private:
  V denominator(const Survival<A>& state) const {
    const V z = matched_of<A>(state.log, state.remaining());
    const A eps = static_cast<A>(s.eps);
    return z > eps ? z : splat(eps);
  }

  // Keys that take no part whatever their score.
  void clear_rest(A* panel, int64_t i) const {
    const int64_t p = i + offset;
    if (!s.include_self && p >= 0 && p < s.keys) store(at(panel, i, p), V{});
    if (s.causal)
      for (int64_t j = max_of(0, p + 1); j < s.keys; ++j) store(at(panel, i, j), V{});
  }

  // to[j][i] = <row i, key j>. Packing the rows pays where it is shared by keys enough.
  void dot_products(const T* rows, int64_t stride, const Rows<A>& keys, int64_t num_keys, A* to) const {
    const int64_t pitch = Sizes<T>::pitch(s.width);
    A* const scratch = static_cast<A*>(thread_scratch(kSlotRows, sizeof(A) * kSmallRows * pitch));
    const int64_t packed_cost = s.width * ceil_div(s.queries, L) * (num_keys + 10);
    const int64_t tiles = ceil_div(s.queries, kDotRows) * ceil_div(num_keys, L / kDotRows);
    if (tiles * (pitch + 4 * L) < packed_cost) {
      const Rows<A> copy = rows_as_sums(rows, stride, s.queries, scratch);
      dots(ahead, pitch, copy.data, copy.stride, s.queries, keys.data, keys.stride, num_keys, to, kSmallRows);
      return;
    }
    for (int64_t i = 0; i < s.queries; i += kStrips * L) {
      const int64_t count = min_of(kStrips * L, s.queries - i);
      const int strips = count > L ? 2 : 1;
      pack_rows(rows + i * stride, stride, count, s.width, strips, scratch);
      scores(s.width, scratch, strips, keys.data, keys.stride, num_keys, to + i, kSmallRows);
    }
  }

 public:
  Rows<A> rows_as_sums(const T* rows, int64_t stride, int64_t num_rows, A* to) const {
    if constexpr (__is_same(T, A))
      if (Sizes<T>::in_place(s.width)) return {rows, stride};
    return copy_rows(rows, stride, num_rows, s.width, nullptr, to);
  }
};

template <class T>
void small_fwd(const GeometricAttentionFwdArgs& a, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const GeometricAttentionScores& s = a.s;
  SmallHeads<T> heads(s, begin, end, false);
  for (int64_t h = 0; h < heads.count; ++h) {
    heads.ahead.clear();
    heads.add_ahead(s.q, h + 1, s.queries);
    heads.add_ahead(s.k, h + 1, s.keys);
    heads.add_ahead(s.v, h, s.keys);
    heads.scores_of(h);
  }
  heads.to_panel(heads.raw, heads.weights);
  for (int64_t i = 0; i < s.queries; ++i) {
    const Vector<A> rem = heads.weigh(i).remaining();
    if (a.rem)
      for (int64_t h = 0; h < heads.count; ++h) static_cast<A*>(a.rem)[(begin + h) * s.queries + i] = rem[h];
  }
  heads.from_panel(heads.weights, heads.raw);
  const bool past = past_caches<T>(s, a.out, s.queries);
  for (int64_t h = 0; h < heads.count; ++h) {
    const Head<T> head(s, begin + h);
    const Segment<A> segment{heads.raw_of(heads.raw, h) + head.begin * kSmallRows, head.v.data, head.keys()};
    product<false, 1, kSmallRows>(
        &segment, 1, head.v.stride, s.queries,
        Target<T>{row_of<T>(a.out, head.b, head.h, 0), a.out.stride_n, s.width, 1, nullptr, past});
  }
  finish_past_caches();
}

template <class T>
void small_bwd(const GeometricAttentionBwdArgs& a, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  using V = Vector<A>;
  const GeometricAttentionScores& s = a.s;
  SmallHeads<T> heads(s, begin, end, true);
  const int64_t count = heads.count;
  // v is not read again: it comes first, and leaves the cache.
  for (int64_t h = 0; h < count; ++h) {
    const bool last = h + 1 == count;
    heads.ahead.clear();
    heads.add_ahead(last ? s.k : s.v, last ? 0 : h + 1, s.keys);
    heads.add_ahead(last ? s.q : a.dout, last ? 0 : h + 1, s.queries);
    heads.values_of(h, a.dout);
  }
  heads.to_panel(heads.raw, heads.gradients);
  for (int64_t h = 0; h < count; ++h) {
    heads.ahead.clear();
    heads.add_ahead(s.q, h + 1, s.queries);
    heads.add_ahead(s.k, h + 1, s.keys);
    heads.scores_of(h);
  }
  heads.to_panel(heads.raw, heads.weights);
  for (int64_t i = 0; i < s.queries; ++i) {
    const Survival<A> state = heads.weigh(i);
    V drem = {}, side[2];
    if (a.drem)
      for (int64_t h = 0; h < count; ++h)
        drem[h] = static_cast<const A*>(a.drem)[(begin + h) * s.queries + i];
    heads.differentiate(i, state, drem, side);
    if (a.dbias)
      for (int64_t h = 0; h < count; ++h)
        for (int n = 0; n < 2; ++n)
          static_cast<A*>(a.dbias)[((begin + h) * s.queries + i) * 2 + n] = side[n][h];
  }
  heads.from_panel(heads.weights, heads.raw);
  heads.from_panel(heads.gradients, heads.raw_gradients);
  const bool dq_past = past_caches<T>(s, a.dq, s.queries), dk_past = past_caches<T>(s, a.dk, s.keys),
             dv_past = past_caches<T>(s, a.dv, s.keys);
  for (int64_t h = 0; h < count; ++h) {
    const Head<T> head(s, begin + h);
    const int64_t from = head.begin * kSmallRows, pitch = Sizes<T>::pitch(s.width);
    const A *const weights = heads.raw_of(heads.raw, h) + from, *const ds =
                                                                    heads.raw_of(heads.raw_gradients, h) +
                                                                    from;
    if (a.dmask) {
      A* const to = static_cast<A*>(a.dmask) + (begin + h) * s.queries * s.keys;
      for (int64_t i = 0; i < s.queries; ++i)
        for (int64_t j = 0; j < s.keys; ++j) to[i * s.keys + j] = ds[j * kSmallRows - from + i] + 0;
    }
    const A scale = static_cast<A>(s.scale);
    const Segment<A> of_keys{ds, head.k.data, head.keys()};
    product<false, 1, kSmallRows>(
        &of_keys, 1, head.k.stride, s.queries,
        Target<T>{row_of<T>(a.dq, head.b, head.h, 0), a.dq.stride_n, s.width, scale, nullptr, dq_past});
    A* const scratch = static_cast<A*>(thread_scratch(kSlotRows, sizeof(A) * 2 * kSmallRows * pitch));
    const Rows<A> q = heads.rows_as_sums(row_of<T>(s.q, head.b, head.h, 0), s.q.stride_n, s.queries, scratch);
    const Rows<A> dout = heads.rows_as_sums(row_of<T>(a.dout, head.b, head.h, 0), a.dout.stride_n, s.queries,
                                            scratch + kSmallRows * pitch);
    const Segment<A> of_q{ds, q.data, s.queries}, of_dout{weights, dout.data, s.queries};
    product<false, kSmallRows, 1>(&of_q, 1, q.stride, head.keys(),
                                  Target<T>{row_of<T>(a.dk, head.b, head.h, head.begin), a.dk.stride_n,
                                            s.width, scale, nullptr, dk_past});
    product<false, kSmallRows, 1>(
        &of_dout, 1, dout.stride, head.keys(),
        Target<T>{row_of<T>(a.dv, head.b, head.h, head.begin), a.dv.stride_n, s.width, 1, nullptr, dv_past});
    for (int64_t j = 0; j < s.keys; ++j)
      if (j < head.begin || j >= head.end || (head.hidden && head.hidden[j]))
        for (int n = 0; n < 2; ++n)
          __builtin_memset(row_of<T>(n == 0 ? a.dk : a.dv, head.b, head.h, j), 0, sizeof(T) * s.width);
  }
  finish_past_caches();
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
