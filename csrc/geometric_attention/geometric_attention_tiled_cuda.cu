// Launches the tiled kernels of geometric attention: chooses the product for the type and the width.
#include "geometric_attention/geometric_attention_launch.h"
#include "geometric_attention/geometric_attention_tiled_fwd_kernels.cuh"

namespace sysgen {
namespace {

constexpr const char* kOp = "geometric_attention";

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
      if (s.width <= 64) return f(ProductType<GeometricHalfProduct<T, 64, 64, 32, 2>>());
      if (s.width <= 128) return f(ProductType<GeometricHalfProduct<T, 128, 64, 32, 1>>());
      f(ProductType<GeometricHalfProduct<T, 256, 64, 16, 1>>());
    }
  });
}

void check_sizes(const GeometricAttentionScores& s) {
  check<NotImplementedError>(s.keys < (int64_t{1} << 30), kOp, ": takes fewer than 2^30 keys, got ", s.keys);
}

template <class P>
void launch_fwd(const GeometricAttentionFwdArgs& a, void* stream) {
  using T = typename P::T;
  check_sizes(a.s);
  GeometricTiledFwdArgs<T> k{};
  k.s = geometric_scores<Acc<T>>(a.s);
  k.q = geometric_rows<const T>(a.s.q, a.s, a.s.queries);
  k.k = geometric_rows<const T>(a.s.k, a.s, a.s.keys);
  k.v = geometric_rows<const T>(a.s.v, a.s, a.s.keys);
  k.out = geometric_rows<T>(a.out, a.s, a.s.queries);
  k.rem = static_cast<Acc<T>*>(a.rem);
  k.row_blocks = ceil_div(a.s.queries, P::ROWS);
  k.parts = P::STAGED ? 1 : std::max<int64_t>(ceil_div(a.s.width, P::DIM), 1);
  k.items = a.s.batch * a.s.heads * k.row_blocks * k.parts;
  if (k.items == 0) return;
  const LaunchConfig config{dim3(static_cast<unsigned>(std::min<int64_t>(k.items, kMaxGridX))),
                            dim3(P::THREADS), sizeof(GeometricTiledFwdShared<P>)};
  SYSGEN_LAUNCH_TEMPLATE(geometric_attention_tiled_fwd_kernel, P, config, stream, k);
}

}  // namespace

int64_t geometric_attention_tiled_fwd_scratch_bytes(const GeometricAttentionFwdArgs&) { return 0; }

void geometric_attention_tiled_fwd(const GeometricAttentionFwdArgs& args, void* stream) {
  with_fwd_product(args.s, [&](auto product) { launch_fwd<typename decltype(product)::type>(args, stream); });
}

}  // namespace sysgen
