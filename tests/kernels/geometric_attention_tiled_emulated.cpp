// The tiled kernels of geometric attention, every product of them and smaller tiles, against the definition
// in float64.
#include "geometric_attention/geometric_attention_tiled_cuda.cu"
#include "kernel_test.h"

namespace sysgen {
namespace {

using namespace test;

enum class Mask { none, hidden, added };
enum class Values { normal, large, low, match_all, match_none, alternating };

struct Case {
  int64_t batch = 1, heads = 2, queries = 40, keys = 40, width = 8;
  DType dtype = DType::f32;
  Values values = Values::normal;
  bool bias = false, key_mask = false, normalize = false, include_self = false, causal = false, rem = false,
       early_stop = true, heads_inside = false;
  Mask mask = Mask::none;
  int64_t q_offset = 0;
  int gap = 0, offset = 0;
};

std::string describe(const Case& c, const char* product) {
  return cat("geometric ", product, " B", c.batch, " H", c.heads, " L", c.queries, " S", c.keys, " D",
             c.width, " ", name_of(c.dtype), " values ", int(c.values), c.bias ? " bias" : "",
             c.key_mask ? " key_mask" : "", c.normalize ? " normalize" : "", c.include_self ? " self" : "",
             c.causal ? " causal" : "", c.rem ? " rem" : "", c.early_stop ? "" : " no-stop",
             c.heads_inside ? " BNHD" : " BHND", " mask ", int(c.mask), " q_offset ", c.q_offset, " gap ",
             c.gap, " offset ", c.offset);
}

// [B, H, N, D], in memory as [B, H, N, D] or [B, N, H, D]; `gap` elements (NaN) follow every row.
struct HeadsBuffer {
  int64_t stride_b, stride_h, stride_n;
  Buffer values;
  HeadsBuffer(const Case& c, int64_t rows)
      : stride_b(c.heads * rows * (c.width + c.gap) + c.gap),
        stride_h(c.heads_inside ? c.width + c.gap : rows * (c.width + c.gap)),
        stride_n(c.heads_inside ? c.heads * (c.width + c.gap) : c.width + c.gap),
        values(c.dtype, std::max<int64_t>(c.batch * stride_b, 1), c.offset) {}
  int64_t at(int64_t b, int64_t h, int64_t n, int64_t d) const {
    return b * stride_b + h * stride_h + n * stride_n + d;
  }
  double get(int64_t b, int64_t h, int64_t n, int64_t d) const { return values.get(at(b, h, n, d)); }
  Heads view() const { return {values.data(), stride_b, stride_h, stride_n}; }
  // What is no element of an output stays as it was.
  void check_gaps(Comparison& compare, const Case& c, int64_t rows) const {
    Buffer expected(values.dtype(), values.count());
    for (int64_t b = 0; b < c.batch; ++b)
      for (int64_t h = 0; h < c.heads; ++h)
        for (int64_t n = 0; n < rows; ++n)
          std::memcpy(static_cast<char*>(expected.data()) + at(b, h, n, 0) * size_of(c.dtype),
                      static_cast<const char*>(values.data()) + at(b, h, n, 0) * size_of(c.dtype),
                      c.width * size_of(c.dtype));
    if (std::memcmp(expected.data(), values.data(), values.count() * size_of(c.dtype)))
      compare.element("gap", 0, 0, 1, 0, 0);
  }
};

struct Problem {
  Case c;
  HeadsBuffer q, k, v, dout;
  Buffer bias, mask;
  std::vector<uint8_t> key_mask, hidden;
  Buffer drem;

