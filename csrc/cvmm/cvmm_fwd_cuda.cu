// Launches cvmm_fwd: chooses the product for the types and the tile for the shapes.
#include "cvmm/cvmm_fwd_kernels.cuh"
#include "cvmm/cvmm_hopper.h"
#include "cvmm/cvmm_launch.h"

namespace sysgen {
namespace {

// Stages: as many as let two large tiles (four small ones) share the 164 KiB of an sm_80 multiprocessor.
template <class W, bool KN>
constexpr int kStages = sizeof(W) == 4 || !KN ? 3 : 4;
template <class T, class W, bool KN>
using HalfLarge = HalfProduct<T, W, 128, 128, 2, 4, false, KN, kStages<W, KN>, 2>;
template <class T, class W, bool KN>
using HalfSmall = HalfProduct<T, W, 64, 64, 2, 2, false, KN, kStages<W, KN>, 4>;
// For groups of few rows, which wait for the weights: all warps side by side along h, so that none is
// padding, and 50 to 100 KiB in flight on a multiprocessor.
template <class T, class W, bool KN>
using HalfSlim = HalfProduct<T, W, 64, 128, 1, 4, false, KN, sizeof(W) == 4 ? 3 : 5, 2>;
template <bool X3>
using Tf32 = Tf32Product<X3, 128, X3 ? 64 : 128, X3 ? 4 : 2, X3 ? 2 : 4, false, 4, 2>;
using SimtFloat = SimtProduct<float, 2, 2, 4, 16, 3, 4>;
using SimtDouble = SimtProduct<double, 4, 2, 4, 16, 2, 3>;

// Small tiles where large ones would be mostly padding, or too few for the machine. Depends on shapes only.
bool prefers_small_tiles(const CvmmFwdArgs& a) {
  const int64_t routes = a.route.num_routes(), experts = std::max<int64_t>(a.route.num_experts, 1);
  const int64_t large_tiles = (routes / 128 + std::min(routes, experts)) * ceil_div(a.h, 128);
  return a.h <= 64 || routes / experts < 96 || large_tiles < 264;
}

// Slim tiles where an expert has so few routes that one tile holds them, if there are enough for the machine.
bool prefers_slim_tiles(const CvmmFwdArgs& a) {
  const int64_t routes = a.route.num_routes(), experts = a.route.num_experts;
  return a.h > 64 && routes <= 48 * experts && std::min(routes, experts) * ceil_div(a.h, 128) >= 132;
}

// True if the rows of w in memory run along h. A dimension of size 1 may have any stride.
bool w_runs_along_h(const CvmmFwdArgs& a) {
  if (a.w_stride_d == 1 && a.h == 1) return false;
  if (a.w_stride_h == 1 || a.h <= 1) return true;
  check(a.w_stride_d == 1 || a.d <= 1 || a.route.num_experts == 0,
        "cvmm: weight must have an inner stride of 1 along d or h, got strides ", a.w_stride_d, " and ",
        a.w_stride_h, "; make it contiguous");
  return false;
}

template <class T, class W, class F>
void with_half_product(const CvmmFwdArgs& a, F f) {
  const bool kn = w_runs_along_h(a);
  if (prefers_slim_tiles(a)) {
    kn ? f(ProductType<HalfSlim<T, W, true>>()) : f(ProductType<HalfSlim<T, W, false>>());
  } else if (prefers_small_tiles(a)) {
    kn ? f(ProductType<HalfSmall<T, W, true>>()) : f(ProductType<HalfSmall<T, W, false>>());
  } else {
    kn ? f(ProductType<HalfLarge<T, W, true>>()) : f(ProductType<HalfLarge<T, W, false>>());
  }
}

template <class F>
void with_product(const CvmmFwdArgs& a, F f) {
  const bool master = a.w_dtype != a.dtype;
  switch (a.dtype) {
    case DType::f64:
      return f(ProductType<SimtDouble>());
    case DType::f32:
      if (a.precision == Precision::ieee) return f(ProductType<SimtFloat>());
      return a.precision == Precision::tf32 ? f(ProductType<Tf32<false>>()) : f(ProductType<Tf32<true>>());
    case DType::bf16:
      return master ? with_half_product<bf16, float>(a, f) : with_half_product<bf16, bf16>(a, f);
    case DType::f16:
      return master ? with_half_product<f16, float>(a, f) : with_half_product<f16, f16>(a, f);
    default:
      throw TypeError(cat("cvmm: unsupported dtype ", name_of(a.dtype)));
  }
}

// Scratch: the rows in sorted order, if they are reduced, then the column tiles' shares of dot, if there are
// several. Both in the accumulator type.
struct Scratch {
  int64_t sorted_bytes, dot_bytes;
};
template <class P>
Scratch scratch_of(const CvmmFwdArgs& a) {
  const int64_t size = sizeof(Acc<typename P::T>), n_tiles = ceil_div(a.h, P::BN),
                routes = a.route.num_routes();
  return {a.out && a.reduce ? round_up(routes * a.h * size, 256) : 0,
          a.dot && n_tiles > 1 ? n_tiles * routes * size : 0};
}

template <class P, class Args>
bool takes_hopper_path(const CvmmFwdArgs& a, const Args& k, void* stream) {
  if constexpr (sizeof(typename P::T) == 2 && std::is_same_v<typename P::T, typename P::W>)
    return cvmm_fwd_hopper(a, k, P::BN, stream);
  return false;
}

template <class P>
void launch_product(const CvmmFwdArgs& a, void* stream, int64_t max_blocks = kNoLimit) {
  using T = typename P::T;
  using W = typename P::W;
  const Scratch scratch = scratch_of<P>(a);
  const int64_t routes = a.route.num_routes(), n_tiles = ceil_div(a.h, P::BN);
  const bool kn = w_runs_along_h(a);
  const int64_t w_size = sizeof(W), row = kn ? a.w_stride_d : a.w_stride_h;
  CvmmFwdKernelArgs<T, W> k{};
  k.order = a.route.order;
  k.offsets = a.route.offsets;
  k.num_routes = routes;
  k.num_experts = a.route.num_experts;
  k.d = a.d;
  k.h = a.h;
  k.n_tiles = static_cast<int>(n_tiles);
  k.x = row_operand<T>(a.x, a.route.k, a.d);
  k.w = static_cast<const W*>(a.w);
  k.w_stride_e = a.w_stride_e;
  k.w_stride_row = row;
  k.w_kn = kn;
  k.w_vec = copy_width(a.w, {(kn ? a.h : a.d) * w_size, (kn ? a.d : a.h) > 1 ? row * w_size : 0,
                             a.route.num_experts > 1 ? a.w_stride_e * w_size : 0});
  k.gate = static_cast<const Acc<T>*>(a.gate);
  k.bias = static_cast<const Acc<T>*>(a.bias);
  k.relu = a.activation == Activation::relu;
  if (scratch.sorted_bytes) {
    k.sorted = static_cast<Acc<T>*>(a.scratch);
    k.vec_out = copy_width(k.sorted, {a.h * static_cast<int64_t>(sizeof(Acc<T>))}) == 16;
  } else if (!a.reduce) {
    k.out = static_cast<T*>(a.out);
    k.vec_out = copy_width(k.out, {a.h * static_cast<int64_t>(sizeof(T))}) == 16;
  }
  k.other = row_operand<T>(a.other, a.route.k, a.h);
  if (scratch.dot_bytes) {
    k.dot_tiles = reinterpret_cast<Acc<T>*>(static_cast<char*>(a.scratch) + scratch.sorted_bytes);
  } else {
    k.dot = static_cast<Acc<T>*>(a.dot);
  }

  if (routes > 0 && n_tiles > 0 && (a.out || a.dot)) {
    const int64_t tiles = (routes / P::BM + a.route.num_experts) * n_tiles;
    const LaunchConfig config{dim3(persistent_blocks<P>("cvmm_fwd_kernel", tiles, max_blocks)),
                              dim3(P::THREADS), sizeof(CvmmFwdShared<P>)};
    if (!takes_hopper_path<P>(a, k, stream)) SYSGEN_LAUNCH_TEMPLATE(cvmm_fwd_kernel, P, config, stream, k);
  }
  if (a.out && a.reduce && a.route.num_tokens > 0 && a.h > 0) {
    const int64_t v = 16 / sizeof(Acc<T>);
    CvmmCombineArgs<T> c{};
    c.sorted = k.sorted;
    c.inverse = a.route.inverse;
    c.num_tokens = a.route.num_tokens;
    c.k = a.route.k;
    c.h = a.h;
    c.out = static_cast<T*>(a.out);
    c.vec = a.h % v == 0 && copy_width(c.sorted, {}) == 16 && copy_width(c.out, {}) == 16;
    const int64_t blocks = ceil_div(a.route.num_tokens * ceil_div(a.h, v), 256);
    const LaunchConfig config{dim3(static_cast<unsigned>(std::min(blocks, kMaxGridX))), dim3(256)};
    SYSGEN_LAUNCH_TEMPLATE(cvmm_combine_kernel, T, config, stream, c);
  }
  if (a.dot && routes > 0 && n_tiles != 1) {
    const CvmmDotArgs<Acc<T>> c{
        k.dot_tiles, k.order, k.offsets, routes, a.route.num_experts, k.n_tiles, static_cast<Acc<T>*>(a.dot)};
    const LaunchConfig config{dim3(static_cast<unsigned>(ceil_div(routes, 256))), dim3(256)};
    SYSGEN_LAUNCH_TEMPLATE(cvmm_dot_kernel, Acc<T>, config, stream, c);
  }
}

}  // namespace

int64_t cvmm_fwd_cuda_scratch_bytes(const CvmmFwdArgs& args) {
  int64_t bytes = 0;
  with_product(args, [&](auto product) {
    const Scratch s = scratch_of<typename decltype(product)::type>(args);
    bytes = s.sorted_bytes + s.dot_bytes;
  });
  return bytes;
}

void cvmm_fwd_cuda(const CvmmFwdArgs& args, int device_index, void* stream) {
  const DeviceGuard guard(device_index);
  with_product(args, [&](auto product) { launch_product<typename decltype(product)::type>(args, stream); });
}

}  // namespace sysgen
