// Python entry points of moe_ffn: argument checks, then the CPU or CUDA host function. The
// backward is the CPU's; on CUDA it is made of products (sysgen/ops/_moe_ffn_ops.py).
#pragma once
#include <pybind11/pybind11.h>

#include <utility>

#include "cvmm/cvmm_bind.h"
#include "moe_ffn/moe_ffn.h"

namespace sysgen {

inline HiddenActivation check_hidden_activation(const char* op, int activation) {
  check(activation >= 0 && activation < kNumHiddenActivations, op, ": activation must be 0 to ",
        kNumHiddenActivations - 1, ", got ", activation);
  return static_cast<HiddenActivation>(activation);
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
  CvmmFwdArgs up(M out, HiddenActivation activation) const {
    return cvmm_fwd_args(x, w_up, order, inverse, offsets, {}, b_up, out, {}, {}, false,
                         activation == HiddenActivation::relu, 0);
  }
  CvmmFwdArgs product(T rows, const TensorView& w, M by, M out, M dot, bool reduce) const {
    const MaybeTensor other = dot ? MaybeTensor(hidden()) : MaybeTensor();
    return cvmm_fwd_args(rows, w, order, inverse, offsets, by, {}, out, other, dot, reduce, 0, 0);
  }
};

inline MoeFfnFwdArgs moe_ffn_fwd_args(const TensorView& x, const TensorView& w_up, const TensorView& w_down,
                                      const TensorView& order, const TensorView& inverse,
                                      const TensorView& offsets, const MaybeTensor& gate,
                                      const MaybeTensor& b_up, const MaybeTensor& y, const MaybeTensor& kept,
                                      int activation) {
  const MoeFfnTensors t{x, w_up, w_down, order, inverse, offsets, gate, b_up};
  MoeFfnFwdArgs a{};
  a.activation = check_hidden_activation("moe_ffn", activation);
  a.up = t.up(kept, a.activation);
  a.down = t.product(t.hidden(), w_down, gate, y, {}, true);
  return a;
}

inline MoeFfnBwdArgs moe_ffn_bwd_args(const TensorView& dy, const TensorView& x, const TensorView& w_up,
                                      const TensorView& w_down, const TensorView& order,
                                      const TensorView& inverse, const TensorView& offsets,
                                      const MaybeTensor& gate, const MaybeTensor& b_up,
                                      const MaybeTensor& kept, const MaybeTensor& h, const MaybeTensor& dz,
                                      const MaybeTensor& dx, const MaybeTensor& dgate, int activation) {
  const char* op = "moe_ffn_bwd";
  const MoeFfnTensors t{x, w_up, w_down, order, inverse, offsets, gate, b_up};
  MoeFfnBwdArgs a{};
  a.activation = check_hidden_activation(op, activation);
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

#if !defined(SYSGEN_EMULATOR)
inline void* check_cpu_scratch(const char* op, const MaybeTensor& scratch, int64_t bytes) {
  check(bytes <= (scratch ? scratch->numel() * size_of(scratch->dtype) : 0), op, ": scratch too small");
  return scratch ? scratch->data : nullptr;
}
#endif

inline void register_moe_ffn(pybind11::module_& m) {
  using T = const TensorView&;
  using M = const MaybeTensor&;
  m.def("moe_ffn_fwd", [](T x, T w_up, T w_down, T order, T inverse, T offsets, M gate, M b_up, M y, M kept,
                          M scratch, int activation, int num_threads, uintptr_t stream) {
    const char* op = "moe_ffn";
    MoeFfnFwdArgs a =
        moe_ffn_fwd_args(x, w_up, w_down, order, inverse, offsets, gate, b_up, y, kept, activation);
#if !defined(SYSGEN_EMULATOR)
    if (runs_on_cpu(x))
      a.scratch = check_cpu_scratch(op, scratch, moe_ffn_fwd_cpu_scratch_bytes(a, num_threads));
#endif
    run_where(op, a, x, scratch, num_threads, stream, SYSGEN_IF_CPU(&moe_ffn_fwd_cpu),
              SYSGEN_IF_CUDA(&moe_ffn_fwd_cuda_scratch_bytes), SYSGEN_IF_CUDA(&moe_ffn_fwd_cuda));
  });
  m.def("moe_ffn_fwd_scratch_bytes",
        [](T x, T w_up, T w_down, T order, T inverse, T offsets, M gate, M b_up, M y, M kept, int activation,
           [[maybe_unused]] int num_threads) -> int64_t {
          const MoeFfnFwdArgs a =
              moe_ffn_fwd_args(x, w_up, w_down, order, inverse, offsets, gate, b_up, y, kept, activation);
#if !defined(SYSGEN_EMULATOR)
          if (runs_on_cpu(x)) return moe_ffn_fwd_cpu_scratch_bytes(a, num_threads);
#endif
#if defined(SYSGEN_WITH_CUDA)
          if (runs_on_cuda(x)) return moe_ffn_fwd_cuda_scratch_bytes(a);
#endif
          no_device("moe_ffn", x);
        });
#if defined(SYSGEN_WITH_CUDA)
  m.def("moe_ffn_fwd_cuda_serves", [](T x, T w_up, T w_down, T order, T inverse, T offsets, M gate, M b_up,
                                      M y, M kept, int activation) {
    return moe_ffn_fwd_cuda_serves(
        moe_ffn_fwd_args(x, w_up, w_down, order, inverse, offsets, gate, b_up, y, kept, activation));
  });
#endif
#if !defined(SYSGEN_EMULATOR)
  m.def("moe_ffn_bwd", [](T dy, T x, T w_up, T w_down, T order, T inverse, T offsets, M gate, M b_up, M kept,
                          M h, M dz, M dx, M dgate, M scratch, int activation, int num_threads) {
    const char* op = "moe_ffn_bwd";
    MoeFfnBwdArgs a = moe_ffn_bwd_args(dy, x, w_up, w_down, order, inverse, offsets, gate, b_up, kept, h, dz,
                                       dx, dgate, activation);
    if (!runs_on_cpu(x)) no_device(op, x);
    a.scratch = check_cpu_scratch(op, scratch, moe_ffn_bwd_cpu_scratch_bytes(a));
    pybind11::gil_scoped_release release;
    moe_ffn_bwd_cpu(a, num_threads);
  });
  m.def("moe_ffn_bwd_scratch_bytes", [](T dy, T x, T w_up, T w_down, T order, T inverse, T offsets, M gate,
                                        M b_up, M kept, M h, M dz, M dx, M dgate, int activation, int) {
    return moe_ffn_bwd_cpu_scratch_bytes(moe_ffn_bwd_args(dy, x, w_up, w_down, order, inverse, offsets, gate,
                                                          b_up, kept, h, dz, dx, dgate, activation));
  });
#endif
}

}  // namespace sysgen
