// Compiled once per instruction-set level (common/cpu.h).
#include "common/cpu.h"
#include "cvmm/cvmm_cpu_vector.h"
#include "geometric_attention/geometric_attention.h"

namespace sysgen::SYSGEN_ISA {
namespace {

enum Slot { kSlotKeys, kSlotRow, kSlotSums };

template <class T>
auto value_of(T v) {
  if constexpr (is_half<T>)
    return load(&v, 1)[0];
  else
    return v;
}

template <class T>
T rounded(Accumulator<T> v) {
  if constexpr (is_half<T>) {
    T to;
    store(&to, VectorF{} + v, 1);
    return to;
  } else {
    return v;
  }
}

// One (b, h): keys and values in the accumulator type, hidden ones as zeros, and the row in work.
template <class T>
struct Plain {
  using Acc = Accumulator<T>;
  const GeometricAttentionScores& s;
  const int64_t b, h;
  const int64_t offset = s.q_offset < -s.queries ? -s.queries - 1 : s.q_offset > s.keys ? s.keys : s.q_offset;
  Acc *k, *v, *q;
  double *score, *weight, *grad;
  int64_t* order;
  double log_rem;

  Plain(const GeometricAttentionScores& scores, int64_t head)
      : s(scores), b(head / scores.heads), h(head % scores.heads) {
    k = static_cast<Acc*>(thread_scratch(kSlotKeys, sizeof(Acc) * (2 * s.keys + 2) * s.width + 64));
    v = k + s.keys * s.width;
    q = v + s.keys * s.width;
    score =
        static_cast<double*>(thread_scratch(kSlotRow, (3 * sizeof(double) + sizeof(int64_t)) * s.keys + 64));
    order = reinterpret_cast<int64_t*>(score + 3 * s.keys);
    weight = score + s.keys;
    grad = weight + s.keys;
    for (int64_t j = 0; j < s.keys; ++j) {
      read(s.k, j, k + j * s.width);
      read(s.v, j, v + j * s.width);
      if (!key_hidden(j)) continue;
      __builtin_memset(k + j * s.width, 0, sizeof(Acc) * s.width);
      __builtin_memset(v + j * s.width, 0, sizeof(Acc) * s.width);
    }
  }

  T* row(const Heads& x, int64_t n) const {
    return static_cast<T*>(x.data) + b * x.stride_b + h * x.stride_h + n * x.stride_n;
  }
  void read(const Heads& x, int64_t n, Acc* to) const {
    for (int64_t d = 0; d < s.width; ++d) to[d] = value_of(row(x, n)[d]);
  }
  bool key_hidden(int64_t j) const { return s.key_mask && s.key_mask[b * s.key_mask_stride_b + j]; }

  // f(j) for the keys from near to far; stops nowhere.
  template <class F>
  void outwards(int64_t p, const F& f) const {
    if (s.include_self && p >= 0 && p < s.keys) f(p);
    for (int64_t r = p < 0 ? 0 : p + 1, l = p > s.keys ? s.keys - 1 : p - 1; r < s.keys || l >= 0;) {
      const bool right = r < s.keys && (l < 0 || r - p <= p - l);
      f(right ? r++ : l--);
    }
  }

