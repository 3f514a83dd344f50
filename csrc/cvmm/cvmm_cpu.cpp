#include <cstdint>

#include "common/cpu.h"
#include "cvmm/cvmm.h"

namespace sysgen::SYSGEN_ISA {
namespace {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};

inline float bits_to_float(uint32_t u) { return __builtin_bit_cast(float, u); }
inline uint32_t float_to_bits(float f) { return __builtin_bit_cast(uint32_t, f); }

inline double load(double v) { return v; }
inline float load(float v) { return v; }
inline float load(bf16 v) { return bits_to_float(static_cast<uint32_t>(v.bits) << 16); }
inline float load(f16 v) { return static_cast<float>(__builtin_bit_cast(_Float16, v.bits)); }

inline void store(double* p, double v) { *p = v; }
inline void store(float* p, float v) { *p = v; }
inline void store(bf16* p, float v) {
  const uint32_t u = float_to_bits(v);
  p->bits = v != v ? static_cast<uint16_t>((u >> 16) | 64)
                   : static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
inline void store(f16* p, float v) { p->bits = __builtin_bit_cast(uint16_t, static_cast<_Float16>(v)); }

template <class T, class TW>
auto rounded(TW v) {
  if constexpr (__is_same(T, TW)) {
    return load(v);
  } else {
    T t;
    store(&t, v);
    return load(t);
  }
}

template <class T, class TW>
void fwd(const CvmmFwdArgs& a) {
  using Acc = typename AccOf<T>::type;
  const Routing& q = a.route;
  const int64_t R = q.num_tokens * q.k;
  Acc* u = static_cast<Acc*>(thread_scratch(0, sizeof(Acc) * (2 * a.h + 1)));
  Acc* sum = u + a.h;
  T* out = static_cast<T*>(a.out);
  const TW* w = static_cast<const TW*>(a.w);
  int64_t e = 0;
  for (int64_t t = 0; t < q.num_tokens; ++t) {
    for (int64_t j = 0; j < a.h; ++j) sum[j] = 0;
    for (int64_t r = t * q.k; r < (t + 1) * q.k; ++r) {
      const int32_t p = q.inverse[r];
      for (int64_t j = 0; j < a.h; ++j) u[j] = 0;
      Acc dot = 0;
      if (p >= 0) {
        for (e = 0; q.offsets[e + 1] <= p;) ++e;
        const T* x = static_cast<const T*>(a.x.data) + (a.x.routed ? r : t) * a.x.stride;
        const TW* we = w + e * a.w_stride_e;
        for (int64_t i = 0; i < a.d; ++i) {
          const Acc xi = load(x[i]);
          for (int64_t j = 0; j < a.h; ++j)
            u[j] += xi * static_cast<Acc>(rounded<T>(we[i * a.w_stride_d + j * a.w_stride_h]));
        }
        if (a.bias)
          for (int64_t j = 0; j < a.h; ++j) u[j] += static_cast<const Acc*>(a.bias)[e * a.h + j];
        if (a.dot) {
          const T* o = static_cast<const T*>(a.other.data) + (a.other.routed ? r : t) * a.other.stride;
          for (int64_t j = 0; j < a.h; ++j) dot += u[j] * load(o[j]);
        }
        const Acc g = a.gate ? static_cast<const Acc*>(a.gate)[r] : Acc(1);
        for (int64_t j = 0; j < a.h; ++j) {
          if (a.activation == Activation::relu && u[j] < 0) u[j] = 0;
          if (a.gate) u[j] *= g;
          sum[j] += u[j];
        }
      }
      if (a.dot) static_cast<Acc*>(a.dot)[r] = dot;
      if (out && !a.reduce)
        for (int64_t j = 0; j < a.h; ++j) store(out + r * a.h + j, u[j]);
    }
    if (out && a.reduce)
      for (int64_t j = 0; j < a.h; ++j) store(out + t * a.h + j, sum[j]);
  }
  (void)R;
}

template <class T, class TW>
void bwd_w(const CvmmBwdWArgs& a) {
  using Acc = typename AccOf<T>::type;
  const Routing& q = a.route;
  Acc* c = static_cast<Acc*>(thread_scratch(0, sizeof(Acc) * (a.h + 1)));
  for (int64_t e = 0; e < q.num_experts; ++e)
    for (int64_t i = 0; i < a.d; ++i) {
      for (int64_t j = 0; j < a.h; ++j) c[j] = 0;
      for (int64_t p = q.offsets[e]; p < q.offsets[e + 1]; ++p) {
        const int64_t r = q.order[p], t = r / q.k;
        const T* x = static_cast<const T*>(a.x.data) + (a.x.routed ? r : t) * a.x.stride;
        const T* y = static_cast<const T*>(a.dy.data) + (a.dy.routed ? r : t) * a.dy.stride;
        Acc xi = load(x[i]);
        if (a.gate) xi *= static_cast<const Acc*>(a.gate)[r];
        for (int64_t j = 0; j < a.h; ++j) c[j] += xi * load(y[j]);
      }
      TW* dw = static_cast<TW*>(a.dw) + (e * a.d + i) * a.h;
      for (int64_t j = 0; j < a.h; ++j) store(dw + j, c[j]);
    }
}

}  // namespace

void cvmm_fwd(const CvmmFwdArgs& a, int) {
  if (a.dtype == DType::f64) return fwd<double, double>(a);
  if (a.dtype == DType::f32) return fwd<float, float>(a);
  if (a.dtype == DType::bf16) return a.w_dtype == DType::f32 ? fwd<bf16, float>(a) : fwd<bf16, bf16>(a);
  return a.w_dtype == DType::f32 ? fwd<f16, float>(a) : fwd<f16, f16>(a);
}

void cvmm_bwd_w(const CvmmBwdWArgs& a, int) {
  if (a.dtype == DType::f64) return bwd_w<double, double>(a);
  if (a.dtype == DType::f32) return bwd_w<float, float>(a);
  if (a.dtype == DType::bf16) return a.w_dtype == DType::f32 ? bwd_w<bf16, float>(a) : bwd_w<bf16, bf16>(a);
  return a.w_dtype == DType::f32 ? bwd_w<f16, float>(a) : bwd_w<f16, f16>(a);
}

}  // namespace sysgen::SYSGEN_ISA
