// Sizes of dynamic shared memory, for launchers whose arrays depend on the sizes of a call.
#pragma once
#include <algorithm>
#include <cstddef>

namespace sysgen {

inline constexpr size_t kStaticShared = 1 << 10;  // of such a kernel, at most

// Bytes of dynamic shared memory that a block can have on a device: `most` counts static arrays too.
inline size_t shared_beside_static(int most) {
  return static_cast<size_t>(std::max(most - static_cast<int>(kStaticShared), 0));
}

// What to launch with for an array of so many bytes. A launch asks the driver for more than 48 KiB only if
// the dynamic part alone is more: where static arrays would make it so, a little more is taken.
inline size_t shared_to_launch(size_t bytes) {
  constexpr size_t kUnasked = 48 << 10;
  const size_t whole = (bytes + 127) / 128 * 128;
  return whole + kStaticShared > kUnasked ? std::max(whole, kUnasked + 128) : whole;
}

}  // namespace sysgen
