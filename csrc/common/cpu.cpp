#include "common/cpu.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace sysgen {
namespace {

constexpr const char* kNames[kNumIsas] = {"base", "avx2", "avx512", "avx512_bf16"};

// The x86-64-v3 and -v4 feature sets, as the compiler flags of these levels assume them.
bool machine_has(Isa isa) {
#if defined(__x86_64__)
  const auto v3 = [] {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c") &&
           __builtin_cpu_supports("lzcnt") && __builtin_cpu_supports("movbe");
  };
  const auto v4 = [&] {
    return v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
  };
  switch (isa) {
    case Isa::base:
      return true;
    case Isa::avx2:
      return v3();
    case Isa::avx512:
      return v4();
    case Isa::avx512_bf16:
      return v4() && __builtin_cpu_supports("avx512bf16");
  }
#endif
  return isa == Isa::base;
}

Isa initial_isa() {
  if (const char* wanted = std::getenv("SYSGEN_CPU_ISA"))
    for (int i = 0; i < kNumIsas; ++i)
      if (!std::strcmp(wanted, kNames[i]) && isa_supported(static_cast<Isa>(i))) return static_cast<Isa>(i);
  int best = kNumIsas - 1;
  while (!isa_supported(static_cast<Isa>(best))) --best;
  return static_cast<Isa>(best);
}

std::atomic<Isa>& current_isa() {
  static std::atomic<Isa> isa{initial_isa()};
  return isa;
}

struct ScratchSlots {
  void* data[kNumScratchSlots] = {};
  size_t bytes[kNumScratchSlots] = {};
  ~ScratchSlots() {
    for (void* p : data) std::free(p);
  }
};

}  // namespace

Isa isa_in_use() { return current_isa().load(std::memory_order_relaxed); }

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

bool isa_supported(Isa isa) { return static_cast<int>(isa) < SYSGEN_ISAS_BUILT && machine_has(isa); }

void set_isa(Isa isa) { current_isa().store(isa, std::memory_order_relaxed); }

void* thread_scratch(int slot, size_t bytes) {
  thread_local ScratchSlots slots;
  if (bytes > slots.bytes[slot]) {
    std::free(slots.data[slot]);
    const size_t rounded = (bytes + 63) / 64 * 64;
    slots.data[slot] = std::aligned_alloc(64, rounded);
    if (!slots.data[slot]) std::abort();  // callers are inside parallel regions, where nothing may throw
    slots.bytes[slot] = rounded;
  }
  return slots.data[slot];
}

}  // namespace sysgen
