// Functions that files compiled for several instruction sets share must be inlined: of one that is not, the
// linker keeps any copy, possibly that for instructions which the machine lacks.
#pragma once

#define SYSGEN_INLINE __attribute__((always_inline))
