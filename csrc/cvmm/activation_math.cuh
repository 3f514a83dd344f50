// An activation and its derivative at one element; the formulas of moe_ffn/activation_cpu.cpp.
#pragma once
#include "common/kernel_math.cuh"
#include "cvmm/activation.cuh"

namespace sysgen {

template <class A>
struct Activated {
  A value, slope;
};

// At the input v; or, if v_is_kept, from what the derivative is a function of: the output of identity, relu
// and tanh, the input of gelu and silu.
template <class A>
__device__ __forceinline__ Activated<A> activated(Activation activation, A v, bool v_is_kept) {
  switch (activation) {
    case Activation::relu:
      return {v < 0 && !v_is_kept ? A(0) : v, v <= 0 ? A(0) : A(1)};
    case Activation::tanh: {
      const A h = v_is_kept ? v : tanh_of(v);
      return {h, 1 - h * h};
    }
    case Activation::gelu: {
      const A below = A(0.5) * erfc_of(A(-0.70710678118654752440) * v);
      return {v * below, below + v * exp_of(A(-0.5) * v * v) * A(0.39894228040143267794)};
    }
    case Activation::silu: {
      const A s = 1 / (1 + exp_of(-v));
      return {v * s, s * (1 + v * (1 - s))};
    }
    default:
      return {v, 1};
  }
}

}  // namespace sysgen
