// What the CPU kernels share: the instruction-set level in use and per-thread scratch memory.
//
// A *_cpu.cpp file is compiled once per level with SYSGEN_ISA set to its name (base, avx2, avx512,
// avx512_bf16) and puts its code into namespace sysgen::SYSGEN_ISA. Such a file includes no header with
// inline functions of its own (the linker could keep the copy compiled for the highest level): this header
// and <cstdint>, <cstddef> only.
#pragma once
#include <cstddef>
#include <cstdint>

namespace sysgen {

enum class Isa : int { base = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3 };
inline constexpr int kNumIsas = 4;

Isa isa_in_use();  // best of the machine, or SYSGEN_CPU_ISA if that names a level it has
const char* isa_name(Isa isa);
bool isa_supported(Isa isa);  // by this build and this machine
void set_isa(Isa isa);        // for tests; must be supported

// At least `bytes` bytes, 64-byte aligned, private to the calling thread and the slot, valid until the next
// request for a larger one of the same slot. Contents are undefined. Aborts the process if the machine has no
// memory left.
inline constexpr int kNumScratchSlots = 6;
void* thread_scratch(int slot, size_t bytes);

}  // namespace sysgen
