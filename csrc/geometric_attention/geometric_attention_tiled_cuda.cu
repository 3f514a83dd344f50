// Launches the tiled kernels of geometric attention: chooses the product for the type and the width.
#include "geometric_attention/geometric_attention_launch.h"
#include "geometric_attention/geometric_attention_tiled_bwd_kernels.cuh"
#include "geometric_attention/geometric_attention_tiled_fwd_kernels.cuh"

namespace sysgen {
namespace {

constexpr const char* kOp = "geometric_attention";
constexpr size_t kSharedBytes = 163 * 1024;  // that a block may have on sm_80

template <class F>
void with_fwd_product(const GeometricAttentionScores& s, F f) {
  with_geometric_type(s.dtype, [&](auto t) {
    using T = decltype(t);
    if constexpr (sizeof(T) == 8) {
      f(ProductType<GeometricSimtProduct<T, 64, 32, 16, false, 1>>());
    } else if constexpr (sizeof(T) == 4) {
      if (s.width <= 64) return f(ProductType<GeometricSimtProduct<T, 64, 64, 32, true, 1>>());
      if (s.width <= 128) return f(ProductType<GeometricSimtProduct<T, 128, 32, 16, true, 2>>());
      f(ProductType<GeometricSimtProduct<T, 128, 32, 16, false, 2>>());
    } else {
      if (s.width <= 64) return f(ProductType<GeometricHalfProduct<T, 64, 64, 64, 32, 2>>());
      if (s.width <= 128) return f(ProductType<GeometricHalfProduct<T, 128, 128, 64, 32, 1>>());
      f(ProductType<GeometricHalfProduct<T, 256, 256, 64, 16, 1>>());
    }
  });
}

void check_sizes(const GeometricAttentionScores& s) {
  check<NotImplementedError>(s.keys < (int64_t{1} << 30), kOp, ": takes fewer than 2^30 keys, got ", s.keys);
}

template <class P>
void launch_fwd(const GeometricAttentionFwdArgs& a, void* stream) {
  using T = typename P::T;
  static_assert(sizeof(GeometricTiledFwdShared<P>) <= kSharedBytes);
  check_sizes(a.s);
  GeometricTiledFwdArgs<T> k{};
  k.s = geometric_scores<Acc<T>>(a.s);
  k.q = geometric_rows<const T>(a.s.q, a.s, a.s.queries);
  k.k = geometric_rows<const T>(a.s.k, a.s, a.s.keys);
  k.v = geometric_rows<const T>(a.s.v, a.s, a.s.keys);
  k.out = geometric_rows<T>(a.out, a.s, a.s.queries);
  k.rem = static_cast<Acc<T>*>(a.rem);
  k.row_blocks = ceil_div(a.s.queries, P::ROWS);
  k.parts = std::max<int64_t>(ceil_div(a.s.width, P::COLUMNS), 1);
  k.items = a.s.batch * a.s.heads * k.row_blocks * k.parts;
  if (k.items == 0) return;
  const LaunchConfig config{dim3(static_cast<unsigned>(std::min<int64_t>(k.items, kMaxGridX))),
                            dim3(P::THREADS), sizeof(GeometricTiledFwdShared<P>)};
  SYSGEN_LAUNCH_TEMPLATE(geometric_attention_tiled_fwd_kernel, P, config, stream, k);
}

// The more rows a block has, the less
// often dk and dv are read and written.
template <class F>
void with_bwd_product(const GeometricAttentionScores& s, F f) {
  with_geometric_type(s.dtype, [&](auto t) {
    using T = decltype(t);
    if constexpr (sizeof(T) == 8) {
      f(ProductType<GeometricSimtProduct<T, 32, 32, 16, false, 1>>());
    } else if constexpr (sizeof(T) == 4) {
      if (s.width <= 64) return f(ProductType<GeometricSimtProduct<T, 64, 48, 16, true, 1>>());
      if (s.width <= 128) return f(ProductType<GeometricSimtProduct<T, 128, 32, 16, true, 1>>());
      f(ProductType<GeometricSimtProduct<T, 128, 32, 16, false, 1>>());
    } else {
      if (s.width <= 64) return f(ProductType<GeometricHalfProduct<T, 64, 64, 64, 16, 1>>());
      if (s.width <= 128) return f(ProductType<GeometricHalfProduct<T, 128, 128, 48, 16, 1>>());
      f(ProductType<GeometricHalfProduct<T, 256, 128, 32, 16, 1>>());
    }
  });
}

// Scratch: carries, dk, dv, all in the accumulator type.
struct BwdPlan {
  int64_t row_blocks, segments, parts, windows, pitch, items, carries, sums;
};

template <class P>
BwdPlan bwd_plan(const GeometricAttentionBwdArgs& a) {
  constexpr int64_t kBlocks = 264, kMaxSegments = 16;  // two blocks for every multiprocessor of an H200
  const int64_t heads = a.s.batch * a.s.heads;
  BwdPlan p{};
  p.row_blocks = ceil_div(a.s.queries, P::ROWS);
  p.parts = std::max<int64_t>(ceil_div(a.s.width, P::COLUMNS), 1);
  p.segments = std::clamp<int64_t>(ceil_div(kBlocks, std::max<int64_t>(heads * p.parts, 1)), 1,
                                   std::clamp<int64_t>(p.row_blocks, 1, kMaxSegments));
  p.windows = ceil_div(a.s.keys + P::ROWS, P::W);
  p.pitch = round_up(a.s.width, 2);
  p.items = heads * p.segments * p.parts;
  p.carries = round_up(p.items * p.windows * P::ROWS, 32);
  p.sums = round_up(p.segments * heads * a.s.keys * p.pitch, 32);
  return p;
}

template <class P>
int64_t bwd_scratch_bytes(const GeometricAttentionBwdArgs& a) {
  const BwdPlan p = bwd_plan<P>(a);
  return (p.carries + 2 * p.sums) * static_cast<int64_t>(sizeof(typename P::A));
}

template <class P>
void launch_bwd(const GeometricAttentionBwdArgs& a, void* stream) {
  using T = typename P::T;
  using A = typename P::A;
  static_assert(sizeof(GeometricTiledBwdShared<P>) <= kSharedBytes);
  check_sizes(a.s);
  const BwdPlan plan = bwd_plan<P>(a);
  if (plan.items == 0) return;
  GeometricTiledBwdArgs<T> k{};
  k.s = geometric_scores<A>(a.s);
  k.q = geometric_rows<const T>(a.s.q, a.s, a.s.queries);
  k.k = geometric_rows<const T>(a.s.k, a.s, a.s.keys);
  k.v = geometric_rows<const T>(a.s.v, a.s, a.s.keys);
  k.dout = geometric_rows<const T>(a.dout, a.s, a.s.queries);
  k.drem = static_cast<const A*>(a.drem);
  k.dq = geometric_rows<T>(a.dq, a.s, a.s.queries);
  k.dbias = static_cast<A*>(a.dbias);
  k.dmask = static_cast<A*>(a.dmask);
  k.carries = static_cast<A*>(a.scratch);
  k.dk = k.carries + plan.carries;
  k.dv = k.dk + plan.sums;
  k.row_blocks = plan.row_blocks;
  k.segments = plan.segments;
  k.parts = plan.parts;
  k.windows = plan.windows;
  k.pitch = plan.pitch;
  k.items = plan.items;
  const LaunchConfig config{dim3(static_cast<unsigned>(std::min<int64_t>(k.items, kMaxGridX))),
                            dim3(P::THREADS), sizeof(GeometricTiledBwdShared<P>)};
  SYSGEN_LAUNCH_TEMPLATE(geometric_attention_tiled_bwd_kernel, P, config, stream, k);

  const int64_t blocks = ceil_div(a.s.batch * a.s.heads * a.s.keys * plan.pitch / 2, 256);
  if (blocks == 0) return;
  const LaunchConfig sum_config{dim3(static_cast<unsigned>(std::min<int64_t>(blocks, kMaxGridX))), dim3(256)};
  GeometricTiledSumArgs<T> sum{};
  sum.segments = plan.segments;
  sum.batch = a.s.batch;
  sum.heads = a.s.heads;
  sum.keys = a.s.keys;
  sum.width = a.s.width;
  sum.pitch = plan.pitch;
  sum.sums = k.dk;
  sum.out = geometric_rows<T>(a.dk, a.s, a.s.keys);
  sum.scale = k.s.scale;
  SYSGEN_LAUNCH_TEMPLATE(geometric_attention_tiled_sum_kernel, T, sum_config, stream, sum);
  sum.sums = k.dv;
  sum.out = geometric_rows<T>(a.dv, a.s, a.s.keys);
  sum.scale = 1;
  SYSGEN_LAUNCH_TEMPLATE(geometric_attention_tiled_sum_kernel, T, sum_config, stream, sum);
}

}  // namespace

int64_t geometric_attention_tiled_fwd_scratch_bytes(const GeometricAttentionFwdArgs&) { return 0; }

void geometric_attention_tiled_fwd(const GeometricAttentionFwdArgs& args, void* stream) {
  with_fwd_product(args.s, [&](auto product) { launch_fwd<typename decltype(product)::type>(args, stream); });
}

int64_t geometric_attention_tiled_bwd_scratch_bytes(const GeometricAttentionBwdArgs& args) {
  int64_t bytes = 0;
  with_bwd_product(args.s,
                   [&](auto product) { bytes = bwd_scratch_bytes<typename decltype(product)::type>(args); });
  return bytes;
}

void geometric_attention_tiled_bwd(const GeometricAttentionBwdArgs& args, void* stream) {
  with_bwd_product(args.s, [&](auto product) { launch_bwd<typename decltype(product)::type>(args, stream); });
}

}  // namespace sysgen
