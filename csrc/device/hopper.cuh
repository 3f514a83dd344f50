// What kernels for sm_90a may use beyond device.cuh: mbarriers, TMA, wgmma and what belongs to them. Three
// views of one shared array meet here: cp.async writes it (generic proxy), TMA writes it and wgmma reads it
// (async proxy). Between the proxies stands fence_proxy_async, in the thread that reads or in the one that
// wrote.
//
// A warpgroup is 4 consecutive warps, the first of them a multiple of 4; its threads issue wgmma together.
#pragma once
#include "device/device.cuh"

namespace sysgen {

// A box of a matrix in global memory, as TMA wants it: made on the host (device/tensor_map.h), passed to the
// kernel as part of a __grid_constant__ parameter.
struct alignas(128) TensorMap {
  u64 opaque[16];
};

// In shared memory. A phase ends when all arrivals and all announced bytes are there; the first is phase 0.
struct Mbarrier {
  u64 state;
};

// How a wgmma operand lies in shared memory. Both are made of 128-byte rows, of which 8 make a swizzle atom
// of 1024 bytes (the 16-byte chunk c of row r stands at place c ^ r % 8); an atom begins at a multiple of
// 1024.
//   k_major   a row holds 64 consecutive k of one m (or n); atoms follow along m (or n)
//   mn_major  a row holds 64 consecutive m (or n) of one k; atoms follow along k, 64-wide columns of them
//   `column`
//             bytes apart
constexpr u64 kSwizzle128 = u64{1} << 62;
constexpr u64 kAtomBytes = 1024;
constexpr u64 descriptor_field(u64 bytes) { return (bytes & 0x3ffff) >> 4; }
constexpr u64 k_major_descriptor(u32 address) {
  return kSwizzle128 | descriptor_field(kAtomBytes) << 32 | u64{1} << 16 | descriptor_field(address);
}
constexpr u64 mn_major_descriptor(u32 address, u32 column) {
  return kSwizzle128 | descriptor_field(kAtomBytes) << 32 | descriptor_field(column) << 16 |
         descriptor_field(address);
}
// The same operand, `bytes` further on.
constexpr u64 advanced(u64 descriptor, u32 bytes) { return descriptor + descriptor_field(bytes); }

}  // namespace sysgen

#if defined(SYSGEN_EMULATOR)
#include "emulator/hopper.h"
#elif !defined(SYSGEN_DRIVER_LAUNCH)

namespace sysgen {

// ---- mbarriers
__device__ __forceinline__ void mbarrier_init(Mbarrier& b, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&b)), "r"(arrivals) : "memory");
}
// After the inits, by the thread that did them: TMA will see them. The others need __syncthreads as well.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void mbarrier_arrive(Mbarrier& b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&b)) : "memory");
}
// Arrives, and announces bytes that TMA will bring in the same phase.
__device__ __forceinline__ void mbarrier_arrive_expect(Mbarrier& b, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&b)), "r"(bytes)
               : "memory");
}
// Returns when the phase of this parity is over: at once for parity 1 of a new barrier.
__device__ __forceinline__ void mbarrier_wait(Mbarrier& b, u32 parity) {
  u32 done;
  do {
    asm volatile(
        "{\n.reg .pred done;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n}"
        : "=r"(done)
        : "r"(shared_address(&b)), "r"(parity)
        : "memory");
  } while (!done);
}
// Arrives once all cp.async that this thread has issued before are there; one of the arrivals of
// mbarrier_init.
__device__ __forceinline__ void cp_async_arrive(Mbarrier& b) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(&b)) : "memory");
}

// ---- TMA
__device__ __forceinline__ void prefetch_tensor_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// One thread: the box of `map` at (c0, c1, c2), innermost first, to `dst` (aligned to 1024); what lies
// outside of the tensor becomes zeros. All bytes of the box count for the barrier.
__device__ __forceinline__ void tma_load_3d(void* dst, const TensorMap& map, int c0, int c1, int c2,
                                            Mbarrier& b) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, "
      "{%2,%3,%4}], "
      "[%5];" ::"r"(shared_address(dst)),
      "l"(&map), "r"(c0), "r"(c1), "r"(c2), "r"(shared_address(&b))
      : "memory");
}

__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- wgmma: d[64][N] (+)= A[64][16] . B[16][N]. d[4 j + 2 i + l] of a thread is row 16 warp + lane / 4 + 8
// i, column 8 j + lane % 4 * 2 + l. Runs until wgmma_wait; until then the operands stay and d is nobody's.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// At most PENDING groups still run. Before anything reads d, PENDING is 0.
template <int PENDING, int COUNT>
__device__ __forceinline__ void wgmma_wait(float (&d)[COUNT]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
#pragma unroll
  for (int i = 0; i < COUNT; ++i)
    asm volatile("" : "+f"(d[i])::"memory");  // no use of d moves up beyond here
}

