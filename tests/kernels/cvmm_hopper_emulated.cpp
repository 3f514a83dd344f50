// The Hopper path of cvmm_fwd: against a sum in float64, and its results beside those of the sm_80 path.
#include <stdlib.h>

#include "cvmm/cvmm_fwd_cuda.cu"
#include "cvmm/cvmm_hopper_cuda.cu"
#include "kernel_test.h"

namespace sysgen {
namespace {

using namespace test;

struct Case {
  int tokens, k, experts, d, h;
  DType dtype;
  Pattern pattern = Pattern::dropping;
  bool kn = true, routed = false, gate = false, bias = false, relu = false, reduce = false, dot = false,
       out = true, other_routed = true;
  int gap = 0;  // elements between rows of w and of x: a multiple of 8
};

std::string describe(const Case& c) {
  return cat("cvmm_hopper T", c.tokens, " k", c.k, " E", c.experts, " d", c.d, " h", c.h, " ",
             name_of(c.dtype), " pattern ", int(c.pattern), c.kn ? " kn" : " nk", c.routed ? " routed" : "",
             c.gate ? " gate" : "", c.bias ? " bias" : "", c.relu ? " relu" : "", c.reduce ? " reduce" : "",
             c.dot ? " dot" : "", c.out ? "" : " no-out", c.other_routed ? "" : " other-shared", " gap ",
             c.gap);
}

struct Problem {
  Case c;
  Routes routes;
  RowBuffer x, other;
  int64_t w_pitch, w_expert;
  Buffer w, gate, bias;

