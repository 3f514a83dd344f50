// Geometric attention on CUDA: the kernels for small sizes, and for larger ones the tiled kernels. The choice
// depends on the shapes and types only.
#include <type_traits>

#include "geometric_attention/geometric_attention_launch.h"
#include "geometric_attention/geometric_attention_small_bwd_kernels.cuh"
#include "geometric_attention/geometric_attention_small_fwd_kernels.cuh"

namespace sysgen {
namespace {

// Two matrices of float64 are too large for shared memory from 128 by 128 on.
bool is_small(const GeometricAttentionScores& s) {
  return std::max(s.queries, s.keys) <= (s.dtype == DType::f64 ? 64 : 128);
}

template <class P>
LaunchConfig small_config(int64_t count, int matrices) {
  const int64_t blocks = ceil_div(count, P::GROUPS);
  check<NotImplementedError>(blocks <= kMaxGridX, "geometric_attention: needs ", blocks,
                             " thread blocks, at most ", kMaxGridX, " are possible; split the batch");
  return {dim3(static_cast<unsigned>(blocks)), dim3(P::THREADS),
          sizeof(typename P::Matrix) * P::GROUPS * matrices};
}

template <class P>
void launch_small(const GeometricAttentionFwdArgs& a, void* stream) {
  using T = typename P::T;
  GeometricSmallFwdArgs<T> k{};
  k.scores = geometric_scores<Acc<T>>(a.s);
  k.count = a.s.batch * a.s.heads;
  k.q = geometric_rows<const T>(a.s.q, a.s, a.s.queries);
  k.k = geometric_rows<const T>(a.s.k, a.s, a.s.keys);
  k.v = geometric_rows<const T>(a.s.v, a.s, a.s.keys);
  k.out = geometric_rows<T>(a.out, a.s, a.s.queries);
  k.rem = static_cast<Acc<T>*>(a.rem);
  SYSGEN_LAUNCH_TEMPLATE(geometric_attention_small_fwd_kernel, P, small_config<P>(k.count, 1), stream, k);
}

template <class P>
void launch_small(const GeometricAttentionBwdArgs& a, void* stream) {
  using T = typename P::T;
  GeometricSmallBwdArgs<T> k{};
  k.scores = geometric_scores<Acc<T>>(a.s);
  k.count = a.s.batch * a.s.heads;
  k.q = geometric_rows<const T>(a.s.q, a.s, a.s.queries);
  k.k = geometric_rows<const T>(a.s.k, a.s, a.s.keys);
  k.v = geometric_rows<const T>(a.s.v, a.s, a.s.keys);
  k.dout = geometric_rows<const T>(a.dout, a.s, a.s.queries);
  k.dq = geometric_rows<T>(a.dq, a.s, a.s.queries);
  k.dk = geometric_rows<T>(a.dk, a.s, a.s.keys);
  k.dv = geometric_rows<T>(a.dv, a.s, a.s.keys);
  k.drem = static_cast<const Acc<T>*>(a.drem);
  k.dbias = static_cast<Acc<T>*>(a.dbias);
  k.dmask = static_cast<Acc<T>*>(a.dmask);
  SYSGEN_LAUNCH_TEMPLATE(geometric_attention_small_bwd_kernel, P, small_config<P>(k.count, 2), stream, k);
}

// A warp for each (b, h) where that is enough work for one. Two large matrices leave room for one block only,
// which then has more warps.
template <class Args>
void launch_small_for_shape(const Args& a, void* stream) {
  if (a.s.batch * a.s.heads == 0) return;
  check<NotImplementedError>(a.s.width <= kMaxGridX, "geometric_attention: heads of ", a.s.width,
                             " elements, at most ", kMaxGridX, " are possible");
  constexpr int kWarps = std::is_same_v<Args, GeometricAttentionBwdArgs> ? 16 : 8;
  const int64_t longest = std::max(a.s.queries, a.s.keys);
  with_geometric_type(a.s.dtype, [&](auto element) {
    using T = decltype(element);
    if (longest <= 16 && a.s.width <= 64) {
      launch_small<GeometricSmall<T, 16, 1, 4>>(a, stream);
    } else if (longest <= 16) {
      launch_small<GeometricSmall<T, 16, 4, 1>>(a, stream);
    } else if (longest <= 64) {
      launch_small<GeometricSmall<T, 64, 4, 1>>(a, stream);
    } else if constexpr (sizeof(T) < 8) {
      launch_small<GeometricSmall<T, 128, kWarps, 1>>(a, stream);
    }
  });
}

}  // namespace

int64_t geometric_attention_fwd_cuda_scratch_bytes(const GeometricAttentionFwdArgs& args) {
  return is_small(args.s) ? 0 : geometric_attention_tiled_fwd_scratch_bytes(args);
}

int64_t geometric_attention_bwd_cuda_scratch_bytes(const GeometricAttentionBwdArgs& args) {
  return is_small(args.s) ? 0 : geometric_attention_tiled_bwd_scratch_bytes(args);
}

void geometric_attention_fwd_cuda(const GeometricAttentionFwdArgs& args, int device_index, void* stream) {
  const DeviceGuard guard(device_index);
  is_small(args.s) ? launch_small_for_shape(args, stream) : geometric_attention_tiled_fwd(args, stream);
}

void geometric_attention_bwd_cuda(const GeometricAttentionBwdArgs& args, int device_index, void* stream) {
  const DeviceGuard guard(device_index);
  is_small(args.s) ? launch_small_for_shape(args, stream) : geometric_attention_tiled_bwd(args, stream);
}

}  // namespace sysgen
