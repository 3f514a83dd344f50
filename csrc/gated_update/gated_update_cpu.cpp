// Compiled once per instruction-set level (common/cpu.h). Every function walks over rows; a task owns a
// segment of them, and its part of the sums over rows.
#include "gated_update/gated_update_cpu_noise.h"

namespace sysgen::SYSGEN_ISA {
namespace {

enum Slot { kSlotBits, kSlotRow };

template <class A>
A* row_scratch(int64_t width, int count) {
  const int64_t padded = (width / kLanes<A> + 1) * kLanes<A>;
  return static_cast<A*>(thread_scratch(kSlotRow, sizeof(A) * static_cast<size_t>(padded * count)));
}

template <class A>
RowNoise<A> row_noise(const Noise& noise, NoiseStream stream, int64_t width) {
  const size_t bytes = static_cast<size_t>(RowNoise<A>::scratch_bytes(width));
  return {noise, stream, width, static_cast<uint16_t*>(thread_scratch(kSlotBits, bytes))};
}

// f(segment, begin, end) for the rows of each segment.
template <class F>
void for_each_segment(const GatedUpdateSizes& s, int threads, const F& f) {
  const int64_t segments = gated_update_segments(s.rows), most = s.rows * s.width / 20000;
  const int useful = static_cast<int>(most < 1 ? 1 : most < threads ? most : threads);
#pragma omp parallel for num_threads(useful) schedule(static) if (useful > 1)
  for (int64_t i = 0; i < segments; ++i) f(i, i * s.rows / segments, (i + 1) * s.rows / segments);
}

// f(d, n): vectors from element d on, of which n are left.
template <class A, class F>
inline void each_part(int64_t width, const F& f) {
  for (int64_t d = 0; d < width; d += kLanes<A>) f(d, width - d);
}

template <class A>
inline Vector<A> first_lanes(Vector<A> v, int64_t n) {
  if (n >= kLanes<A>) return v;
  A part[kLanes<A>];
  store(part, v);
  return load(part, n);
}

template <class A>
inline void add(A* sums, Vector<A> v, int64_t n) {
  store(sums, load(sums, n) + v, n);
}

template <class A>
struct Moments {
  A mean, scale;  // 1 / standard deviation
};

// Of `row`, which is followed by zeros up to a whole vector.
template <class A>
Moments<A> moments_of(const A* row, int64_t width, double eps) {
  Vector<A> sum{}, square{};
  each_part<A>(width, [&](int64_t d, int64_t) { sum += load(row + d); });
  const A mean = sum_of_lanes<A>(sum) / static_cast<A>(width);
  each_part<A>(width, [&](int64_t d, int64_t n) {
    const Vector<A> v = first_lanes<A>(load(row + d) - mean, n);
    square += v * v;
  });
  const A variance = sum_of_lanes<A>(square) / static_cast<A>(width);
  return {mean, A(1) / static_cast<A>(__builtin_sqrt(static_cast<double>(variance) + eps))};
}

// Gradient of the normalised row: (dn - mean(dn) - n mean(dn n)) * scale, dn the gradient of n = (s - mean) *
// scale. Both rows are followed by zeros.
template <class A, class F>
void norm_gradient(const A* dn, const A* normal, int64_t width, A scale, const F& f) {
  Vector<A> sum{}, product{};
  each_part<A>(width, [&](int64_t d, int64_t) {
    sum += load(dn + d);
    product += load(dn + d) * load(normal + d);
  });
  const A first = sum_of_lanes<A>(sum) / static_cast<A>(width),
          second = sum_of_lanes<A>(product) / static_cast<A>(width);
  each_part<A>(width, [&](int64_t d, int64_t n) {
    f(d, n, (load(dn + d) - first - load(normal + d) * second) * scale);
  });
}

template <class A>
void dropout_rows(const DropoutArgs& a, int threads) {
  const A* const x = static_cast<const A*>(a.x);
  A* const out = static_cast<A*>(a.out);
  for_each_segment(a.s, threads, [&](int64_t, int64_t begin, int64_t end) {
    const auto noise = row_noise<A>(a.noise, a.stream, a.s.width);
    for (int64_t r = begin; r < end; ++r) {
      noise.draw(r);
      each_part<A>(a.s.width, [&](int64_t d, int64_t n) {
        store(out + r * a.out_stride + d, noise(load(x + r * a.x_stride + d, n), d), n);
      });
    }
  });
}

template <class A>
struct Attended {
  const AttendedArgs& a;
  const int64_t width = a.s.width;
  const A *const x = static_cast<const A*>(a.x), *const t = static_cast<const A*>(a.t),
                 *const weight = static_cast<const A*>(a.norm.weight),
                 *const bias = static_cast<const A*>(a.norm.bias);
  A* const stats = static_cast<A*>(a.norm.stats);

