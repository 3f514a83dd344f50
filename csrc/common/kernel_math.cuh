// Elementary functions for float and double, and reductions over a warp or a block of threads.
#pragma once
#include "device/device.cuh"

namespace sysgen {

__device__ __forceinline__ float exp_of(float x) { return expf(x); }
__device__ __forceinline__ double exp_of(double x) { return exp(x); }
__device__ __forceinline__ float expm1_of(float x) { return expm1f(x); }
__device__ __forceinline__ double expm1_of(double x) { return expm1(x); }
__device__ __forceinline__ float log_of(float x) { return logf(x); }
__device__ __forceinline__ double log_of(double x) { return log(x); }
__device__ __forceinline__ float log1p_of(float x) { return log1pf(x); }
__device__ __forceinline__ double log1p_of(double x) { return log1p(x); }
__device__ __forceinline__ float sqrt_of(float x) { return sqrtf(x); }
__device__ __forceinline__ double sqrt_of(double x) { return sqrt(x); }
__device__ __forceinline__ float tanh_of(float x) { return tanhf(x); }
__device__ __forceinline__ double tanh_of(double x) { return tanh(x); }
__device__ __forceinline__ float erfc_of(float x) { return erfcf(x); }
__device__ __forceinline__ double erfc_of(double x) { return erfc(x); }

template <class A>
__device__ __forceinline__ A minus_infinity() {
  return static_cast<A>(__uint_as_float(0xff800000u));
}

struct Sum {
  template <class A>
  __device__ __forceinline__ A operator()(A a, A b) const {
    return a + b;
  }
};
struct Largest {  // that is no NaN
  template <class A>
  __device__ __forceinline__ A operator()(A a, A b) const {
    return b > a ? b : a;
  }
};

// Over the warp, for all of its threads.
template <class Join, class A>
__device__ __forceinline__ A over_warp(A x) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x = Join()(x, __shfl_xor_sync(~0u, x, d));
  return x;
}

// Over a block of WARPS warps, for all of its threads; in an order of its own. `parts` is shared memory.
// Every thread must arrive, and is behind a barrier when it returns.
template <class Join, int WARPS, class A>
__device__ __forceinline__ A over_block(A x, A (&parts)[WARPS]) {
  x = over_warp<Join>(x);
  __syncthreads();  // who read the parts of the call before has done so
  if (lane_id() == 0) parts[warp_id()] = x;
  __syncthreads();
  x = parts[0];
#pragma unroll
  for (int i = 1; i < WARPS; ++i) x = Join()(x, parts[i]);
  return x;
}

}  // namespace sysgen
