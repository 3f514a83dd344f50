// What forward and backward share: one head's keys, and the weights of a block of its rows.
#pragma once
#include "common/cpu.h"
#include "geometric_attention/geometric_attention.h"
#include "geometric_attention/geometric_attention_cpu_products.h"
#include "geometric_attention/geometric_attention_cpu_scan.h"

namespace sysgen::SYSGEN_ISA {
namespace {

enum Slot { kSlotKeys, kSlotRows, kSlotPanels, kSlotSums };

template <class F>
void for_each_task(int64_t count, int threads, const F& task) {
  if (threads <= 1 || count <= 1) {
    for (int64_t i = 0; i < count; ++i) task(i);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t i = 0; i < count; ++i) task(i);
}

// As many threads as have 10 us of work each, by a rough estimate of the machine.
inline int useful_threads(const GeometricAttentionScores& s, int threads, int64_t products) {
  const int64_t scores = s.batch * s.heads * s.queries * s.keys;
  const int64_t microseconds = scores * (products * s.width + 30) / 30000;
  return static_cast<int>(max_of(1, min_of(threads, microseconds / 10)));
}

constexpr int64_t kChunk = 32;  // distances before the first look whether all rows are at their end

template <class T>
inline T* row_of(const Heads& x, int64_t b, int64_t h, int64_t n) {
  return static_cast<T*>(x.data) + b * x.stride_b + h * x.stride_h + n * x.stride_n;
}

// Rows in the accumulator type, each followed by zeros up to whole vectors.
template <class A>
struct Rows {
  const A* data;
  int64_t stride;
  const A* operator[](int64_t n) const { return data + n * stride; }
};

template <class T>
Rows<Accumulator<T>> copy_rows(const T* rows, int64_t stride, int64_t count, int64_t width,
                               const uint8_t* hidden, Accumulator<T>* to) {
  constexpr int L = kLanes<Accumulator<T>>;
  const int64_t pitch = ceil_div(width, L) * L;
  for (int64_t n = 0; n < count; ++n)
    for (int64_t d = 0; d < width; d += L)
      store(to + n * pitch + d,
            hidden && hidden[n] ? Vector<Accumulator<T>>{} : load(rows + n * stride + d, width - d));
  return {to, pitch};
}

template <class T>
struct Sizes {
  using A = Accumulator<T>;
  static constexpr int64_t L = kLanes<A>, kRows = kStrips * L;
  static int64_t pitch(int64_t width) { return ceil_div(width, L) * L; }
  static constexpr bool in_place(int64_t width) { return __is_same(T, A) && width % L == 0; }
};

// One (b, h). Keys outside [begin, end) are hidden from every row; those of the others that are hidden count
// as zeros.
template <class T>
struct Head {
  using A = Accumulator<T>;
  const GeometricAttentionScores& s;
  int64_t b, h, begin = 0, end;
  int64_t offset;
  const uint8_t* hidden;  // of all keys; null: none in [begin, end)
  Rows<A> k, v;           // row 0 is key `begin`

  Head(const GeometricAttentionScores& scores, int64_t index, bool with_rows = true)
      : s(scores), b(index / scores.heads), h(index % scores.heads), end(scores.keys) {
    // Farther away the order of the keys is the same.
    offset = s.q_offset < -s.queries ? -s.queries : s.q_offset > s.keys ? s.keys : s.q_offset;
    hidden = s.key_mask ? s.key_mask + b * s.key_mask_stride_b : nullptr;
    if (hidden) {
      while (begin < end && hidden[begin]) ++begin;
      while (begin < end && hidden[end - 1]) --end;
      bool any = false;
      for (int64_t j = begin; j < end; ++j) any |= hidden[j] != 0;
      if (!any) hidden = nullptr;
    }
    if (!with_rows) return;
    const T *const keys = row_of<T>(s.k, b, h, begin), *const values = row_of<T>(s.v, b, h, begin);
    if constexpr (__is_same(T, A))
      if (Sizes<T>::in_place(s.width) && !hidden) {
        k = {keys, s.k.stride_n};
        v = {values, s.v.stride_n};
        return;
      }
    const int64_t size = (end - begin) * Sizes<T>::pitch(s.width);
    A* const to = static_cast<A*>(thread_scratch(kSlotKeys, sizeof(A) * 2 * size));
    const uint8_t* const mask = hidden ? hidden + begin : nullptr;
    k = copy_rows(keys, s.k.stride_n, end - begin, s.width, mask, to);
    v = copy_rows(values, s.v.stride_n, end - begin, s.width, mask, to + size);
  }
  int64_t keys() const { return end - begin; }
};

// Scores of rows [row, row + rows) of a head, rows in the lanes: columns[j * pitch + r]. Keys count from
// head.begin, and so does `position`, that of the first row.
template <class T>
struct ScoreColumns {
  using A = Accumulator<T>;
  using V = Vector<A>;
  static constexpr int L = kLanes<A>;

