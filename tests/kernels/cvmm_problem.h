// Arguments of cvmm_fwd, made at random, and what must come out by a sum in float64: for the programs that
// test its kernels.
#pragma once
#include "kernel_test.h"

namespace sysgen::test {

struct CvmmCase {
  int tokens, k, experts, d, h;
  DType dtype, w_dtype;
  Precision precision = Precision::ieee;
  Pattern pattern = Pattern::dropping;
  bool kn = true, routed = false, gate = false, bias = false, reduce = false, dot = false, out = true,
       other_routed = true, slope = false, second = false;
  Activation activation = Activation::identity;
  int gap = 0, offset = 0;              // between rows of x and w, in elements, and before the first one
  int other_gap = 0, other_offset = 0;  // the same of `other`
};

inline std::string describe(const CvmmCase& c, const char* kernel) {
  return cat("cvmm_fwd ", kernel, " T", c.tokens, " k", c.k, " E", c.experts, " d", c.d, " h", c.h, " ",
             name_of(c.dtype), "/", name_of(c.w_dtype), " precision ", int(c.precision), " pattern ",
             int(c.pattern), c.kn ? " kn" : " nk", c.routed ? " routed" : "", c.gate ? " gate" : "",
             c.bias ? " bias" : "", " activation ", int(c.activation), c.slope ? " slope" : "",
             c.second ? " second" : "", c.reduce ? " reduce" : "", c.dot ? " dot" : "",
             c.out ? "" : " no-out", c.other_routed ? "" : " other-shared", " gap ", c.gap, " ", c.other_gap,
             " offset ", c.offset, " ", c.other_offset);
}

// What a case asks for beyond sizes and types.
inline void choose_options(CvmmCase& c, Random& random) {
  c.pattern = static_cast<Pattern>(random() % 5);
  c.kn = random() % 2;
  c.routed = random() % 2;
  c.gate = random() % 2;
  c.bias = random() % 2;
  c.reduce = random() % 2;
  c.dot = random() % 2;
  c.out = !c.dot || random() % 3;
  c.other_routed = random() % 2;
  c.slope = !c.reduce && random() % 2;
  c.activation = static_cast<Activation>(random() % (c.reduce || (c.dot && !c.slope) ? 2 : 5));
  c.second = (c.activation == Activation::gelu || c.activation == Activation::silu) && random() % 4;
}

struct CvmmProblem {
  CvmmCase c;
  Routes routes;
  RowBuffer x, other;
  int64_t w_pitch, w_expert;
  Buffer w, gate, bias;

  CvmmProblem(const CvmmCase& c_, Random& random)
      : c(c_),
        routes(make_routes(random, c.tokens, c.k, c.experts, c.pattern)),
        x(random, c.dtype, routes, c.d, c.routed, c.gap, c.offset),
        other(random, c.dtype, routes, c.h, c.other_routed, c.other_gap, c.other_offset),
        w_pitch((c.kn ? c.h : c.d) + c.gap),
        w_expert((c.kn ? c.d : c.h) * w_pitch + c.gap),
        w(c.w_dtype, c.experts * w_expert, c.offset),
        gate(accumulator_of(c.dtype), routes.count()),
        bias(accumulator_of(c.dtype), int64_t(c.experts) * c.h) {
    for (int64_t e = 0; e < c.experts; ++e)
      for (int64_t i = 0; i < c.d; ++i)
        for (int64_t j = 0; j < c.h; ++j) w.set(place(e, i, j), value(random));
    for (int64_t i = 0; i < gate.count(); ++i) gate.set(i, value(random));
    for (int64_t i = 0; i < bias.count(); ++i) bias.set(i, value(random));
  }
  int64_t place(int64_t e, int64_t i, int64_t j) const {
    return e * w_expert + (c.kn ? i * w_pitch + j : j * w_pitch + i);
  }
  int64_t out_rows() const { return c.reduce ? c.tokens : routes.count(); }
  CvmmFwdArgs args() const {
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
    a.activation = c.activation;
    a.slope = c.slope;
    a.reduce = c.reduce;
    a.precision = c.precision;
    return a;
  }
};

// Where the results go: NaN until then.
struct CvmmResults {
  Buffer out, second, dot;
  explicit CvmmResults(const CvmmProblem& p)
      : out(p.c.dtype, p.out_rows() * p.c.h, p.c.offset),
        second(p.c.dtype, p.c.second ? p.routes.count() * p.c.h : 0, p.c.offset),
        dot(accumulator_of(p.c.dtype), p.routes.count()) {}
  CvmmFwdArgs args(const CvmmProblem& p) const {
    CvmmFwdArgs a = p.args();
    if (p.c.out) a.out = out.data();
    if (p.c.second) a.second = second.data();
    if (p.c.dot || p.c.slope) a.other = p.other.view();
    if (p.c.dot) a.dot = dot.data();
    return a;
  }
};

// An activation by its input, and its derivative by what is kept of it.
inline double activated(Activation activation, double z) {
  switch (activation) {
    case Activation::relu:
      return z < 0 ? 0 : z;
    case Activation::tanh:
      return std::tanh(z);
    case Activation::gelu:
      return 0.5 * z * std::erfc(-z * std::sqrt(0.5));
    case Activation::silu:
      return z / (1 + std::exp(-z));
    default:
      return z;
  }
}
inline double slope_at(Activation activation, double kept) {
  const double s = 1 / (1 + std::exp(-kept));
  switch (activation) {
    case Activation::relu:
      return kept <= 0 ? 0 : 1;
    case Activation::tanh:
      return 1 - kept * kept;
    case Activation::gelu:
      return 0.5 * std::erfc(-kept * std::sqrt(0.5)) +
             kept * std::exp(-kept * kept / 2) / std::sqrt(2 * M_PI);
    case Activation::silu:
      return s * (1 + kept * (1 - s));
    default:
      return 1;
  }
}

struct Expected {
  std::vector<double> value, bound;
  explicit Expected(int64_t count) : value(count), bound(count) {}
};

// Bounds: u is a sum of d products, each off by 2 roundings of its factors (tf32: 2^-11 each; three tf32
// products: what is left out is below 3 * 2^-22) plus the accumulation. An activation's slope is at most
// 1.13, and its own error, as that of the slope, a few roundings of numbers up to |z| + 1. Results in memory
// are rounded once more, halves no finer than 2^-25.
struct CvmmExpected {
  Expected out, second, dot;

