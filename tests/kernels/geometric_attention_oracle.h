// Geometric attention by its definition, in float64, with a bound for the error of a kernel that computes in
// the accumulator type. First order: every rounding of relative size u, and what it does to the results.
#pragma once
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "geometric_attention/geometric_attention.h"
#include "kernel_test.h"

namespace sysgen::test {

struct GeometricCase {
  int batch = 1, heads = 1, queries = 1, keys = 1, width = 1;
  DType dtype = DType::f32;
  enum class Mask { none, boolean, additive } mask = Mask::none;
  enum class KeyMask { none, some, all } key_mask = KeyMask::none;
  bool bias = false, causal = false, include_self = false, normalize = false, rem = false, early_stop = false;
  bool dbias = false, dmask = false;
  bool mask_shared = false;   // by all heads and batches: strides of 0
  bool heads_inside = false;  // [B, N, H, D] in memory
  int q_offset = 0, gap = 0, offset = 0;
  double scale = 0.5, size = 1;  // size of q and k
  double extreme = 0;            // of the additive mask: some elements are this, or minus this

  std::string describe(const char* what) const {
    return cat(what, " B", batch, " H", heads, " L", queries, " S", keys, " D", width, " ", name_of(dtype),
               " mask ", int(mask), " key_mask ", int(key_mask), bias ? " bias" : "", causal ? " causal" : "",
               include_self ? " include_self" : "", normalize ? " normalize" : "", rem ? " rem" : "",
               early_stop ? " early_stop" : "", dbias ? " dbias" : "", dmask ? " dmask" : "",
               mask_shared ? " mask_shared" : "", heads_inside ? " heads_inside" : "", " q_offset ", q_offset,
               " gap ", gap, " offset ", offset, " scale ", scale, " size ", size, " extreme ", extreme);
  }
};

// [B, H, N, D] with rows that are `gap` elements further apart than they are wide; the gaps stay NaN.
struct HeadsBuffer {
  int64_t stride_b, stride_h, stride_n;
  Buffer values;
  HeadsBuffer(const GeometricCase& c, int64_t rows)
      : stride_b(int64_t(c.heads) * rows * (c.width + c.gap)),
        stride_h(c.heads_inside ? c.width + c.gap : rows * (c.width + c.gap)),
        stride_n(c.heads_inside ? int64_t(c.heads) * (c.width + c.gap) : c.width + c.gap),
        values(c.dtype, c.batch * stride_b > 0 ? c.batch * stride_b - c.gap : 0, c.offset) {}
  int64_t at(int64_t b, int64_t h, int64_t n, int64_t d) const {
    return b * stride_b + h * stride_h + n * stride_n + d;
  }
  double get(int64_t b, int64_t h, int64_t n, int64_t d) const { return values.get(at(b, h, n, d)); }
  Heads view() const { return {values.data(), stride_b, stride_h, stride_n}; }
};

// Inputs and outputs of one case, as a kernel gets them.
struct GeometricProblem {
  GeometricCase c;
  HeadsBuffer q, k, v, dout, out, dq, dk, dv;
  Buffer bias, added, rem, drem, dbias, dmask;
  std::vector<uint8_t> key_mask, hidden;  // of exactly the needed size
  int64_t bias_row, mask_row, mask_key;