  Problem(const Case& c_, Random& random)
      : c(c_),
        q(c, c.queries),
        k(c, c.keys),
        v(c, c.keys),
        dout(c, c.queries),
        bias(accumulator_of(c.dtype), c.batch * c.heads * c.queries * 2),
        mask(accumulator_of(c.dtype), c.heads * c.queries * c.keys),
        key_mask(c.batch * c.keys),
        hidden(c.heads * c.queries * c.keys),
        drem(accumulator_of(c.dtype), c.batch * c.heads * c.queries) {
    const double large = c.values == Values::large ? 6 : 1;
    for (int64_t b = 0; b < c.batch; ++b)
      for (int64_t h = 0; h < c.heads; ++h)
        for (int64_t d = 0; d < c.width; ++d) {
          for (int64_t n = 0; n < c.queries; ++n) {
            q.values.set(q.at(b, h, n, d),
                         c.values >= Values::match_all ? (d == 0) * 100. : large * value(random));
            dout.values.set(dout.at(b, h, n, d), value(random));
          }
          for (int64_t n = 0; n < c.keys; ++n) {
            const double one = c.values == Values::match_all                   ? 1
                               : c.values == Values::alternating && n % 3 == 0 ? 1
                                                                               : -1;
            k.values.set(k.at(b, h, n, d), c.values >= Values::match_all ? one * 100. : value(random));
            v.values.set(v.at(b, h, n, d), value(random));
          }
        }
    for (int64_t i = 0; i < bias.count(); ++i) bias.set(i, value(random) - 3 * (c.values == Values::low));
    for (int64_t i = 0; i < drem.count(); ++i) drem.set(i, value(random));
    for (int64_t i = 0; i < mask.count(); ++i) {
      hidden[i] = random() % 4 == 0 ? 1 + random() % 3 : 0;
      mask.set(i, random() % 4 ? value(random) : -INFINITY);
    }
    // The first example has no key at all, the next ones some; what is masked is NaN or infinite.
    for (int64_t b = 0; b < c.batch && c.key_mask; ++b)
      for (int64_t n = 0; n < c.keys; ++n) {
        key_mask[b * c.keys + n] = b % 3 == 2 || random() % 3 == 0 ? 1 + random() % 2 : 0;
        if (!key_mask[b * c.keys + n]) continue;
        for (int64_t h = 0; h < c.heads; ++h)
          for (int64_t d = 0; d < c.width; ++d) {
            k.values.set(k.at(b, h, n, d), n % 2 ? NAN : INFINITY);
            v.values.set(v.at(b, h, n, d), n % 2 ? -INFINITY : NAN);
          }
      }
  }

