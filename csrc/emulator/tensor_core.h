// ldmatrix, mma and the conversion to tf32.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

#include "emulator/half.h"
#include "emulator/runtime.h"

namespace sysgen {
namespace emulator {

template <int COUNT>
void load_matrices(u32 (&r)[COUNT], const void* row, bool transposed, const Location& at) {
  MatrixLoad load{};
  load.count = COUNT;
  load.transposed = transposed;
  if (current->lane < 8 * COUNT) {  // the address of a further lane is not used
    if (reinterpret_cast<uintptr_t>(row) % 16)
      fail(at, "ldmatrix: the row %p is not aligned to 16 bytes", row);
    if (!in_shared(row, 16)) fail(at, "ldmatrix: the row %p is not shared memory of this block", row);
    load.row = row;
    std::memcpy(load.data, row, 16);  // read by the lane that names the row: the sanitizers see it here
  }
  warp_operation(ldmatrix, ~0u, &load, at);
  for (int i = 0; i < COUNT; ++i) r[i] = load.result[i];
}

inline void multiply(const WarpOperation& operation, float (&d)[4], const u32 (&a)[4], const u32 (&b)[2],
                     const float (&c)[4], const Location& at) {
  MatrixProduct p{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {c[0], c[1], c[2], c[3]}, {}};
  warp_operation(operation, ~0u, &p, at);
  for (int i = 0; i < 4; ++i) d[i] = p.d[i];
}

}  // namespace emulator

inline void ldmatrix_x4(u32 (&r)[4], const void* row,
                        const emulator::Location& at = emulator::Location::current()) {
  emulator::load_matrices(r, row, false, at);
}
inline void ldmatrix_x4_trans(u32 (&r)[4], const void* row,
                              const emulator::Location& at = emulator::Location::current()) {
  emulator::load_matrices(r, row, true, at);
}

inline void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const float (&c)[4],
                         __nv_bfloat16, const emulator::Location& at = emulator::Location::current()) {
  emulator::multiply(emulator::mma_m16n8k16_bf16, d, a, b, c, at);
}
inline void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const float (&c)[4], __half,
                         const emulator::Location& at = emulator::Location::current()) {
  emulator::multiply(emulator::mma_m16n8k16_f16, d, a, b, c, at);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const float (&c)[4],
                             const emulator::Location& at = emulator::Location::current()) {
  emulator::multiply(emulator::mma_m16n8k8_tf32, d, a, b, c, at);
}

// Round to nearest, ties away from zero; 13 bits of the mantissa go.
inline u32 to_tf32(float v) {
  const u32 u = std::bit_cast<u32>(v);
  if (v != v) return 0x7fffffffu;
  if ((u & 0x7fffffffu) == 0x7f800000u) return u;
  return (u + 0x1000u) & ~0x1fffu;
}

}  // namespace sysgen
