// What the launchers of the content-based operations share.
#pragma once
#include <algorithm>

#include "content/content.h"
#include "content/content_rows.cuh"
#include "device/launch.h"

namespace sysgen {

inline MemoryShape memory_shape(const MemorySizes& s) { return {s.batch, s.cells, s.width, s.heads}; }

// The kernels walk over what the grid does not cover; these bounds fill any device.
template <class P>
LaunchConfig content_grid(int64_t batch, int64_t blocks) {
  return {dim3(static_cast<unsigned>(std::clamp<int64_t>(blocks, 1, 1024)),
               static_cast<unsigned>(std::clamp<int64_t>(batch, 1, 65535))),
          dim3(P::THREADS)};
}

template <class P>
LaunchConfig content_grid_of_units(int64_t batch, int64_t units) {
  return content_grid<P>(batch, (units + P::WARPS - 1) / P::WARPS);
}

// `size` sums of each sample.
template <class P>
LaunchConfig sums_grid(const MemoryShape& s, int64_t size) {
  return content_grid<P>(s.batch, (size + P::THREADS - 1) / P::THREADS);
}

// Whether one block does all of a sample in one launch: where a warp has a few units, more launches take
// longer than the work.
template <class P>
bool one_block_is_enough(const MemoryShape& s) {
  return s.tiles() * (s.template groups<P>() + s.chunks()) <= 8 * P::WARPS;
}

// Calls f(T()) with the type of the numbers.
template <class F>
auto with_content_type(DType dtype, F f) {
  return dtype == DType::f64 ? f(double()) : f(float());
}

// Hands out pieces of a buffer, aligned for any type; without one it only counts.
class ScratchPieces {
 public:
  explicit ScratchPieces(void* buffer) : at_(static_cast<char*>(buffer)) {}
  template <class A>
  A* take(int64_t count) {
    A* const piece = at_ ? reinterpret_cast<A*>(at_ + bytes_) : nullptr;
    bytes_ += (count * static_cast<int64_t>(sizeof(A)) + 15) / 16 * 16;
    return piece;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* at_;
  int64_t bytes_ = 0;
};

}  // namespace sysgen
