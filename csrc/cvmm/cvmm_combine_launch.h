// Launches cvmm_combine_kernel: the sum over a token's routes of their rows.
#pragma once
#include "cvmm/cvmm_fwd_kernels.cuh"
#include "cvmm/cvmm_launch.h"

namespace sysgen {

struct TokenRange {
  int64_t first, count;
};

// Those tokens' rows of out [T, h]. Their routes' rows lie in sorted order, or by_route behind each other.
template <class T>
void launch_combine(const Routing& route, TokenRange tokens, int64_t h, const Acc<T>* rows, bool by_route,
                    void* out, void* stream) {
  if (tokens.count == 0 || h == 0) return;
  const int64_t v = 16 / sizeof(Acc<T>);
  CvmmCombineArgs<T> c{};
  c.sorted = rows;
  c.inverse = route.inverse + tokens.first * route.k;
  c.num_tokens = tokens.count;
  c.k = route.k;
  c.h = h;
  c.out = static_cast<T*>(out) + tokens.first * h;
  c.vec = h % v == 0 && copy_width(c.sorted, {}) == 16 && copy_width(c.out, {}) == 16;
  c.by_route = by_route;
  const int64_t blocks = ceil_div(tokens.count * ceil_div(h, v), 256);
  const LaunchConfig config{dim3(static_cast<unsigned>(std::min(blocks, kMaxGridX))), dim3(256)};
  SYSGEN_LAUNCH_TEMPLATE(cvmm_combine_kernel, T, config, stream, c);
}

// out [T, h] from sorted [R, h].
template <class T>
void launch_combine(const Routing& route, int64_t h, const Acc<T>* sorted, void* out, void* stream) {
  launch_combine<T>(route, {0, route.num_tokens}, h, sorted, false, out, stream);
}

}  // namespace sysgen
