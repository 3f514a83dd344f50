// Launches of the selection of experts.
#include <algorithm>

#include "device/launch.h"
#include "gated_update/gated_update.h"
#include "router/select_experts.h"
#include "router/select_experts_kernels.cuh"

namespace sysgen {
namespace {

static_assert(SelectNoise<float>::STREAM == static_cast<uint64_t>(NoiseStream::experts));

// Enough segments to fill any device with warps, few enough that their sums cost little beside the logits.
int64_t segment_tokens(const SelectionSizes& s) { return std::max<int64_t>(4, (s.tokens + 2047) / 2048); }
int64_t segments_of(const SelectionSizes& s) {
  return std::max<int64_t>(1, (s.tokens + segment_tokens(s) - 1) / segment_tokens(s));
}

// Calls f(P()) with the smallest tile that holds a token's logits.
template <class F>
void with_select_tile(const SelectionSizes& s, F f) {
  const int64_t e = s.num_experts;
  if (s.dtype == DType::f64) return e > 128 ? f(SelectTile<double, 0>()) : f(SelectTile<double, 4>());
  if (e > 1024) return f(SelectTile<float, 0>());
  if (e > 512) return f(SelectTile<float, 32>());
  if (e > 128) return f(SelectTile<float, 16>());
  e > 32 ? f(SelectTile<float, 4>()) : f(SelectTile<float, 1>());
}

template <class P>
LaunchConfig warps_grid(int64_t warps) {
  const int64_t blocks = std::clamp<int64_t>((warps + P::WARPS - 1) / P::WARPS, 1, 8192);
  return {dim3(static_cast<unsigned>(blocks)), dim3(P::THREADS)};
}

}  // namespace

int64_t select_experts_fwd_cuda_scratch_bytes(const SelectExpertsFwdArgs& a) {
  if (!a.log_sum) return 0;
  return segments_of(a.s) * a.s.num_experts * size_of(a.s.dtype);
}
int64_t select_experts_bwd_cuda_scratch_bytes(const SelectExpertsBwdArgs&) { return 0; }

void select_experts_fwd_cuda(const SelectExpertsFwdArgs& args, int device_index, void* stream) {
  const DeviceGuard guard(device_index);
  with_select_tile(args.s, [&](auto tile) {
    using P = decltype(tile);
    using A = typename P::A;
    SelectExpertsFwdDevice<A> a{};
    a.logits = static_cast<const A*>(args.logits);
    a.seed = reinterpret_cast<const i64*>(args.seed);
    a.experts = reinterpret_cast<i64*>(args.experts);
    a.gate = static_cast<A*>(args.gate);
    a.lse = static_cast<A*>(args.lse);
    a.tokens = args.s.tokens;
    a.num_experts = args.s.num_experts;
    a.k = args.s.k;
    a.segments = segments_of(args.s);
    a.segment_tokens = segment_tokens(args.s);
    a.dropped = static_cast<u32>(args.expert_dropout * 65536 + 0.5);
    a.selection = static_cast<int>(args.selection);
    if (args.log_sum) a.partials = static_cast<A*>(args.scratch);
    SYSGEN_LAUNCH_TEMPLATE(select_experts_fwd_kernel, P, warps_grid<P>(a.segments), stream, a);
    if (!args.log_sum) return;
    using Q = SelectSumTile<A>;
    const SelectExpertsSumDevice<A> sum{a.partials, static_cast<A*>(args.log_sum), a.num_experts, a.segments};
    const LaunchConfig config{dim3(static_cast<unsigned>((a.num_experts + 31) / 32)), dim3(Q::THREADS)};
    SYSGEN_LAUNCH_TEMPLATE(select_experts_sum_kernel, Q, config, stream, sum);
  });
}

void select_experts_bwd_cuda(const SelectExpertsBwdArgs& args, int device_index, void* stream) {
  const DeviceGuard guard(device_index);
  const auto run = [&](auto tile) {
    using P = decltype(tile);
    using A = typename P::A;
    SelectExpertsBwdDevice<A> a{};
    a.logits = static_cast<const A*>(args.logits);
    a.experts = reinterpret_cast<const i64*>(args.experts);
    a.gate = static_cast<const A*>(args.gate);
    a.lse = static_cast<const A*>(args.lse);
    a.log_sum = static_cast<const A*>(args.log_sum);
    a.dgate = static_cast<const A*>(args.dgate);
    a.dlog_sum = static_cast<const A*>(args.dlog_sum);
    a.dlogits = static_cast<A*>(args.dlogits);
    a.tokens = args.s.tokens;
    a.num_experts = args.s.num_experts;
    a.k = args.s.k;
    a.selection = static_cast<int>(args.selection);
    a.dense = has_dense_gradient(args);
    SYSGEN_LAUNCH_TEMPLATE(select_experts_bwd_kernel, P, warps_grid<P>(a.tokens), stream, a);
  };
  args.s.dtype == DType::f64 ? run(SelectTile<double, 0>()) : run(SelectTile<float, 0>());
}

}  // namespace sysgen
