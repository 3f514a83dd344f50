// bfloat16 and float16 as storage types, with the conversions that kernels use.
#pragma once
#include <bit>
#include <cstdint>

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half {
  uint16_t bits;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
struct alignas(4) __half2 {
  __half x, y;
};

inline float __bfloat162float(__nv_bfloat16 v) { return std::bit_cast<float>(uint32_t{v.bits} << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float v) {
  const uint32_t u = std::bit_cast<uint32_t>(v);
  if (v != v) return {0x7fff};  // the one NaN that the hardware gives
  return {static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
}
inline __nv_bfloat16 __float2bfloat16(float v) { return __float2bfloat16_rn(v); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}

inline float __half2float(__half v) {
  const uint32_t sign = uint32_t{v.bits & 0x8000u} << 16, magnitude = v.bits & 0x7fffu;
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;  // the biases differ by 112
  const uint32_t u = magnitude < 0x7c00 ? std::bit_cast<uint32_t>(scaled) : 0x7f800000u | magnitude << 13;
  return std::bit_cast<float>(sign | u);
}
inline __half __float2half_rn(float v) {
  if (v != v) return {0x7fff};
  const uint32_t sign = std::bit_cast<uint32_t>(v) >> 16 & 0x8000u,
                 u = std::bit_cast<uint32_t>(v) & 0x7fffffffu;
  uint32_t magnitude;
  if (u >= 0x47800000u) {  // from 2^16 on
    magnitude = 0x7c00;
  } else if (u < 0x38800000u) {  // below 2^-14: the spacing is that of floats at 0.5
    magnitude = std::bit_cast<uint32_t>(std::bit_cast<float>(u) + 0.5f) - 0x3f000000u;
  } else {
    magnitude = (u - (112u << 23) + 0xfff + (u >> 13 & 1)) >> 13;
  }
  return {static_cast<uint16_t>(sign | magnitude)};
}
inline __half __float2half(float v) { return __float2half_rn(v); }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
