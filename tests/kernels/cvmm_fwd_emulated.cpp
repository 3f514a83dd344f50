// The forward CVMM kernels, every product and tile of them, against a sum in float64.
#include "cvmm/cvmm_fwd_cuda.cu"
#include "kernel_test.h"

namespace sysgen {

// The kernels of sm_90a have a program of their own.
bool cvmm_fwd_hopper(const CvmmFwdArgs&, const CvmmFwdKernelArgs<bf16, bf16>&, int, void*) { return false; }
bool cvmm_fwd_hopper(const CvmmFwdArgs&, const CvmmFwdKernelArgs<f16, f16>&, int, void*) { return false; }

namespace {

using namespace test;

struct Case {
  int tokens, k, experts, d, h;
  DType dtype, w_dtype;
  Precision precision = Precision::ieee;
  Pattern pattern = Pattern::dropping;
  bool kn = true, routed = false, gate = false, bias = false, relu = false, reduce = false, dot = false,
       out = true;
  bool other_routed = true;
  int gap = 0, offset = 0;
  bool other_ways = false;  // to launch it: with the same bits
};

std::string describe(const Case& c, const char* product) {
  return cat("cvmm_fwd ", product, " T", c.tokens, " k", c.k, " E", c.experts, " d", c.d, " h", c.h, " ",
             name_of(c.dtype), "/", name_of(c.w_dtype), " precision ", int(c.precision), " pattern ",
             int(c.pattern), c.kn ? " kn" : " nk", c.routed ? " routed" : "", c.gate ? " gate" : "",
             c.bias ? " bias" : "", c.relu ? " relu" : "", c.reduce ? " reduce" : "", c.dot ? " dot" : "",
             c.out ? "" : " no-out", c.other_routed ? "" : " other-shared", " gap ", c.gap, " offset ",
             c.offset);
}

// How the kernels are launched; the results are always the same.
struct Way {
  int64_t max_blocks = kNoLimit;
  int64_t chunk_tokens = -1;  // -1: as the shape wants it
};

template <class P>
void launch_in(const Way& way, CvmmFwdArgs a) {
  const int64_t tokens = way.chunk_tokens < 0 ? tokens_of_chunk(a) : way.chunk_tokens;
  const Buffer scratch(DType::f32, (scratch_of<P>(a, tokens).bytes() + 3) / 4);
  a.scratch = scratch.data();
  launch_product<P>(a, nullptr, tokens, way.max_blocks);
}

// launch(args, way) runs the kernels.
template <class Launch>
void run(const Case& c, const char* product, Random& random, Launch launch) {
  const Routes routes = make_routes(random, c.tokens, c.k, c.experts, c.pattern);
  const DType acc = accumulator_of(c.dtype);
  const int64_t n_routes = routes.count();
  const RowBuffer x(random, c.dtype, routes, c.d, c.routed, c.gap, c.offset);
  const RowBuffer other(random, c.dtype, routes, c.h, c.other_routed, c.gap, c.offset);
  const int64_t w_rows = c.kn ? c.d : c.h, w_cols = c.kn ? c.h : c.d, w_pitch = w_cols + c.gap;
  const int64_t w_expert = w_rows * w_pitch + c.gap;
  Buffer w(c.w_dtype, c.experts * w_expert, c.offset);
  for (int64_t e = 0; e < c.experts; ++e)
    for (int64_t i = 0; i < w_rows; ++i)
      for (int64_t j = 0; j < w_cols; ++j) w.set(e * w_expert + i * w_pitch + j, value(random));
  Buffer gate(acc, n_routes), bias(acc, int64_t(c.experts) * c.h), dot(acc, n_routes);
  for (int64_t i = 0; i < gate.count(); ++i) gate.set(i, value(random));
  for (int64_t i = 0; i < bias.count(); ++i) bias.set(i, value(random));
  const int64_t out_rows = c.reduce ? c.tokens : n_routes;
  const Buffer out(c.dtype, out_rows * c.h, c.offset);

  CvmmFwdArgs a{};
  a.route = routes.view();
  a.dtype = c.dtype;
  a.w_dtype = c.w_dtype;
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
  a.out = c.out ? out.data() : nullptr;
  a.reduce = c.reduce;
  if (c.dot) a.other = other.view(), a.dot = dot.data();
  a.precision = c.precision;
  try {
    launch(a, Way());
  } catch (const std::exception& e) {
    std::printf("in %s:\n", describe(c, product).c_str());
    throw;
  }

  // Bounds: u is a sum of d products, each off by 2 roundings of its factors (tf32: 2^-11 each; three tf32
  // products: what is left out is below 3 * 2^-22) plus the accumulation; everything after it is a few
  // roundings.
  const double eps = unit_roundoff(acc), out_eps = unit_roundoff(c.dtype);
  const double factors = c.precision == Precision::tf32 && c.dtype == DType::f32     ? 0x1.01p-10
                         : c.precision == Precision::tf32x3 && c.dtype == DType::f32 ? 3 * 0x1p-22
                                                                                     : 0;
  Comparison compare(describe(c, product));
  std::vector<double> sums(out_rows * c.h), bounds(out_rows * c.h);
  for (int64_t r = 0; r < n_routes; ++r) {
    const int e = routes.expert[r];
    double dot_sum = 0, dot_bound = 0, dot_size = 0;
    for (int64_t j = 0; j < c.h && e >= 0; ++j) {
      double u = c.bias ? bias.get(int64_t(e) * c.h + j) : 0, size = std::abs(u);
      for (int64_t i = 0; i < c.d; ++i) {
        const double p = x.at(routes, r, i) *
                         rounded(w.get(e * w_expert + (c.kn ? i * w_pitch + j : j * w_pitch + i)), c.dtype);
        u += p;
        size += std::abs(p);
      }
      const double error = size * (factors + (c.d + 3) * eps);
      if (c.dot) {
        const double o = other.at(routes, r, j);
        dot_sum += u * o;
        dot_bound += error * std::abs(o);
        dot_size += std::abs(u * o);
      }
      const double g = c.gate ? gate.get(r) : 1;
      const int64_t at = (c.reduce ? r / c.k : r) * c.h + j;
      sums[at] += g * (c.relu && u < 0 ? 0 : u);
      bounds[at] += std::abs(g) * (error + (c.k + 2) * eps * (std::abs(u) + error));
    }
    if (c.dot) compare.element("dot", r, 0, dot.get(r), dot_sum, dot_bound + (c.h + 3) * eps * dot_size);
  }
  for (int64_t i = 0; i < out_rows * c.h && c.out; ++i)
    compare.element("out", i / c.h, i % c.h, out.get(i), sums[i],
                    bounds[i] + out_eps * (std::abs(sums[i]) + bounds[i]) + (is_half(c.dtype) ? 0x1p-25 : 0));
  if (!c.other_ways) return;
  const auto again = [&](Way way) { return [&launch, a, way] { launch(a, way); }; };
  expect_same_bits(describe(c, product), {&out, &dot}, {again({1}), again({5})});
  if (c.reduce)
    expect_same_bits(describe(c, product), {&out, &dot},
                     {again({kNoLimit, 1 + c.tokens / 3}), again({3, 7})});
}

void run_dispatched(const Case& c, Random& random) {
  run(c, "dispatched", random, [](CvmmFwdArgs a, const Way& way) {
    if (way.max_blocks != kNoLimit || way.chunk_tokens >= 0)
      return with_product(a, [&](auto product) { launch_in<typename decltype(product)::type>(way, a); });
    const Buffer scratch(DType::f32, (cvmm_fwd_cuda_scratch_bytes(a) + 3) / 4);
    a.scratch = scratch.data();
    cvmm_fwd_cuda(a, 0, nullptr);
  });
}
template <class P>
void run_product(const Case& c, const char* name, Random& random) {
  run(c, name, random, [](const CvmmFwdArgs& a, const Way& way) { launch_in<P>(way, a); });
}

constexpr struct {
  DType x, w;
} kTypes[] = {{DType::f64, DType::f64}, {DType::f32, DType::f32},  {DType::bf16, DType::bf16},
              {DType::f16, DType::f16}, {DType::bf16, DType::f32}, {DType::f16, DType::f32}};

Case random_case(Random& random, int i) {
  Case c{};
  c.tokens = pick(random, {1, 3, 17, 61, 131});
  c.k = pick(random, {1, 1, 2, 3, 5});
  c.experts = pick(random, {1, 2, 5, 7, 37, 67});
  c.d = pick(random, {1, 8, 23, 32, 64, 100, 131});
  c.h = pick(random, {1, 5, 8, 31, 64, 72, 128, 137});
  c.dtype = kTypes[i % 6].x;
  c.w_dtype = kTypes[i % 6].w;
  c.precision = c.dtype == DType::f32 ? static_cast<Precision>(i / 6 % 3) : Precision::ieee;
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
  c.gap = pick(random, {0, 0, 1, 2, 4, 8});
  c.offset = pick(random, {0, 0, 0, 1, 2});
  c.other_ways = i / 6 % 4 == 1;
  return c;
}

// A tile that the shape would not have chosen.
template <template <class, class, bool> class Tile>
void run_tile(const Case& c, const char* name, Random& random) {
  const auto half = [&](auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    c.kn ? run_product<Tile<T, W, true>>(c, name, random) : run_product<Tile<T, W, false>>(c, name, random);
  };
  if (c.d == 1 || c.h == 1) return;  // either layout then passes for the other
  if (c.dtype == DType::bf16) c.w_dtype == DType::f32 ? half(bf16(), float()) : half(bf16(), bf16());
  if (c.dtype == DType::f16) c.w_dtype == DType::f32 ? half(f16(), float()) : half(f16(), f16());
}

// Groups of at most 16 rows cost slim tiles one row of mma, not the four that their tile has.
void run_without_padding(Random& random) {
  constexpr int kExperts = 4;
  Case c{kExperts * 13, 1, kExperts, 64, 128, DType::bf16, DType::bf16, Precision::ieee, Pattern::in_turn};
  emulator::counters = {};
  run_tile<HalfSlim>(c, "slim", random);
  const uint64_t expected = kExperts * (c.d / 16) * (c.h / 8);
  Comparison(describe(c, "slim")).element("mma", 0, 0, emulator::counters.mma, expected, 0);
}

// What lives during a call with `reduce`: a chunk of rows that stays in L2, where that pays.
void check_scratch() {
  CvmmFwdArgs a{};
  a.dtype = a.w_dtype = DType::bf16;
  a.route.num_tokens = 32768, a.route.k = 4, a.route.num_experts = 32;
  a.d = 128, a.h = 512;
  a.w_stride_h = 1, a.w_stride_d = a.h;
  a.reduce = true;
  a.out = &a;  // not null is all that is looked at
  const auto expect = [&](const char* what, int64_t least, int64_t most) {
    const double bytes = static_cast<double>(cvmm_fwd_cuda_scratch_bytes(a));
    Comparison(what).element("scratch", 0, 0, bytes, (least + most) / 2, (most - least) / 2);
  };
  const int64_t rows = a.route.num_routes() * a.h * 4;
  expect("cvmm_fwd in chunks", kChunkBytes * 9 / 10, kChunkBytes + (1 << 16));
  a.route.num_experts = 512;  // 67 MB of weights would be read again for each chunk
  expect("cvmm_fwd with many experts", rows, rows + 256);
  a.route.num_experts = 32, a.route.num_tokens = 4096;
  expect("cvmm_fwd of few rows", rows / 8, rows / 8 + 256);
}

// Every product and both layouts of the weights, with rows that are copied 16 bytes at a time: narrower
// copies are for operands that are not aligned, and may conflict.
void run_without_bank_conflicts(Random& random) {
  for (const auto& type : kTypes)
    for (int precision = 0; precision < (type.x == DType::f32 ? 3 : 1); ++precision)
      for (bool kn : {false, true}) {
        Case c{37, 2, 3, 72, 136, type.x, type.w, static_cast<Precision>(precision)};
        c.kn = kn;
        c.dot = c.gate = true;
        emulator::counters = {};
        run_dispatched(c, random);
        run_tile<HalfLarge>(c, "large", random);
        run_tile<HalfSlim>(c, "slim", random);
        expect_no_bank_conflicts(describe(c, "in shared memory"));
      }
}

// Rows, experts and their products further apart than 2^31 elements.
void run_far_apart() {
  constexpr int64_t kFar = (int64_t{1} << 31) + 64, d = 5, h = 3;
  const FarBuffer x((kFar + d) * 4), w((kFar + d * h) * 4), other((kFar + h) * 4);
  const Routes routes(2, 1, 2, {1, 0});
  std::vector<float> out(2 * h, NAN), dot(2, NAN);
  for (int64_t n = 0; n < 2; ++n) {
    for (int64_t i = 0; i < d; ++i) x.data()[n * kFar + i] = static_cast<float>(n + i + 1);
    for (int64_t i = 0; i < d * h; ++i) w.data()[n * kFar + i] = static_cast<float>(7 * n + i - 3);
    for (int64_t i = 0; i < h; ++i) other.data()[n * kFar + i] = static_cast<float>(n + 2 * i);
  }
  CvmmFwdArgs a{};
  a.route = routes.view();
  a.dtype = a.w_dtype = DType::f32;
  a.d = d;
  a.h = h;
  a.x = {x.data(), kFar, false};
  a.other = {other.data(), kFar, true};
  a.w = w.data();
  a.w_stride_e = kFar;
  a.w_stride_d = h;
  a.w_stride_h = 1;
  a.out = out.data();
  a.dot = dot.data();
  for (Precision precision : {Precision::ieee, Precision::tf32}) {  // small integers: exact in both
    a.precision = precision;
    cvmm_fwd_cuda(a, 0, nullptr);
    Comparison compare("cvmm_fwd far apart");
    for (int64_t r = 0; r < 2; ++r) {
      double dot_sum = 0;
      for (int64_t j = 0; j < h; ++j) {
        double u = 0;
        for (int64_t i = 0; i < d; ++i)
          u += double(x.data()[r * kFar + i]) * w.data()[routes.expert[r] * kFar + i * h + j];
        compare.element("out", r, j, out[r * h + j], u, 0);
        dot_sum += u * other.data()[r * kFar + j];
      }
      compare.element("dot", r, 0, dot[r], dot_sum, 0);
    }
  }
}

}  // namespace
}  // namespace sysgen

