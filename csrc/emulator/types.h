// The keywords and vector types of CUDA C++, as far as kernels of this project use them.
#pragma once

#define __global__ inline  // a kernel that nobody starts is not compiled
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
// A plain __shared__ variable would be one for all blocks and invisible to the checks: it must not compile.
#define __shared__ use_SYSGEN_SHARED_or_Smem_for_shared_memory

struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define SYSGEN_EMULATOR_VECTOR_TYPES(T, NAME)                                   \
  struct alignas(2 * sizeof(T)) NAME##2 { T x, y; };                            \
  struct alignas(sizeof(T) < 8 ? 4 * sizeof(T) : 16) NAME##4 { T x, y, z, w; }; \
  constexpr NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                 \
  constexpr NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
SYSGEN_EMULATOR_VECTOR_TYPES(float, float)
SYSGEN_EMULATOR_VECTOR_TYPES(double, double)
SYSGEN_EMULATOR_VECTOR_TYPES(int, int)
SYSGEN_EMULATOR_VECTOR_TYPES(unsigned, uint)
#undef SYSGEN_EMULATOR_VECTOR_TYPES
