// AddressSanitizer and ThreadSanitizer, if the program is linked with one. The runtime is compiled without
// instrumentation and once for every kind of program: it looks at run time whether the sanitizer is there.
// libtsan exports the fibre functions, GCC 12 has no header for them.
#pragma once
#include <cstddef>

extern "C" {
#define SYSGEN_WEAK __attribute__((weak))
SYSGEN_WEAK void __sanitizer_start_switch_fiber(void** fake_stack_save, const void* bottom, size_t size);
SYSGEN_WEAK void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
SYSGEN_WEAK void __asan_poison_memory_region(const volatile void* p, size_t size);
SYSGEN_WEAK void __asan_unpoison_memory_region(const volatile void* p, size_t size);
SYSGEN_WEAK void* __tsan_get_current_fiber();
SYSGEN_WEAK void* __tsan_create_fiber(unsigned flags);
SYSGEN_WEAK void __tsan_destroy_fiber(void* fiber);
SYSGEN_WEAK void __tsan_switch_to_fiber(void* fiber, unsigned flags);
SYSGEN_WEAK void __tsan_set_fiber_name(void* fiber, const char* name);
SYSGEN_WEAK void __tsan_acquire(void* address);
SYSGEN_WEAK void __tsan_release(void* address);
#undef SYSGEN_WEAK
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#error "compile the emulator's runtime (csrc/emulator/*.cpp) without -fsanitize; only the kernels get it"
#endif

namespace sysgen::emulator {

inline bool has_asan() { return __asan_poison_memory_region != nullptr; }
inline bool has_tsan() { return __tsan_create_fiber != nullptr; }

// Happens-before edges: whoever acquires an address is ordered behind everything that was released there.
inline void hb_release(const void* address) {
  if (__tsan_release) __tsan_release(const_cast<void*>(address));
}
inline void hb_acquire(const void* address) {
  if (__tsan_acquire) __tsan_acquire(const_cast<void*>(address));
}
// A switch that by itself orders nothing.
inline void tsan_switch(void* fiber) { __tsan_switch_to_fiber(fiber, 1); }

}  // namespace sysgen::emulator
