// Launches cvmm_bwd_w: chooses the product for the types and the length of a segment for the shapes.
#include "cvmm/cvmm_bwd_w_kernels.cuh"
#include "cvmm/cvmm_hopper.h"
#include "cvmm/cvmm_launch.h"

namespace sysgen {
namespace {

template <class T>
using Half = HalfProduct<T, T, 128, 128, 2, 4, true, true, 4, 2>;
template <bool X3>
using Tf32 = Tf32Product<X3, 128, X3 ? 64 : 128, X3 ? 4 : 2, X3 ? 2 : 4, true, 4, 2>;
using SimtFloat = SimtProduct<float, 2, 2, 4, 16, 3, 3>;
using SimtDouble = SimtProduct<double, 4, 2, 4, 16, 2, 3>;

template <class F>
void with_product(const CvmmBwdWArgs& a, F f) {
  switch (a.dtype) {
    case DType::f64:
      return f(ProductType<SimtDouble>());
    case DType::f32:
      if (a.precision == Precision::ieee) return f(ProductType<SimtFloat>());
      return a.precision == Precision::tf32 ? f(ProductType<Tf32<false>>()) : f(ProductType<Tf32<true>>());
    case DType::bf16:
      return f(ProductType<Half<bf16>>());
    case DType::f16:
      return f(ProductType<Half<f16>>());
    default:
      throw TypeError(cat("cvmm_bwd_w: unsupported dtype ", name_of(a.dtype)));
  }
}

// Routes of one segment: short enough that a single expert with all routes still makes some 500 blocks, and
// no shorter than what pays for the write and the read of a tile.
template <class P>
int64_t segment_length(const CvmmBwdWArgs& a) {
  const int64_t tiles = std::max<int64_t>(ceil_div(a.d, P::BM) * ceil_div(a.h, P::BN), 1);
  const int64_t segments = std::clamp<int64_t>(512 / tiles, 1, 64);
  return std::max<int64_t>(round_up(ceil_div(a.route.num_routes(), segments), P::BK), 256);
}

// The segments that are kept apart. None if no expert can have two.
template <class P>
int64_t kept_segments(const CvmmBwdWArgs& a) {
  const int64_t routes = a.route.num_routes(), segment = segment_length<P>(a);
  return routes > segment ? 2 * (routes / segment) : 0;
}

template <class P, class Args>
bool takes_hopper_path(const CvmmBwdWArgs& a, const Args& k, void* stream) {
  if constexpr (sizeof(typename P::T) == 2 && P::BM == 128 && P::BN == 128)
    return cvmm_bwd_w_hopper(a, k, stream);
  return false;
}

template <class P>
void launch_product(const CvmmBwdWArgs& a, void* stream, int64_t max_blocks = kNoLimit) {
  using T = typename P::T;
  if (a.route.num_experts == 0 || a.d == 0 || a.h == 0) return;
  CvmmBwdWKernelArgs<T> k{};
  k.order = a.route.order;
  k.offsets = a.route.offsets;
  k.num_experts = a.route.num_experts;
  k.d = a.d;
  k.h = a.h;
  k.segment = segment_length<P>(a);
  k.m_tiles = static_cast<int>(ceil_div(a.d, P::BM));
  k.n_tiles = static_cast<int>(ceil_div(a.h, P::BN));
  k.x = row_operand<T>(a.x, a.route.k, a.d);
  k.dy = row_operand<T>(a.dy, a.route.k, a.h);
  k.gate = static_cast<const Acc<T>*>(a.gate);
  if (a.w_dtype == a.dtype) {
    k.dw = static_cast<T*>(a.dw);
  } else {
    k.dw_acc = static_cast<Acc<T>*>(a.dw);
  }
  k.segments = static_cast<Acc<T>*>(a.scratch);
  k.vec_out = copy_width(a.dw, {a.h * size_of(a.w_dtype)}) == 16 && copy_width(a.scratch, {}) == 16;

  const int64_t tiles = int64_t{k.m_tiles} * k.n_tiles;
  const int64_t slots = a.route.num_routes() / k.segment + a.route.num_experts;
  const LaunchConfig config{
      dim3(persistent_blocks<P, CvmmBwdWShared<P>>("cvmm_bwd_w_kernel", slots * tiles, max_blocks)),
      dim3(P::THREADS), sizeof(CvmmBwdWShared<P>)};
  if (!takes_hopper_path<P>(a, k, stream)) SYSGEN_LAUNCH_TEMPLATE(cvmm_bwd_w_kernel, P, config, stream, k);

  if (const int64_t kept = kept_segments<P>(a)) {
    const CvmmSegmentsArgs<T> s{k.offsets, k.num_experts, a.d * a.h, k.segment, k.segments, k.dw, k.dw_acc};
    const unsigned y = static_cast<unsigned>(std::min<int64_t>(ceil_div(s.elements, 256), 1024));
    const LaunchConfig reduce{dim3(static_cast<unsigned>(kept / 2), y), dim3(256)};
    SYSGEN_LAUNCH_TEMPLATE(cvmm_segments_kernel, T, reduce, stream, s);
  }
}

}  // namespace

int64_t cvmm_bwd_w_cuda_scratch_bytes(const CvmmBwdWArgs& args) {
  int64_t bytes = 0;
  with_product(args, [&](auto product) {
    using P = typename decltype(product)::type;
    bytes = kept_segments<P>(args) * args.d * args.h * static_cast<int64_t>(sizeof(Acc<typename P::T>));
  });
  return bytes;
}

void cvmm_bwd_w_cuda(const CvmmBwdWArgs& args, int device_index, void* stream) {
  const DeviceGuard guard(device_index);
  with_product(args, [&](auto product) { launch_product<typename decltype(product)::type>(args, stream); });
}

}  // namespace sysgen