  void forward(int threads) const {
    A* const out = static_cast<A*>(a.a);
    for_each_segment(a.s, threads, [&](int64_t, int64_t begin, int64_t end) {
      const auto noise = row_noise<A>(a.noise, NoiseStream::attended, width);
      A* const row = row_scratch<A>(width, 1);
      for (int64_t r = begin; r < end; ++r) {
        const A *const xr = x + r * width, *const tr = t + r * width;
        noise.draw(r);
        each_part<A>(width, [&](int64_t d, int64_t n) {
          store(row + d, load(xr + d, n) + noise(load(tr + d, n), d));
        });
        const Moments<A> m = moments_of(row, width, a.norm.eps);
        stats[2 * r] = m.mean;
        stats[2 * r + 1] = m.scale;
        each_part<A>(width, [&](int64_t d, int64_t n) {
          const Vector<A> normal = (load(row + d) - m.mean) * m.scale;
          store(out + r * width + d, normal * load(weight + d, n) + load(bias + d, n), n);
        });
      }
    });
  }

  void backward(int threads) const {
    const A* const da = static_cast<const A*>(a.da);
    A *const dx = static_cast<A*>(a.dx), *const dt = static_cast<A*>(a.dt);
    for_each_segment(a.s, threads, [&](int64_t segment, int64_t begin, int64_t end) {
      A *const dweight = static_cast<A*>(a.sums) + segment * 2 * width, *const dbias = dweight + width;
      clear(dweight, 2 * width);
      const auto noise = row_noise<A>(a.noise, NoiseStream::attended, width);
      A *const normal = row_scratch<A>(width, 2), *const dn = normal + (width / kLanes<A> + 1) * kLanes<A>;
      for (int64_t r = begin; r < end; ++r) {
        const int64_t at = r * width;
        const A mean = stats[2 * r], scale = stats[2 * r + 1];
        noise.draw(r);
        each_part<A>(width, [&](int64_t d, int64_t n) {
          const Vector<A> s = load(x + at + d, n) + noise(load(t + at + d, n), d);
          const Vector<A> v = first_lanes<A>((s - mean) * scale, n), g = load(da + at + d, n);
          store(normal + d, v);
          store(dn + d, g * load(weight + d, n));
          add<A>(dweight + d, g * v, n);
          add<A>(dbias + d, g, n);
        });
        norm_gradient(dn, normal, width, scale, [&](int64_t d, int64_t n, Vector<A> ds) {
          store(dt + at + d, noise(ds, d), n);
          store(dx + at + d, load(dx + at + d, n) + ds, n);
        });
      }
    });
  }
};

template <class A>
struct Hidden {
  const HiddenArgs& a;
  const int64_t width = a.s.width;
  A* const h = static_cast<A*>(a.h);

  void forward(int threads) const {
    const A* const bias = static_cast<const A*>(a.bias);
    for_each_segment(a.s, threads, [&](int64_t, int64_t begin, int64_t end) {
      const auto noise = row_noise<A>(a.noise, NoiseStream::hidden, width);
      for (int64_t r = begin; r < end; ++r) {
        A* const row = h + r * width;
        noise.draw(r);
        each_part<A>(width, [&](int64_t d, int64_t n) {
          const Vector<A> v = load(row + d, n) + load(bias + d, n);
          store(row + d, noise(v < 0 ? Vector<A>{} : v, d), n);
        });
      }
    });
  }

  // What is positive was kept; what was dropped or cut off is 0.
  void backward(int threads) const {
    A* const dh = static_cast<A*>(a.dh);
    const A factor = RowNoise<A>(a.noise, NoiseStream::hidden, width, nullptr).factor;
    for_each_segment(a.s, threads, [&](int64_t segment, int64_t begin, int64_t end) {
      A* const dbias = static_cast<A*>(a.sums) + segment * width;
      clear(dbias, width);
      for (int64_t r = begin; r < end; ++r) {
        const int64_t at = r * width;
        each_part<A>(width, [&](int64_t d, int64_t n) {
          const Vector<A> v = load(h + at + d, n);
          const Vector<A> g = v <= 0 ? Vector<A>{} : load(dh + at + d, n) * factor;
          store(dh + at + d, g, n);
          add<A>(dbias + d, g, n);
        });
      }
    });
  }
};

template <class A>
struct Gate {
  const GateArgs& a;
  const int64_t width = a.s.width;
  const A *const x = static_cast<const A*>(a.x), *const u = static_cast<const A*>(a.u),
                 *const z = static_cast<const A*>(a.z), *const bias = static_cast<const A*>(a.bias),
                 *const gate_bias = static_cast<const A*>(a.gate_bias),
                 *const weight = static_cast<const A*>(a.norm.weight),
                 *const norm_bias = static_cast<const A*>(a.norm.bias);
  A* const stats = static_cast<A*>(a.norm.stats);

