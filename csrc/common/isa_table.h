// Calls the copy of a function that was compiled for the instruction set in use. A family's dispatch file
// declares the copies with SYSGEN_EACH_ISA(DECLARE), DECLARE(isa) being its own macro.
#pragma once
#include "common/cpu.h"

#if SYSGEN_ISAS_BUILT > 1
#define SYSGEN_EACH_ISA(DECLARE) DECLARE(base) DECLARE(avx2) DECLARE(avx512) DECLARE(avx512_bf16)
#define SYSGEN_ISA_TABLE(function) {base::function, avx2::function, avx512::function, avx512_bf16::function}
#else
#define SYSGEN_EACH_ISA(DECLARE) DECLARE(base)
#define SYSGEN_ISA_TABLE(function) {base::function}
#endif

#define SYSGEN_ISA_CALL(function, ...)                                              \
  static constexpr decltype(&base::function) kTable[] = SYSGEN_ISA_TABLE(function); \
  return kTable[static_cast<int>(isa_in_use())](__VA_ARGS__)
