// Addressing of the Neural Turing Machine on CUDA, in the launches of content addressing.
#include "content/content_address_launch.h"
#include "content/content_ntm_kernels.cuh"

namespace sysgen {
namespace {

template <class A>
NtmHeads<A> ntm_heads(const NtmAddressing& a) {
  return {static_cast<const A*>(a.gate), static_cast<const A*>(a.sharpness), static_cast<const A*>(a.shift),
          static_cast<const A*>(a.previous), a.shifts};
}

template <class A>
NtmAddressFwdDevice<A> fwd_device(const NtmAddressFwdArgs& a, ScratchPieces& scratch) {
  return {content_heads<A>(a),
          ntm_heads<A>(a),
          static_cast<A*>(a.weights),
          scratch.take<A>(a.s.batch * a.s.heads * a.s.cells),
          {}};
}

template <class A>
NtmAddressBwdDevice<A> bwd_device(const NtmAddressBwdArgs& a, ScratchPieces& scratch) {
  const int64_t rows = a.s.batch * a.s.heads * a.s.cells;
  return {content_backward<A>(a, a.dmemory, a.dkey, a.dstrength, nullptr, scratch),
          ntm_heads<A>(a),
          static_cast<const A*>(a.dweights),
          static_cast<A*>(a.dgate),
          static_cast<A*>(a.dshift),
          static_cast<A*>(a.dsharpness),
          static_cast<A*>(a.dprevious),
          scratch.take<A>(rows),
          scratch.take<A>(rows),
          scratch.take<A>(rows),
          {}};
}

}  // namespace

int64_t ntm_address_fwd_cuda_scratch_bytes(const NtmAddressFwdArgs& args) {
  return with_content_type(args.s.dtype, [&](auto element) {
    ScratchPieces count(nullptr);
    fwd_device<decltype(element)>(args, count);
    return count.bytes();
  });
}

int64_t ntm_address_bwd_cuda_scratch_bytes(const NtmAddressBwdArgs& args) {
  return with_content_type(args.s.dtype, [&](auto element) {
    ScratchPieces count(nullptr);
    bwd_device<decltype(element)>(args, count);
    return count.bytes();
  });
}

void ntm_address_fwd_cuda(const NtmAddressFwdArgs& args, int device_index, void* stream) {
  const DeviceGuard guard(device_index);
  with_content_type(args.s.dtype, [&](auto element) {
    using P = ContentTile<decltype(element)>;
    ScratchPieces scratch(args.scratch);
    auto k = fwd_device<typename P::A>(args, scratch);
    launch_in_phases<P>(k.c.s, [&](AddressingPhases phases, const LaunchConfig& config) {
      k.phases = phases;
      SYSGEN_LAUNCH_TEMPLATE(ntm_address_fwd_kernel, P, config, stream, k);
    });
  });
}

void ntm_address_bwd_cuda(const NtmAddressBwdArgs& args, int device_index, void* stream) {
  const DeviceGuard guard(device_index);
  with_content_type(args.s.dtype, [&](auto element) {
    using P = ContentTile<decltype(element)>;
    ScratchPieces scratch(args.scratch);
    auto k = bwd_device<typename P::A>(args, scratch);
    launch_bwd_in_phases<P>(k.a.c.s, [&](AddressingBwdPhases phases, const LaunchConfig& config) {
      k.phases = phases;
      SYSGEN_LAUNCH_TEMPLATE(ntm_address_bwd_kernel, P, config, stream, k);
    });
  });
}

}  // namespace sysgen
