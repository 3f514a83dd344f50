// Selection of experts against its definition in float64: a stable sort, softmaxes, and random bits by the
// formula.
//
// u is the unit roundoff. A difference of logits, which are exact, is off by u of its size, whatever is added
// to all of them; a log-sum of size m by about m u. e^x turns both into a relative error. A sum of n positive
// terms is off by at most about n u. Bounds below are small multiples of the sum of these.
#include "kernel_test.h"
#include "router/select_experts_cuda.cu"

namespace sysgen {
namespace {

using namespace test;

constexpr double kInfinite = INFINITY;
double worst = 0;

enum class Logits { random, ties, constant, far, special, never, shifted };

struct Case {
  DType dtype;
  int64_t tokens, experts, k;
  Selection selection;
  double dropout;
  bool log_sum, dgate, dlog_sum;
  Logits logits;
  std::string name() const {
    return cat("select_experts ", name_of(dtype), " T=", tokens, " E=", experts, " k=", k,
               " selection=", static_cast<int>(selection), " dropout=", dropout, " log_sum=", log_sum,
               " gradients=", dgate, dlog_sum, " logits=", static_cast<int>(logits));
  }
};

// splitmix64 of a counter, as Steele et al. (2014) print it: its state after n steps is the seed plus n times
// gamma.
uint64_t splitmix(uint64_t state) {
  state = (state ^ state >> 30) * 0xbf58476d1ce4e5b9u;
  state = (state ^ state >> 27) * 0x94d049bb133111ebu;
  return state ^ state >> 31;
}
bool drops(const Case& c, int64_t seed, int64_t t, int64_t e) {
  const uint64_t word = (c.experts + 3) / 4 * t + e / 4;
  const uint64_t bits = splitmix(splitmix(static_cast<uint64_t>(seed) + 4) + word * 0x9e3779b97f4a7c15u);
  return (bits >> (16 * (e % 4)) & 0xffff) < c.dropout * 65536;
}

double log_sum_exp(const std::vector<double>& x) {
  double top = -kInfinite, sum = 0;
  for (double v : x) top = v > top ? v : top;
  for (double v : x) sum += v == -kInfinite ? 0 : std::exp(v - top);
  return sum == 0 ? -kInfinite : top + std::log(sum);
}

double logit(const Case& c, Random& random, int64_t e) {
  switch (c.logits) {
    case Logits::constant:
      return 0;
    case Logits::ties:
      return random() % 3 ? static_cast<double>(random() % 3) - 1 : -0.0;
    case Logits::far:  // probabilities below the smallest float
      return e % 3 ? value(random) : -200 + value(random);
    case Logits::never:  // no token may choose some experts
      return e % 5 == 1 ? -kInfinite : value(random);
    case Logits::special:
      return random() % 8           ? value(random)
             : pick(random, {0, 1}) ? NAN
             : pick(random, {0, 1}) ? kInfinite
                                    : -kInfinite;
    case Logits::shifted:
      return 1e4 + 3 * value(random);
    default:
      return 3 * value(random);
  }
}

void run(const Case& c, Random& random) {
  const int64_t T = c.tokens, E = c.experts, k = c.k;
  const double u = unit_roundoff(c.dtype);
  const bool want_lse = c.log_sum || c.selection == Selection::softmax;
  const bool aligned = random() % 2;
  const auto make = [&](int64_t n) { return Buffer(c.dtype, n, aligned ? 0 : 1); };
  Buffer logits = make(T * E);
  for (int64_t i = 0; i < T * E; ++i) logits.set(i, logit(c, random, i % E));
  const std::vector<int64_t> seed{static_cast<int64_t>(uint64_t{random()} << 40 | random())};
  std::vector<int64_t> experts(T * k, -77);
  const Buffer gate = make(T * k), lse = make(want_lse ? 2 * T : 0), log_sum = make(c.log_sum ? E : 0);
  const SelectionSizes sizes{c.dtype, T, E, k};

  SelectExpertsFwdArgs fwd{sizes, c.selection, c.dropout};
  fwd.seed = c.dropout > 0 ? seed.data() : nullptr;
  fwd.logits = logits.data();
  fwd.experts = experts.data();
  fwd.gate = gate.data();
  fwd.lse = want_lse ? lse.data() : nullptr;
  fwd.log_sum = c.log_sum ? log_sum.data() : nullptr;
  const Buffer scratch(c.dtype, select_experts_fwd_cuda_scratch_bytes(fwd) / size_of(c.dtype));
  fwd.scratch = scratch.data();
  select_experts_fwd_cuda(fwd, 0, nullptr);

  Comparison check(c.name());
  std::vector<std::vector<double>> log_p(E, std::vector<double>(T));
  std::vector<double> exact_gate(T * k), slack(T);
  double most_slack = 0;
  for (int64_t t = 0; t < T; ++t) {
    std::vector<double> z(E);
    std::vector<int64_t> order(E);
    double least = kInfinite, largest = -kInfinite;  // finite ones
    for (int64_t e = 0; e < E; ++e) {
      z[e] = logits.get(t * E + e);
      order[e] = e;
      if (std::isfinite(z[e])) least = std::min(least, z[e]), largest = std::max(largest, z[e]);
    }
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      const auto rank = [&](int64_t e) { return drops(c, seed[0], t, e) ? 0 : std::isnan(z[e]) ? 2 : 1; };
      return rank(a) != rank(b) ? rank(a) > rank(b) : rank(a) == 1 && z[a] > z[b];
    });
    const double top = std::isfinite(largest) ? largest : 0;
    std::vector<double> below(E);
    for (int64_t e = 0; e < E; ++e) below[e] = z[e] - top;
    double rest = log_sum_exp(below);
    if (rest == -kInfinite) rest = NAN;  // no softmax exists
    for (int64_t e = 0; e < E; ++e) log_p[e][t] = below[e] - rest;
    // The difference from the largest logit, the mean of these in the sum, and what the logarithm leaves.
    slack[t] = u * (3 * (std::max(0.0, largest - least) + std::log(E)) + E / 16 + k + 16);
    most_slack = std::max(most_slack, slack[t]);
    if (want_lse) check.element("lse", t, 0, lse.get(2 * t) - top + lse.get(2 * t + 1), rest, slack[t]);
    std::vector<double> chosen;
    for (int64_t s = 0; s < k; ++s)
      if (!drops(c, seed[0], t, order[s])) chosen.push_back(below[order[s]]);
    const double of_chosen = log_sum_exp(chosen);
    for (int64_t s = 0; s < k; ++s) {
      const int64_t e = drops(c, seed[0], t, order[s]) ? -1 : order[s];
      check.element("experts", t, s, static_cast<double>(experts[t * k + s]), static_cast<double>(e), 0);
      double g = 0;
      if (e >= 0)
        g = c.selection == Selection::sigmoid   ? 1 / (1 + std::exp(-z[e]))
            : c.selection == Selection::softmax ? std::exp(log_p[e][t])
                                                : std::exp(below[e] - of_chosen);
      exact_gate[t * k + s] = g;
      check.element("gate", t, s, gate.get(t * k + s), g, slack[t] * g + 1e-37);
    }
  }
  std::vector<double> sums(E);
  for (int64_t e = 0; e < E; ++e) {
    sums[e] = log_sum_exp(log_p[e]);
    if (!c.log_sum) continue;
    const double size = std::isfinite(sums[e]) ? std::abs(sums[e]) : 0;
    if (sums[e] == log_sum.get(e)) continue;  // -infinity too
    check.element("log_sum", e, 0, log_sum.get(e), sums[e], most_slack + u * (4 * size + T + 16));
  }
  sysgen::worst = std::max(sysgen::worst, check.worst());
  if (!c.dgate && !c.dlog_sum) return;

