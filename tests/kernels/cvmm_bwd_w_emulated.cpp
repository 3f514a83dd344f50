// The kernels of the weight gradient, every product, with one and with several segments, against a sum in
// float64.
#include <stdlib.h>

#include "cvmm/cvmm_bwd_w_cuda.cu"
#include "cvmm/cvmm_hopper_bwd_w_cuda.cu"
#include "kernel_test.h"

namespace sysgen {
namespace {

using namespace test;

struct Case {
  int tokens, k, experts, d, h;
  DType dtype, w_dtype;
  Precision precision = Precision::ieee;
  Pattern pattern = Pattern::dropping;
  bool x_routed = false, dy_routed = true, gate = false;
  int gap = 0, offset = 0;
  bool other_grids = false;  // the same bits for them
};

std::string describe(const Case& c) {
  return cat("cvmm_bwd_w T", c.tokens, " k", c.k, " E", c.experts, " d", c.d, " h", c.h, " ",
             name_of(c.dtype), "/", name_of(c.w_dtype), " precision ", int(c.precision), " pattern ",
             int(c.pattern), c.x_routed ? " x-routed" : "", c.dy_routed ? " dy-routed" : "",
             c.gate ? " gate" : "", " gap ", c.gap, " offset ", c.offset);
}

void run(const Case& c, Random& random) {
  const Routes routes = make_routes(random, c.tokens, c.k, c.experts, c.pattern);
  const DType acc = accumulator_of(c.dtype);
  const RowBuffer x(random, c.dtype, routes, c.d, c.x_routed, c.gap, c.offset);
  const RowBuffer dy(random, c.dtype, routes, c.h, c.dy_routed, c.gap, c.offset);
  Buffer gate(acc, routes.count());
  for (int64_t i = 0; i < gate.count(); ++i) gate.set(i, value(random));
  const Buffer dw(c.w_dtype, int64_t(c.experts) * c.d * c.h, c.offset);

  CvmmBwdWArgs a{};
  a.route = routes.view();
  a.dtype = c.dtype;
  a.w_dtype = c.w_dtype;
  a.d = c.d;
  a.h = c.h;
  a.x = x.view();
  a.dy = dy.view();
  a.gate = c.gate ? gate.data() : nullptr;
  a.dw = dw.data();
  a.precision = c.precision;
  const Buffer scratch(DType::f32, (cvmm_bwd_w_cuda_scratch_bytes(a) + 3) / 4);
  a.scratch = scratch.data();
  try {
    cvmm_bwd_w_cuda(a, 0, nullptr);
  } catch (const std::exception&) {
    std::printf("in %s:\n", describe(c).c_str());
    throw;
  }

  // Bounds: n products, each off by the roundings of its factors (a gate is rounded into a half operand;
  // tf32: 2^-11 each; three tf32 products: 3 * 2^-22 are left out), the accumulation, and the rounding of dw.
  const double eps = unit_roundoff(acc), out_eps = unit_roundoff(c.w_dtype);
  double factors = c.gate && is_half(c.dtype) ? unit_roundoff(c.dtype) : 0;
  if (c.dtype == DType::f32 && c.precision == Precision::tf32) factors = 0x1.01p-10;
  if (c.dtype == DType::f32 && c.precision == Precision::tf32x3) factors = 3 * 0x1p-22;
  Comparison compare(describe(c));
  std::vector<double> sum(c.d * c.h), size(c.d * c.h);
  for (int e = 0; e < c.experts; ++e) {
    std::fill(sum.begin(), sum.end(), 0);
    std::fill(size.begin(), size.end(), 0);
    const int n = routes.offsets[e + 1] - routes.offsets[e];
    for (int p = routes.offsets[e]; p < routes.offsets[e + 1]; ++p) {
      const int r = routes.order[p];
      for (int j = 0; j < c.h; ++j) {
        const double y = (c.gate ? gate.get(r) : 1) * dy.at(routes, r, j);
        for (int i = 0; i < c.d; ++i) {
          const double product = x.at(routes, r, i) * y;
          sum[i * c.h + j] += product;
          size[i * c.h + j] += std::abs(product);
        }
      }
    }
    for (int i = 0; i < c.d; ++i)
      for (int j = 0; j < c.h; ++j) {
        const double bound = size[i * c.h + j] * (factors + (n + 3) * eps);
        const double expected = sum[i * c.h + j];
        compare.element(
            "dw", e * c.d + i, j, dw.get((int64_t(e) * c.d + i) * c.h + j), expected,
            bound + out_eps * (std::abs(expected) + bound) + (is_half(c.dtype) ? (n + 1) * 0x1p-23 : 0));
      }
  }
  const auto launch_on = [&](int64_t max_blocks) {
    with_product(
        a, [&](auto product) { launch_product<typename decltype(product)::type>(a, nullptr, max_blocks); });
  };
  if (c.other_grids) expect_same_bits(describe(c), {&dw}, {[&] { launch_on(1); }, [&] { launch_on(5); }});
}

constexpr struct {
  DType x, w;
} kTypes[] = {{DType::f64, DType::f64}, {DType::f32, DType::f32},  {DType::bf16, DType::bf16},
              {DType::f16, DType::f16}, {DType::bf16, DType::f32}, {DType::f16, DType::f32}};

Case random_case(Random& random, int i) {
  Case c{};
  c.tokens = pick(random, {1, 3, 17, 61, 131, 601});
  c.k = pick(random, {1, 1, 2, 3, 5});
  c.experts = pick(random, {1, 2, 5, 7, 37, 67});
  c.d = pick(random, {1, 5, 8, 23, 64, 100, 131});
  c.h = pick(random, {1, 5, 8, 31, 64, 72, 137});
  if (c.tokens * c.k > 600) c.d = pick(random, {1, 24, 131}), c.h = pick(random, {3, 8, 16});
  c.dtype = kTypes[i % 6].x;
  c.w_dtype = kTypes[i % 6].w;
  c.precision = c.dtype == DType::f32 ? static_cast<Precision>(i / 6 % 3) : Precision::ieee;
  c.pattern = static_cast<Pattern>(random() % 5);
  c.x_routed = random() % 2;
  c.dy_routed = random() % 2;
  c.gate = random() % 2;
  c.gap = pick(random, {0, 0, 1, 2, 4, 8});
  c.offset = pick(random, {0, 0, 0, 1, 2});
  c.other_grids = i / 6 % 3 == 1;
  return c;
}

// Every product, with rows that are copied 16 bytes at a time.
void run_without_bank_conflicts(Random& random) {
  for (const auto& type : kTypes)
    for (int precision = 0; precision < (type.x == DType::f32 ? 3 : 1); ++precision) {
      Case c{151, 2, 3, 72, 136, type.x, type.w, static_cast<Precision>(precision)};
      c.gate = true;
      emulator::counters = {};
      run(c, random);
      expect_no_bank_conflicts(describe(c));
    }
}

// The path for sm_90a: rows that are copied 16 bytes at a time, at least 64 routes an expert, so that some
// have several segments. The bounds are those of sm_80's path.
void run_hopper_path(Random& random, int i) {
  Case c{};
  c.dtype = i % 2 ? DType::bf16 : DType::f16;
  c.w_dtype = i / 2 % 2 ? DType::f32 : c.dtype;
  c.experts = pick(random, {1, 2, 4});
  c.k = pick(random, {1, 3});
  c.tokens = (64 * c.experts + c.k - 1) / c.k + pick(random, {0, 7, 130, 311});
  c.d = pick(random, {8, 72, 136, 200});
  c.h = pick(random, {8, 64, 136});
  c.pattern = static_cast<Pattern>(random() % 5);
  c.x_routed = random() % 2;
  c.dy_routed = random() % 2;
  c.gate = random() % 2;
  c.gap = pick(random, {0, 8, 24});
  if (i < 2) {  // more steps a block than there are stages
    c.tokens = 1100;
    c.k = c.experts = 1;
    c.d = 136;
    c.h = 72;
    c.pattern = Pattern::uniform;
    c.gate = i == 0;
  }
  setenv("SYSGEN_HOPPER", "1", 1);
  emulator::counters = {};
  run(c, random);
  if (c.pattern != Pattern::all_dropped) {
    if (!emulator::counters.wgmma) throw std::runtime_error(cat("not taken: ", describe(c)));
    expect_no_bank_conflicts(describe(c));
  }
  unsetenv("SYSGEN_HOPPER");
}

// Rows further apart than 2^31 elements.
void run_far_apart() {
  constexpr int64_t kFar = (int64_t{1} << 31) + 64, d = 5, h = 3;
  const FarBuffer x((kFar + d) * 4), dy((kFar + h) * 4);
  const Routes routes(2, 1, 2, {1, 1});
  std::vector<float> dw(2 * d * h, NAN);
  for (int64_t n = 0; n < 2; ++n) {
    for (int64_t i = 0; i < d; ++i) x.data()[n * kFar + i] = static_cast<float>(n + i + 1);
    for (int64_t i = 0; i < h; ++i) dy.data()[n * kFar + i] = static_cast<float>(n + 2 * i);
  }
  CvmmBwdWArgs a{};
  a.route = routes.view();
  a.dtype = a.w_dtype = DType::f32;
  a.d = d;
  a.h = h;
  a.x = {x.data(), kFar, false};
  a.dy = {dy.data(), kFar, true};
  a.dw = dw.data();
  for (Precision precision : {Precision::ieee, Precision::tf32}) {  // small integers: exact in both
    a.precision = precision;
    cvmm_bwd_w_cuda(a, 0, nullptr);
    Comparison compare("cvmm_bwd_w far apart");
    for (int64_t i = 0; i < d; ++i)
      for (int64_t j = 0; j < h; ++j) {
        compare.element("dw[0]", i, j, dw[i * h + j], 0, 0);
        compare.element("dw[1]", i, j, dw[(d + i) * h + j],
                        double(x.data()[i]) * dy.data()[j] + double(x.data()[kFar + i]) * dy.data()[kFar + j],
                        0);
      }
  }
}

}  // namespace
}  // namespace sysgen

