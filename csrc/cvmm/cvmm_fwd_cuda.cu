// Launches cvmm_fwd: chooses the product for the types and the tile for the shapes.
#include "common/arguments.h"
#include "cvmm/cvmm_chunks_kernels.cuh"
#include "cvmm/cvmm_combine_launch.h"
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
using SimtFloat = SimtProduct<float, 2, 2, 4, 16, 3, 3>;
using SimtDouble = SimtProduct<double, 4, 2, 4, 16, 2, 3>;

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

// With `reduce`, tokens of one launch of the product, behind which their rows are summed up: all, or so few
// that the rows are still in L2 (of 40 MiB and more) when they are summed. Depends on shapes only. Each chunk
// reads the weights again: they must fit beside its rows, and each expert must have the rows of a tile.
constexpr int64_t kChunkBytes = int64_t{20} << 20;
int64_t tokens_of_chunk(const CvmmFwdArgs& a) {
  const int64_t routes = a.route.num_routes(), experts = a.route.num_experts;
  const int64_t row_bytes = a.h * size_of(accumulator_of(a.dtype));
  const int64_t tokens = kChunkBytes / std::max<int64_t>(a.route.k * row_bytes, 1);
  const bool pays = a.out && a.reduce && routes * row_bytes > 2 * kChunkBytes &&
                    experts * a.d * a.h * size_of(a.w_dtype) <= kChunkBytes / 2 &&
                    tokens * a.route.k >= 128 * experts;
  return pays ? tokens : a.route.num_tokens;
}

// Scratch: rows that are still to be reduced, the column tiles' shares of dot, if there are several or
// several chunks, both in the accumulator type; and where the chunks lie.
struct Scratch {
  int64_t sorted_bytes, dot_bytes, chunk_bytes;
  int64_t bytes() const { return sorted_bytes + dot_bytes + chunk_bytes; }
};
template <class P>
Scratch scratch_of(const CvmmFwdArgs& a, int64_t chunk_tokens) {
  const int64_t size = sizeof(Acc<typename P::T>), n_tiles = ceil_div(a.h, P::BN),
                routes = a.route.num_routes(), experts = a.route.num_experts,
                chunks = chunk_tokens < a.route.num_tokens ? ceil_div(a.route.num_tokens, chunk_tokens) : 1;
  const auto rounded = [](bool needed, int64_t bytes) { return needed ? round_up(bytes, 256) : 0; };
  return {rounded(a.out && a.reduce, chunk_tokens * a.route.k * a.h * size),
          rounded(a.dot && (n_tiles > 1 || chunks > 1), n_tiles * routes * size),
          rounded(chunks > 1, chunks * (2 * experts + 1) * static_cast<int64_t>(sizeof(int)))};
}

template <class P>
Scratch scratch_of(const CvmmFwdArgs& a) {
  return scratch_of<P>(a, tokens_of_chunk(a));
}

template <class P, class Args>
bool takes_hopper_path(const CvmmFwdArgs& a, const Args& k, void* stream) {
  if constexpr (sizeof(typename P::T) == 2) {
    if constexpr (P::BM == 64 && P::BN == 128) {
      return cvmm_fwd_hopper_slim(a, k, stream);
    } else if constexpr (std::is_same_v<typename P::T, typename P::W>) {
      return cvmm_fwd_hopper(a, k, P::BN, stream);
    }
  }
  return false;
}

template <class P>
CvmmFwdKernelArgs<typename P::T, typename P::W> kernel_args(const CvmmFwdArgs& a, const Scratch& scratch) {
  using T = typename P::T;
  using W = typename P::W;
  const bool kn = w_runs_along_h(a);
  const int64_t w_size = sizeof(W), row = kn ? a.w_stride_d : a.w_stride_h;
  CvmmFwdKernelArgs<T, W> k{};
  k.order = a.route.order;
  k.offsets = a.route.offsets;
  k.num_routes = a.route.num_routes();
  k.num_experts = a.route.num_experts;
  k.d = a.d;
  k.h = a.h;
  k.n_tiles = static_cast<int>(ceil_div(a.h, P::BN));
  k.x = row_operand<T>(a.x, a.route.k, a.d);
  k.w = static_cast<const W*>(a.w);
  k.w_stride_e = a.w_stride_e;
  k.w_stride_row = row;
  k.w_kn = kn;
  k.w_vec = copy_width(a.w, {(kn ? a.h : a.d) * w_size, (kn ? a.d : a.h) > 1 ? row * w_size : 0,
                             a.route.num_experts > 1 ? a.w_stride_e * w_size : 0});
  k.gate = static_cast<const Acc<T>*>(a.gate);
  k.bias = static_cast<const Acc<T>*>(a.bias);
  k.activation = a.activation;
  k.slope = a.slope;
  if (scratch.sorted_bytes) {
    k.sorted = static_cast<Acc<T>*>(a.scratch);
    k.vec_out = copy_width(k.sorted, {a.h * static_cast<int64_t>(sizeof(Acc<T>))}) == 16;
  } else if (!a.reduce) {
    k.out = static_cast<T*>(a.out);
    k.second = static_cast<T*>(a.second);
    const int64_t row_bytes = a.h * static_cast<int64_t>(sizeof(T));
    k.vec_out = copy_width(k.out, {row_bytes}) == 16 && copy_width(k.second, {}) == 16;
  }
  k.other = row_operand<T>(a.other, a.route.k, a.h);
  if (scratch.dot_bytes) {
    k.dot_tiles = reinterpret_cast<Acc<T>*>(static_cast<char*>(a.scratch) + scratch.sorted_bytes);
  } else {
    k.dot = static_cast<Acc<T>*>(a.dot);
  }
  return k;
}

