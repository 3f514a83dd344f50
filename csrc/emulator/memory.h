// Shared memory, atomics, fences, ordered and cached accesses, and asynchronous copies.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulator/runtime.h"

// The same array for every thread of the block. A template or an inlined function has one per instantiation,
// as on the device.
#define SYSGEN_SHARED(T, NAME, DIMS)                                                  \
  static const char NAME##_key = 0;                                                   \
  using NAME##_array = T DIMS;                                                        \
  NAME##_array& NAME = *static_cast<NAME##_array*>(::sysgen::emulator::static_shared( \
      &NAME##_key, sizeof(NAME##_array), #NAME, ::sysgen::emulator::Location::current()))

namespace sysgen {

struct Smem {
  unsigned index = 0;
  template <class Array, unsigned ALIGNMENT = 128>
  Array& array(const emulator::Location& at = emulator::Location::current()) {
    return *static_cast<Array*>(emulator::dynamic_shared(index++, sizeof(Array), ALIGNMENT, at));
  }
  template <class T>
  T* elements(unsigned count, const emulator::Location& at = emulator::Location::current()) {
    return static_cast<T*>(emulator::dynamic_shared(index++, count * sizeof(T), 128, at));
  }
};

}  // namespace sysgen

// ---- atomics: relaxed, as on the device

namespace sysgen::emulator {

template <class T, class Update>
T atomic_update(T* p, const Update& update) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "atomics work on 4 or 8 bytes");
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  atomic_before(p);
  Bits* bits = reinterpret_cast<Bits*>(p);
  Bits old = __atomic_load_n(bits, __ATOMIC_RELAXED), updated;
  do {
    updated = std::bit_cast<Bits>(static_cast<T>(update(std::bit_cast<T>(old))));
  } while (!__atomic_compare_exchange_n(bits, &old, updated, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  atomic_after(p);
  if (updated != old) progress();
  return std::bit_cast<T>(old);
}

}  // namespace sysgen::emulator

#define SYSGEN_EMULATOR_ATOMIC(NAME, EXPRESSION)                                       \
  template <class T>                                                                   \
  T NAME(T* p, std::type_identity_t<T> value) {                                        \
    return sysgen::emulator::atomic_update(p, [&](T old) -> T { return EXPRESSION; }); \
  }
SYSGEN_EMULATOR_ATOMIC(atomicAdd, old + value)
SYSGEN_EMULATOR_ATOMIC(atomicSub, old - value)
SYSGEN_EMULATOR_ATOMIC(atomicMin, value < old ? value : old)
SYSGEN_EMULATOR_ATOMIC(atomicMax, old < value ? value : old)
SYSGEN_EMULATOR_ATOMIC(atomicAnd, old& value)
SYSGEN_EMULATOR_ATOMIC(atomicOr, old | value)
SYSGEN_EMULATOR_ATOMIC(atomicXor, old ^ value)
#undef SYSGEN_EMULATOR_ATOMIC

// An exchange that changes nothing is a turn of a spin loop: the others run.
template <class T>
T atomicExch(T* p, std::type_identity_t<T> value,
             const sysgen::emulator::Location& at = sysgen::emulator::Location::current()) {
  const T old = sysgen::emulator::atomic_update(p, [&](T) { return value; });
  if (old == value) sysgen::emulator::spin(at);
  return old;
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> value,
            const sysgen::emulator::Location& at = sysgen::emulator::Location::current()) {
  const T old = sysgen::emulator::atomic_update(p, [&](T o) { return o == expected ? value : o; });
  if (old != expected) sysgen::emulator::spin(at);
  return old;
}

inline void __threadfence() { sysgen::emulator::fence(); }
inline void __threadfence_block() { sysgen::emulator::fence(); }
inline void __nanosleep(unsigned,
                        const sysgen::emulator::Location& at = sysgen::emulator::Location::current()) {
  sysgen::emulator::spin(at);
}

