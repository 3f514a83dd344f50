// Content addressing on CUDA. One launch where a block can do a sample, else one for each phase; the results
// are the same bits.
#include "content/content_address_launch.h"

namespace sysgen {
namespace {

template <class A>
ContentAddressBwdDevice<A> bwd_device(const ContentAddressBwdArgs& a, ScratchPieces& scratch) {
  return {content_backward<A>(a, a.dmemory, a.dkey, a.dstrength, a.dmask, scratch),
          static_cast<const A*>(a.dweights),
          {}};
}

}  // namespace

int64_t content_address_fwd_cuda_scratch_bytes(const ContentAddressFwdArgs&) { return 0; }

int64_t content_address_bwd_cuda_scratch_bytes(const ContentAddressBwdArgs& args) {
  return with_content_type(args.s.dtype, [&](auto element) {
    ScratchPieces count(nullptr);
    bwd_device<decltype(element)>(args, count);
    return count.bytes();
  });
}

void content_address_fwd_cuda(const ContentAddressFwdArgs& args, int device_index, void* stream) {
  const DeviceGuard guard(device_index);
  with_content_type(args.s.dtype, [&](auto element) {
    using P = ContentTile<decltype(element)>;
    using A = typename P::A;
    ContentAddressFwdDevice<A> k{content_heads<A>(args), static_cast<A*>(args.weights), {}};
    launch_in_phases<P>(k.c.s, [&](AddressingPhases phases, const LaunchConfig& config) {
      k.phases = phases;
      SYSGEN_LAUNCH_TEMPLATE(content_address_fwd_kernel, P, config, stream, k);
    });
  });
}

void content_address_bwd_cuda(const ContentAddressBwdArgs& args, int device_index, void* stream) {
  const DeviceGuard guard(device_index);
  with_content_type(args.s.dtype, [&](auto element) {
    using P = ContentTile<decltype(element)>;
    ScratchPieces scratch(args.scratch);
    auto k = bwd_device<typename P::A>(args, scratch);
    launch_bwd_in_phases<P>(k.a.c.s, [&](AddressingBwdPhases phases, const LaunchConfig& config) {
      k.phases = phases;
      SYSGEN_LAUNCH_TEMPLATE(content_address_bwd_kernel, P, config, stream, k);
    });
  });
}

}  // namespace sysgen