  const Head<T>& head;
  A* columns;
  int64_t pitch, row, rows, position;
  int strips;
  V bias_left[kStrips], bias_right[kStrips];
  bool finite_bias = true;

  ScoreColumns(const Head<T>& owner, A* to) : head(owner), columns(to) {}

  void open(int64_t first, int64_t count, int64_t column_pitch = 0) {
    row = first;
    rows = count;
    strips = count > L ? 2 : 1;
    pitch = column_pitch ? column_pitch : strips * L;
    position = row + head.offset - head.begin;
    load_bias();
  }

  A* at(int64_t j) const { return columns + j * pitch; }
  int64_t position_of(int s) const { return position + s * L; }
  int64_t rows_of(int s) const { return min_of(L, rows - s * L); }

  // Is the score the same function of <q, k> for all keys on one side? Then the scan may compute it: what
  // lies beyond the keys stays -inf.
  bool plain() const { return !head.hidden && !head.s.mask.data && head.s.scale > 0 && finite_bias; }

  // <q, k> of keys [from, to) becomes the score.
  void finish(int64_t from, int64_t to) const {
    const GeometricAttentionScores& a = head.s;
    const A scale = static_cast<A>(a.scale);
    const Integers<A> lane = lane_numbers<A>();
    for (int s = 0; s < strips; ++s) {
      const int64_t p = position_of(s);
      for (int64_t j = from; j < to; ++j) {
        A* const score = at(j) + s * L;
        V bias = j < p ? bias_left[s] : bias_right[s];
        if (a.bias && j >= p && j < p + L) {
          const Integers<A> distance = static_cast<typename IntegerOf<A>::type>(j - p) - lane;
          bias = distance < 0 ? bias_left[s] : distance > 0 ? bias_right[s] : V{};
        }
        store(score, load(score) * scale + bias);
      }
    }
    if (head.hidden || a.mask.data) mask_columns(from, to);
  }

 private:
  void load_bias() {
    const GeometricAttentionScores& a = head.s;
    for (int s = 0; s < kStrips; ++s) bias_left[s] = bias_right[s] = V{};
    finite_bias = true;
    if (!a.bias) return;
    const A* bias = static_cast<const A*>(a.bias) + head.b * a.bias_stride_b + head.h * a.bias_stride_h +
                    row * a.bias_stride_l;
    for (int64_t r = 0; r < rows; ++r, bias += a.bias_stride_l) {
      bias_left[r / L][r % L] = bias[0];
      bias_right[r / L][r % L] = bias[1];
      finite_bias = finite_bias && bias[0] - bias[0] == 0 && bias[1] - bias[1] == 0;
    }
  }

  void mask_columns(int64_t from, int64_t to) const {
    const A never = -static_cast<A>(__builtin_inf());
    const ScoreMask& m = head.s.mask;
    for (int64_t j = from; j < to; ++j) {
      A* const score = at(j);
      if (head.hidden && head.hidden[head.begin + j]) {
        for (int s = 0; s < strips; ++s) store(score + s * L, splat(never));
      } else if (m.data) {
        int64_t index =
            head.b * m.stride_b + head.h * m.stride_h + row * m.stride_l + (head.begin + j) * m.stride_s;
        for (int64_t r = 0; r < rows; ++r, index += m.stride_l) {
          if (m.additive) {
            const A x = static_cast<const A*>(m.data)[index];
            score[r] = x == never ? never : score[r] + x;
          } else if (static_cast<const uint8_t*>(m.data)[index]) {
            score[r] = never;
          }
        }
      }
    }
  }
};

// Rows [row, row + rows) of a head, in strips of one vector. Panels hold one vector for each signed distance
// at which the strip has keys.
template <class T>
class Block {
 public:
  using A = Accumulator<T>;
  using V = Vector<A>;
  static constexpr int L = kLanes<A>;