  GeometricAttentionScores scores() const {
    GeometricAttentionScores s{};
    s.dtype = c.dtype;
    s.batch = c.batch, s.heads = c.heads, s.queries = c.queries, s.keys = c.keys, s.width = c.width;
    s.q = q.view(), s.k = k.view(), s.v = v.view();
    if (c.bias) s.bias = bias.data();
    s.bias_stride_b = c.heads * c.queries * 2, s.bias_stride_h = c.queries * 2, s.bias_stride_l = 2;
    if (c.key_mask) s.key_mask = key_mask.data();
    s.key_mask_stride_b = c.keys;
    if (c.mask != Mask::none) {  // shared by the batch
      s.mask.additive = c.mask == Mask::added;
      s.mask.data = s.mask.additive ? mask.data() : hidden.data();
      s.mask.stride_h = c.queries * c.keys, s.mask.stride_l = c.keys, s.mask.stride_s = 1;
    }
    s.scale = scale();
    s.normalize = c.normalize, s.eps = 1e-12;
    s.include_self = c.include_self, s.causal = c.causal, s.q_offset = c.q_offset,
    s.early_stop = c.early_stop;
    return s;
  }
  double scale() const { return 0.7 / std::sqrt(std::max<double>(c.width, 1)); }
};

// One row by the definition, with bounds on what a computation in the accumulator type may be off.
struct Entry {
  int64_t j;
  bool left, right;
  double s, s_error, match, miss, chance, other;  // P and 1 - P
  double a, a_error;                              // error relative to a
};

struct Row {
  std::vector<Entry> entries;  // that take part, nearest first
  double rem = 1, rem_error = 0, z = 0, z_error = 0;
};

Row oracle_row(const Problem& p, int64_t b, int64_t h, int64_t i) {
  const Case& c = p.c;
  const double eps = unit_roundoff(accumulator_of(c.dtype));
  Row row;
  std::vector<std::pair<int64_t, int64_t>> order;  // (2 distance + left, key)
  const int64_t position = i + c.q_offset;
  for (int64_t j = 0; j < c.keys; ++j) order.push_back({2 * std::abs(j - position) + (j < position), j});
  std::sort(order.begin(), order.end());
  double before = 0, before_error = 0;
  for (const auto& [rank, j] : order) {
    const int64_t at = (h * c.queries + i) * c.keys + j;
    if (j == position && !c.include_self) continue;
    if (c.causal && j > position) continue;
    if (c.key_mask && p.key_mask[b * c.keys + j]) continue;
    if (c.mask == Mask::hidden && p.hidden[at]) continue;
    if (c.mask == Mask::added && p.mask.get(at) == -INFINITY) continue;
    Entry e{};
    e.j = j, e.left = j<position, e.right = j> position;
    double size = 0;
    for (int64_t d = 0; d < c.width; ++d) {
      const double product = p.q.get(b, h, i, d) * p.k.get(b, h, j, d);
      e.s += product;
      size += std::abs(product);
    }
    e.s *= p.scale(), size *= p.scale();
    if (c.bias && j != position) {
      const double bias = p.bias.get(((b * c.heads + h) * c.queries + i) * 2 + e.right);
      e.s += bias, size += std::abs(bias);
    }
    if (c.mask == Mask::added) e.s += p.mask.get(at), size += std::abs(p.mask.get(at));
    e.s_error = (c.width + 4) * eps * size;
    const double rest = std::log1p(std::exp(-std::abs(e.s)));
    e.match = std::min(e.s, 0.) - rest, e.miss = -std::max(e.s, 0.) - rest;
    e.chance = std::exp(e.match), e.other = std::exp(e.miss);
    // d log P / ds = 1 - P, d log(1 - P) / ds = -P; 8 roundings in either logarithm; one for every sum
    const double rank_eps = (row.entries.size() + 8) * eps;
    e.a = std::exp(e.match + before);
    e.a_error = std::expm1(std::min(e.other * e.s_error + before_error + 8 * eps * std::abs(e.match) +
                                        rank_eps * std::abs(e.match + before) + 8 * eps,
                                    1.));
    before += e.miss;
    before_error += e.chance * e.s_error + 8 * eps * std::abs(e.miss) + rank_eps * std::abs(e.miss);
    row.entries.push_back(e);
  }
  row.rem = std::exp(before);
  row.rem_error =
      row.rem * std::min(before_error + (row.entries.size() + 8) * eps * (1 + std::abs(before)), 1.);
  row.z = -std::expm1(before);
  row.z_error = row.rem_error + 4 * eps * row.z;
  if (c.normalize) {
    const double by = std::max(row.z, 1e-12);
    for (Entry& e : row.entries) e.a /= by, e.a_error += row.z_error / by + 2 * eps;
  }
  return row;
}

// What is smaller than this in the accumulator type, or in the type of a factor of a product, may be 0.
double tiny(DType t) { return t == DType::f64 ? 0x1p-1000 : 0x1p-120; }
double underflow(DType t) { return t == DType::f16 ? 0x1p-24 : tiny(t); }

template <class Launch>
void run_fwd(const Problem& p, const char* product, Launch launch) {
  const Case& c = p.c;
  const double eps = unit_roundoff(accumulator_of(c.dtype)), out_eps = unit_roundoff(c.dtype);
  const HeadsBuffer out(c, c.queries);
  const Buffer rem(accumulator_of(c.dtype), c.batch * c.heads * c.queries);
  GeometricAttentionFwdArgs a{};
  a.s = p.scores();
  a.out = out.view();
  a.rem = c.rem ? rem.data() : nullptr;
  launch(a);

  Comparison compare(describe(c, product));
  out.check_gaps(compare, c, c.queries);
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t h = 0; h < c.heads; ++h)
      for (int64_t i = 0; i < c.queries; ++i) {
        const Row row = oracle_row(p, b, h, i);
        const int64_t at = (b * c.heads + h) * c.queries + i;
        if (c.rem) compare.element("rem", at, 0, rem.get(at), row.rem, row.rem_error + tiny(c.dtype));
        for (int64_t d = 0; d < c.width; ++d) {
          double sum = 0, bound = tiny(c.dtype);
          const double terms = row.entries.size() + 4;
          for (const Entry& e : row.entries) {
            const double v = p.v.get(b, h, e.j, d);
            sum += e.a * v;
            bound += e.a * std::abs(v) * (e.a_error + terms * eps + (is_half(c.dtype) ? out_eps : 0)) +
                     underflow(c.dtype) * std::abs(v);
          }
          bound += out_eps * (std::abs(sum) + bound) + (is_half(c.dtype) ? 0x1p-25 : 0);
          compare.element("out", at, d, out.get(b, h, i, d), sum, bound);
        }
      }
}

// An expected value and what a result may be off.
struct Sum {
  double value = 0, bound = 0;
  void add(double x, double error) { value += x, bound += error; }
};

// launch(args, scratch bytes wanted or null)
template <class Bytes, class Launch>
void run_bwd(const Problem& p, const char* product, Bytes scratch_bytes, Launch launch) {
  const Case& c = p.c;
  const DType acc = accumulator_of(c.dtype);
  const double eps = unit_roundoff(acc), out_eps = unit_roundoff(c.dtype);
  const double factor_eps = is_half(c.dtype) ? out_eps : 0, smallest = underflow(c.dtype);
  const HeadsBuffer dq(c, c.queries), dk(c, c.keys), dv(c, c.keys);
  const int64_t rows = c.batch * c.heads * c.queries;
  const Buffer dbias(acc, rows * 2), dmask(acc, rows * c.keys);
  GeometricAttentionBwdArgs a{};
  a.s = p.scores();
  a.dout = p.dout.view();
  a.drem = c.rem ? p.drem.data() : nullptr;
  a.dq = dq.view(), a.dk = dk.view(), a.dv = dv.view();
  if (c.bias) a.dbias = dbias.data();
  if (c.mask != Mask::none) a.dmask = dmask.data();
  const Buffer scratch(DType::f64, (scratch_bytes(a) + 7) / 8);
  a.scratch = scratch.data();
  launch(a);

  Comparison compare(describe(c, product));
  dq.check_gaps(compare, c, c.queries);
  dk.check_gaps(compare, c, c.keys);
  dv.check_gaps(compare, c, c.keys);
  // a sum of n products with the factors' errors in `bound`, rounded at the end
  const auto check = [&](const char* tensor, int64_t i, int64_t d, double got, const Sum& s) {
    compare.element(tensor, i, d, got, s.value,
                    s.bound + out_eps * (std::abs(s.value) + s.bound) + (is_half(c.dtype) ? 0x1p-25 : 0));
  };
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t h = 0; h < c.heads; ++h) {
      std::vector<Sum> dk_sums(c.keys * c.width), dv_sums(c.keys * c.width);
      for (int64_t i = 0; i < c.queries; ++i) {
        const Row row = oracle_row(p, b, h, i);
        const int64_t at = (b * c.heads + h) * c.queries + i;
        const double terms = row.entries.size() + 8;
        std::vector<Sum> slope(row.entries.size());  // G, then ds
        Sum dot;
        for (size_t n = 0; n < row.entries.size(); ++n) {
          const Entry& e = row.entries[n];
          for (int64_t d = 0; d < c.width; ++d) {
            const double product = p.dout.get(b, h, i, d) * p.v.get(b, h, e.j, d);
            slope[n].add(product, (c.width + 2) * eps * std::abs(product));
          }
          dot.add(e.a * slope[n].value,
                  e.a * (std::abs(slope[n].value) * (e.a_error + terms * eps) + slope[n].bound));
        }
        if (!c.normalize || row.z <= 1e-12) dot = {};
        Sum u;
        if (c.rem) {
          const double drem = p.drem.get(at);
          u.add(row.rem * drem, std::abs(drem) * (row.rem_error + 2 * eps * row.rem + tiny(c.dtype)));
        }
        for (size_t n = row.entries.size(); n-- > 0;) {
          const Entry& e = row.entries[n];
          Sum g;
          g.add(e.a * (slope[n].value - dot.value), 0);
          g.bound =
              std::abs(g.value) * (e.a_error + 3 * eps) + tiny(c.dtype) * (1 + std::abs(slope[n].value)) +
              e.a * (slope[n].bound + dot.bound + eps * (std::abs(slope[n].value) + std::abs(dot.value)));
          const double bend = e.chance * e.other * std::min(e.s_error, 1.);  // of P and 1 - P
          slope[n].value = e.other * g.value - e.chance * u.value;
          slope[n].bound = e.other * g.bound + std::abs(g.value) * (bend + 10 * eps * e.other) +
                           e.chance * u.bound +
                           std::abs(u.value) * (bend + 10 * eps * e.chance + tiny(c.dtype));
          u.add(g.value, g.bound + terms * eps * std::abs(g.value));
        }
        Sum left, right;
        std::vector<Sum> dq_sums(c.width);
        std::vector<Sum> by_key(c.keys);
        for (size_t n = 0; n < row.entries.size(); ++n) {
          const Entry& e = row.entries[n];
          const double ds = slope[n].value, error = slope[n].bound + terms * eps * std::abs(ds);
          by_key[e.j] = slope[n];
          if (e.left) left.add(ds, error);
          if (e.right) right.add(ds, error);
          for (int64_t d = 0; d < c.width; ++d) {
            const double k = p.k.get(b, h, e.j, d), q = p.q.get(b, h, i, d), dout = p.dout.get(b, h, i, d);
            const double ds_error = error + factor_eps * (std::abs(ds) + error) + smallest +
                                    (c.queries + 20) * eps * std::abs(ds);
            dq_sums[d].add(p.scale() * ds * k, p.scale() * ds_error * std::abs(k));
            dk_sums[e.j * c.width + d].add(p.scale() * ds * q, p.scale() * ds_error * std::abs(q));
            dv_sums[e.j * c.width + d].add(
                e.a * dout,
                std::abs(dout) *
                    (e.a * (e.a_error + factor_eps * (1 + e.a_error) + (c.queries + 4) * eps) + smallest));
          }
        }
        for (int64_t d = 0; d < c.width; ++d) check("dq", at, d, dq.get(b, h, i, d), dq_sums[d]);
        if (c.bias) {
          compare.element("dbias", at, 0, dbias.get(at * 2), left.value, left.bound);
          compare.element("dbias", at, 1, dbias.get(at * 2 + 1), right.value, right.bound);
        }
        for (int64_t j = 0; j < c.keys && c.mask != Mask::none; ++j)
          compare.element("dmask", at, j, dmask.get(at * c.keys + j), by_key[j].value, by_key[j].bound);
      }
      for (int64_t j = 0; j < c.keys; ++j)
        for (int64_t d = 0; d < c.width; ++d) {
          const int64_t at = (b * c.heads + h) * c.keys + j;
          check("dk", at, d, dk.get(b, h, j, d), dk_sums[j * c.width + d]);
          check("dv", at, d, dv.get(b, h, j, d), dv_sums[j * c.width + d]);
        }
    }
}