  void forward(int threads) const {
    A* const y = static_cast<A*>(a.y);
    for_each_segment(a.s, threads, [&](int64_t, int64_t begin, int64_t end) {
      const auto noise = row_noise<A>(a.noise, NoiseStream::gate, 1);
      A* const row = row_scratch<A>(width, 1);
      for (int64_t r = begin; r < end; ++r) {
        const int64_t at = r * width;
        each_part<A>(width,
                     [&](int64_t d, int64_t n) { store(row + d, load(u + at + d, n) + load(bias + d, n)); });
        const Moments<A> m = moments_of(row, width, a.norm.eps);
        stats[2 * r] = m.mean;
        stats[2 * r + 1] = m.scale;
        if (!noise.keeps(r)) {
          copy(y + at, x + at, width);
          continue;
        }
        each_part<A>(width, [&](int64_t d, int64_t n) {
          const Vector<A> normal = (load(row + d) - m.mean) * m.scale;
          const Vector<A> update = normal * load(weight + d, n) + load(norm_bias + d, n);
          const Vector<A> from = load(x + at + d, n), step = update - from;
          const Vector<A> logit = load(z + at + d, n) + load(gate_bias + d, n);
          // From the nearer end, as torch.lerp: a gate of 0 keeps x, a gate of 1 gives the update, exactly.
          const Vector<A> kept = from + vsigmoid<A>(logit) * step,
                          replaced = update - vsigmoid<A>(-logit) * step;
          store(y + at + d, logit < 0 ? kept : replaced, n);
        });
      }
    });
  }

  void backward(int threads) const {
    const A* const dy = static_cast<const A*>(a.dy);
    A *const du = static_cast<A*>(a.du), *const dz = static_cast<A*>(a.dz), *const dx = static_cast<A*>(a.dx);
    for_each_segment(a.s, threads, [&](int64_t segment, int64_t begin, int64_t end) {
      A* const dweight = static_cast<A*>(a.sums) + segment * 4 * width;
      A *const dnorm_bias = dweight + width, *const dbias = dnorm_bias + width,
               *const dgate_bias = dbias + width;
      clear(dweight, 4 * width);
      const auto noise = row_noise<A>(a.noise, NoiseStream::gate, 1);
      A *const normal = row_scratch<A>(width, 2), *const dn = normal + (width / kLanes<A> + 1) * kLanes<A>;
      for (int64_t r = begin; r < end; ++r) {
        const int64_t at = r * width;
        if (!noise.keeps(r)) {
          copy(dx + at, dy + at, width);
          clear(du + at, width);
          clear(dz + at, width);
          continue;
        }
        const A mean = stats[2 * r], scale = stats[2 * r + 1];
        each_part<A>(width, [&](int64_t d, int64_t n) {
          const Vector<A> w = load(weight + d, n);
          const Vector<A> v = first_lanes<A>((load(u + at + d, n) + load(bias + d, n) - mean) * scale, n);
          const Vector<A> update = v * w + load(norm_bias + d, n);
          const Vector<A> logit = load(z + at + d, n) + load(gate_bias + d, n);
          const Vector<A> gate = vsigmoid<A>(logit), shut = vsigmoid<A>(-logit);
          const Vector<A> g = load(dy + at + d, n), dlogit = g * (update - load(x + at + d, n)) * gate * shut;
          const Vector<A> dupdate = g * gate;
          store(dx + at + d, g * shut, n);
          store(dz + at + d, dlogit, n);
          store(normal + d, v);
          store(dn + d, dupdate * w);
          add<A>(dweight + d, dupdate * v, n);
          add<A>(dnorm_bias + d, dupdate, n);
          add<A>(dgate_bias + d, dlogit, n);
        });
        norm_gradient(dn, normal, width, scale, [&](int64_t d, int64_t n, Vector<A> ds) {
          store(du + at + d, ds, n);
          add<A>(dbias + d, ds, n);
        });
      }
    });
  }
};

template <class F>
void with_type(DType dtype, const F& f) {
  dtype == DType::f64 ? f(double{}) : f(float{});  // the bind header admits no other type
}

}  // namespace

void dropout(const DropoutArgs& a, int threads) {
  with_type(a.s.dtype, [&](auto x) { dropout_rows<decltype(x)>(a, threads); });
}
void gated_update_attended_fwd(const AttendedArgs& a, int threads) {
  with_type(a.s.dtype, [&](auto x) { Attended<decltype(x)>{a}.forward(threads); });
}
void gated_update_attended_bwd(const AttendedArgs& a, int threads) {
  with_type(a.s.dtype, [&](auto x) { Attended<decltype(x)>{a}.backward(threads); });
}
void gated_update_hidden_fwd(const HiddenArgs& a, int threads) {
  with_type(a.s.dtype, [&](auto x) { Hidden<decltype(x)>{a}.forward(threads); });
}
void gated_update_hidden_bwd(const HiddenArgs& a, int threads) {
  with_type(a.s.dtype, [&](auto x) { Hidden<decltype(x)>{a}.backward(threads); });
}
void gated_update_gate_fwd(const GateArgs& a, int threads) {
  with_type(a.s.dtype, [&](auto x) { Gate<decltype(x)>{a}.forward(threads); });
}
void gated_update_gate_bwd(const GateArgs& a, int threads) {
  with_type(a.s.dtype, [&](auto x) { Gate<decltype(x)>{a}.backward(threads); });
}

}  // namespace sysgen::SYSGEN_ISA