  const Head<T>& head;
  const int64_t keys, pitch;  // elements of a panel
  ScoreColumns<T> columns;
  A *odds, *weights, *gradients;

  int64_t row, rows;
  int strips;
  int64_t low, high;  // keys that some row reached, counted from head.begin
  int64_t reached;    // distance
  Survival<A> survival[kStrips];

  Block(const Head<T>& owner, bool backward)
      : head(owner), keys(owner.keys()), pitch((keys + L - 1) * L), columns(owner, nullptr) {
    const int64_t columns_size = keys * kStrips * L, panels = backward ? 3 : 2;
    columns.columns =
        static_cast<A*>(thread_scratch(kSlotPanels, sizeof(A) * (columns_size + panels * kStrips * pitch)));
    odds = columns.columns + columns_size;
    weights = odds + kStrips * pitch;
    gradients = backward ? weights + kStrips * pitch : nullptr;
  }

  void open(int64_t first, int64_t count) {
    row = first;
    rows = count;
    columns.open(first, count);
    strips = columns.strips;
  }

  // Position of a strip's first row, counted from head.begin.
  int64_t position_of(int s) const { return columns.position_of(s); }
  int64_t rows_of(int s) const { return columns.rows_of(s); }

  // A panel's vector at signed distance d.
  A* at(A* panel, int s, int64_t d) const { return panel + s * pitch + (d + position_of(s) + L - 1) * L; }

  Reach right(int s) const {
    if (head.s.causal) return {};
    const int64_t p = position_of(s);
    return {max_of(1, -(p + rows_of(s) - 1)), keys - 1 - p};
  }
  Reach left(int s) const {
    const int64_t p = position_of(s);
    return {max_of(1, p - (keys - 1)), p + rows_of(s) - 1};
  }

  // Weights and odds of all rows; packed: the queries.
  void weigh(const A* packed) {
    const GeometricAttentionScores& a = head.s;
    const int64_t p = position_of(0), last = p + rows - 1;
    for (int s = 0; s < kStrips; ++s) survival[s] = {};
    int64_t farthest = 0;
    for (int s = 0; s < strips; ++s) farthest = max_of(farthest, max_of(right(s).last, left(s).last));
    reached = max_of(0, max_of(-last, p - (keys - 1)) - 1);
    low = high = min_of(keys, max_of(0, p));
    if (keys == 0) {
      reached = 0;
      return;
    }
    bool first = true;
    do {
      // Most rows end early, or not at all: then few long steps cost less.
      const int64_t to = min_of(reached + max_of(kChunk, reached / kChunk * kChunk), farthest);
      const int64_t l = max_of(0, min_of(keys, p - to));
      const int64_t h = max_of(l, min_of(keys, (a.causal ? last : last + to) + 1));
      if (first) {
        compute(packed, l, h);
      } else {
        compute(packed, l, low);
        compute(packed, high, h);
      }
      low = l;
      high = h;
      bool over = true;
      for (int s = 0; s < strips; ++s) {
        scan(s, reached, to, first);
        over = over && survival[s].over(rows_of(s));
      }
      reached = max_of(reached, to);
      first = false;
      if (over && a.early_stop) break;
    } while (reached < farthest);
    for (int s = 0; s < strips; ++s) clear_rest(weights, s);
  }

  // What normalize multiplies the weights of a strip by.
  V share(int s) const {
    const V z = matched_of<A>(survival[s].log, survival[s].remaining());
    const A eps = static_cast<A>(head.s.eps);
    return 1 / (z > eps ? z : splat(eps));
  }

  // <dout, v> of the keys that were reached, into `gradients`; packed: dout.
  void values(const A* packed) {
    if (low >= high) return;
    scores(head.s.width, packed, strips, head.v[low], head.v.stride, high - low, columns.at(low),
           columns.pitch);
    for (int s = 0; s < strips; ++s) {
      const int64_t p = position_of(s), from = low - p - (L - 1), to = high - 1 - p;
      skew(columns.columns + s * L, columns.pitch, p + from, to - from + 1, low, high, A(0),
           at(gradients, s, from));
    }
  }