template <class P>
void run_product(const Problem& p, const char* product) {
  run_fwd(p, cat(product, " fwd").c_str(),
          [](const GeometricAttentionFwdArgs& a) { launch_fwd<P>(a, nullptr); });
  if constexpr (P::W % 16 == 0)
    run_bwd(p, cat(product, " bwd").c_str(), bwd_scratch_bytes<P>,
            [](const GeometricAttentionBwdArgs& a) { launch_bwd<P>(a, nullptr); });
}

// Tiles of many shapes, of one type for either kind of product; the launcher's own are for the others.
template <class T>
void run_small_tiles(const Problem& p) {
  if constexpr (std::is_same_v<T, bf16>) {
    run_product<GeometricHalfProduct<T, 32, 16, 16, 16, 1>>(p, "half 16x16");
    run_product<GeometricHalfProduct<T, 32, 32, 48, 32, 1>>(p, "half 48x32");
  } else if constexpr (std::is_same_v<T, f16>) {
    run_product<GeometricHalfProduct<T, 32, 32, 32, 16, 1>>(p, "half 32x16");
  } else if constexpr (std::is_same_v<T, double>) {
    run_product<GeometricSimtProduct<T, 32, 16, 8, true, 1>>(p, "simt 16x8");
    run_product<GeometricSimtProduct<T, 16, 32, 16, false, 1>>(p, "simt global 32x16");
  } else {
    run_product<GeometricSimtProduct<T, 32, 16, 16, true, 1>>(p, "simt 16x16");
  }
}