  GeometricProblem(const GeometricCase& c_, Random& random)
      : c(c_),
        q(c, c.queries),
        k(c, c.keys),
        v(c, c.keys),
        dout(c, c.queries),
        out(c, c.queries),
        dq(c, c.queries),
        dk(c, c.keys),
        dv(c, c.keys),
        bias(acc(), scalar_rows() * (2 + c.gap)),
        added(acc(), c.mask == GeometricCase::Mask::additive ? mask_count() : 0),
        rem(acc(), scalar_rows()),
        drem(acc(), scalar_rows()),
        dbias(acc(), scalar_rows() * 2),
        dmask(acc(), scalar_rows() * c.keys),
        key_mask(int64_t(c.batch) * c.keys),
        hidden(c.mask == GeometricCase::Mask::boolean ? mask_count() : 0),
        bias_row(2 + c.gap),
        mask_row(c.heads_inside ? 1 : c.keys + c.gap),
        mask_key(c.heads_inside ? c.queries + c.gap : 1) {
    for (auto& m : key_mask) m = c.key_mask == GeometricCase::KeyMask::all || random() % 3 == 0;
    fill(q, c.queries, random, c.size, false);
    fill(k, c.keys, random, c.size, true);
    fill(v, c.keys, random, 1, true);
    fill(dout, c.queries, random, 1, false);
    for (int64_t i = 0; i < bias.count(); ++i) bias.set(i, value(random));
    for (int64_t i = 0; i < drem.count(); ++i) drem.set(i, value(random));
    const double infinity = std::numeric_limits<double>::infinity();
    for (int64_t i = 0; i < added.count(); ++i) {
      const int kind = random() % 8;
      added.set(i, kind == 0               ? -infinity
                   : c.extreme && kind < 3 ? c.extreme
                   : c.extreme && kind < 5 ? -c.extreme
                                           : value(random));
    }
    for (auto& m : hidden) m = random() % 4 == 0;
  }
  DType acc() const { return accumulator_of(c.dtype); }
  int64_t scalar_rows() const { return int64_t(c.batch) * c.heads * c.queries; }
  int64_t mask_count() const {
    const int64_t one =
        c.heads_inside ? int64_t(c.keys) * (c.queries + c.gap) : int64_t(c.queries) * (c.keys + c.gap);
    return (c.mask_shared ? 1 : int64_t(c.batch) * c.heads) * one;
  }
  bool is_masked(int64_t b, int64_t j) const {
    return c.key_mask != GeometricCase::KeyMask::none && key_mask[b * c.keys + j];
  }
  int64_t mask_at(int64_t b, int64_t h, int64_t i, int64_t j) const {
    const int64_t one = mask_count();
    return (c.mask_shared ? 0
                          : (b * c.heads + h) * (one / std::max<int64_t>(1, int64_t(c.batch) * c.heads))) +
           i * mask_row + j * mask_key;
  }
  void fill(HeadsBuffer& x, int64_t rows, Random& random, double size, bool of_keys) {
    for (int64_t b = 0; b < c.batch; ++b)
      for (int64_t h = 0; h < c.heads; ++h)
        for (int64_t n = 0; n < rows; ++n)
          for (int64_t d = 0; d < c.width; ++d)
            if (!of_keys || !is_masked(b, n)) x.values.set(x.at(b, h, n, d), size * value(random));
  }
  GeometricAttentionScores scores() const {
    GeometricAttentionScores s{};
    s.dtype = c.dtype;
    s.batch = c.batch;
    s.heads = c.heads;
    s.queries = c.queries;
    s.keys = c.keys;
    s.width = c.width;
    s.q = q.view();
    s.k = k.view();
    s.v = v.view();
    if (c.bias) {
      s.bias = bias.data();
      s.bias_stride_l = bias_row;
      s.bias_stride_h = c.queries * bias_row;
      s.bias_stride_b = c.heads * s.bias_stride_h;
    }
    if (c.key_mask != GeometricCase::KeyMask::none) {
      s.key_mask = key_mask.data();
      s.key_mask_stride_b = c.keys;
    }
    if (c.mask != GeometricCase::Mask::none) {
      const bool additive = c.mask == GeometricCase::Mask::additive;
      const int64_t one =
          mask_count() / (c.mask_shared ? 1 : std::max<int64_t>(1, int64_t(c.batch) * c.heads));
      s.mask.data = additive ? added.data() : static_cast<const void*>(hidden.data());
      s.mask.additive = additive;
      s.mask.stride_h = c.mask_shared ? 0 : one;
      s.mask.stride_b = c.mask_shared ? 0 : c.heads * one;
      s.mask.stride_l = mask_row;
      s.mask.stride_s = mask_key;
    }
    s.scale = c.scale;
    s.normalize = c.normalize;
    s.eps = 1e-12;
    s.include_self = c.include_self;
    s.causal = c.causal;
    s.q_offset = c.q_offset;
    s.early_stop = c.early_stop;
    return s;
  }
  GeometricAttentionFwdArgs fwd() const {
    GeometricAttentionFwdArgs a{};
    a.s = scores();
    a.out = out.view();
    a.rem = c.rem ? rem.data() : nullptr;
    return a;
  }
  GeometricAttentionBwdArgs bwd() const {
    GeometricAttentionBwdArgs a{};
    a.s = scores();
    a.dout = dout.view();
    a.drem = c.rem ? drem.data() : nullptr;
    a.dq = dq.view();
    a.dk = dk.view();
    a.dv = dv.view();
    a.dbias = c.dbias ? dbias.data() : nullptr;
    a.dmask = c.dmask ? dmask.data() : nullptr;
    return a;
  }
};

// A value and how far a kernel's may be from it.
struct Bounded {
  double value = 0, error = 0;
};

// Everything of one (b, h).
struct GeometricOracle {
  std::vector<Bounded> rem, dbias;       // [L], [L, 2]
  std::vector<Bounded> weight, ds;       // [L, S]
  std::vector<Bounded> out, dq, dk, dv;  // [L or S, D]