// ---- accesses with a cache hint

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcg(T* p, std::type_identity_t<T> value) {
  *p = value;
}
template <class T>
void __stcs(T* p, std::type_identity_t<T> value) {
  *p = value;
}

namespace sysgen {

inline void store_16(void* p, const u32 (&v)[4],
                     const emulator::Location& at = emulator::Location::current()) {
  if (reinterpret_cast<uintptr_t>(p) % 16)
    emulator::fail(at, "store_16: the address %p is not aligned to it", p);
  if (emulator::in_shared(p, 16)) emulator::fail(at, "store_16: the address %p is shared memory", p);
  std::memcpy(p, v, 16);
}

// ---- ordered accesses

inline u32 load_acquire(const u32* p, const emulator::Location& at = emulator::Location::current()) {
  emulator::spin(at);
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
inline void store_release(u32* p, u32 value) {
  __atomic_store_n(p, value, __ATOMIC_RELEASE);
  emulator::progress();
}
inline u32 atomic_add_acq_rel(u32* p, u32 value) {
  const u32 old = __atomic_fetch_add(p, value, __ATOMIC_ACQ_REL);
  emulator::progress();
  return old;
}

// ---- shared memory, with a count of bank conflicts

template <class V>
V load_shared(const V& from, const emulator::Location& at = emulator::Location::current()) {
  if (!emulator::in_shared(&from, sizeof(V)))
    emulator::fail(at, "load_shared: %p is not shared memory of this block", static_cast<const void*>(&from));
  emulator::note_shared_access(&from, sizeof(V), at);
  return from;
}
template <class V>
void store_shared(V& to, const std::type_identity_t<V>& value,
                  const emulator::Location& at = emulator::Location::current()) {
  if (!emulator::in_shared(&to, sizeof(V)))
    emulator::fail(at, "store_shared: %p is not shared memory of this block", static_cast<void*>(&to));
  emulator::note_shared_access(&to, sizeof(V), at);
  to = value;
}

// ---- cp.async

// The copy reads its source now. The destination is lost now (all ones: NaN, index -1) and gets the data in
// cp_async_wait, the last moment at which the hardware may deliver it. So a read in between, or a thread that
// still needs the old contents, goes wrong in every run.
template <int BYTES>
void cp_async(void* destination, const void* source, bool valid = true,
              const emulator::Location& at = emulator::Location::current()) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
  if (reinterpret_cast<uintptr_t>(destination) % BYTES)
    emulator::fail(at, "cp.async of %d bytes: the destination %p is not aligned to them", BYTES, destination);
  if (reinterpret_cast<uintptr_t>(source) % BYTES)
    emulator::fail(at, "cp.async of %d bytes: the source %p is not aligned to them", BYTES, source);
  if (!emulator::in_shared(destination, BYTES))
    emulator::fail(at, "cp.async: the destination %p is not shared memory of this block", destination);
  if (valid && emulator::in_shared(source, BYTES))
    emulator::fail(at, "cp.async: the source %p is shared memory", source);
  emulator::note_shared_access(destination, BYTES, at);
  emulator::AsyncCopy& copy = emulator::async_issue(BYTES, at);
  copy.destination = static_cast<unsigned char*>(destination);
  if (valid)
    std::memcpy(copy.data, source, BYTES);
  else
    std::memset(copy.data, 0, BYTES);
  std::memset(destination, 0xff, BYTES);
  emulator::poison(destination, BYTES);
}
inline void cp_async_commit(const emulator::Location& at = emulator::Location::current()) {
  emulator::async_commit(at);
}
template <int PENDING>
void cp_async_wait() {
  while (const emulator::AsyncCopy* copy = emulator::async_arrived(PENDING)) {
    emulator::unpoison(copy->destination, copy->bytes);
    std::memcpy(copy->destination, copy->data, copy->bytes);
  }
}

}  // namespace sysgen