  // ds into `gradients`, their sums left and right of the rows into `side`.
  void differentiate(int s, V drem, V (&side)[2]) {
    const Reach r = right(s), l = left(s);
    const bool self = head.s.include_self && has_self(s);
    V mean = {};
    if (head.s.normalize) {
      const V scale = share(s);
      const auto divide = [&](int64_t d) {
        const V w = load(at(weights, s, d)) * scale;
        store(at(weights, s, d), w);
        mean += w * load(at(gradients, s, d));
      };
      if (self) divide(0);
      for (int64_t d = 1; d <= reached; ++d) {
        if (r.holds(d)) divide(d);
        if (l.holds(d)) divide(-d);
      }
      const V z = matched_of<A>(survival[s].log, survival[s].remaining());
      mean = z > static_cast<A>(head.s.eps) ? mean : V{};
    }
    V farther = survival[s].remaining() * drem;
    const auto visit = [&](int64_t d) {
      const V g = load(at(weights, s, d)) * (load(at(gradients, s, d)) - mean);
      const V ds = score_gradient(load(at(odds, s, d)), g, farther);
      farther += g;
      store(at(gradients, s, d), ds);
      return ds;
    };
    side[0] = side[1] = V{};
    for (int64_t d = reached; d > 0; --d) {
      if (l.holds(d)) side[0] += visit(-d);
      if (r.holds(d)) side[1] += visit(d);
    }
    if (self) visit(0);
    clear_rest(gradients, s);
  }

  // The part of a strip's rows in the products with keys [low, high).
  const A* from_low(const A* panel, int s) const { return panel + s * pitch + (low + L - 1) * L; }

  // Zeros where the products look beyond what the scan reached.
  void clear_rest(A* panel, int s) const {
    const int64_t p = position_of(s), to = high - 1 - p;
    const Reach r = right(s), l = left(s);
    int64_t d = low - p - (L - 1);
    const auto skip = [&](int64_t first, int64_t last) {
      if (first > last) return;
      for (const int64_t end = min_of(first, to + 1); d < end; ++d) store(at(panel, s, d), V{});
      d = max_of(d, last + 1);
    };
    skip(-min_of(l.last, reached), -l.first);
    if (head.s.include_self) skip(0, 0);
    skip(r.first, min_of(r.last, reached));
    for (; d <= to; ++d) store(at(panel, s, d), V{});
  }

 private:
  // Scores of keys [from, to).
  void compute(const A* packed, int64_t from, int64_t to) {
    if (from >= to) return;
    scores(head.s.width, packed, strips, head.k[from], head.k.stride, to - from, columns.at(from),
           columns.pitch);
    if (!columns.plain()) columns.finish(from, to);
  }

  void skew_scores(int s, int64_t from, int64_t to) {
    if (from > to) return;
    skew(columns.columns + s * L, columns.pitch, position_of(s) + from, to - from + 1, 0, keys,
         -static_cast<A>(__builtin_inf()), at(odds, s, from));
  }

  // Distances (from, to] of a strip.
  void scan(int s, int64_t from, int64_t to, bool first) {
    const Reach r = right(s), l = left(s);
    skew_scores(s, max_of(r.first, from + 1), min_of(r.last, to));
    skew_scores(s, -min_of(l.last, to), -max_of(l.first, from + 1));
    Survival<A> state = survival[s];
    const bool plain = columns.plain();
    const V scale = splat<A>(plain ? static_cast<A>(head.s.scale) : A(1)), none{};
    const V bias_left = plain ? columns.bias_left[s] : none,
            bias_right = plain ? columns.bias_right[s] : none;
    const auto meet = [&](int64_t d) {
      const V bias = d > 0 ? bias_right : d < 0 ? bias_left : none;
      V odd;
      store(at(weights, s, d), state.meet(load(at(odds, s, d)) * scale + bias, odd));
      store(at(odds, s, d), odd);
    };
    if (first && head.s.include_self && has_self(s)) {
      skew_scores(s, 0, 0);
      meet(0);
    }
    for (int64_t d = from + 1; d <= to;) {
      for (int64_t end = min_of(to, d + kGroup - 1); d <= end; ++d) {
        if (r.holds(d)) meet(d);
        if (l.holds(d)) meet(-d);
      }
      state.close_group();
    }
    if (from >= to) state.close_group();
    survival[s] = state;
  }

  // Does distance 0 lie in the panel?
  bool has_self(int s) const { return position_of(s) + L - 1 >= 0 && position_of(s) < keys; }
};

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