  void scores(int64_t i) {
    const int64_t p = i + offset;
    read(s.q, i, q);
    const Acc* const bias = s.bias ? static_cast<const Acc*>(s.bias) + b * s.bias_stride_b +
                                         h * s.bias_stride_h + i * s.bias_stride_l
                                   : nullptr;
    for (int64_t j = 0; j < s.keys; ++j) {
      Acc sum = 0;
      for (int64_t d = 0; d < s.width; ++d) sum += q[d] * k[j * s.width + d];
      Acc x = static_cast<Acc>(s.scale) * sum;
      if (bias && j != p) x += bias[j > p];
      bool hidden = key_hidden(j) || (s.causal && j > p) || (j == p && !s.include_self);
      if (s.mask.data) {
        const int64_t at =
            b * s.mask.stride_b + h * s.mask.stride_h + i * s.mask.stride_l + j * s.mask.stride_s;
        if (s.mask.additive) {
          const Acc m = static_cast<const Acc*>(s.mask.data)[at];
          hidden = hidden || m == -__builtin_inf();
          x += m;
        } else {
          hidden = hidden || static_cast<const uint8_t*>(s.mask.data)[at];
        }
      }
      score[j] = hidden ? -__builtin_inf() : x;
    }
    double t = 0;
    outwards(p, [&](int64_t j) {
      const double x = score[j], u = __builtin_log1p(__builtin_exp(-__builtin_fabs(x)));
      weight[j] = __builtin_exp((x < 0 ? x : 0) - u + t);
      t += -(x > 0 ? x : 0) - u;
    });
    log_rem = t;
    if (!s.include_self && p >= 0 && p < s.keys) weight[p] = 0;
    if (!s.normalize) return;
    const double z = -__builtin_expm1(t);
    for (int64_t j = 0; j < s.keys; ++j) weight[j] /= z > s.eps ? z : s.eps;
  }
};

template <class T>
void fwd(const GeometricAttentionFwdArgs& a, int threads) {
  using Acc = Accumulator<T>;
  const GeometricAttentionScores& s = a.s;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t head = 0; head < s.batch * s.heads; ++head) {
    Plain<T> w(s, head);
    for (int64_t i = 0; i < s.queries; ++i) {
      w.scores(i);
      T* const out = w.row(a.out, i);
      for (int64_t d = 0; d < s.width; ++d) {
        double sum = 0;
        for (int64_t j = 0; j < s.keys; ++j) sum += w.weight[j] * w.v[j * s.width + d];
        out[d] = rounded<T>(static_cast<Acc>(sum));
      }
      if (a.rem) static_cast<Acc*>(a.rem)[head * s.queries + i] = static_cast<Acc>(__builtin_exp(w.log_rem));
    }
  }
}

template <class T>
void bwd(const GeometricAttentionBwdArgs& a, int threads) {
  using Acc = Accumulator<T>;
  const GeometricAttentionScores& s = a.s;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t head = 0; head < s.batch * s.heads; ++head) {
    Plain<T> w(s, head);
    Acc* const dk =
        static_cast<Acc*>(thread_scratch(kSlotSums, sizeof(Acc) * (2 * s.keys + 1) * s.width + 64));
    Acc *const dv = dk + s.keys * s.width, *const dout = dv + s.keys * s.width;
    __builtin_memset(dk, 0, sizeof(Acc) * 2 * s.keys * s.width);
    for (int64_t i = 0; i < s.queries; ++i) {
      const int64_t p = i + w.offset;
      w.scores(i);
      w.read(a.dout, i, dout);
      double mean = 0;
      for (int64_t j = 0; j < s.keys; ++j) {
        double sum = 0;
        for (int64_t d = 0; d < s.width; ++d) sum += double(dout[d]) * w.v[j * s.width + d];
        w.grad[j] = sum;
        mean += w.weight[j] * sum;
      }
      const bool centred = s.normalize && -__builtin_expm1(w.log_rem) > s.eps;
      double u = 0;
      if (a.drem) u = __builtin_exp(w.log_rem) * static_cast<const Acc*>(a.drem)[head * s.queries + i];
      for (int64_t j = 0; j < s.keys; ++j) {
        w.grad[j] = w.weight[j] * (w.grad[j] - (centred ? mean : 0));
      }
      int64_t count = 0;
      w.outwards(p, [&](int64_t j) { w.order[count++] = j; });
      double side[2] = {};
      while (count > 0) {
        const int64_t j = w.order[--count];
        const double x = w.score[j], e = __builtin_exp(-__builtin_fabs(x)), r = 1 / (1 + e), g = w.grad[j];
        w.grad[j] = (x > 0 ? e * r : r) * g - (x > 0 ? r : e * r) * u;
        u += g;
        if (j != p) side[j > p] += w.grad[j];
      }
      if (!s.include_self && p >= 0 && p < s.keys) w.grad[p] = 0;
      T* const dq = w.row(a.dq, i);
      for (int64_t d = 0; d < s.width; ++d) {
        double sum = 0;
        for (int64_t j = 0; j < s.keys; ++j) sum += w.grad[j] * w.k[j * s.width + d];
        dq[d] = rounded<T>(static_cast<Acc>(sum * s.scale));
      }
      for (int64_t j = 0; j < s.keys; ++j) {
        if (w.score[j] == -__builtin_inf()) continue;
        for (int64_t d = 0; d < s.width; ++d) {
          dk[j * s.width + d] += static_cast<Acc>(w.grad[j] * s.scale * w.q[d]);
          dv[j * s.width + d] += static_cast<Acc>(w.weight[j] * dout[d]);
        }
      }
      for (int n = 0; n < 2 && a.dbias; ++n)
        static_cast<Acc*>(a.dbias)[(head * s.queries + i) * 2 + n] = static_cast<Acc>(side[n]);
      for (int64_t j = 0; j < s.keys && a.dmask; ++j)
        static_cast<Acc*>(a.dmask)[(head * s.queries + i) * s.keys + j] = static_cast<Acc>(w.grad[j]);
    }
    for (int64_t j = 0; j < s.keys; ++j)
      for (int64_t d = 0; d < s.width; ++d) {
        w.row(a.dk, j)[d] = rounded<T>(dk[j * s.width + d]);
        w.row(a.dv, j)[d] = rounded<T>(dv[j * s.width + d]);
      }
  }
}

}  // namespace

#define SYSGEN_BY_DTYPE(function, args, threads) \
  switch (args.s.dtype) {                        \
    case DType::f64:                             \
      return function<double>(args, threads);    \
    case DType::f32:                             \
      return function<float>(args, threads);     \
    case DType::bf16:                            \
      return function<bf16>(args, threads);      \
    case DType::f16:                             \
      return function<f16>(args, threads);       \
    default:                                     \
      __builtin_trap();                          \
  }

void geometric_attention_fwd(const GeometricAttentionFwdArgs& args, int num_threads) {
  SYSGEN_BY_DTYPE(fwd, args, num_threads)
}
void geometric_attention_bwd(const GeometricAttentionBwdArgs& args, int num_threads) {
  SYSGEN_BY_DTYPE(bwd, args, num_threads)
}

}  // namespace sysgen::SYSGEN_ISA