  explicit CvmmExpected(const CvmmProblem& p)
      : out(p.out_rows() * p.c.h), second(p.c.second ? p.routes.count() * p.c.h : 0), dot(p.routes.count()) {
    const CvmmCase& c = p.c;
    const double eps = unit_roundoff(accumulator_of(c.dtype)), half = is_half(c.dtype) ? 1 : 0,
                 out_eps = unit_roundoff(c.dtype), tiny = half * 0x1p-25;
    const double factors = c.precision == Precision::tf32 && c.dtype == DType::f32     ? 0x1.01p-10
                           : c.precision == Precision::tf32x3 && c.dtype == DType::f32 ? 3 * 0x1p-22
                                                                                       : 0;
    const bool smooth = c.activation > Activation::relu, from_output = derivative_from_output(c.activation);
    for (int64_t r = 0; r < p.routes.count(); ++r) {
      const int e = p.routes.expert[r];
      const double g = c.gate ? p.gate.get(r) : 1;
      double dot_size = 0;
      for (int64_t j = 0; j < c.h && e >= 0; ++j) {
        double u = c.bias ? p.bias.get(int64_t(e) * c.h + j) : 0, size = std::abs(u);
        for (int64_t i = 0; i < c.d; ++i) {
          const double product = p.x.at(p.routes, r, i) * rounded(p.w.get(p.place(e, i, j)), c.dtype);
          u += product;
          size += std::abs(product);
        }
        const double u_error = size * (factors + (c.d + 3) * eps);
        double o = c.dot || c.slope ? p.other.at(p.routes, r, j) : 0, o_error = 0, result, error;
        const double function_error = smooth ? 8 * eps * (std::abs(c.slope ? o : u) + 1) : 0;
        if (c.slope) {
          const double slope = slope_at(c.activation, o);
          if (!from_output) {
            o = activated(c.activation, o);
            o_error = function_error + out_eps * std::abs(o) + tiny;
          }
          if (c.second) second.value[r * c.h + j] = o, second.bound[r * c.h + j] = o_error;
          result = u * slope;
          error = u_error * std::abs(slope) + (std::abs(u) + u_error) * (function_error + 2 * eps);
        } else {
          const double z_error = u_error + (smooth ? half * (out_eps * (std::abs(u) + u_error) + tiny) : 0);
          if (c.second) second.value[r * c.h + j] = u, second.bound[r * c.h + j] = z_error;
          result = activated(c.activation, u);
          error = (smooth ? 1.13 : 1) * z_error + function_error;
        }
        dot.value[r] += u * o;
        dot.bound[r] += u_error * std::abs(o) + (std::abs(u) + u_error) * o_error;
        dot_size += std::abs(u * o);
        const int64_t at = (c.reduce ? r / c.k : r) * c.h + j;
        out.value[at] += g * result;
        out.bound[at] += std::abs(g) * (error + (c.k + 2) * eps * (std::abs(result) + error));
      }
      dot.bound[r] += (c.h + 3) * eps * dot_size;
    }
    for (size_t i = 0; i < out.value.size(); ++i)
      out.bound[i] += out_eps * (std::abs(out.value[i]) + out.bound[i]) + tiny;
  }

  static void compare(Comparison& compare, const char* tensor, const Buffer& got, const Expected& expected,
                      int64_t width, const Buffer* beside = nullptr) {
    for (int64_t i = 0; i < got.count(); ++i) {
      compare.element(tensor, i / width, i % width, got.get(i), expected.value[i], expected.bound[i]);
      if (beside)  // both keep their bounds, so they are never more than twice as far apart
        compare.element("the other path's", i / width, i % width, got.get(i), beside->get(i),
                        2 * expected.bound[i]);
    }
  }
  // The activation is that of the rows as they were rounded, which the backward computes with.
  static void compare_with_second(Comparison& compare, const CvmmProblem& p, const CvmmResults& got) {
    const double eps = unit_roundoff(accumulator_of(p.c.dtype)), out_eps = unit_roundoff(p.c.dtype);
    for (int64_t i = 0; i < got.second.count(); ++i) {
      const double z = got.second.get(i), h = activated(p.c.activation, z),
                   error = 8 * eps * (std::abs(z) + 1);
      compare.element("out of second", i / p.c.h, i % p.c.h, got.out.get(i), h,
                      error + out_eps * (std::abs(h) + error) + (is_half(p.c.dtype) ? 0x1p-25 : 0));
    }
  }
  void compare(Comparison& c, const CvmmProblem& p, const CvmmResults& got,
               const CvmmResults* beside = nullptr) const {
    if (p.c.out) compare(c, "out", got.out, out, p.c.h, beside ? &beside->out : nullptr);
    if (p.c.second) compare(c, "second", got.second, second, p.c.h, beside ? &beside->second : nullptr);
    if (p.c.second && p.c.out && !p.c.slope && !p.c.gate) compare_with_second(c, p, got);
    if (p.c.dot) compare(c, "dot", got.dot, dot, 1, beside ? &beside->dot : nullptr);
  }
};

}  // namespace sysgen::test