  GeometricOracle(const GeometricProblem& p, int64_t b, int64_t h) {
    const GeometricCase& c = p.c;
    const int64_t L = c.queries, S = c.keys, D = c.width;
    const double u = unit_roundoff(p.acc()), stored = unit_roundoff(c.dtype), minus = -INFINITY;
    // Factors of the tensor cores are rounded to the half type; float16 has a smallest step besides.
    const double factor = is_half(c.dtype) ? stored : 0, step = c.dtype == DType::f16 ? 0x1p-25 : 0;
    const double tiny = c.dtype == DType::f64 ? 1e-300 : 1e-36;  // results below it may be 0
    // A sum of n terms in any order, or a logarithm or exponential of CUDA's (at most 2 units in the last
    // place, 4 u).
    const double levels = 16, function = 4;
    rem.resize(L), dbias.resize(2 * L), weight.resize(L * S), ds.resize(L * S);
    out.resize(L * D), dq.resize(L * D), dk.resize(S * D), dv.resize(S * D);

    const auto get = [&](const HeadsBuffer& x, int64_t n, int64_t d) { return x.get(b, h, n, d); };
    const auto dot = [&](const HeadsBuffer& x, int64_t i, const HeadsBuffer& y, int64_t j) {
      Bounded r;
      for (int64_t d = 0; d < D; ++d) {
        const double product = get(x, i, d) * get(y, j, d);
        r.value += product;
        r.error += u * (D + 2) * std::abs(product);
      }
      return r;
    };
    for (int64_t i = 0; i < L; ++i) {
      const int64_t position = i + c.q_offset, row = (b * c.heads + h) * L + i;
      std::vector<int64_t> order(S);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) {
        const int64_t dx = std::abs(x - position), dy = std::abs(y - position);
        return dx != dy ? dx < dy : x > y;
      });
      std::vector<Bounded> s(S), G(S);
      for (int64_t j = 0; j < S; ++j) {
        bool part = !p.is_masked(b, j) && !(c.causal && j > position) && !(j == position && !c.include_self);
        if (c.mask == GeometricCase::Mask::boolean && p.hidden[p.mask_at(b, h, i, j)]) part = false;
        const double added = c.mask == GeometricCase::Mask::additive ? p.added.get(p.mask_at(b, h, i, j)) : 0;
        const int64_t side = row * p.bias_row + (j > position);
        const double bias = c.bias && j != position ? p.bias.get(side) : 0;
        if (!p.is_masked(b, j)) G[j] = dot(p.dout, i, p.v, j);
        if (!part || added == minus) {
          s[j].value = minus;
          continue;
        }
        const Bounded product = dot(p.q, i, p.k, j);
        s[j].value = c.scale * product.value + bias + added;
        s[j].error = std::abs(c.scale) * product.error +
                     4 * u * (std::abs(c.scale * product.value) + std::abs(bias) + std::abs(added));
        if (!std::isfinite(s[j].value)) s[j].error = 0;
      }
      // log A and its error, outwards
      std::vector<double> chance(S);
      double sum = 0, sum_error = 0, sum_size = 0;
      for (const int64_t j : order) {
        const double t = std::exp(-std::abs(s[j].value)), log1p = std::log1p(t);
        const double match = std::min(s[j].value, 0.0) - log1p, miss = -std::max(s[j].value, 0.0) - log1p;
        chance[j] = s[j].value < 0 ? t / (1 + t) : 1 / (1 + t);
        const double value = std::exp(match + sum);
        const double error =
            s[j].error * (1 - chance[j]) + sum_error + u * (function + levels * (sum_size + std::abs(match)));
        weight[i * S + j] = {value, value > tiny ? value * error : tiny};
        if (s[j].value == minus) weight[i * S + j] = {0, 0};
        sum += miss;
        sum_error += s[j].error * chance[j] + u * function * std::abs(miss);
        sum_size += std::abs(miss);
      }
      rem[i].value = std::exp(sum);
      rem[i].error =
          rem[i].value > tiny ? rem[i].value * (sum_error + u * (function + levels * sum_size)) : tiny;
      const double total = -std::expm1(sum), largest = std::max(total, 1e-12);
      if (c.normalize) {
        const double error = (rem[i].error + u * function * total) / largest;
        for (int64_t j = 0; j < S; ++j) {
          Bounded& w = weight[i * S + j];
          w = {w.value / largest, w.error / largest + w.value / largest * (error + 3 * u)};
        }
      }
      Bounded mean;
      if (c.normalize && total > 1e-12)
        for (int64_t j = 0; j < S; ++j) {
          const Bounded& w = weight[i * S + j];
          mean.value += w.value * G[j].value;
          mean.error +=
              w.error * std::abs(G[j].value) + w.value * (G[j].error + u * levels * std::abs(G[j].value));
        }
      // ds, inwards
      const double drem = c.rem ? p.drem.get(row) : 0;
      Bounded farther{rem[i].value * drem, rem[i].error * std::abs(drem) + u * rem[i].value * std::abs(drem)};
      double size = std::abs(farther.value);
      for (int64_t n = S - 1; n >= 0; --n) {
        const int64_t j = order[n];
        const Bounded& w = weight[i * S + j];
        if (s[j].value == minus) continue;
        const double by = G[j].value - mean.value, g = w.value * by;
        const double g_error =
            w.error * std::abs(by) + w.value * (G[j].error + mean.error + 3 * u * std::abs(by));
        const double t = std::exp(-std::abs(s[j].value)), away = s[j].value < 0 ? 1 / (1 + t) : t / (1 + t);
        const double moved = chance[j] * away * s[j].error;
        Bounded& x = ds[i * S + j];
        x.value = away * g - chance[j] * farther.value;
        x.error = tiny + away * g_error + (moved + u * (function + 4) * away) * std::abs(g) +
                  chance[j] * (farther.error + u * levels * size) +
                  (moved + u * (function + 4) * chance[j]) * std::abs(farther.value);
        farther.value += g;
        farther.error += g_error;
        size += std::abs(g);
        if (j != position) {
          Bounded& d = dbias[2 * i + (j > position)];
          d.value += x.value;
          d.error += x.error + u * levels * std::abs(x.value);
        }
      }
    }
    // z[m] = by * sum_k w[m, k] y[k], the factor w rounded for the tensor cores, z to its type
    const auto combine = [&](std::vector<Bounded>& z, int64_t rows, int64_t inner, double by,
                             const HeadsBuffer& y, const auto& w) {
      for (int64_t m = 0; m < rows; ++m)
        for (int64_t d = 0; d < D; ++d) {
          Bounded& r = z[m * D + d];
          for (int64_t k = 0; k < inner; ++k) {
            const Bounded& x = w(m, k);
            if (x.value == 0 && x.error == 0) continue;
            const double e = by * get(y, k, d);
            r.value += x.value * e;
            r.error += std::abs(e) *
                       (x.error * (1 + factor) + std::abs(x.value) * (factor + u * (inner + 3)) + step);
          }
          r.error += stored * (std::abs(r.value) + r.error) + step;
        }
    };
    const auto at = [&](const std::vector<Bounded>& x) {
      return [&](int64_t i, int64_t j) -> const Bounded& { return x[i * S + j]; };
    };
    const auto transposed = [&](const std::vector<Bounded>& x) {
      return [&](int64_t j, int64_t i) -> const Bounded& { return x[i * S + j]; };
    };
    combine(out, L, S, 1, p.v, at(weight));
    combine(dq, L, S, c.scale, p.k, at(ds));
    combine(dk, S, L, c.scale, p.q, transposed(ds));
    combine(dv, S, L, 1, p.dout, transposed(weight));
  }
};