#define SYSGEN_F8(I)                                                                          \
  "+f"(d[I]), "+f"(d[I + 1]), "+f"(d[I + 2]), "+f"(d[I + 3]), "+f"(d[I + 4]), "+f"(d[I + 5]), \
      "+f"(d[I + 6]), "+f"(d[I + 7])
#define SYSGEN_F32 SYSGEN_F8(0), SYSGEN_F8(8), SYSGEN_F8(16), SYSGEN_F8(24)
#define SYSGEN_F64 SYSGEN_F32, SYSGEN_F8(32), SYSGEN_F8(40), SYSGEN_F8(48), SYSGEN_F8(56)
#define SYSGEN_P32                                                                                         \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27," \
  "%28,%29,%30,%31"
#define SYSGEN_P64                                                                                         \
  SYSGEN_P32                                                                                               \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%" \
  "57,"                                                                                                    \
  "%58,%59,%60,%61,%62,%63"
#define SYSGEN_WGMMA(N, TYPE, D, DS, A, B, ACCUMULATE, TRANSPOSED)                                  \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ACCUMULATE                                       \
               ", 0;\n"                                                                             \
               "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE "." TYPE " {" D "}, " A ", " B \
               ", p, 1, 1, " TRANSPOSED ";\n}"                                                      \
               : DS                                                                                 \
               : SYSGEN_WGMMA_A, "l"(b), "r"(int(accumulate)), SYSGEN_WGMMA_MN)

// Both operands from shared memory, by descriptor; MN-major or else K-major. !accumulate: d is only written.
template <class T, bool A_MN, bool B_MN, int COUNT>
__device__ __forceinline__ void wgmma(float (&d)[COUNT], u64 a, u64 b, bool accumulate) {
  static_assert(COUNT == 32 || COUNT == 64, "64 or 128 columns");
  constexpr bool BF16 = sizeof(T) == 2 && __is_same(T, bf16);
#define SYSGEN_WGMMA_A "l"(a)
#define SYSGEN_WGMMA_MN "n"(int(A_MN)), "n"(int(B_MN))
  if constexpr (COUNT == 32 && BF16) {
    SYSGEN_WGMMA("64", "bf16", SYSGEN_P32, SYSGEN_F32, "%32", "%33", "%34", "%35, %36");
  } else if constexpr (COUNT == 32) {
    SYSGEN_WGMMA("64", "f16", SYSGEN_P32, SYSGEN_F32, "%32", "%33", "%34", "%35, %36");
  } else if constexpr (BF16) {
    SYSGEN_WGMMA("128", "bf16", SYSGEN_P64, SYSGEN_F64, "%64", "%65", "%66", "%67, %68");
  } else {
    SYSGEN_WGMMA("128", "f16", SYSGEN_P64, SYSGEN_F64, "%64", "%65", "%66", "%67, %68");
  }
#undef SYSGEN_WGMMA_A
#undef SYSGEN_WGMMA_MN
}
// A from registers: those of a warp are the fragment of mma m16n8k16, its rows 16 warp to 16 warp + 15.
template <class T, bool B_MN, int COUNT>
__device__ __forceinline__ void wgmma(float (&d)[COUNT], const u32 (&a)[4], u64 b, bool accumulate) {
  static_assert(COUNT == 32 || COUNT == 64, "64 or 128 columns");
  constexpr bool BF16 = sizeof(T) == 2 && __is_same(T, bf16);
#define SYSGEN_WGMMA_A "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
#define SYSGEN_WGMMA_MN "n"(int(B_MN))
  if constexpr (COUNT == 32 && BF16) {
    SYSGEN_WGMMA("64", "bf16", SYSGEN_P32, SYSGEN_F32, "{%32,%33,%34,%35}", "%36", "%37", "%38");
  } else if constexpr (COUNT == 32) {
    SYSGEN_WGMMA("64", "f16", SYSGEN_P32, SYSGEN_F32, "{%32,%33,%34,%35}", "%36", "%37", "%38");
  } else if constexpr (BF16) {
    SYSGEN_WGMMA("128", "bf16", SYSGEN_P64, SYSGEN_F64, "{%64,%65,%66,%67}", "%68", "%69", "%70");
  } else {
    SYSGEN_WGMMA("128", "f16", SYSGEN_P64, SYSGEN_F64, "{%64,%65,%66,%67}", "%68", "%69", "%70");
  }
#undef SYSGEN_WGMMA_A
#undef SYSGEN_WGMMA_MN
}

// ---- registers change hands between warpgroups. The kernel needs __launch_bounds__(threads, 1), and a role
// is one branch of one if.
template <int REGISTERS>
__device__ __forceinline__ void registers_decrease() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
__device__ __forceinline__ void registers_increase() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

#undef SYSGEN_F8
#undef SYSGEN_F32
#undef SYSGEN_F64
#undef SYSGEN_P32
#undef SYSGEN_P64
#undef SYSGEN_WGMMA

}  // namespace sysgen
#endif
