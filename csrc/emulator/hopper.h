// The host's body of device/hopper.cuh: mbarriers, TMA and wgmma.
//
// What runs on its own on the device happens here at the latest moment that the program allows: a TMA copy
// and a cp.async with an arrival come when somebody waits for their barrier (in an order of the emulator's),
// a wgmma gives its result in wgmma_wait. Until then destinations and accumulators are all ones, and operands
// must not change.
#pragma once
#include <bit>
#include <cstring>
#include <type_traits>

#include "emulator/hopper_runtime.h"
#include "emulator/memory.h"

#define __grid_constant__

namespace sysgen {
namespace emulator {

inline void read_chunk(WgmmaOperands& o, u64 descriptor, bool mn, unsigned row, unsigned chunk,
                       const Location& at) {
  OperandChunk& c = o.chunks[o.num_chunks++];
  c.address = descriptor_chunk(descriptor, mn, row, chunk, at);
  std::memcpy(c.data, c.address, 16);
}

template <class T, bool B_MN, int COUNT>
void start_wgmma(WgmmaOperands& o, float (&d)[COUNT], u64 b, bool accumulate, const Location& at) {
  static_assert(COUNT == 32 || COUNT == 64, "64 or 128 columns");
  static_assert(sizeof(T) == 2);
  const unsigned thread = current->linear % 128;
  for (unsigned i = thread; i < 4 * COUNT; i += 128)  // 16 k of 2 COUNT n, by 8
    B_MN ? read_chunk(o, b, true, i / (COUNT / 4), i % (COUNT / 4), at)
         : read_chunk(o, b, false, i / 2, i % 2, at);
  o.d = d;
  o.columns = 2 * COUNT;
  o.half = std::is_same_v<T, __half>;
  o.b = b;
  o.b_mn = B_MN;
  o.accumulate = accumulate;
  std::memcpy(o.values, d, sizeof d);
  wgmma_issue(o, at);
  std::memset(d, 0xff, sizeof d);
}

}  // namespace emulator

inline u32 shared_address(const void* p) { return emulator::shared_address_of(p); }

inline void mbarrier_init(Mbarrier& b, u32 arrivals,
                          const emulator::Location& at = emulator::Location::current()) {
  b.state = arrivals;  // seen by ThreadSanitizer: who uses the barrier must be behind it
  emulator::mbarrier_start(&b, arrivals, at);
}
inline void fence_mbarrier_init() {}
namespace emulator {
inline void look_at(const Mbarrier& b) { static_cast<void>(*const_cast<const volatile u64*>(&b.state)); }
}  // namespace emulator
inline void mbarrier_arrive(Mbarrier& b, const emulator::Location& at = emulator::Location::current()) {
  emulator::look_at(b);
  emulator::mbarrier_arrival(&b, "mbarrier_arrive", at);
}
inline void mbarrier_arrive_expect(Mbarrier& b, u32 bytes,
                                   const emulator::Location& at = emulator::Location::current()) {
  emulator::look_at(b);
  emulator::mbarrier_announce(&b, bytes, at);
  emulator::mbarrier_arrival(&b, "mbarrier_arrive_expect", at);
}
inline void mbarrier_wait(Mbarrier& b, u32 parity,
                          const emulator::Location& at = emulator::Location::current()) {
  emulator::look_at(b);
  emulator::mbarrier_wait_for(&b, parity, at);
}
inline void cp_async_arrive(Mbarrier& b, const emulator::Location& at = emulator::Location::current()) {
  emulator::look_at(b);
  emulator::mbarrier_after_copies(&b, at);
}
inline void fence_proxy_async() { emulator::proxy_fence(); }

inline void prefetch_tensor_map(const TensorMap&) {}
inline void tma_load_3d(void* destination, const TensorMap& map, int c0, int c1, int c2, Mbarrier& b,
                        const emulator::Location& at = emulator::Location::current()) {
  emulator::TensorBox t;
  std::memcpy(&t, map.opaque, sizeof t);
  if (t.magic != emulator::kTensorMagic)
    emulator::fail(at, "tma_load_3d: the tensor map %p was not made by encode_tensor_map",
                   static_cast<const void*>(&map));
  if (reinterpret_cast<uintptr_t>(&map) % 64)
    emulator::fail(at, "tma_load_3d: the tensor map %p is not aligned to 64 bytes",
                   static_cast<const void*>(&map));
  emulator::look_at(b);
  const unsigned row = t.box[0] * t.element_bytes, bytes = row * t.box[1] * t.box[2];
  if (!emulator::in_shared(destination, bytes))
    emulator::fail(at, "tma_load_3d: the destination %p is not shared memory of this block", destination);
  if (reinterpret_cast<uintptr_t>(destination) % (t.swizzle ? 1024 : 128))
    emulator::fail(at, "tma_load_3d: the destination %p is not aligned to %d bytes", destination,
                   t.swizzle ? 1024 : 128);
  emulator::Pending* copy = emulator::bulk_issue(destination, bytes, t.swizzle, &b, at);
  unsigned char line[256];
  const auto inside = [](long long i, u64 size) { return i >= 0 && static_cast<u64>(i) < size; };
  const long long first = c0 < 0 ? 0 : c0;
  const long long end = c0 + static_cast<long long>(t.box[0]) < static_cast<long long>(t.size[0])
                            ? c0 + static_cast<long long>(t.box[0])
                            : static_cast<long long>(t.size[0]);
  for (u32 k = 0; k < t.box[2]; ++k)
    for (u32 j = 0; j < t.box[1]; ++j) {
      if (!inside(c1 + static_cast<long long>(j), t.size[1]) ||
          !inside(c2 + static_cast<long long>(k), t.size[2]))
        continue;
      const unsigned char* from = t.data +
                                  static_cast<i64>(c1 + static_cast<i64>(j)) * static_cast<i64>(t.stride[0]) +
                                  static_cast<i64>(c2 + static_cast<i64>(k)) * static_cast<i64>(t.stride[1]);
      if (first >= end) continue;
      const unsigned count = static_cast<unsigned>(end - first) * t.element_bytes;
      std::memcpy(line, from + first * t.element_bytes, count);
      emulator::bulk_fill(
          copy, (k * t.box[1] + j) * row + static_cast<unsigned>(first - c0) * t.element_bytes, line, count);
    }
  std::memset(destination, 0xff, bytes);
  emulator::poison(destination, bytes);
  emulator::bulk_issued(&b, at);
}

inline void wgmma_fence(const emulator::Location& at = emulator::Location::current()) {
  emulator::wgmma_fenced(at);
}
inline void wgmma_commit(const emulator::Location& at = emulator::Location::current()) {
  emulator::wgmma_committed(at);
}
template <int PENDING, int COUNT>
void wgmma_wait(float (&)[COUNT], const emulator::Location& at = emulator::Location::current()) {
  while (const emulator::OperandChunk* c = emulator::wgmma_operand(PENDING))
    if (std::memcmp(c->address, c->data, 16)) emulator::wgmma_changed();
  while (const emulator::WgmmaResult* r = emulator::wgmma_result(PENDING))
    std::memcpy(r->d, r->values, static_cast<size_t>(r->count) * sizeof(float));
  emulator::wgmma_waited(PENDING, at);
}
template <class T, bool A_MN, bool B_MN, int COUNT>
void wgmma(float (&d)[COUNT], u64 a, u64 b, bool accumulate,
           const emulator::Location& at = emulator::Location::current()) {
  emulator::WgmmaOperands o{};
  const unsigned thread = emulator::current->linear % 128;
  A_MN ? emulator::read_chunk(o, a, true, thread / 8, thread % 8, at)
       : emulator::read_chunk(o, a, false, thread / 2, thread % 2, at);
  o.a = a;
  o.a_mn = A_MN;
  emulator::start_wgmma<T, B_MN>(o, d, b, accumulate, at);
}
template <class T, bool B_MN, int COUNT>
void wgmma(float (&d)[COUNT], const u32 (&a)[4], u64 b, bool accumulate,
           const emulator::Location& at = emulator::Location::current()) {
  emulator::WgmmaOperands o{};
  std::memcpy(o.registers, a, sizeof a);
  o.a_registers = true;
  emulator::start_wgmma<T, B_MN>(o, d, b, accumulate, at);
}

template <int REGISTERS>
void registers_decrease(const emulator::Location& at = emulator::Location::current()) {
  static_assert(REGISTERS >= 24 && REGISTERS <= 256 && REGISTERS % 8 == 0);
  emulator::warpgroup_meets("registers_decrease", at);
}
template <int REGISTERS>
void registers_increase(const emulator::Location& at = emulator::Location::current()) {
  static_assert(REGISTERS >= 24 && REGISTERS <= 256 && REGISTERS % 8 == 0);
  emulator::warpgroup_meets("registers_increase", at);
}

}  // namespace sysgen