int main(int argc, char** argv) {
  using namespace sysgen;
  const int count = argc > 1 ? std::atoi(argv[1]) : 120;
  Random random(argc > 2 ? std::atoi(argv[2]) : 1);
  try {
    for (const auto& type : kTypes)  // nothing to do, or nothing to sum
      for (const auto& [tokens, k, experts, d, h] :
           {std::tuple(0, 2, 3, 8, 8), std::tuple(5, 0, 3, 8, 8), std::tuple(5, 2, 0, 8, 8),
            std::tuple(5, 2, 3, 0, 8), std::tuple(5, 2, 3, 8, 0), std::tuple(0, 0, 0, 0, 0)})
        for (bool reduce : {false, true}) {
          Case c{tokens, k, experts, d, h, type.x, type.w};
          c.reduce = reduce;
          c.bias = c.dot = true;
          run_dispatched(c, random);
        }
    for (int i = 0; i < count; ++i) {
      const Case c = random_case(random, i);
      run_dispatched(c, random);
      i / 6 % 2 ? run_tile<HalfSlim>(c, "slim", random) : run_tile<HalfLarge>(c, "large", random);
    }
    run_far_apart();
    run_without_bank_conflicts(random);
    run_without_padding(random);
    check_scratch();
  } catch (const std::exception& e) {
    std::printf("FAILED: %s\n", e.what());
    return 1;
  }
  return test::finish("cvmm_fwd");
}
