// What the conformance programs share: inputs, rows of output and the memory they live in.
#pragma once
#include <cstdio>
#include <cstring>
#include <vector>

#include "device/launch.h"

namespace conformance {

using namespace sysgen;

constexpr unsigned kMaxRows = 64, kInputs = 1024;
constexpr u32 kUnwritten = 0xdeadbeefu;

__host__ __device__ inline u32 mix(u32 x) {  // a hash: arbitrary, the same everywhere
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ x >> 16;
}

struct Arguments {
  u32* out;       // [kMaxRows, 32]
  u32* scratch;   // [kInputs], zero
  const u32* in;  // [kInputs], mix(i); 16-byte aligned
};

struct Rows {
  u32* out;
  u32 count = 0;
  __device__ void put(u32 value, u32 warp = 0) {  // of one warp; all threads call it
    if (warp_id() == warp) out[count * 32 + lane_id()] = value;
    ++count;
  }
  __device__ void put(int value) { put(static_cast<u32>(value)); }
  __device__ void put(float value) { put(__float_as_uint(value)); }
};

// Small integers: every product and every sum is exact.
__device__ inline float small_integer(u32 seed, int range) {
  return static_cast<float>(static_cast<int>(mix(seed) % (2 * range + 1)) - range);
}

#if defined(SYSGEN_EMULATOR)
template <class T>
struct DeviceArray {
  std::vector<T> values;
  explicit DeviceArray(const std::vector<T>& v) : values(v) {}
  T* data() { return values.data(); }
  std::vector<T> to_host() { return values; }
};
#else
template <class T>
struct DeviceArray {
  T* values = nullptr;
  size_t count;
  explicit DeviceArray(const std::vector<T>& v) : count(v.size()) {
    throw_on_cuda_error(cudaMalloc(reinterpret_cast<void**>(&values), count * sizeof(T)), "cudaMalloc");
    throw_on_cuda_error(cudaMemcpy(values, v.data(), count * sizeof(T), cudaMemcpyHostToDevice),
                        "cudaMemcpy");
  }
  ~DeviceArray() { cudaFree(values); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  T* data() { return values; }
  std::vector<T> to_host() {
    std::vector<T> v(count);
    throw_on_cuda_error(cudaMemcpy(v.data(), values, count * sizeof(T), cudaMemcpyDeviceToHost),
                        "cudaMemcpy");
    return v;
  }
};
#endif

// Prints the rows that launch(arguments) has written.
template <class Launch>
void print_rows(const char* name, const Launch& launch) {
  std::vector<u32> input(kInputs);
  for (u32 i = 0; i < kInputs; ++i) input[i] = mix(i);
  const std::vector<u32> unwritten(kMaxRows * 32, kUnwritten), zeros(kInputs);
  DeviceArray<u32> out(unwritten), scratch(zeros), in(input);
  launch(Arguments{out.data(), scratch.data(), in.data()});
  const std::vector<u32> rows = out.to_host();
  for (u32 r = 0; r < kMaxRows && rows[r * 32] != kUnwritten; ++r) {
    std::printf("%s.%u", name, r);
    for (u32 lane = 0; lane < 32; ++lane) std::printf(" %08x", rows[r * 32 + lane]);
    std::printf("\n");
  }
}

}  // namespace conformance
