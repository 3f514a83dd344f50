// Compiled once per instruction-set level (common/cpu.h).
#include "dnc/dnc_cpu_math.h"
#include "moe_ffn/activation.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// e^x for x <= 0 in float: the series up to r^7, |r| <= ln 2 / 2, is good to 5e-9. 0 where the result would
// not be normal; a NaN gives some number.
inline VectorF exp_of_negative(VectorF x) {
  constexpr float kRound = 0x1.8p23f, kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  constexpr float kCoefficients[] = {1 / 720.0f, 1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 0.5f, 1, 1};
  const VectorF shifted = x * 1.44269504f + kRound, n = shifted - kRound;
  const VectorF r = (x - n * kLn2High) - n * kLn2Low;
  VectorF sum = splat(1 / 5040.0f);
  for (const float c : kCoefficients) sum = sum * r + c;
  const VectorF e = bits_as<VectorF>(bits_as<VectorU>(sum) + (bits_as<VectorU>(shifted) << 23));
  return x < -87.0f ? VectorF{} : e;
}

template <class A>
struct Normal {  // the standard normal distribution
  Vector<A> below, density;
};

inline Normal<double> normal(Vector<double> z) {
  Vector<double> below;
  for (int i = 0; i < kLanes<double>; ++i) below[i] = 0.5 * __builtin_erfc(-z[i] * 0.70710678118654752440);
  return {below, vexp<double>(z * z * -0.5) * 0.39894228040143267794};
}

// P(X < z) = exp(-t^2 / 2) R(t) for z = -t <= 0. R falls from 1/2 smoothly: a polynomial in 1 / (1 + t / 4),
// fitted to a relative error of 1.5e-8 for t <= 14, behind which the result is below the normal numbers.
inline Normal<float> normal(VectorF z) {
  constexpr float kCoefficients[] = {-0.196178213f, 0.395003378f,   -0.333471686f,
                                     0.304488748f,  -0.0203849934f, 0.12156824f,
                                     0.0948201939f, 0.100229003f,   -2.16004119e-05f};
  const VectorF t = z < 0 ? -z : z;
  const VectorF e = exp_of_negative(t * t * -0.5f), w = 1.0f / (1.0f + t * 0.25f);
  VectorF r = splat(0.0339468978f);
  for (const float c : kCoefficients) r = r * w + c;
  const VectorF tail = e * r;
  return {z < 0 ? tail : 1.0f - tail, e * 0.398942280f};
}

// to = f(from, to), element by element.
template <class T, class F>
inline void each(const T* from, T* to, HiddenRows rows, const F& f) {
  for (int64_t r = 0; r < rows.count; ++r) {
    const int64_t first = (rows.index ? rows.index[r] : r) * rows.width;
    each_vector<Accumulator<T>>(rows.width, [&](int64_t i, int64_t lanes) SYSGEN_INLINE {
      T* const at = to + first + i;
      store(at, f(load(from + first + i, lanes), load(at, lanes)), lanes);
    });
  }
}

template <class T>
void forward(Activation activation, const void* z, void* h, HiddenRows rows) {
  using A = Accumulator<T>;
  using V = Vector<A>;
  const T* const from = static_cast<const T*>(z);
  T* const to = static_cast<T*>(h);
  switch (activation) {
    case Activation::identity:
      return each(from, to, rows, [](V x, V) SYSGEN_INLINE { return x; });
    case Activation::relu:
      return each(from, to, rows, [](V x, V) SYSGEN_INLINE { return x < 0 ? V{} : x; });
    case Activation::tanh:
      return each(from, to, rows, [](V x, V) SYSGEN_INLINE { return vtanh<A>(x); });
    case Activation::gelu:
      return each(from, to, rows, [](V x, V) SYSGEN_INLINE { return x * normal(x).below; });
    case Activation::silu:
      return each(from, to, rows, [](V x, V) SYSGEN_INLINE { return x * vsigmoid<A>(x); });
  }
}

template <class T>
void backward(Activation activation, const void* kept, void* dh, HiddenRows rows) {
  using A = Accumulator<T>;
  using V = Vector<A>;
  const T* const from = static_cast<const T*>(kept);
  T* const to = static_cast<T*>(dh);
  switch (activation) {
    case Activation::identity:
      return;
    case Activation::relu:
      return each(from, to, rows, [](V h, V g) SYSGEN_INLINE { return h <= 0 ? V{} : g; });
    case Activation::tanh:
      return each(from, to, rows, [](V h, V g) SYSGEN_INLINE { return g * (A(1) - h * h); });
    case Activation::gelu:
      return each(from, to, rows, [](V z, V g) SYSGEN_INLINE {
        const Normal<A> p = normal(z);
        return g * (p.below + z * p.density);
      });
    case Activation::silu:
      return each(from, to, rows, [](V z, V g) SYSGEN_INLINE {
        const V s = vsigmoid<A>(z);
        return g * s * (A(1) + z * (A(1) - s));
      });
  }
}

template <class... T>
void dispatch(DType dtype, void (*f64)(T...), void (*f32)(T...), void (*b16)(T...), void (*f16)(T...),
              T... arguments) {
  (dtype == DType::f64 ? f64 : dtype == DType::f32 ? f32 : dtype == DType::bf16 ? b16 : f16)(arguments...);
}

}  // namespace

void activation_fwd(Activation activation, DType dtype, const void* z, void* h, HiddenRows rows) {
  dispatch(dtype, &forward<double>, &forward<float>, &forward<bf16>, &forward<f16>, activation, z, h, rows);
}
void activation_bwd(Activation activation, DType dtype, const void* kept, void* dh, HiddenRows rows) {
  dispatch(dtype, &backward<double>, &backward<float>, &backward<bf16>, &backward<f16>, activation, kept, dh,
           rows);
}

}  // namespace sysgen::SYSGEN_ISA
