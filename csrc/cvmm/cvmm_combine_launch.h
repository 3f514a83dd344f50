// Launches cvmm_combine_kernel: the sum over a token's routes of rows that lie in sorted order.
#pragma once
#include "cvmm/cvmm_fwd_kernels.cuh"
#include "cvmm/cvmm_launch.h"

namespace sysgen {

// out [T, h] from sorted [R, h].
template <class T>
void launch_combine(const Routing& route, int64_t h, const Acc<T>* sorted, void* out, void* stream) {
  if (route.num_tokens == 0 || h == 0) return;
  const int64_t v = 16 / sizeof(Acc<T>);
  CvmmCombineArgs<T> c{};
  c.sorted = sorted;
  c.inverse = route.inverse;
  c.num_tokens = route.num_tokens;
  c.k = route.k;
  c.h = h;
  c.out = static_cast<T*>(out);
  c.vec = h % v == 0 && copy_width(sorted, {}) == 16 && copy_width(out, {}) == 16;
  const int64_t blocks = ceil_div(route.num_tokens * ceil_div(h, v), 256);
  const LaunchConfig config{dim3(static_cast<unsigned>(std::min(blocks, kMaxGridX))), dim3(256)};
  SYSGEN_LAUNCH_TEMPLATE(cvmm_combine_kernel, T, config, stream, c);
}

}  // namespace sysgen