  Problem(const Case& c_, Random& random)
      : c(c_),
        routes(make_routes(random, c.tokens, c.k, c.experts, c.pattern)),
        x(random, c.dtype, routes, c.d, c.routed, c.gap, 0),
        other(random, c.dtype, routes, c.h, c.other_routed, 3, 1),
        w_pitch((c.kn ? c.h : c.d) + c.gap),
        w_expert((c.kn ? c.d : c.h) * w_pitch),
        w(c.dtype, c.experts * w_expert),
        gate(DType::f32, routes.count()),
        bias(DType::f32, int64_t(c.experts) * c.h) {
    for (int64_t e = 0; e < c.experts; ++e)
      for (int64_t i = 0; i < c.d; ++i)
        for (int64_t j = 0; j < c.h; ++j) w.set(weight(e, i, j), value(random));
    for (int64_t i = 0; i < gate.count(); ++i) gate.set(i, value(random));
    for (int64_t i = 0; i < bias.count(); ++i) bias.set(i, value(random));
  }
  int64_t weight(int64_t e, int64_t i, int64_t j) const {
    return e * w_expert + (c.kn ? i * w_pitch + j : j * w_pitch + i);
  }
  CvmmFwdArgs args() const {
    CvmmFwdArgs a{};
    a.route = routes.view();
    a.dtype = a.w_dtype = c.dtype;
    a.d = c.d;
    a.h = c.h;
    a.x = x.view();
    a.w = w.data();
    a.w_stride_e = w_expert;
    a.w_stride_d = c.kn ? w_pitch : 1;
    a.w_stride_h = c.kn ? 1 : w_pitch;
    a.gate = c.gate ? gate.data() : nullptr;
    a.bias = c.bias ? bias.data() : nullptr;
    a.activation = c.relu ? Activation::relu : Activation::none;
    a.reduce = c.reduce;
    return a;
  }
};

// By the tiles of P, or by those that the shapes choose; for `chunk` tokens at a time.
template <class P>
struct Tiles {
  int64_t chunk;
  int64_t scratch_bytes(const CvmmFwdArgs& a) const { return scratch_of<P>(a, chunk).bytes(); }
  void launch(const CvmmFwdArgs& a) const { launch_product<P>(a, nullptr, chunk); }
};
template <>
struct Tiles<void> {
  int64_t scratch_bytes(const CvmmFwdArgs& a) const { return cvmm_fwd_cuda_scratch_bytes(a); }
  void launch(const CvmmFwdArgs& a) const { cvmm_fwd_cuda(a, 0, nullptr); }
};

struct Results {
  Buffer out, dot;
  template <class Tiles>
  Results(const Problem& p, const Tiles& tiles, bool hopper)
      : out(p.c.dtype, (p.c.reduce ? p.c.tokens : p.routes.count()) * p.c.h),
        dot(DType::f32, p.routes.count()) {
    CvmmFwdArgs a = p.args();
    if (p.c.out) a.out = out.data();
    if (p.c.dot) a.other = p.other.view(), a.dot = dot.data();
    const Buffer scratch(DType::f32, (tiles.scratch_bytes(a) + 3) / 4);
    a.scratch = scratch.data();
    setenv("SYSGEN_HOPPER", hopper ? "1" : "0", 1);
    emulator::counters = {};
    tiles.launch(a);
    const bool expected = hopper && p.routes.expert != std::vector<int>(p.routes.count(), -1);
    if ((emulator::counters.wgmma > 0) != expected)
      throw std::runtime_error(cat("it was ", hopper ? "not " : "", "taken"));
    if (expected) expect_no_bank_conflicts(describe(p.c));
  }
};

// Bounds as in cvmm_fwd_emulated.cpp: a sum of d products in float32, then a few roundings. Both paths keep
// them, so the two are never more than twice as far apart.
template <class Tiles>
void run(const Problem& p, const Tiles& tiles) {
  const Case& c = p.c;
  const Routes& routes = p.routes;
  const int64_t n_routes = routes.count();
  try {
    const Results sm_80(p, tiles, false), hopper(p, tiles, true);
    const double eps = unit_roundoff(DType::f32), out_eps = unit_roundoff(c.dtype);
    const int64_t out_rows = c.reduce ? c.tokens : n_routes;
    std::vector<double> sums(out_rows * c.h), bounds(out_rows * c.h);
    Comparison compare(describe(c));
    for (int64_t r = 0; r < n_routes; ++r) {
      const int e = routes.expert[r];
      double dot_sum = 0, dot_bound = 0, dot_size = 0;
      for (int64_t j = 0; j < c.h && e >= 0; ++j) {
        double u = c.bias ? p.bias.get(int64_t(e) * c.h + j) : 0, size = std::abs(u);
        for (int64_t i = 0; i < c.d; ++i) {
          const double product = p.x.at(routes, r, i) * p.w.get(p.weight(e, i, j));
          u += product;
          size += std::abs(product);
        }
        const double error = size * (c.d + 3) * eps, o = c.dot ? p.other.at(routes, r, j) : 0;
        dot_sum += u * o;
        dot_bound += error * std::abs(o);
        dot_size += std::abs(u * o);
        const double g = c.gate ? p.gate.get(r) : 1;
        const int64_t at = (c.reduce ? r / c.k : r) * c.h + j;
        sums[at] += g * (c.relu && u < 0 ? 0 : u);
        bounds[at] += std::abs(g) * (error + (c.k + 2) * eps * (std::abs(u) + error));
      }
      dot_bound += (c.h + 3) * eps * dot_size;
      if (!c.dot) continue;
      compare.element("dot", r, 0, hopper.dot.get(r), dot_sum, dot_bound);
      compare.element("dot beside sm_80", r, 0, hopper.dot.get(r), sm_80.dot.get(r), 2 * dot_bound);
    }
    for (int64_t i = 0; i < out_rows * c.h && c.out; ++i) {
      const double bound = bounds[i] + out_eps * (std::abs(sums[i]) + bounds[i]) + 0x1p-25;
      compare.element("out", i / c.h, i % c.h, hopper.out.get(i), sums[i], bound);
      compare.element("out beside sm_80", i / c.h, i % c.h, hopper.out.get(i), sm_80.out.get(i), 2 * bound);
    }
  } catch (const std::exception&) {
    std::printf("in %s:\n", describe(c).c_str());
    throw;
  }
}

void run_both(const Case& c, Random& random) {
  const Problem p(c, random);
  run(p, Tiles<void>());
  const int64_t chunk = c.reduce && c.out ? 1 + c.tokens / 3 : c.tokens;
  const auto large = [&](auto t) {
    using T = decltype(t);
    c.kn ? run(p, Tiles<HalfLarge<T, T, true>>{chunk}) : run(p, Tiles<HalfLarge<T, T, false>>{chunk});
  };
  c.dtype == DType::bf16 ? large(bf16()) : large(f16());
}

Case random_case(Random& random, int i) {
  Case c{};
  c.dtype = i % 2 ? DType::bf16 : DType::f16;
  c.experts = pick(random, {1, 2, 3});
  c.k = pick(random, {1, 2, 3});
  // from 64 rows an expert on; ragged, and with tiles that only one of the multipliers has rows of
  c.tokens = (64 * c.experts + c.k - 1) / c.k + pick(random, {0, 7, 61, 90});
  c.d = pick(random, {8, 40, 64, 72, 136, 200, 520});
  c.h = pick(random, {8, 40, 64, 72, 128, 136, 200});
  c.pattern = static_cast<Pattern>(random() % 5);
  c.kn = random() % 2;
  c.routed = random() % 2;
  c.gate = random() % 2;
  c.bias = random() % 2;
  c.relu = random() % 2;
  c.reduce = random() % 2;
  c.dot = random() % 2;
  c.out = !c.dot || random() % 3;
  c.other_routed = random() % 2;
  c.gap = pick(random, {0, 8, 24});
  return c;
}

}  // namespace
}  // namespace sysgen

int main(int argc, char** argv) {
  using namespace sysgen;
  const int count = (argc > 1 ? std::atoi(argv[1]) : 120) / 4;
  Random random(argc > 2 ? std::atoi(argv[2]) : 1);
  try {
    for (int i = 0; i < count; ++i) run_both(random_case(random, i), random);
  } catch (const std::exception& e) {
    std::printf("FAILED: %s\n", e.what());
    return 1;
  }
  return test::finish("cvmm_hopper");
}