  const auto gradient = [&](int64_t n) {
    Buffer b = make(n);
    for (int64_t i = 0; i < n; ++i) b.set(i, value(random));
    return b;
  };
  const Buffer dgate = gradient(c.dgate ? T * k : 0), dlog_sum = gradient(c.dlog_sum ? E : 0),
               dlogits = make(T * E);
  SelectExpertsBwdArgs bwd{sizes, c.selection};
  bwd.logits = logits.data();
  bwd.experts = experts.data();
  bwd.gate = gate.data();
  bwd.lse = want_lse ? lse.data() : nullptr;
  bwd.log_sum = c.dlog_sum ? log_sum.data() : nullptr;
  bwd.dgate = c.dgate ? dgate.data() : nullptr;
  bwd.dlog_sum = c.dlog_sum ? dlog_sum.data() : nullptr;
  bwd.dlogits = dlogits.data();
  select_experts_bwd_cuda(bwd, 0, nullptr);
  for (int64_t t = 0; t < T; ++t) {
    double total = 0, inner = 0, size = 0, inner_size = 0;
    std::vector<double> of_sum(E), expected(E), bound(E);
    for (int64_t e = 0; c.dlog_sum && e < E; ++e) {
      of_sum[e] = sums[e] == -kInfinite ? 0 : dlog_sum.get(e) * std::exp(log_p[e][t] - sums[e]);
      total += of_sum[e];
      size += std::abs(of_sum[e]);
    }
    for (int64_t i = t * k; c.dgate && i < (t + 1) * k; ++i)
      if (experts[i] >= 0) {
        inner += dgate.get(i) * exact_gate[i];
        inner_size += std::abs(dgate.get(i) * exact_gate[i]);
      }
    const bool all = c.selection == Selection::softmax && c.dgate;
    for (int64_t e = 0; e < E; ++e) {
      if (!c.dlog_sum && !all) continue;
      const double p = std::exp(log_p[e][t]);
      expected[e] = of_sum[e] - p * (total + (all ? inner : 0));
      bound[e] = std::abs(of_sum[e]) + p * (size + (all ? inner_size : 0));
    }
    for (int64_t i = t * k; c.dgate && i < (t + 1) * k; ++i) {
      if (experts[i] < 0) continue;
      const double g = exact_gate[i], d = dgate.get(i) * g;
      expected[experts[i]] += c.selection == Selection::sigmoid   ? d * (1 - g)
                              : c.selection == Selection::softmax ? d
                                                                  : d - g * inner;
      bound[experts[i]] += std::abs(d) + (c.selection == Selection::sigmoid ? 0 : g * inner_size);
    }
    for (int64_t e = 0; e < E; ++e)
      check.element(
          "dlogits", t, e, dlogits.get(t * E + e), expected[e],
          bound[e] * 4 * (most_slack + u * (4 * (std::isfinite(sums[e]) ? std::abs(sums[e]) : 0) + T)) +
              1e-37);
  }
  sysgen::worst = std::max(sysgen::worst, check.worst());
}

}  // namespace
}  // namespace sysgen