void run_case(const Case& c, Random& random, bool small) {
  const Problem p(c, random);
  try {
    if (small && c.width <= 32) {
      with_geometric_type(c.dtype, [&](auto t) { run_small_tiles<decltype(t)>(p); });
    } else {
      run_fwd(p, "dispatched fwd",
              [](const GeometricAttentionFwdArgs& a) { geometric_attention_tiled_fwd(a, nullptr); });
      run_bwd(p, "dispatched bwd", geometric_attention_tiled_bwd_scratch_bytes,
              [](const GeometricAttentionBwdArgs& a) { geometric_attention_tiled_bwd(a, nullptr); });
    }
  } catch (const std::exception& e) {
    std::printf("in %s:\n", describe(c, "").c_str());
    throw;
  }
}

constexpr DType kTypes[] = {DType::f64, DType::f32, DType::bf16, DType::f16};

Case random_case(Random& random, int i, bool small) {
  Case c{};
  c.dtype = kTypes[i % 4];
  c.batch = pick(random, {1, 1, 2, 3});
  c.heads = pick(random, {1, 2});
  c.queries = small ? pick(random, {1, 7, 16, 17, 31, 40, 47}) : pick(random, {1, 13, 63, 64, 65, 127, 129});
  c.keys = random() % 2 ? c.queries
           : small      ? pick(random, {1, 5, 16, 33, 53})
                        : pick(random, {1, 31, 63, 64, 65, 129});
  c.width = small ? pick(random, {1, 8, 16, 23, 32}) : pick(random, {1, 8, 64, 72, 128, 137, 256});
  c.values = static_cast<Values>(random() % 10 < 4 ? random() % 6 : 0);
  c.bias = random() % 2;
  c.key_mask = random() % 3 == 0;
  c.normalize = random() % 3 == 0;
  c.include_self = random() % 3 == 0;
  c.causal = random() % 4 == 0;
  c.rem = random() % 2;
  c.early_stop = random() % 4 != 0;
  c.heads_inside = random() % 2;
  c.mask = static_cast<Mask>(random() % 2 ? 0 : random() % 3);
  if (random() % 3 == 0) c.q_offset = pick(random, {-3, 1, 5, 20, 64, 200, -100, 1000003});
  c.gap = pick(random, {0, 0, 1, 2, 8});
  c.offset = pick(random, {0, 0, 0, 1, 2});
  return c;
}