// The rows of `routes` routes, or of fewer.
template <class P, class Args>
void launch_rows(const CvmmFwdArgs& a, const Args& k, int64_t routes, void* stream, int64_t max_blocks) {
  if (routes == 0 || k.n_tiles == 0 || !(a.out || a.dot)) return;
  const int64_t tiles = (routes / P::BM + k.num_experts) * k.n_tiles;
  const LaunchConfig config{
      dim3(persistent_blocks<P, CvmmFwdShared<P>>("cvmm_fwd_kernel", tiles, max_blocks)), dim3(P::THREADS),
      sizeof(CvmmFwdShared<P>)};
  if (!takes_hopper_path<P>(a, k, stream)) SYSGEN_LAUNCH_TEMPLATE(cvmm_fwd_kernel, P, config, stream, k);
}

template <class P>
void launch_product(const CvmmFwdArgs& a, void* stream, int64_t chunk_tokens, int64_t max_blocks = kNoLimit) {
  using T = typename P::T;
  const Scratch scratch = scratch_of<P>(a, chunk_tokens);
  CvmmFwdKernelArgs<T, typename P::W> k = kernel_args<P>(a, scratch);
  const int64_t tokens = a.route.num_tokens, routes = k.num_routes, experts = k.num_experts;
  const bool sums = a.out && a.reduce;
  if (!scratch.chunk_bytes) {
    launch_rows<P>(a, k, routes, stream, max_blocks);
    if (sums) launch_combine<T>(a.route, a.h, k.sorted, a.out, stream);
  } else {
    const int64_t chunks = ceil_div(tokens, chunk_tokens);
    int* const begins =
        reinterpret_cast<int*>(static_cast<char*>(a.scratch) + scratch.sorted_bytes + scratch.dot_bytes);
    int* const offsets = begins + chunks * experts;
    const CvmmChunksArgs where{a.route.order, a.route.offsets, experts, chunk_tokens * a.route.k,
                               begins,        offsets};
    SYSGEN_LAUNCH(cvmm_chunks_kernel, (LaunchConfig{dim3(static_cast<unsigned>(chunks)), dim3(32)}), stream,
                  where);
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t first = c * chunk_tokens, count = std::min(chunk_tokens, tokens - first);
      k.begins = begins + c * experts;
      k.offsets = offsets + c * (experts + 1);
      k.first_route = first * a.route.k;
      launch_rows<P>(a, k, count * a.route.k, stream, max_blocks);
      if (sums) launch_combine<T>(a.route, {first, count}, a.h, k.sorted, true, a.out, stream);
    }
  }
  if (a.dot && routes > 0 && (!k.dot || k.n_tiles == 0)) {
    const CvmmDotArgs<Acc<T>> c{
        k.dot_tiles, k.order, a.route.offsets, routes, experts, k.n_tiles, static_cast<Acc<T>*>(a.dot)};
    const LaunchConfig config{dim3(static_cast<unsigned>(ceil_div(routes, 256))), dim3(256)};
    SYSGEN_LAUNCH_TEMPLATE(cvmm_dot_kernel, Acc<T>, config, stream, c);
  }
}

template <class P>
void launch_product(const CvmmFwdArgs& a, void* stream) {
  launch_product<P>(a, stream, tokens_of_chunk(a));
}

}  // namespace

int64_t cvmm_fwd_cuda_scratch_bytes(const CvmmFwdArgs& args) {
  int64_t bytes = 0;
  with_product(args,
               [&](auto product) { bytes = scratch_of<typename decltype(product)::type>(args).bytes(); });
  return bytes;
}

void cvmm_fwd_cuda(const CvmmFwdArgs& args, int device_index, void* stream) {
  check(!args.reduce || !(args.activation > Activation::relu || args.slope || args.second),
        "cvmm: rows that are summed up have no activation but relu, and no slope");
  const DeviceGuard guard(device_index);
  with_product(args, [&](auto product) { launch_product<typename decltype(product)::type>(args, stream); });
}

}  // namespace sysgen
