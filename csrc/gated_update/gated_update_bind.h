// Python entry points of the gated update: argument checks, then the host function. CPU only.
#pragma once
#include <pybind11/pybind11.h>

#include "common/arguments.h"
#include "common/tensor_caster.h"
#include "gated_update/gated_update.h"

namespace sysgen {

// The checks of one call. All tensors are contiguous and have the type and the device of the first.
class GatedUpdateArguments {
 public:
  using T = const TensorView&;
  const char* const op;
  GatedUpdateSizes s;

  GatedUpdateArguments(const char* name, T rows, bool contiguous = true) : op(name), first(rows) {
    check_dtype(op, "rows", rows, {DType::f64, DType::f32});
    check(rows.ndim == 2, op, ": rows must have 2 dimensions, got shape ", shape_of(rows));
    check(rows.shape[1] >= 1, op, ": rows must not be empty");
    if (!runs_on_cpu(rows)) throw NotImplementedError(cat(op, ": there are no CUDA kernels of it"));
    s = {rows.dtype, rows.shape[0], rows.shape[1]};
    contiguous ? all(rows, "rows") : rows_of(rows, "rows");
  }
  // [R, d] with any row stride.
  void* rows_of(T t, const char* name) const {
    check_dtype(op, name, t, {s.dtype});
    check_shape(op, name, t, {s.rows, s.width});
    check_device(op, name, t, first);
    check(s.width <= 1 || t.stride[1] == 1, op, ": ", name, " must have an inner stride of 1");
    return t.data;
  }
  void* of(T t, const char* name, std::initializer_list<int64_t> shape) const {
    return check_dense(op, name, t, s.dtype, shape, first);
  }
  void* all(T t, const char* name) const { return of(t, name, {s.rows, s.width}); }
  void* columns(T t, const char* name) const { return of(t, name, {s.width}); }
  void* sums(T t, int64_t kinds) const {
    return of(t, "sums", {gated_update_segments(s.rows), kinds, s.width});
  }
  RowNorm norm(T weight, T bias, double eps, T stats) const {
    return {columns(weight, "norm weight"), columns(bias, "norm bias"), eps, of(stats, "stats", {s.rows, 2})};
  }
  Noise noise(T seed, double rate) const {
    check_dtype(op, "seed", seed, {DType::i64});
    check_device(op, "seed", seed, first);
    check(seed.numel() == 1, op, ": seed must have one element, got ", seed.numel());
    check(rate >= 0 && rate <= 1, op, ": a rate of dropout must be in [0, 1], got ", rate);
    return {static_cast<uint64_t>(*static_cast<const int64_t*>(seed.data)), rate};
  }

 private:
  T first;
};

inline void register_gated_update(pybind11::module_& m) {
  using T = const TensorView&;
  using Arguments = GatedUpdateArguments;
  m.def("gated_update_segments", &gated_update_segments);
  m.def("dropout_fwd", [](T x, T seed, double rate, int stream, T out, int threads) {
    const Arguments c("dropout", x, false);
    check(stream >= 1 && stream <= 3, c.op, ": stream must be 1, 2 or 3, got ", stream);
    const DropoutArgs a{c.s,          c.noise(seed, rate), static_cast<NoiseStream>(stream),
                        x.data,       x.stride[0],         c.rows_of(out, "out"),
                        out.stride[0]};
    pybind11::gil_scoped_release release;
    dropout_cpu(a, threads);
  });
  m.def("gated_update_attended_fwd",
        [](T x, T t, T weight, T bias, double eps, T seed, double rate, T a, T stats, int threads) {
          const Arguments c("gated_update_attended_fwd", x);
          AttendedArgs args{c.s, x.data, c.all(t, "attended"), c.norm(weight, bias, eps, stats),
                            c.noise(seed, rate)};
          args.a = c.all(a, "a");
          pybind11::gil_scoped_release release;
          gated_update_attended_fwd_cpu(args, threads);
        });
  m.def("gated_update_attended_bwd", [](T x, T t, T weight, T bias, double eps, T seed, double rate, T da,
                                        T stats, T dx, T dt, T sums, int threads) {
    const Arguments c("gated_update_attended_bwd", x);
    AttendedArgs args{c.s, x.data, c.all(t, "attended"), c.norm(weight, bias, eps, stats),
                      c.noise(seed, rate)};
    args.da = c.all(da, "da");
    args.dx = c.all(dx, "dx");
    args.dt = c.all(dt, "dt");
    args.sums = c.sums(sums, 2);
    pybind11::gil_scoped_release release;
    gated_update_attended_bwd_cpu(args, threads);
  });
  m.def("gated_update_hidden_fwd", [](T h, T bias, T seed, double rate, int threads) {
    const Arguments c("gated_update_hidden_fwd", h);
    HiddenArgs args{c.s, c.columns(bias, "bias"), c.noise(seed, rate), h.data};
    pybind11::gil_scoped_release release;
    gated_update_hidden_fwd_cpu(args, threads);
  });
  m.def("gated_update_hidden_bwd", [](T h, T seed, double rate, T dh, T sums, int threads) {
    const Arguments c("gated_update_hidden_bwd", h);
    HiddenArgs args{c.s, nullptr, c.noise(seed, rate), h.data, c.all(dh, "dh"), c.sums(sums, 1)};
    pybind11::gil_scoped_release release;
    gated_update_hidden_bwd_cpu(args, threads);
  });
  m.def("gated_update_gate_fwd", [](T x, T u, T z, T bias, T gate_bias, T weight, T norm_bias, double eps,
                                    T seed, double rate, T y, T stats, int threads) {
    const Arguments c("gated_update_gate_fwd", x);
    GateArgs args{c.s,
                  x.data,
                  c.all(u, "u"),
                  c.all(z, "z"),
                  c.columns(bias, "bias"),
                  c.columns(gate_bias, "gate bias"),
                  c.norm(weight, norm_bias, eps, stats),
                  c.noise(seed, rate)};
    args.y = c.all(y, "y");
    pybind11::gil_scoped_release release;
    gated_update_gate_fwd_cpu(args, threads);
  });
  m.def("gated_update_gate_bwd",
        [](T x, T u, T z, T bias, T gate_bias, T weight, T norm_bias, double eps, T seed, double rate, T dy,
           T stats, T du, T dz, T dx, T sums, int threads) {
          const Arguments c("gated_update_gate_bwd", x);
          GateArgs args{c.s,
                        x.data,
                        c.all(u, "u"),
                        c.all(z, "z"),
                        c.columns(bias, "bias"),
                        c.columns(gate_bias, "gate bias"),
                        c.norm(weight, norm_bias, eps, stats),
                        c.noise(seed, rate)};
          args.dy = c.all(dy, "dy");
          args.du = c.all(du, "du");
          args.dz = c.all(dz, "dz");
          args.dx = c.all(dx, "dx");
          args.sums = c.sums(sums, 4);
          pybind11::gil_scoped_release release;
          gated_update_gate_bwd_cpu(args, threads);
        });
}

}  // namespace sysgen
