// Memory of large results on the CPU. What the C library takes from the system for one is given back when the
// result is freed, and the next call pays for clean pages again: more time than many kernels need themselves.
// Here blocks have huge pages and are kept, up to a limit, for the next result of about their size.
#pragma once
#include <cstddef>

namespace sysgen {

inline constexpr std::size_t kMostKept = std::size_t{256} << 20;  // bytes of blocks that nobody uses

// At least `bytes`, not initialised; its size goes into `size`. Null if the system has no memory.
void* take_block(std::size_t bytes, std::size_t& size);
void return_block(void* block, std::size_t size);

// Kept blocks go back to the system; how many bytes.
std::size_t release_kept_blocks();

}  // namespace sysgen