int main(int argc, char** argv) {
  using namespace sysgen;
  const int cases = argc > 1 ? std::atoi(argv[1]) : 60;
  Random random(argc > 2 ? std::atoi(argv[2]) : 1);
  const bool few = cases < 20;
  try {
    for (int i = 0; i < cases; ++i) {
      Case c{};
      c.dtype = i % 3 ? DType::f32 : DType::f64;
      // Each tile: up to 128 experts, up to 1024, and more.
      if (i % 4 == 0)
        c.experts = few ? pick(random, {33, 129}) : pick(random, {129, 155, 300, 1024});
      else if (i % 11 == 5)
        c.experts = pick(random, {1025, 1061});
      else
        c.experts = pick(random, {1, 2, 7, 31, 32, 33, 64, 127, 128});
      const int most = static_cast<int>(c.experts);
      c.k = std::min(most, pick(random, {1, 2, 3, 8, most < 200 ? most : 35}));
      c.tokens = c.experts > 128 || few ? pick(random, {1, 5, 11}) : pick(random, {0, 1, 6, 37, 67});
      c.selection = static_cast<Selection>(random() % 3);
      c.dropout = pick(random, {0, 0, 1, 2, 3}) * 0.3125;
      c.log_sum = random() % 4;
      c.dgate = random() % 4;
      c.dlog_sum = c.log_sum && random() % 4;
      c.logits = static_cast<Logits>(random() % 7);
      run(c, random);
    }
  } catch (const std::exception& e) {
    std::printf("FAILED: %s\n", e.what());
    return 1;
  }
  std::printf("largest error: %.2f of its bound\n", worst);
  return test::finish("select_experts");
}
