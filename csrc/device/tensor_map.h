// Makes TensorMaps on the host: with the driver, whose entry point is looked up at run time, or for the
// emulator.
#pragma once
#include "device/hopper.cuh"
#include "device/launch.h"

#if !defined(SYSGEN_EMULATOR)
#include <cuda.h>  // types only: nothing of libcuda is linked
#endif

namespace sysgen {

// `count` matrices of 2-byte elements, and the box that one tma_load_3d copies: rows of 128 bytes, swizzled
// by 128.
struct MatrixStack {
  const void* data;
  u64 columns, rows, count;     // a row is contiguous
  u64 row_bytes, matrix_bytes;  // from one row, or matrix, to the next
  u32 box_rows;
};
inline constexpr u32 kBoxColumns = 64;

// What TMA demands of the address and the strides.
inline bool tma_can_read(const MatrixStack& m) {
  constexpr u64 kMaxSize = u64{1} << 32, kMaxStride = u64{1} << 40;
  const auto size = [](u64 n) { return n > 0 && n <= kMaxSize; };
  const auto stride = [](u64 bytes) { return bytes > 0 && bytes < kMaxStride && bytes % 16 == 0; };
  return reinterpret_cast<u64>(m.data) % 16 == 0 && size(m.columns) && size(m.rows) && size(m.count) &&
         stride(m.row_bytes) && stride(m.matrix_bytes) && m.box_rows > 0 && m.box_rows <= 256;
}

#if defined(SYSGEN_EMULATOR)
inline bool encode_tensor_map(TensorMap& map, const MatrixStack& m) {
  if (!tma_can_read(m)) return false;
  emulator::TensorBox t{};
  t.magic = emulator::kTensorMagic;
  t.data = static_cast<const unsigned char*>(m.data);
  t.size[0] = m.columns, t.size[1] = m.rows, t.size[2] = m.count;
  t.stride[0] = m.row_bytes, t.stride[1] = m.matrix_bytes;
  t.box[0] = kBoxColumns, t.box[1] = m.box_rows, t.box[2] = 1;
  t.element_bytes = 2;
  t.swizzle = 128;
  static_assert(sizeof t <= sizeof map.opaque);
  std::memcpy(map.opaque, &t, sizeof t);
  return true;
}
#else
using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                                 CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                                 CUtensorMapFloatOOBfill);

// Null if the driver is older than TMA.
inline EncodeTiled encode_tiled() {
  static const EncodeTiled entry = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
    const cudaError_t error =
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
    if (error != cudaSuccess || result != cudaDriverEntryPointSuccess) {
      cudaGetLastError();
      found = nullptr;
    }
    return reinterpret_cast<EncodeTiled>(found);
  }();
  return entry;
}

// False if TMA cannot read this.
inline bool encode_tensor_map(TensorMap& map, const MatrixStack& m) {
  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) && alignof(TensorMap) >= alignof(CUtensorMap));
  if (!tma_can_read(m) || !encode_tiled()) return false;
  const cuuint64_t sizes[] = {m.columns, m.rows, m.count}, strides[] = {m.row_bytes, m.matrix_bytes};
  const cuuint32_t box[] = {kBoxColumns, m.box_rows, 1}, steps[] = {1, 1, 1};
  return encode_tiled()(reinterpret_cast<CUtensorMap*>(&map), CU_TENSOR_MAP_DATA_TYPE_UINT16, 3,
                        const_cast<void*>(m.data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                        CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}
#endif

}  // namespace sysgen
