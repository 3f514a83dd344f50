// What the two launchers of the CVMM family share.
#pragma once
#include <algorithm>
#include <initializer_list>

#include "common/check.h"
#include "cvmm/cvmm.h"
#include "cvmm/cvmm_tiles.cuh"
#include "device/launch.h"

namespace sysgen {

inline constexpr int64_t kMaxGridX = 2147483647;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

inline unsigned grid_x(const char* op, int64_t blocks) {
  check<NotImplementedError>(blocks <= kMaxGridX, op, ": needs ", blocks, " thread blocks, at most ",
                             kMaxGridX, " are possible; split the tokens or the experts");
  return static_cast<unsigned>(blocks);
}

// The grid of a persistent kernel: as many blocks as the machine holds at once, fewer if there are fewer
// tiles. Results do not depend on it. `limit` is for tests.
inline constexpr int64_t kNoLimit = kMaxGridX;
inline constexpr int64_t kSharedOfMultiprocessor = 164 << 10, kSharedOfSystem = 1 << 10;  // sm_80; a block
template <class P, class Shared>
unsigned persistent_blocks(const char* kernel, int64_t tiles, int64_t limit) {
  static_assert(P::MIN_BLOCKS * (int64_t{sizeof(Shared)} + kSharedOfSystem) <= kSharedOfMultiprocessor,
                "MIN_BLOCKS do not fit into the shared memory of a multiprocessor");
  const int64_t resident = std::min<int64_t>(limit, int64_t{P::MIN_BLOCKS} * num_multiprocessors(kernel));
  return static_cast<unsigned>(std::clamp<int64_t>(tiles, 1, resident));
}

// The widest copy (16, 8 or 4 bytes, else 1) whose width divides the address and all the byte distances.
inline int copy_width(const void* data, std::initializer_list<int64_t> bytes) {
  uint64_t all = reinterpret_cast<uintptr_t>(data) | 16;
  for (int64_t b : bytes) all |= static_cast<uint64_t>(b);
  const int width = static_cast<int>(all & -all);
  return width < 4 ? 1 : width;
}

template <class T>
RowOperand<T> row_operand(const Rows& rows, int64_t k, int64_t width) {
  const int64_t size = sizeof(T);
  return {static_cast<const T*>(rows.data), rows.stride,
          rows.routed ? 1 : static_cast<int>(std::max<int64_t>(k, 1)),
          copy_width(rows.data, {rows.stride * size, width * size})};
}

// Small tiles where large ones would be mostly padding, or too few for the machine. Depends on shapes only.
inline bool prefers_small_tiles(const CvmmFwdArgs& a) {
  const int64_t routes = a.route.num_routes(), experts = std::max<int64_t>(a.route.num_experts, 1);
  const int64_t large_tiles = (routes / 128 + std::min(routes, experts)) * ceil_div(a.h, 128);
  return a.h <= 64 || routes / experts < 96 || large_tiles < 264;
}

template <class P>
struct ProductType {
  using type = P;
};

}  // namespace sysgen
