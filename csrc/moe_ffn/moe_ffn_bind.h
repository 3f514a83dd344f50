// Python entry points of moe_ffn: argument checks, then the CPU or CUDA host function.
#pragma once
#include <pybind11/pybind11.h>

#include <utility>

#include "cvmm/cvmm_bind.h"
#include "moe_ffn/moe_ffn.h"

namespace sysgen {

inline Activation check_activation(const char* op, int activation) {
  check(activation >= 0 && activation < kNumActivations, op, ": activation must be 0 to ",
        kNumActivations - 1, ", got ", activation);
  return static_cast<Activation>(activation);
}

inline TensorView transposed_weight(TensorView w) {
  if (w.ndim == 3) {
    std::swap(w.shape[1], w.shape[2]);
    std::swap(w.stride[1], w.stride[2]);
  }
  return w;
}

// The tensors of a call: what both directions check alike.
struct MoeFfnTensors {
  using T = const TensorView&;
  using M = const MaybeTensor&;
  T x, w_up, w_down, order, inverse, offsets;
  M gate, b_up;
  int precision;

  // [T, k, G], whose memory the kernel chooses.
  TensorView hidden() const {
    TensorView t{nullptr, x.dtype, x.device, x.device_index, 3, {}, {}};
    const int64_t width = w_up.ndim == 3 ? w_up.shape[2] : 0,
                  tokens = inverse.ndim == 2 ? inverse.shape[0] : 0,
                  k = inverse.ndim == 2 ? inverse.shape[1] : 0;
    t.shape[0] = tokens, t.shape[1] = k, t.shape[2] = width;
    t.stride[0] = k * width, t.stride[1] = width, t.stride[2] = 1;
    return t;
  }
  CvmmFwdArgs up(M out, Activation activation) const {
    return cvmm_fwd_args(x, w_up, order, inverse, offsets, {}, b_up, out, {}, {}, false,
                         activation == Activation::relu, precision);
  }
  CvmmFwdArgs product(T rows, const TensorView& w, M by, M out, M dot, bool reduce) const {
    const MaybeTensor other = dot ? MaybeTensor(hidden()) : MaybeTensor();
    return cvmm_fwd_args(rows, w, order, inverse, offsets, by, {}, out, other, dot, reduce, 0, precision);
  }
};

inline MoeFfnFwdArgs moe_ffn_fwd_args(const TensorView& x, const TensorView& w_up, const TensorView& w_down,
                                      const TensorView& order, const TensorView& inverse,
                                      const TensorView& offsets, const MaybeTensor& gate,
                                      const MaybeTensor& b_up, const MaybeTensor& y, const MaybeTensor& kept,
                                      int activation, int precision) {
  const MoeFfnTensors t{x, w_up, w_down, order, inverse, offsets, gate, b_up, precision};
  MoeFfnFwdArgs a{};
  a.activation = check_activation("moe_ffn", activation);
  a.up = t.up(kept, a.activation);
  a.down = t.product(t.hidden(), w_down, gate, y, {}, true);
  return a;
}

inline MoeFfnBwdArgs moe_ffn_bwd_args(const TensorView& dy, const TensorView& x, const TensorView& w_up,
                                      const TensorView& w_down, const TensorView& order,
                                      const TensorView& inverse, const TensorView& offsets,
                                      const MaybeTensor& gate, const MaybeTensor& b_up,
                                      const MaybeTensor& kept, const MaybeTensor& h, const MaybeTensor& dz,
                                      const MaybeTensor& dx, const MaybeTensor& dgate, int activation,
                                      int precision) {
  const char* op = "moe_ffn_bwd";
  const MoeFfnTensors t{x, w_up, w_down, order, inverse, offsets, gate, b_up, precision};
  MoeFfnBwdArgs a{};
  a.activation = check_activation(op, activation);
  a.up = t.up(kept, a.activation);
  a.down = t.product(dy, transposed_weight(w_down), gate, dz, dgate, false);
  a.dx = t.product(t.hidden(), transposed_weight(w_up), {}, dx, {}, true);
  a.h = check_dense(op, "h", h, x.dtype, {a.up.route.num_tokens, a.up.route.k, a.up.h}, x);
  check(!dx || dz, op, ": dx needs dz");
  check(h || (kept && derivative_from_output(a.activation)) ||
            (!dgate && !derivative_from_output(a.activation)),
        op, ": h is needed");
  return a;
}

// Scratch of a call, by the function for the device.
template <class Args>
int64_t scratch_bytes_where(const char* op, const Args& args, const TensorView& first, int num_threads,
                            std::type_identity_t<int64_t (*)(const Args&, int)> cpu,
                            std::type_identity_t<int64_t (*)(const Args&)> cuda) {
  if (runs_on_cpu(first) && cpu) return cpu(args, num_threads);
  if (runs_on_cuda(first) && cuda) return cuda(args);
  no_device(op, first);
}

// The same for the call: on the CPU it takes scratch as well.
template <class Args>
void run_with_scratch(const char* op, Args& args, const TensorView& first, const MaybeTensor& scratch,
                      int num_threads, uintptr_t stream,
                      std::type_identity_t<int64_t (*)(const Args&, int)> cpu_bytes,
                      std::type_identity_t<void (*)(const Args&, int)> cpu,
                      std::type_identity_t<int64_t (*)(const Args&)> cuda_bytes,
                      std::type_identity_t<void (*)(const Args&, int, void*)> cuda) {
  if (runs_on_cpu(first) && cpu) {
    check(cpu_bytes(args, num_threads) <= (scratch ? scratch->numel() * size_of(scratch->dtype) : 0), op,
          ": scratch too small");
    args.scratch = scratch ? scratch->data : nullptr;
  }
  run_where(op, args, first, scratch, num_threads, stream, cpu, cuda_bytes, cuda);
}

inline void register_moe_ffn(pybind11::module_& m) {
  using T = const TensorView&;
  using M = const MaybeTensor&;
  m.def("moe_ffn_fwd", [](T x, T w_up, T w_down, T order, T inverse, T offsets, M gate, M b_up, M y, M kept,
                          M scratch, int activation, int precision, int num_threads, uintptr_t stream) {
    MoeFfnFwdArgs a = moe_ffn_fwd_args(x, w_up, w_down, order, inverse, offsets, gate, b_up, y, kept,
                                       activation, precision);
    run_with_scratch("moe_ffn", a, x, scratch, num_threads, stream,
                     SYSGEN_IF_CPU(&moe_ffn_fwd_cpu_scratch_bytes), SYSGEN_IF_CPU(&moe_ffn_fwd_cpu),
                     SYSGEN_IF_CUDA(&moe_ffn_fwd_cuda_scratch_bytes), SYSGEN_IF_CUDA(&moe_ffn_fwd_cuda));
  });
  m.def("moe_ffn_fwd_scratch_bytes", [](T x, T w_up, T w_down, T order, T inverse, T offsets, M gate, M b_up,
                                        M y, M kept, int activation, int precision, int num_threads) {
    return scratch_bytes_where("moe_ffn",
                               moe_ffn_fwd_args(x, w_up, w_down, order, inverse, offsets, gate, b_up, y, kept,
                                                activation, precision),
                               x, num_threads, SYSGEN_IF_CPU(&moe_ffn_fwd_cpu_scratch_bytes),
                               SYSGEN_IF_CUDA(&moe_ffn_fwd_cuda_scratch_bytes));
  });
  m.def("moe_ffn_bwd", [](T dy, T x, T w_up, T w_down, T order, T inverse, T offsets, M gate, M b_up, M kept,
                          M h, M dz, M dx, M dgate, M scratch, int activation, int precision, int num_threads,
                          uintptr_t stream) {
    MoeFfnBwdArgs a = moe_ffn_bwd_args(dy, x, w_up, w_down, order, inverse, offsets, gate, b_up, kept, h, dz,
                                       dx, dgate, activation, precision);
    run_with_scratch("moe_ffn_bwd", a, x, scratch, num_threads, stream,
                     SYSGEN_IF_CPU(&moe_ffn_bwd_cpu_scratch_bytes), SYSGEN_IF_CPU(&moe_ffn_bwd_cpu),
                     SYSGEN_IF_CUDA(&moe_ffn_bwd_cuda_scratch_bytes), SYSGEN_IF_CUDA(&moe_ffn_bwd_cuda));
  });
  m.def("moe_ffn_bwd_scratch_bytes",
        [](T dy, T x, T w_up, T w_down, T order, T inverse, T offsets, M gate, M b_up, M kept, M h, M dz,
           M dx, M dgate, int activation, int precision, int num_threads) {
          return scratch_bytes_where("moe_ffn_bwd",
                                     moe_ffn_bwd_args(dy, x, w_up, w_down, order, inverse, offsets, gate,
                                                      b_up, kept, h, dz, dx, dgate, activation, precision),
                                     x, num_threads, SYSGEN_IF_CPU(&moe_ffn_bwd_cpu_scratch_bytes),
                                     SYSGEN_IF_CUDA(&moe_ffn_bwd_cuda_scratch_bytes));
        });
}

}  // namespace sysgen
