// The fused experts of a mixture, both tiles of every pair of types, against sums in float64.
#include "cvmm_problem.h"
#include "moe_ffn/moe_ffn_cuda.cu"

namespace sysgen {

// The products of what is not fused have a program of their own, and tests/test_moe_ffn.py runs all together.
void cvmm_fwd_cuda(const CvmmFwdArgs&, int, void*) { throw std::runtime_error("not fused"); }
int64_t cvmm_fwd_cuda_scratch_bytes(const CvmmFwdArgs&) { return 0; }

namespace {

using namespace test;

struct Case {
  int tokens, k, experts, d, hidden, d_out;
  DType dtype, w_dtype;
  Activation activation = Activation::relu;
  Pattern pattern = Pattern::dropping;
  bool bias = false, keep = true, out = true;
  int gap = 0, offset = 0;
};

std::string describe(const Case& c, const char* tile) {
  return cat("moe_ffn ", tile, " T", c.tokens, " k", c.k, " E", c.experts, " d", c.d, " G", c.hidden,
             " d_out", c.d_out, " ", name_of(c.dtype), "/", name_of(c.w_dtype), " activation ",
             int(c.activation), " pattern ", int(c.pattern), c.bias ? " bias" : "", c.keep ? " keep" : "",
             c.out ? "" : " no-out", " gap ", c.gap, " offset ", c.offset);
}

// [E, rows, columns], whose rows and experts are `gap` elements further apart than they need.
struct Weights {
  int64_t rows, columns, pitch, expert;
  DType seen;
  Buffer values;
  Weights(Random& random, const Case& c, int64_t rows_, int64_t columns_)
      : rows(rows_),
        columns(columns_),
        pitch(columns + c.gap),
        expert(rows * pitch + c.gap),
        seen(c.dtype),
        values(c.w_dtype, c.experts * expert, c.offset) {
    for (int64_t e = 0; e < c.experts; ++e)
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j)
          values.set(e * expert + i * pitch + j, value(random) / std::sqrt(std::max<int64_t>(rows, 1)));
  }
  double at(int64_t e, int64_t i, int64_t j) const {
    return rounded(values.get(e * expert + i * pitch + j), seen);
  }
  void describe_to(CvmmFwdArgs& a) const {
    a.w = values.data();
    a.w_stride_e = expert;
    a.w_stride_d = pitch;
    a.w_stride_h = 1;
  }
};

template <class Launch>
void run(const Case& c, const char* tile, Random& random, Launch launch) {
  const Routes routes = make_routes(random, c.tokens, c.k, c.experts, c.pattern);
  const int64_t n_routes = routes.count();
  const RowBuffer x(random, c.dtype, routes, c.d, false, c.gap, c.offset);
  const Weights up(random, c, c.d, c.hidden), down(random, c, c.hidden, c.d_out);
  Buffer gate(DType::f32, n_routes), bias(DType::f32, int64_t(c.experts) * c.hidden);
  for (int64_t i = 0; i < gate.count(); ++i) gate.set(i, value(random));
  for (int64_t i = 0; i < bias.count(); ++i) bias.set(i, value(random));
  const Buffer kept(c.dtype, n_routes * c.hidden, c.offset),
      y(c.dtype, int64_t(c.tokens) * c.d_out, c.offset);

  MoeFfnFwdArgs a{};
  a.activation = c.activation;
  a.up.route = a.down.route = routes.view();
  a.up.dtype = a.down.dtype = c.dtype;
  a.up.w_dtype = a.down.w_dtype = c.w_dtype;
  a.up.d = c.d;
  a.up.h = a.down.d = c.hidden;
  a.down.h = c.d_out;
  a.up.x = x.view();
  up.describe_to(a.up);
  down.describe_to(a.down);
  a.up.bias = c.bias ? bias.data() : nullptr;
  a.up.out = c.keep ? kept.data() : nullptr;
  a.down.gate = gate.data();
  a.down.out = c.out ? y.data() : nullptr;
  a.down.reduce = true;
  const Buffer scratch(DType::f32, (moe_ffn_fwd_cuda_scratch_bytes(a) + 3) / 4);
  a.scratch = scratch.data();
  launch(a);

  // A sum of n products in float32 is off by n roundings of the sum of their sizes. Hidden rows are rounded
  // to the dtype before and behind the activation, whose slope is at most 1.13; its own error is a few
  // roundings of float32.
  const double eps = 0x1p-24, half = unit_roundoff(c.dtype), tiny = 0x1p-25;
  const bool from_output = derivative_from_output(c.activation);
  Comparison compare(describe(c, tile));
  std::vector<double> h(c.hidden), h_error(c.hidden), sums(c.tokens * c.d_out), bounds(c.tokens * c.d_out);
  for (int64_t r = 0; r < n_routes; ++r) {
    const int e = routes.expert[r];
    for (int64_t g = 0; g < c.hidden; ++g) {
      double z = e >= 0 && c.bias ? bias.get(int64_t(e) * c.hidden + g) : 0, size = std::abs(z);
      for (int64_t i = 0; i < c.d && e >= 0; ++i) {
        const double p = x.at(routes, r, i) * up.at(e, i, g);
        z += p;
        size += std::abs(p);
      }
      const double z_error = size * (c.d + 3) * eps * (1 + half) + half * std::abs(z) + tiny;
      h[g] = activated(c.activation, z);
      h_error[g] = (1.13 * z_error + 8 * eps * (std::abs(z) + 1)) * (1 + half) + half * std::abs(h[g]) + tiny;
      if (c.keep)
        compare.element("kept", r, g, kept.get(r * c.hidden + g), from_output ? h[g] : z,
                        from_output ? h_error[g] : z_error);
    }
    for (int64_t j = 0; j < c.d_out && e >= 0; ++j) {
      double sum = 0, error = 0, size = 0;
      for (int64_t g = 0; g < c.hidden; ++g) {
        const double w = down.at(e, g, j);
        sum += h[g] * w;
        error += h_error[g] * std::abs(w);
        size += (std::abs(h[g]) + h_error[g]) * std::abs(w);
      }
      const double factor = gate.get(r);
      sums[r / c.k * c.d_out + j] += factor * sum;
      bounds[r / c.k * c.d_out + j] += std::abs(factor) * (error + size * (c.hidden + c.k + 3) * eps);
    }
  }
  for (int64_t i = 0; i < y.count() && c.out; ++i)
    compare.element("y", i / c.d_out, i % c.d_out, y.get(i), sums[i],
                    bounds[i] * (1 + half) + half * std::abs(sums[i]) + tiny);
}

void run_dispatched(const Case& c, Random& random) {
  run(c, "dispatched", random, [](const MoeFfnFwdArgs& a) { moe_ffn_fwd_cuda(a, 0, nullptr); });
}

constexpr struct {
  DType x, w;
} kTypes[] = {{DType::bf16, DType::bf16},
              {DType::f16, DType::f16},
              {DType::bf16, DType::f32},
              {DType::f16, DType::f32}};

// The tile that small shapes do not choose.
void run_large(const Case& c, Random& random) {
  if (c.dtype != c.w_dtype) return;
  run(c, "large", random, [&](const MoeFfnFwdArgs& a) {
    c.dtype == DType::bf16 ? launch_product<Large<bf16>>(a, nullptr) : launch_product<Large<f16>>(a, nullptr);
  });
}

Case random_case(Random& random, int i) {
  Case c{};
  c.tokens = pick(random, {1, 3, 17, 61, 131});
  c.k = pick(random, {1, 2, 3, 5});
  c.experts = pick(random, {1, 2, 5, 37});
  c.d = pick(random, {1, 8, 23, 32, 100, 131});
  c.hidden = pick(random, {65, 72, 96, 127, 128});
  c.d_out = pick(random, {1, 8, 31, 128, 137, 264});
  c.dtype = kTypes[i % 4].x;
  c.w_dtype = kTypes[i % 4].w;
  c.activation = static_cast<Activation>(i / 4 % kNumActivations);
  c.pattern = static_cast<Pattern>(random() % 5);
  c.bias = random() % 2;
  c.keep = random() % 2;
  c.out = !c.keep || random() % 4;
  c.gap = pick(random, {0, 0, 1, 2, 4, 8});
  c.offset = pick(random, {0, 0, 0, 1, 2});
  return c;
}

// A NaN in a row of x and one in the weights of an expert reach the tokens that use them, and no others. An
// infinity that the activation turns into zeros stays within its hidden columns: it meets no padding.
void run_not_finite(Random& random) {
  const Routes routes(4, 1, 2, {0, 0, 1, 0});
  constexpr int64_t d = 32, hidden = 72, d_out = 8;
  Buffer x(DType::bf16, 4 * d), up(DType::bf16, 2 * d * hidden), down(DType::bf16, 2 * hidden * d_out),
      y(DType::bf16, 4 * d_out), gate(DType::f32, 4), scratch(DType::f32, 4 * d_out);
  for (Buffer* b : {&x, &up, &down, &gate})
    for (int64_t i = 0; i < b->count(); ++i) b->set(i, std::abs(value(random)));
  x.set(d, NAN);            // of token 1
  up.set(d * hidden, NAN);  // of expert 1
  x.set(3 * d, -INFINITY);  // of token 3: all of its hidden rows are relu(-infinity)
  MoeFfnFwdArgs a{};
  a.activation = Activation::relu;
  a.up.route = a.down.route = routes.view();
  a.up.dtype = a.down.dtype = a.up.w_dtype = a.down.w_dtype = DType::bf16;
  a.up.d = d;
  a.up.h = a.down.d = hidden;
  a.down.h = d_out;
  a.up.x = {x.data(), d, false};
  a.up.w = up.data();
  a.up.w_stride_e = d * hidden;
  a.up.w_stride_d = hidden;
  a.down.w = down.data();
  a.down.w_stride_e = hidden * d_out;
  a.down.w_stride_d = d_out;
  a.up.w_stride_h = a.down.w_stride_h = 1;
  a.down.gate = gate.data();
  a.down.out = y.data();
  a.scratch = scratch.data();
  moe_ffn_fwd_cuda(a, 0, nullptr);
  Comparison compare("moe_ffn not finite");
  for (int64_t i = 0; i < y.count(); ++i) {
    const int64_t t = i / d_out;
    compare.element("is NaN", t, i % d_out, std::isnan(y.get(i)), t == 1 || t == 2, 0);
    if (t == 3) compare.element("y", t, i % d_out, y.get(i), 0, 0);
  }
}

// Every pair of types and both tiles, with rows that are copied 16 bytes at a time.
void run_without_bank_conflicts(Random& random) {
  for (const auto& type : kTypes) {
    const Case c{37, 2, 3, 72, 128, 136, type.x, type.w, Activation::gelu};
    emulator::counters = {};
    run_dispatched(c, random);
    run_large(c, random);
    expect_no_bank_conflicts(describe(c, "in shared memory"));
  }
}

// What the fused kernel leaves to the products.
void run_choices() {
  const auto fused = [](DType dtype, int64_t hidden, int64_t stride) {
    MoeFfnFwdArgs a{};
    a.up.dtype = a.down.dtype = dtype;
    a.up.h = hidden;
    a.down.h = 8;
    a.down.gate = &a;
    a.up.w_stride_h = 1;
    a.down.w_stride_h = stride;
    return is_fused(a);
  };
  Comparison compare("moe_ffn is fused");
  compare.element("bf16", 0, 0, fused(DType::bf16, 128, 1), 1, 0);
  compare.element("f32", 0, 0, fused(DType::f32, 128, 1), 0, 0);
  compare.element("narrow", 0, 0, fused(DType::f16, 64, 1), 0, 0);
  compare.element("wide", 0, 0, fused(DType::f16, 129, 1), 0, 0);
  compare.element("transposed", 0, 0, fused(DType::f16, 128, 128), 0, 0);
}

}  // namespace
}  // namespace sysgen

int main(int argc, char** argv) {
  using namespace sysgen;
  const int count = argc > 1 ? std::atoi(argv[1]) : 40;
  Random random(argc > 2 ? std::atoi(argv[2]) : 1);
  try {
    for (const auto& [tokens, k, experts, d] :
         {std::tuple(0, 2, 3, 8), std::tuple(5, 0, 3, 8), std::tuple(5, 2, 0, 8), std::tuple(5, 2, 3, 0)})
      run_dispatched({tokens, k, experts, d, 72, 8, DType::bf16, DType::bf16, Activation::silu}, random);
    for (int i = 0; i < count / 2; ++i) {
      const Case c = random_case(random, i);
      i % 2 ? run_dispatched(c, random) : run_large(c, random);
    }
    run_not_finite(random);
    run_choices();
    if (!test::kSanitized) run_without_bank_conflicts(random);
  } catch (const std::exception& e) {
    std::printf("FAILED: %s\n", e.what());
    return 1;
  }
  return test::finish("moe_ffn");
}
