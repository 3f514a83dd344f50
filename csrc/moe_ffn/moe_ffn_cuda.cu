// Launches moe_ffn: which shapes the fused kernel serves and its tile for them, and the products that all
// others are made of.
#include <utility>

#include "common/arguments.h"
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
  k.activation = a.activation;
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

bool is_fused(const MoeFfnFwdArgs& a) {
  return is_half(a.up.dtype) && a.up.h >= kLeastHidden && a.up.h <= kMostHidden && a.down.h > 0 &&
         a.down.gate && runs_along_columns(a.up) && runs_along_columns(a.down);
}

// ---- by one launch a product
int64_t hidden_bytes(const CvmmFwdArgs& up) {
  return round_up(up.route.num_routes() * up.h * size_of(up.dtype), 256);
}

Rows hidden_rows(const void* data, int64_t width) { return {data, width, true}; }

// Hidden rows in front of the scratch that the products take in turn.
struct ForwardProducts {
  CvmmFwdArgs up, down;
  bool own_hidden;  // the activated rows are not what is kept

  explicit ForwardProducts(const MoeFfnFwdArgs& a) : up(a.up), down(a.down) {
    const bool from_output = derivative_from_output(a.activation);
    own_hidden = down.out && !(from_output && up.out);
    up.activation = down.out || from_output ? a.activation : Activation::identity;
    if (own_hidden) {
      up.second = up.out;
      up.out = a.scratch;
    }
    down.x = hidden_rows(up.out, up.h);
  }
  int64_t scratch_of_hidden() const { return own_hidden ? hidden_bytes(up) : 0; }
  int64_t scratch_bytes() const {
    return scratch_of_hidden() +
           std::max(cvmm_fwd_cuda_scratch_bytes(up), down.out ? cvmm_fwd_cuda_scratch_bytes(down) : 0);
  }
};

void* behind(void* scratch, int64_t bytes) { return static_cast<char*>(scratch) + bytes; }

void forward_products(const MoeFfnFwdArgs& a, int device_index, void* stream) {
  ForwardProducts p(a);
  p.up.scratch = p.down.scratch = behind(a.scratch, p.scratch_of_hidden());
  cvmm_fwd_cuda(p.up, device_index, stream);
  if (p.down.out) cvmm_fwd_cuda(p.down, device_index, stream);
}

// The forward that leaves `kept` and nothing else.
MoeFfnFwdArgs recomputation(const MoeFfnBwdArgs& a, void* kept) {
  MoeFfnFwdArgs f{};
  f.activation = a.activation;
  f.up = a.up;
  f.up.out = kept;
  f.down = a.down;
  std::swap(f.down.d, f.down.h);
  std::swap(f.down.w_stride_d, f.down.w_stride_h);
  f.down.out = f.down.dot = nullptr;
  f.down.other = {};
  return f;
}

// What the backward does: up again, if nothing was kept, or for activated rows that no gradient is computed
// with; then down with the slope in its epilogue; then dx.
struct BackwardProducts {
  bool recomputes, own_kept, activates;
  CvmmFwdArgs up;  // only for activated rows

  explicit BackwardProducts(const MoeFfnBwdArgs& a) : up(a.up) {
    const bool from_output = derivative_from_output(a.activation),
               gradients = a.down.out || a.down.dot || a.dx.out;
    activates = !gradients && a.h && !from_output;
    recomputes = !a.up.out && !activates;
    own_kept = recomputes && !from_output;
    up.out = a.h;
    up.activation = a.activation;
  }
};

}  // namespace

int64_t moe_ffn_fwd_cuda_scratch_bytes(const MoeFfnFwdArgs& a) {
  if (!is_fused(a)) return ForwardProducts(a).scratch_bytes();
  return a.down.out ? a.up.route.num_routes() * a.down.h * static_cast<int64_t>(sizeof(float)) : 0;
}

void moe_ffn_fwd_cuda(const MoeFfnFwdArgs& args, int device_index, void* stream) {
  if (!is_fused(args)) return forward_products(args, device_index, stream);
  const DeviceGuard guard(device_index);
  with_product(args.up,
               [&](auto product) { launch_product<typename decltype(product)::type>(args, stream); });
}

int64_t moe_ffn_bwd_cuda_scratch_bytes(const MoeFfnBwdArgs& a) {
  const BackwardProducts p(a);
  int64_t bytes = 0;
  const auto takes = [&](bool launched, int64_t needed) { bytes = std::max(bytes, launched ? needed : 0); };
  takes(p.activates, cvmm_fwd_cuda_scratch_bytes(p.up));
  // any address but null: it only matters that there is one
  takes(p.recomputes, moe_ffn_fwd_cuda_scratch_bytes(recomputation(a, const_cast<MoeFfnBwdArgs*>(&a))));
  takes(a.down.out || a.down.dot, cvmm_fwd_cuda_scratch_bytes(a.down));
  takes(a.dx.out, cvmm_fwd_cuda_scratch_bytes(a.dx));
  return bytes + (p.own_kept ? hidden_bytes(a.up) : 0);
}

void moe_ffn_bwd_cuda(const MoeFfnBwdArgs& a, int device_index, void* stream) {
  const BackwardProducts p(a);
  void* const scratch = behind(a.scratch, p.own_kept ? hidden_bytes(a.up) : 0);
  const auto launch = [&](CvmmFwdArgs product) {
    product.scratch = scratch;
    cvmm_fwd_cuda(product, device_index, stream);
  };
  if (p.activates) return launch(p.up);
  void* const kept = p.own_kept ? a.scratch : p.recomputes ? a.h : a.up.out;
  if (p.recomputes) {
    MoeFfnFwdArgs again = recomputation(a, kept);
    again.scratch = scratch;
    moe_ffn_fwd_cuda(again, device_index, stream);
  }
  if (a.down.out || a.down.dot) {
    CvmmFwdArgs down = a.down;
    down.other = hidden_rows(kept, a.up.h);
    down.activation = a.activation;
    down.slope = true;
    if (!derivative_from_output(a.activation)) down.second = a.h;
    launch(down);
  }
  if (a.dx.out) {  // also if there are no hidden elements
    CvmmFwdArgs dx = a.dx;
    dx.x = hidden_rows(a.down.out, a.up.h);
    launch(dx);
  }
}

}  // namespace sysgen