// Compares what the kernels of one direction have written.
inline void compare_fwd(const GeometricProblem& p, Comparison& compare) {
  const GeometricCase& c = p.c;
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t h = 0; h < c.heads; ++h) {
      const GeometricOracle oracle(p, b, h);
      for (int64_t i = 0; i < c.queries; ++i) {
        for (int64_t d = 0; d < c.width; ++d) {
          const Bounded& e = oracle.out[i * c.width + d];
          compare.element("out", i, d, p.out.get(b, h, i, d), e.value, e.error);
        }
        if (c.rem)
          compare.element("rem", i, 0, p.rem.get((b * c.heads + h) * c.queries + i), oracle.rem[i].value,
                          oracle.rem[i].error);
      }
    }
}
inline void compare_bwd(const GeometricProblem& p, Comparison& compare) {
  const GeometricCase& c = p.c;
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t h = 0; h < c.heads; ++h) {
      const GeometricOracle oracle(p, b, h);
      const int64_t row = (b * c.heads + h) * c.queries;
      const auto rows = [&](const char* name, const HeadsBuffer& got, const std::vector<Bounded>& expected,
                            int64_t n) {
        for (int64_t i = 0; i < n; ++i)
          for (int64_t d = 0; d < c.width; ++d) {
            const Bounded& e = expected[i * c.width + d];
            compare.element(name, i, d, got.get(b, h, i, d), e.value, e.error);
          }
      };
      rows("dq", p.dq, oracle.dq, c.queries);
      rows("dk", p.dk, oracle.dk, c.keys);
      rows("dv", p.dv, oracle.dv, c.keys);
      for (int64_t i = 0; i < c.queries; ++i) {
        for (int side = 0; side < 2 && c.dbias; ++side)
          compare.element("dbias", i, side, p.dbias.get(2 * (row + i) + side),
                          oracle.dbias[2 * i + side].value, oracle.dbias[2 * i + side].error);
        for (int64_t j = 0; j < c.keys && c.dmask; ++j)
          compare.element("dmask", i, j, p.dmask.get((row + i) * c.keys + j), oracle.ds[i * c.keys + j].value,
                          oracle.ds[i * c.keys + j].error);
      }
    }
}

}  // namespace sysgen::test
