// Launches moe_ffn_fwd: which shapes it serves, and the tile for them.
#include "cvmm/cvmm_combine_launch.h"
#include "moe_ffn/moe_ffn.h"
#include "moe_ffn/moe_ffn_kernels.cuh"

namespace sysgen {
namespace {

constexpr int64_t kMostHidden = 128, kLeastHidden = 65;  // less would be mostly padding

template <class T>
using Large = MoeFfnProduct<T, T, 128>;
template <class T, class W>
using Small = MoeFfnProduct<T, W, 64>;

bool runs_along_columns(const CvmmFwdArgs& a) { return a.w_stride_h == 1 || a.h <= 1; }

// Small tiles where large ones would be mostly padding, or too few for the machine. Depends on shapes only.
bool prefers_small_tiles(const CvmmFwdArgs& a) {
  const int64_t routes = a.route.num_routes(), experts = std::max<int64_t>(a.route.num_experts, 1);
  return routes / experts < 96 || routes / 128 + std::min(routes, experts) < 264;
}

// Masters take the small tile: their stages are twice as large, and rounding them needs registers.
template <class T, class F>
void with_tile(const CvmmFwdArgs& a, F f) {
  if (a.w_dtype != a.dtype) return f(ProductType<Small<T, float>>());
  prefers_small_tiles(a) ? f(ProductType<Small<T, T>>()) : f(ProductType<Large<T>>());
}

template <class F>
void with_product(const CvmmFwdArgs& a, F f) {
  a.dtype == DType::bf16 ? with_tile<bf16>(a, f) : with_tile<f16>(a, f);
}

template <class W>
MoeFfnWeight<W> weight_operand(const CvmmFwdArgs& a) {
  const int64_t size = sizeof(W);
  return {static_cast<const W*>(a.w), a.w_stride_e, a.w_stride_d,
          copy_width(a.w, {a.h * size, a.d > 1 ? a.w_stride_d * size : 0,
                           a.route.num_experts > 1 ? a.w_stride_e * size : 0})};
}

template <class P>
void launch_product(const MoeFfnFwdArgs& a, void* stream) {
  using T = typename P::T;
  using W = typename P::W;
  static_assert(sizeof(MoeFfnShared<P>) <= 99 * 1024, "what a block has on sm_86 and sm_89");
  const Routing& q = a.up.route;
  MoeFfnFwdKernelArgs<T, W> k{};
  k.order = q.order;
  k.offsets = q.offsets;
  k.num_routes = q.num_routes();
  k.num_experts = q.num_experts;
  k.d = a.up.d;
  k.hidden = a.up.h;
  k.d_out = a.down.h;
  k.x = row_operand<T>(a.up.x, q.k, a.up.d);
  k.up = weight_operand<W>(a.up);
  k.down = weight_operand<W>(a.down);
  k.gate = static_cast<const float*>(a.down.gate);
  k.bias = static_cast<const float*>(a.up.bias);
  k.activation = static_cast<int>(a.activation);
  k.keep_input = !derivative_from_output(a.activation);
  k.kept = static_cast<T*>(a.up.out);
  k.vec_kept = copy_width(k.kept, {k.hidden * static_cast<int64_t>(sizeof(T))}) == 16;
  if (a.down.out) k.sorted = static_cast<float*>(a.scratch);
  k.vec_sorted = copy_width(k.sorted, {k.d_out * static_cast<int64_t>(sizeof(float))}) == 16;
  if (k.num_routes > 0) {
    const LaunchConfig config{dim3(grid_x("moe_ffn", k.num_routes / P::BM + q.num_experts + 1)),
                              dim3(P::THREADS), sizeof(MoeFfnShared<P>)};
    SYSGEN_LAUNCH_TEMPLATE(moe_ffn_fwd_kernel, P, config, stream, k);
  }
  if (a.down.out) launch_combine<T>(q, a.down.h, k.sorted, a.down.out, stream);
}

}  // namespace

bool moe_ffn_fwd_cuda_serves(const MoeFfnFwdArgs& a) {
  return (a.up.dtype == DType::bf16 || a.up.dtype == DType::f16) && a.up.h >= kLeastHidden &&
         a.up.h <= kMostHidden && a.down.h > 0 && a.down.gate && runs_along_columns(a.up) &&
         runs_along_columns(a.down);
}

int64_t moe_ffn_fwd_cuda_scratch_bytes(const MoeFfnFwdArgs& a) {
  return a.down.out ? a.up.route.num_routes() * a.down.h * static_cast<int64_t>(sizeof(float)) : 0;
}

void moe_ffn_fwd_cuda(const MoeFfnFwdArgs& args, int device_index, void* stream) {
  check(moe_ffn_fwd_cuda_serves(args), "moe_ffn: no fused kernel for these types, sizes or strides");
  const DeviceGuard guard(device_index);
  with_product(args.up,
               [&](auto product) { launch_product<typename decltype(product)::type>(args, stream); });
}

}  // namespace sysgen