int main(int argc, char** argv) {
  using namespace sysgen;
  const int count = argc > 1 ? std::atoi(argv[1]) : 120;
  const int seed = argc > 2 ? std::atoi(argv[2]) : 1;
  Random random(seed);
  const std::vector<Pattern> several{Pattern::one_expert, Pattern::few_experts, Pattern::dropping};
  int turn = seed;
  try {
    for (const auto& type : kTypes) {
      ++turn;
      for (const auto& [tokens, k, experts, d, h] :
           {std::tuple(0, 2, 3, 8, 8), std::tuple(5, 0, 3, 8, 8), std::tuple(5, 2, 0, 8, 8),
            std::tuple(5, 2, 3, 0, 8), std::tuple(5, 2, 3, 8, 0), std::tuple(0, 0, 0, 0, 0)})
        run({tokens, k, experts, d, h, type.x, type.w}, random);
      for (int i = 0; i < (count < 20 ? 1 : 3); ++i) {  // several segments
        const Pattern pattern = several[(turn + i) % 3];
        Case c{523, 2, 5, 16, 24, type.x, type.w, Precision::ieee, pattern};
        c.gate = true;
        run(c, random);
      }
    }
    for (int i = 0; i < count; ++i) run(random_case(random, i), random);
    run_far_apart();
    if (!test::kSanitized) run_without_bank_conflicts(random);
    for (int i = 0; i < count / 4; ++i) run_hopper_path(random, i);
  } catch (const std::exception& e) {
    std::printf("FAILED: %s\n", e.what());
    return 1;
  }
  return test::finish("cvmm_bwd_w");
}