// What a launch of both passes writes, and what it copied to shared memory.
struct Written {
  std::vector<std::string> tensors;
  unsigned long long copied = 0;
};

template <class P>
Written written(const Problem& p) {
  const Case& c = p.c;
  const DType acc = accumulator_of(c.dtype);
  const int64_t rows = c.batch * c.heads * c.queries;
  const HeadsBuffer out(c, c.queries), dq(c, c.queries), dk(c, c.keys), dv(c, c.keys);
  const Buffer rem(acc, rows), dbias(acc, rows * 2), dmask(acc, rows * c.keys);
  emulator::counters = {};
  GeometricAttentionFwdArgs f{};
  f.s = p.scores();
  f.out = out.view(), f.rem = rem.data();
  launch_fwd<P>(f, nullptr);
  GeometricAttentionBwdArgs a{};
  a.s = p.scores();
  a.dout = p.dout.view(), a.drem = p.drem.data();
  a.dq = dq.view(), a.dk = dk.view(), a.dv = dv.view(), a.dbias = dbias.data(), a.dmask = dmask.data();
  const Buffer scratch(DType::f64, (bwd_scratch_bytes<P>(a) + 7) / 8);
  a.scratch = scratch.data();
  launch_bwd<P>(a, nullptr);
  Written result{{}, emulator::counters.cp_async_bytes};
  for (const Buffer* b : {&out.values, &rem, &dq.values, &dk.values, &dv.values, &dbias, &dmask})
    result.tensors.emplace_back(static_cast<const char*>(b->data()), b->count() * size_of(b->dtype()));
  return result;
}

// Stopping early changes no bit, and saves work.
template <class P>
void run_early_stop(Case c, Random& random) {
  c.queries = c.keys = 300;
  c.width = 16;
  c.heads = 1;
  c.values = Values::large;
  Problem p(c, random);
  const Written with = written<P>(p);
  p.c.early_stop = false;
  const Written without = written<P>(p);
  Comparison compare(describe(c, "early stop"));
  if (with.tensors != without.tensors) compare.element("bits", 0, 0, 1, 0, 0);
  if (with.copied > 0.8 * without.copied)
    compare.element("copied", 0, 0, with.copied, 0.8 * without.copied, 0);
}

