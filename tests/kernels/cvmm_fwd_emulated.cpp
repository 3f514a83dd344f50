// The forward CVMM kernels, every product and tile of them, against a sum in float64.
#include "cvmm/cvmm_fwd_cuda.cu"
#include "cvmm_hopper_cases.h"
#include "cvmm_problem.h"

namespace sysgen {
namespace {

using namespace test;

struct Case : CvmmCase {
  bool other_ways = false;  // to launch it: with the same bits
};

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
  const CvmmProblem p(c, random);
  const CvmmResults results(p);
  const CvmmFwdArgs a = results.args(p);
  try {
    launch(a, Way());
  } catch (const std::exception& e) {
    std::printf("in %s:\n", describe(c, product).c_str());
    throw;
  }
  Comparison compare(describe(c, product));
  CvmmExpected(p).compare(compare, p, results);
  if (!c.other_ways) return;
  const auto again = [&](Way way) { return [&launch, a, way] { launch(a, way); }; };
  const std::initializer_list<const Buffer*> all = {&results.out, &results.second, &results.dot};
  expect_same_bits(describe(c, product), all, {again({1}), again({5})});
  if (c.reduce)
    expect_same_bits(describe(c, product), all, {again({kNoLimit, 1 + c.tokens / 3}), again({3, 7})});
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
  choose_options(c, random);
  c.gap = pick(random, {0, 0, 1, 2, 4, 8});
  c.offset = pick(random, {0, 0, 0, 1, 2});
  c.other_gap = pick(random, {0, 0, 1, 2, 4, 8});
  c.other_offset = pick(random, {0, 0, 0, 1, 2});
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
  Case c{{kExperts * 13, 1, kExperts, 64, 128, DType::bf16, DType::bf16, Precision::ieee, Pattern::in_turn}};
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

// What no epilogue can do is an error, not a wrong result.
void run_refusals() {
  const auto refused = [](Activation activation, bool slope, void* second) {
    CvmmFwdArgs a{};
    a.dtype = a.w_dtype = DType::bf16;
    a.w_stride_h = 1;
    a.reduce = true;
    a.activation = activation;
    a.slope = slope;
    a.second = second;
    try {
      cvmm_fwd_cuda(a, 0, nullptr);
    } catch (const std::exception&) {
      return true;
    }
    return false;
  };
  int somewhere;
  Comparison compare("cvmm_fwd with reduce is refused");
  compare.element("relu", 0, 0, refused(Activation::relu, false, nullptr), 0, 0);
  compare.element("tanh", 0, 0, refused(Activation::tanh, false, nullptr), 1, 0);
  compare.element("slope", 0, 0, refused(Activation::relu, true, nullptr), 1, 0);
  compare.element("second", 0, 0, refused(Activation::identity, false, &somewhere), 1, 0);
}

// Every product and both layouts of the weights, with rows that are copied 16 bytes at a time: narrower
// copies are for operands that are not aligned, and may conflict.
void run_without_bank_conflicts(Random& random) {
  for (const auto& type : kTypes)
    for (int precision = 0; precision < (type.x == DType::f32 ? 3 : 1); ++precision)
      for (bool kn : {false, true}) {
        Case c{{37, 2, 3, 72, 136, type.x, type.w, static_cast<Precision>(precision)}};
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
          Case c{{tokens, k, experts, d, h, type.x, type.w}};
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
    if (!test::kSanitized) run_without_bank_conflicts(random);
    run_without_padding(random);
    check_scratch();
    run_refusals();
    hopper_path::run_all(count / 4, random);
  } catch (const std::exception& e) {
    std::printf("FAILED: %s\n", e.what());
    return 1;
  }
  return test::finish("cvmm_fwd");
}
