// The host's body of device/device.cuh: the same names, with every CUDA thread a fibre. Included by
// device.cuh, after the fixed-width names. docs/kernels.md says how to run a kernel this way.
#pragma once

#if defined(SYSGEN_EMULATOR)
#if !defined(__x86_64__) || !defined(__linux__)
#error "the CUDA emulator of sysgen runs on x86-64 Linux only (it switches stacks in assembly)"
#endif
#if defined(__clang__) || !defined(__GNUC__) || __GNUC__ < 12 || __cplusplus < 202002L
#error "the CUDA emulator of sysgen needs GCC 12 or later with -std=c++20"
#endif
#endif

#include "emulator/half.h"
#include "emulator/memory.h"
#include "emulator/runtime.h"
#include "emulator/scalar.h"
#include "emulator/tensor_core.h"
#include "emulator/types.h"
#include "emulator/warp.h"

#define threadIdx (::sysgen::emulator::current->threadIdx)
#define blockIdx (::sysgen::emulator::current->blockIdx)
#define blockDim (::sysgen::emulator::current->blockDim)
#define gridDim (::sysgen::emulator::current->gridDim)
inline constexpr int warpSize = 32;

namespace sysgen {

using bf16 = __nv_bfloat16;
using f16 = __half;

inline float to_float(float v) { return v; }
inline float to_float(bf16 v) { return __bfloat162float(v); }
inline float to_float(f16 v) { return __half2float(v); }
template <class T>
T from_float(float v);
template <>
inline float from_float<float>(float v) {
  return v;
}
template <>
inline bf16 from_float<bf16>(float v) {
  return __float2bfloat16_rn(v);
}
template <>
inline f16 from_float<f16>(float v) {
  return __float2half_rn(v);
}

template <class T>
u32 pack2(float lo, float hi) {
  return from_float<T>(lo).bits | u32{from_float<T>(hi).bits} << 16;
}
template <class T>
void unpack2(u32 v, float& lo, float& hi) {
  lo = to_float(T{static_cast<uint16_t>(v)});
  hi = to_float(T{static_cast<uint16_t>(v >> 16)});
}

}  // namespace sysgen
