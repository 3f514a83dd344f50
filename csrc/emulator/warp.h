// Barriers, and what the lanes of a warp do together.
#pragma once
#include <bit>
#include <cstdint>
#include <type_traits>

#include "emulator/runtime.h"

inline void __syncthreads(const sysgen::emulator::Location& at = sysgen::emulator::Location::current()) {
  sysgen::emulator::barrier(0, 0, "__syncthreads", at);
}
#define SYSGEN_EMULATOR_SYNCTHREADS(NAME, REDUCE)                                                            \
  inline int NAME(int value, const sysgen::emulator::Location& at = sysgen::emulator::Location::current()) { \
    return sysgen::emulator::barrier(0, 0, #NAME, at, value != 0, sysgen::emulator::Reduce::REDUCE);         \
  }
SYSGEN_EMULATOR_SYNCTHREADS(__syncthreads_count, count)
SYSGEN_EMULATOR_SYNCTHREADS(__syncthreads_and, all)
SYSGEN_EMULATOR_SYNCTHREADS(__syncthreads_or, any)
#undef SYSGEN_EMULATOR_SYNCTHREADS

inline void __syncwarp(unsigned mask = ~0u,
                       const sysgen::emulator::Location& at = sysgen::emulator::Location::current()) {
  sysgen::emulator::warp_operation(sysgen::emulator::syncwarp, mask, nullptr, at);
}

namespace sysgen::emulator {

template <class T>
uint64_t to_bits(T value) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8));
  if constexpr (sizeof(T) == 2)
    return std::bit_cast<uint16_t>(value);
  else if constexpr (sizeof(T) == 4)
    return std::bit_cast<uint32_t>(value);
  else
    return std::bit_cast<uint64_t>(value);
}
template <class T>
T from_bits(uint64_t bits) {
  if constexpr (sizeof(T) == 2)
    return std::bit_cast<T>(static_cast<uint16_t>(bits));
  else if constexpr (sizeof(T) == 4)
    return std::bit_cast<T>(static_cast<uint32_t>(bits));
  else
    return std::bit_cast<T>(bits);
}

template <class T>
T shuffle(const WarpOperation& operation, unsigned mask, T value, int argument, int width,
          const Location& at) {
  if (width < 1 || width > 32 || (width & (width - 1)))
    fail(at, "%s: width must be a power of two of at most 32, got %d", operation.name, width);
  Shuffle s{to_bits(value), 0, argument, width};
  warp_operation(operation, mask, &s, at);
  return from_bits<T>(s.result);
}

inline uint64_t vote(const WarpOperation& operation, unsigned mask, uint64_t value, const Location& at) {
  Vote v{value, 0};
  warp_operation(operation, mask, &v, at);
  return v.result;
}

}  // namespace sysgen::emulator

#define SYSGEN_EMULATOR_SHUFFLE(NAME, OPERATION, ARGUMENT)                                                 \
  template <class T>                                                                                       \
  T NAME(unsigned mask, T value, ARGUMENT argument, int width = 32,                                        \
         const sysgen::emulator::Location& at = sysgen::emulator::Location::current()) {                   \
    return sysgen::emulator::shuffle(sysgen::emulator::OPERATION, mask, value, static_cast<int>(argument), \
                                     width, at);                                                           \
  }
SYSGEN_EMULATOR_SHUFFLE(__shfl_sync, shfl, int)
SYSGEN_EMULATOR_SHUFFLE(__shfl_up_sync, shfl_up, unsigned)
SYSGEN_EMULATOR_SHUFFLE(__shfl_down_sync, shfl_down, unsigned)
SYSGEN_EMULATOR_SHUFFLE(__shfl_xor_sync, shfl_xor, int)
#undef SYSGEN_EMULATOR_SHUFFLE

#define SYSGEN_EMULATOR_VOTE(RESULT, NAME, OPERATION, VALUE, EXPRESSION)                             \
  inline RESULT NAME(unsigned mask, VALUE value,                                                     \
                     const sysgen::emulator::Location& at = sysgen::emulator::Location::current()) { \
    const uint64_t r = sysgen::emulator::vote(sysgen::emulator::OPERATION, mask, EXPRESSION, at);    \
    return static_cast<RESULT>(r);                                                                   \
  }
SYSGEN_EMULATOR_VOTE(unsigned, __ballot_sync, ballot, int, value != 0)
SYSGEN_EMULATOR_VOTE(unsigned, __reduce_add_sync, reduce_add, unsigned, value)
SYSGEN_EMULATOR_VOTE(unsigned, __reduce_min_sync, reduce_min, unsigned, value)
SYSGEN_EMULATOR_VOTE(unsigned, __reduce_max_sync, reduce_max, unsigned, value)
SYSGEN_EMULATOR_VOTE(unsigned, __reduce_and_sync, reduce_and, unsigned, value)
SYSGEN_EMULATOR_VOTE(unsigned, __reduce_or_sync, reduce_or, unsigned, value)
SYSGEN_EMULATOR_VOTE(unsigned, __reduce_xor_sync, reduce_xor, unsigned, value)
SYSGEN_EMULATOR_VOTE(int, __reduce_add_sync, reduce_add, int, static_cast<unsigned>(value))
SYSGEN_EMULATOR_VOTE(int, __reduce_min_sync, reduce_min_signed, int, static_cast<unsigned>(value))
SYSGEN_EMULATOR_VOTE(int, __reduce_max_sync, reduce_max_signed, int, static_cast<unsigned>(value))
#undef SYSGEN_EMULATOR_VOTE

inline int __any_sync(unsigned mask, int value,
                      const sysgen::emulator::Location& at = sysgen::emulator::Location::current()) {
  return __ballot_sync(mask, value, at) != 0;
}
inline int __all_sync(unsigned mask, int value,
                      const sysgen::emulator::Location& at = sysgen::emulator::Location::current()) {
  return __ballot_sync(mask, value, at) == mask;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value,
                          const sysgen::emulator::Location& at = sysgen::emulator::Location::current()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "match compares 4 or 8 bytes");
  return static_cast<unsigned>(
      sysgen::emulator::vote(sysgen::emulator::match_any, mask, sysgen::emulator::to_bits(value), at));
}

namespace sysgen {

inline u32 linear_tid() { return emulator::current->linear; }
inline u32 lane_id() { return emulator::current->lane; }
inline u32 warp_id() { return emulator::current->warp; }

inline void named_barrier(u32 id, u32 threads, const emulator::Location& at = emulator::Location::current()) {
  if (id > 15 || threads == 0 || threads % 32 != 0)
    emulator::fail(at, "named_barrier: id must be at most 15 and threads a multiple of 32, got %u and %u", id,
                   threads);
  emulator::barrier(id, threads, "named_barrier", at);
}

}  // namespace sysgen
