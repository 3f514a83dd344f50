// Everything that a kernel may use of the machine. A kernel file includes this and nothing else; nvcc and
// NVRTC see PTX below, g++ (SYSGEN_EMULATOR) sees csrc/emulator, where every CUDA thread is a fibre, or only
// its declarations (SYSGEN_DRIVER_LAUNCH). A new instruction is one wrapper with two bodies and a row in the
// conformance test.
#pragma once

namespace sysgen {
using i64 = long long;  // fixed-width names that NVRTC has without <cstdint>
using u64 = unsigned long long;
using u32 = unsigned;
}  // namespace sysgen

#if defined(SYSGEN_EMULATOR) || defined(SYSGEN_DRIVER_LAUNCH)
#include "emulator/emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// A static shared array, as a reference to a typed array: SYSGEN_SHARED(float, tile, [64][65]);
#define SYSGEN_SHARED(T, NAME, DIMS) __shared__ __align__(128) T NAME DIMS

namespace sysgen {
using bf16 = __nv_bfloat16;
using f16 = __half;

extern __shared__ __align__(128) unsigned char dynamic_shared[];

// Carves typed arrays out of dynamic shared memory, in order: auto& a = smem.array<float[2][64][20]>();
// An alignment of more than 128 costs ALIGNMENT - 128 bytes more of what the launch asks for.
struct Smem {
  unsigned offset = 0;
  template <class Array, unsigned ALIGNMENT = 128>
  __device__ __forceinline__ Array& array() {
    if constexpr (ALIGNMENT > 128)
      offset += -(static_cast<unsigned>(__cvta_generic_to_shared(dynamic_shared)) + offset) % ALIGNMENT;
    Array& r = *reinterpret_cast<Array*>(dynamic_shared + offset);
    offset += (sizeof(Array) + 127) / 128 * 128;
    return r;
  }
  // An array whose size only the launch knows.
  template <class T>
  __device__ __forceinline__ T* elements(unsigned count) {
    T* const r = reinterpret_cast<T*>(dynamic_shared + offset);
    offset += (count * static_cast<unsigned>(sizeof(T)) + 127) / 128 * 128;
    return r;
  }
};

__device__ __forceinline__ u32 linear_tid() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
__device__ __forceinline__ u32 lane_id() { return linear_tid() & 31u; }
__device__ __forceinline__ u32 warp_id() { return linear_tid() >> 5; }

// ---- synchronisation
// ------------------------------------------------------------------------------------------
__device__ __forceinline__ void named_barrier(u32 id, u32 threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ u32 load_acquire(const u32* p) {
  u32 v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void store_release(u32* p, u32 v) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ u32 atomic_add_acq_rel(u32* p, u32 v) {
  u32 r;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(r) : "l"(p), "r"(v) : "memory");
  return r;
}

// ---- ordinary accesses to shared memory, at most 16 bytes a lane; so written, the emulator counts their
// bank conflicts
template <class V>
__device__ __forceinline__ V load_shared(const V& from) {
  return from;
}
template <class V, class U>
__device__ __forceinline__ void store_shared(V& to, const U& value) {
  to = value;
}

// ---- asynchronous copies, global to shared
// --------------------------------------------------------------------
__device__ __forceinline__ u32 shared_address(const void* p) {
  return static_cast<u32>(__cvta_generic_to_shared(p));
}
// Copies BYTES (4, 8 or 16; both sides aligned to it), or fills with zeros if not `valid` (src is then not
// read).
template <int BYTES>
__device__ __forceinline__ void cp_async(void* dst, const void* src, bool valid = true) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
  const int n = valid ? BYTES : 0;
  if constexpr (BYTES == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(n)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(dst)), "l"(src),
                 "n"(BYTES), "r"(n)
                 : "memory");
  }
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ---- 8x8 b16 matrices from shared memory: lanes 8i..8i+7 give the row addresses (16-byte aligned) of matrix
// i ----
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// ---- tensor cores: d = a * b + c, fragments as in the PTX manual
// ------------------------------------------------
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2],
                                             const float (&c)[4], bf16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]),
        "f"(c[3]));
}
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2],
                                             const float (&c)[4], f16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]),
        "f"(c[3]));
}
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2],
                                                 const float (&c)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]),
        "f"(c[3]));
}
__device__ __forceinline__ u32 to_tf32(float f) {
  u32 r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(f));
  return r;
}

// ---- registers to global memory: 16 bytes at an address that is aligned to them; left to itself the
// compiler may split the store
__device__ __forceinline__ void store_16(void* p, const u32 (&v)[4]) {
  asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(__cvta_generic_to_global(p)), "r"(v[0]),
               "r"(v[1]), "r"(v[2]), "r"(v[3])
               : "memory");
}

// ---- scalar conversions, round to nearest even
// ------------------------------------------------------------------
__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(bf16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_float(f16 v) { return __half2float(v); }
template <class T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float v) {
  return __float2bfloat16_rn(v);
}
template <>
__device__ __forceinline__ f16 from_float<f16>(float v) {
  return __float2half_rn(v);
}

// Two half-type values in one register, the first in the lower half.
template <class T>
__device__ __forceinline__ u32 pack2(float lo, float hi);
template <>
__device__ __forceinline__ u32 pack2<bf16>(float lo, float hi) {
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
template <>
__device__ __forceinline__ u32 pack2<f16>(float lo, float hi) {
  u32 r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
template <class T>
__device__ __forceinline__ void unpack2(u32 v, float& lo, float& hi);
template <>
__device__ __forceinline__ void unpack2<bf16>(u32 v, float& lo, float& hi) {
  lo = __uint_as_float(v << 16);
  hi = __uint_as_float(v & 0xffff0000u);
}
template <>
__device__ __forceinline__ void unpack2<f16>(u32 v, float& lo, float& hi) {
  lo = __half2float(__ushort_as_half(static_cast<unsigned short>(v)));
  hi = __half2float(__ushort_as_half(static_cast<unsigned short>(v >> 16)));
}
}  // namespace sysgen
#endif