// Rows further apart than 2^31 elements give the same bits as rows next to each other.
void run_far_apart(Random& random) {
  constexpr int64_t kFar = (int64_t{1} << 31) + 64, kRows = 3, kWidth = 5;
  Case c{};
  c.heads = 1, c.queries = c.keys = kRows, c.width = kWidth;
  const Problem p(c, random);
  std::vector<std::unique_ptr<FarBuffer>> far;
  const auto view = [&](const HeadsBuffer* from) {
    far.push_back(std::make_unique<FarBuffer>((kRows * kFar + kWidth) * 4));
    for (int64_t n = 0; n < kRows && from; ++n)
      for (int64_t d = 0; d < kWidth; ++d) far.back()->data()[n * kFar + d] = float(from->get(0, 0, n, d));
    return Heads{far.back()->data(), 0, 0, kFar};
  };
  const HeadsBuffer out(c, kRows), dq(c, kRows), dk(c, kRows), dv(c, kRows);
  GeometricAttentionFwdArgs f{};
  GeometricAttentionBwdArgs a{};
  f.s = a.s = p.scores();
  f.out = out.view(), a.dout = p.dout.view(), a.dq = dq.view(), a.dk = dk.view(), a.dv = dv.view();
  const Buffer scratch(DType::f64, (geometric_attention_tiled_bwd_scratch_bytes(a) + 7) / 8);
  a.scratch = scratch.data();
  geometric_attention_tiled_fwd(f, nullptr);
  geometric_attention_tiled_bwd(a, nullptr);
  f.s.q = a.s.q = view(&p.q), f.s.k = a.s.k = view(&p.k), f.s.v = a.s.v = view(&p.v), a.dout = view(&p.dout);
  f.out = view(nullptr), a.dq = view(nullptr), a.dk = view(nullptr), a.dv = view(nullptr);
  geometric_attention_tiled_fwd(f, nullptr);
  geometric_attention_tiled_bwd(a, nullptr);
  Comparison compare("geometric far apart");
  for (const auto& [near, heads] :
       {std::pair(&out, f.out), std::pair(&dq, a.dq), std::pair(&dk, a.dk), std::pair(&dv, a.dv)})
    for (int64_t n = 0; n < kRows; ++n)
      for (int64_t d = 0; d < kWidth; ++d)
        compare.element("far", n, d, static_cast<const float*>(heads.data)[n * kFar + d],
                        near->get(0, 0, n, d), 0);
}

}  // namespace
}  // namespace sysgen

int main(int argc, char** argv) {
  using namespace sysgen;
  const int count = argc > 1 ? std::atoi(argv[1]) : 120;
  Random random(argc > 2 ? std::atoi(argv[2]) : 1);
  try {
    for (const auto& type : kTypes)  // nothing to do, or nothing to sum
      for (const auto& [batch, queries, keys, width] :
           {std::tuple(0, 3, 3, 8), std::tuple(1, 0, 3, 8), std::tuple(1, 3, 0, 8), std::tuple(1, 3, 3, 0),
            std::tuple(1, 1, 1, 1)}) {
        Case c{};
        c.batch = batch, c.queries = queries, c.keys = keys, c.width = width, c.dtype = type;
        c.rem = true;
        run_case(c, random, false);
      }
    for (int i = 0; i < count; ++i) run_case(random_case(random, i, true), random, true);
    for (int i = 0; i < (count + 9) / 10; ++i) run_case(random_case(random, i, false), random, false);
    if (count >= 20) {
      for (bool normalize : {false, true}) {
        Case c{};
        c.normalize = normalize;
        c.dtype = DType::f32;
        run_early_stop<GeometricSimtProduct<float, 32, 16, 16, true, 1>>(c, random);
        c.dtype = DType::bf16;
        run_early_stop<GeometricHalfProduct<bf16, 32, 16, 16, 16, 1>>(c, random);
      }
      run_far_apart(random);
    }
    if (emulator::counters.ldmatrix_conflicts) {
      std::printf("FAILED: %llu bank conflicts of ldmatrix\n",
                  static_cast<unsigned long long>(emulator::counters.ldmatrix_conflicts));
      return 1;
    }
  } catch (const std::exception& e) {
    std::printf("FAILED: %s\n", e.what());
    return 1;
  }
  return test::finish("geometric_attention_tiled");
}
