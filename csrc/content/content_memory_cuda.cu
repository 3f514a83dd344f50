// Writing and reading on CUDA. What sums over the cells takes one launch where a block can do a sample, else
// two; the results are the same bits.
#include "content/content_launch.h"
#include "content/content_memory_kernels.cuh"

namespace sysgen {
namespace {

template <class A, class Args>
MemoryWriting<A> memory_writing(const Args& a) {
  return {memory_shape(a.s),
          static_cast<const A*>(a.memory),
          static_cast<const A*>(a.weights),
          static_cast<const A*>(a.erase),
          static_cast<const A*>(a.value),
          static_cast<const A*>(a.retention)};
}

template <class A>
MemoryWriteBwdDevice<A> write_bwd_device(const MemoryWriteBwdArgs& a, ScratchPieces& scratch) {
  MemoryWriteBwdDevice<A> k{};
  k.m = memory_writing<A>(a);
  const MemoryShape& s = k.m.s;
  k.dwritten = static_cast<const A*>(a.dwritten);
  k.dmemory = static_cast<A*>(a.dmemory);
  k.dweights = static_cast<A*>(a.dweights);
  k.derase = static_cast<A*>(a.derase);
  k.dvalue = static_cast<A*>(a.dvalue);
  k.dretention = static_cast<A*>(a.dretention);
  k.erased = scratch.take<A>(s.batch * s.tiles() * s.width);
  k.added = scratch.take<A>(s.batch * s.tiles() * s.width);
  return k;
}

template <class A>
MemoryReadFwdDevice<A> read_fwd_device(const MemoryReadFwdArgs& a, ScratchPieces& scratch) {
  MemoryReadFwdDevice<A> k{};
  k.s = memory_shape(a.s);
  k.memory = static_cast<const A*>(a.memory);
  k.weights = static_cast<const A*>(a.weights);
  k.reads = static_cast<A*>(a.reads);
  k.partial = scratch.take<A>(k.s.batch * k.s.tiles() * k.s.heads * k.s.width);
  return k;
}

template <class P>
void launch_write_bwd(MemoryWriteBwdDevice<typename P::A> k, bool one_block, void* stream) {
  const auto launch = [&](bool rows, bool sums, const LaunchConfig& config) {
    k.rows = rows;
    k.sums = sums;
    SYSGEN_LAUNCH_TEMPLATE(memory_write_bwd_kernel, P, config, stream, k);
  };
  const MemoryShape& s = k.m.s;
  if (one_block) return launch(true, true, content_grid<P>(s.batch, 1));
  launch(true, false, content_grid_of_units<P>(s.batch, s.tiles()));
  launch(false, true, sums_grid<P>(s, s.width));
}

template <class P>
void launch_read_fwd(MemoryReadFwdDevice<typename P::A> k, bool one_block, void* stream) {
  const auto launch = [&](bool rows, bool sums, const LaunchConfig& config) {
    k.rows = rows;
    k.sums = sums;
    SYSGEN_LAUNCH_TEMPLATE(memory_read_fwd_kernel, P, config, stream, k);
  };
  const MemoryShape& s = k.s;
  if (one_block) return launch(true, true, content_grid<P>(s.batch, 1));
  launch(true, false, content_grid_of_units<P>(s.batch, s.tiles() * s.chunks()));
  launch(false, true, sums_grid<P>(s, s.heads * s.width));
}

// Two arrays of rows for each warp must fit in static shared memory.
template <class T>
using WriteTile = ContentTile<T, sizeof(T) == 8 ? 2 : 4>;

}  // namespace

int64_t memory_write_fwd_cuda_scratch_bytes(const MemoryWriteFwdArgs&) { return 0; }

int64_t memory_write_bwd_cuda_scratch_bytes(const MemoryWriteBwdArgs& args) {
  return with_content_type(args.s.dtype, [&](auto element) {
    ScratchPieces count(nullptr);
    write_bwd_device<decltype(element)>(args, count);
    return count.bytes();
  });
}

int64_t memory_read_fwd_cuda_scratch_bytes(const MemoryReadFwdArgs& args) {
  return with_content_type(args.s.dtype, [&](auto element) {
    ScratchPieces count(nullptr);
    read_fwd_device<decltype(element)>(args, count);
    return count.bytes();
  });
}

int64_t memory_read_bwd_cuda_scratch_bytes(const MemoryReadBwdArgs&) { return 0; }

void memory_write_fwd_cuda(const MemoryWriteFwdArgs& args, int device_index, void* stream) {
  const DeviceGuard guard(device_index);
  with_content_type(args.s.dtype, [&](auto element) {
    using P = ContentTile<decltype(element)>;
    const MemoryWriteFwdDevice<typename P::A> k{memory_writing<typename P::A>(args),
                                                static_cast<typename P::A*>(args.written)};
    const auto config = content_grid_of_units<P>(k.m.s.batch, k.m.s.tiles() * k.m.s.chunks());
    SYSGEN_LAUNCH_TEMPLATE(memory_write_fwd_kernel, P, config, stream, k);
  });
}

void memory_write_bwd_cuda(const MemoryWriteBwdArgs& args, int device_index, void* stream) {
  const DeviceGuard guard(device_index);
  with_content_type(args.s.dtype, [&](auto element) {
    using P = WriteTile<decltype(element)>;
    ScratchPieces scratch(args.scratch);
    const auto k = write_bwd_device<typename P::A>(args, scratch);
    launch_write_bwd<P>(k, one_block_is_enough<P>(k.m.s), stream);
  });
}

void memory_read_fwd_cuda(const MemoryReadFwdArgs& args, int device_index, void* stream) {
  const DeviceGuard guard(device_index);
  with_content_type(args.s.dtype, [&](auto element) {
    using P = ContentTile<decltype(element)>;
    ScratchPieces scratch(args.scratch);
    const auto k = read_fwd_device<typename P::A>(args, scratch);
    launch_read_fwd<P>(k, one_block_is_enough<P>(k.s), stream);
  });
}

void memory_read_bwd_cuda(const MemoryReadBwdArgs& args, int device_index, void* stream) {
  const DeviceGuard guard(device_index);
  with_content_type(args.s.dtype, [&](auto element) {
    using P = ContentTile<decltype(element)>;
    using A = typename P::A;
    const MemoryReadBwdDevice<A> k{memory_shape(args.s),
                                   static_cast<const A*>(args.memory),
                                   static_cast<const A*>(args.weights),
                                   static_cast<const A*>(args.dreads),
                                   static_cast<A*>(args.dmemory),
                                   static_cast<A*>(args.dweights)};
    const auto config =
        content_grid_of_units<P>(k.s.batch, k.s.tiles() * (k.s.chunks() + k.s.template groups<P>()));
    SYSGEN_LAUNCH_TEMPLATE(memory_read_bwd_kernel, P, config, stream, k);
  });
}

}  // namespace sysgen
