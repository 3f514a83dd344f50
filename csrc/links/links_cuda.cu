// Allocation and links on CUDA.
#include <algorithm>
#include <initializer_list>

#include "cvmm/cvmm_launch.h"
#include "links/links.h"
#include "links/links_cells_kernels.cuh"
#include "links/links_link_kernels.cuh"

namespace sysgen {
namespace {

// f(A()) with the element type, which the bind header has checked.
template <class F>
void with_links_type(DType dtype, F f) {
  dtype == DType::f64 ? f(double()) : f(float());
}

unsigned links_grid(const char* op, int64_t blocks) {
  check<NotImplementedError>(blocks <= kMaxGridX, op, ": needs ", blocks, " thread blocks, at most ",
                             kMaxGridX, " are possible; split the batch");
  return static_cast<unsigned>(blocks);
}

// A thread for each of `count` numbers.
LaunchConfig over_cells(int64_t count) {
  static_assert(kCellsThreads == kLinkThreads);
  return {dim3(static_cast<unsigned>(std::min<int64_t>(ceil_div(count, kCellsThreads), 1 << 16))),
          dim3(kCellsThreads)};
}

int64_t link_tiles(const LinksSizes& s) { return ceil_div(s.cells, kLinkRows); }
int64_t aligned(int64_t bytes) { return round_up(bytes, 256); }

template <class P>
LaunchConfig over_tiles(const char* op, const LinksSizes& s) {
  return {dim3(links_grid(op, s.batch * link_tiles(s))), dim3(P::THREADS)};
}
// A block for each head, forward and backward.
LaunchConfig over_heads(const char* op, const LinksSizes& s) {
  return {dim3(links_grid(op, 2 * s.batch * s.reads)), dim3(kLinkThreads)};
}

template <class A>
void set_link_sizes(LinkReadArgs<A>& k, const LinksSizes& s, double eps) {
  k.batch = s.batch, k.cells = s.cells, k.reads = s.reads, k.tiles = link_tiles(s);
  k.eps = static_cast<A>(eps);
}

// f with the number of columns that a thread takes at a time: four where every row of `data` (null: none) is
// aligned to them.
template <int V_>
struct LinkColumns {
  static constexpr int V = V_;
};
template <class A, class F>
void with_link_columns(const LinksSizes& s, std::initializer_list<const void*> data, F f) {
  if constexpr (sizeof(A) == 4) {
    bool wide = true;
    for (const void* p : data) wide = wide && copy_width(p, {s.cells * int64_t{sizeof(A)}}) == 16;
    if (wide && s.cells > 64) return f(LinkColumns<4>());
  }
  f(LinkColumns<1>());
}

// f(P()) with the tile for so many cells.
template <class A, class F>
void with_allocation_tile(int64_t cells, F f) {
  check<NotImplementedError>(cells <= 4096, "allocation: on CUDA at most 4096 cells are supported, got ",
                             cells);
  if (cells <= 64) return f(AllocationTile<A, 64>());
  if (cells <= 512) return f(AllocationTile<A, 512>());
  f(AllocationTile<A, 4096>());
}

template <class P>
LaunchConfig allocation_config(const LinksSizes& s, bool backward) {
  const auto array = [](size_t bytes) { return (bytes + 127) / 128 * 128; };  // as Smem lays them out
  const size_t values = array(sizeof(typename P::Values)), order = array(sizeof(typename P::Order)),
               totals = array(sizeof(typename P::A) * P::WARPS),
               maps = array(sizeof(Affine<typename P::A>) * P::WARPS);
  size_t shared = values;
  if (backward) {
    shared += values + order + totals + maps;
  } else if (!P::BY_RANK) {
    shared += order + totals;
  }
  return {dim3(links_grid("allocation", s.batch)), dim3(P::THREADS), shared};
}

}  // namespace

void allocation_fwd_cuda(const AllocationFwdArgs& a, int device_index, void* stream) {
  const DeviceGuard guard(device_index);
  with_links_type(a.s.dtype, [&](auto element) {
    using A = decltype(element);
    with_allocation_tile<A>(a.s.cells, [&](auto tile) {
      using P = decltype(tile);
      const AllocationArgs<A> k{static_cast<const A*>(a.usage), nullptr, static_cast<A*>(a.allocation),
                                static_cast<int>(a.s.cells), static_cast<A>(a.eps)};
      SYSGEN_LAUNCH_TEMPLATE(allocation_fwd_kernel, P, allocation_config<P>(a.s, false), stream, k);
    });
  });
}

void allocation_bwd_cuda(const AllocationBwdArgs& a, int device_index, void* stream) {
  const DeviceGuard guard(device_index);
  with_links_type(a.s.dtype, [&](auto element) {
    using A = decltype(element);
    with_allocation_tile<A>(a.s.cells, [&](auto tile) {
      using P = decltype(tile);
      const AllocationArgs<A> k{static_cast<const A*>(a.usage), static_cast<const A*>(a.dallocation),
                                static_cast<A*>(a.dusage), static_cast<int>(a.s.cells),
                                static_cast<A>(a.eps)};
      SYSGEN_LAUNCH_TEMPLATE(allocation_bwd_kernel, P, allocation_config<P>(a.s, true), stream, k);
    });
  });
}

void retention_fwd_cuda(const RetentionFwdArgs& a, int device_index, void* stream) {
  const DeviceGuard guard(device_index);
  if (a.s.cells == 0) return;
  with_links_type(a.s.dtype, [&](auto element) {
    using A = decltype(element);
    RetentionArgs<A> k{};
    k.read_weights = static_cast<const A*>(a.read_weights);
    k.free_gate = static_cast<const A*>(a.free_gate);
    k.retention = static_cast<A*>(a.retention);
    k.batch = a.s.batch, k.cells = a.s.cells, k.reads = a.s.reads;
    SYSGEN_LAUNCH_TEMPLATE(retention_fwd_kernel, A, over_cells(a.s.batch * a.s.cells), stream, k);
  });
}

void retention_bwd_cuda(const RetentionBwdArgs& a, int device_index, void* stream) {
  const DeviceGuard guard(device_index);
  with_links_type(a.s.dtype, [&](auto element) {
    using A = decltype(element);
    RetentionArgs<A> k{};
    k.read_weights = static_cast<const A*>(a.read_weights);
    k.free_gate = static_cast<const A*>(a.free_gate);
    k.dretention = static_cast<const A*>(a.dretention);
    k.dread_weights = static_cast<A*>(a.dread_weights);
    k.dfree_gate = static_cast<A*>(a.dfree_gate);
    k.batch = a.s.batch, k.cells = a.s.cells, k.reads = a.s.reads;
    const LaunchConfig config{dim3(links_grid("retention_bwd", a.s.batch)), dim3(kCellsThreads)};
    SYSGEN_LAUNCH_TEMPLATE(retention_bwd_kernel, A, config, stream, k);
  });
}

void usage_update_fwd_cuda(const UsageUpdateFwdArgs& a, int device_index, void* stream) {
  const DeviceGuard guard(device_index);
  if (a.s.cells == 0) return;
  with_links_type(a.s.dtype, [&](auto element) {
    using A = decltype(element);
    UsageUpdateArgs<A> k{};
    k.usage = static_cast<const A*>(a.usage);
    k.write_weights = static_cast<const A*>(a.write_weights);
    k.retention = static_cast<const A*>(a.retention);
    k.updated = static_cast<A*>(a.updated);
    k.count = a.s.batch * a.s.cells;
    SYSGEN_LAUNCH_TEMPLATE(usage_update_fwd_kernel, A, over_cells(k.count), stream, k);
  });
}

void usage_update_bwd_cuda(const UsageUpdateBwdArgs& a, int device_index, void* stream) {
  const DeviceGuard guard(device_index);
  if (a.s.cells == 0) return;
  with_links_type(a.s.dtype, [&](auto element) {
    using A = decltype(element);
    UsageUpdateArgs<A> k{};
    k.usage = static_cast<const A*>(a.usage);
    k.write_weights = static_cast<const A*>(a.write_weights);
    k.retention = static_cast<const A*>(a.retention);
    k.dupdated = static_cast<const A*>(a.dupdated);
    k.dusage = static_cast<A*>(a.dusage);
    k.dwrite_weights = static_cast<A*>(a.dwrite_weights);
    k.dretention = static_cast<A*>(a.dretention);
    k.count = a.s.batch * a.s.cells;
    SYSGEN_LAUNCH_TEMPLATE(usage_update_bwd_kernel, A, over_cells(k.count), stream, k);
  });
}

// ---- links

void link_update_fwd_cuda(const LinkUpdateFwdArgs& a, int device_index, void* stream) {
  const DeviceGuard guard(device_index);
  if (a.s.cells == 0) return;
  with_links_type(a.s.dtype, [&](auto element) {
    using A = decltype(element);
    LinkUpdateArgs<A> k{};
    k.link = static_cast<const A*>(a.link);
    k.precedence = static_cast<const A*>(a.precedence);
    k.write_weights = static_cast<const A*>(a.write_weights);
    k.updated_link = static_cast<A*>(a.updated_link);
    k.updated_precedence = static_cast<A*>(a.updated_precedence);
    k.cells = a.s.cells, k.tiles = link_tiles(a.s);
    with_link_columns<A>(a.s, {a.link, a.precedence, a.write_weights, a.updated_link}, [&](auto width) {
      using P = LinkTile<A, decltype(width)::V>;
      SYSGEN_LAUNCH_TEMPLATE(link_update_fwd_kernel, P, over_tiles<P>("link_update", a.s), stream, k);
    });
  });
}

int64_t link_update_bwd_cuda_scratch_bytes(const LinkUpdateBwdArgs& a) {
  return a.s.batch * link_tiles(a.s) * 2 * a.s.cells * size_of(a.s.dtype);
}

void link_update_bwd_cuda(const LinkUpdateBwdArgs& a, int device_index, void* stream) {
  const DeviceGuard guard(device_index);
  if (a.s.cells == 0) return;
  with_links_type(a.s.dtype, [&](auto element) {
    using A = decltype(element);
    LinkUpdateArgs<A> k{};
    k.link = static_cast<const A*>(a.link);
    k.precedence = static_cast<const A*>(a.precedence);
    k.write_weights = static_cast<const A*>(a.write_weights);
    k.dupdated_link = static_cast<const A*>(a.dupdated_link);
    k.dupdated_precedence = static_cast<const A*>(a.dupdated_precedence);
    k.dlink = static_cast<A*>(a.dlink);
    k.dprecedence = static_cast<A*>(a.dprecedence);
    k.dwrite_weights = static_cast<A*>(a.dwrite_weights);
    k.partial = static_cast<A*>(a.scratch);
    k.cells = a.s.cells, k.tiles = link_tiles(a.s);
    with_link_columns<A>(
        a.s, {a.link, a.precedence, a.write_weights, a.dupdated_link, a.dlink}, [&](auto width) {
          using P = LinkTile<A, decltype(width)::V>;
          SYSGEN_LAUNCH_TEMPLATE(link_update_bwd_kernel, P, over_tiles<P>("link_update_bwd", a.s), stream, k);
        });
    const LaunchConfig config{
        dim3(links_grid("link_update_bwd", a.s.batch * ceil_div(a.s.cells, kLinkThreads))),
        dim3(kLinkThreads)};
    SYSGEN_LAUNCH_TEMPLATE(link_update_finish_kernel, A, config, stream, k);
  });
}

int64_t link_read_fwd_cuda_scratch_bytes(const LinkReadFwdArgs& a) {
  return a.s.batch * link_tiles(a.s) * a.s.reads * a.s.cells * size_of(a.s.dtype);
}

void link_read_fwd_cuda(const LinkReadFwdArgs& a, int device_index, void* stream) {
  const DeviceGuard guard(device_index);
  if (a.s.cells * a.s.reads == 0) return;
  with_links_type(a.s.dtype, [&](auto element) {
    using A = decltype(element);
    LinkReadArgs<A> k{};
    k.link = static_cast<const A*>(a.link);
    k.read_weights = static_cast<const A*>(a.read_weights);
    k.sharp_forward = static_cast<const A*>(a.sharpness[0]);
    k.sharp_backward = static_cast<const A*>(a.sharpness[1]);
    k.projection_forward = static_cast<A*>(a.sharpness[0] ? a.projection[0] : a.weights[0]);
    k.projection_backward = static_cast<A*>(a.sharpness[1] ? a.projection[1] : a.weights[1]);
    k.weights_forward = static_cast<A*>(a.weights[0]);
    k.weights_backward = static_cast<A*>(a.weights[1]);
    k.partial = static_cast<A*>(a.scratch);
    set_link_sizes(k, a.s, a.eps);
    with_link_columns<A>(a.s, {a.link, a.read_weights}, [&](auto width) {
      constexpr int V = decltype(width)::V;
      const auto start = [&](auto tile) {
        using P = decltype(tile);
        SYSGEN_LAUNCH_TEMPLATE(link_read_fwd_kernel, P, over_tiles<P>("link_read", a.s), stream, k);
      };
      if (a.s.reads == 1) return start(LinkTile<A, V, 1>());
      if (a.s.reads <= 4 || sizeof(A) == 8) return start(LinkTile<A, V, 4>());
      if constexpr (sizeof(A) == 4) start(LinkTile<A, V, 8>());
    });
    SYSGEN_LAUNCH_TEMPLATE(link_read_finish_kernel, A, over_heads("link_read", a.s), stream, k);
  });
}

// Partial sums, and the gradients of the projections that are sharpened.
int64_t link_read_bwd_cuda_scratch_bytes(const LinkReadBwdArgs& a) {
  const int64_t heads = a.s.batch * a.s.reads * a.s.cells * size_of(a.s.dtype);
  return aligned(heads * link_tiles(a.s)) + aligned(a.sharpness[0] ? heads : 0) +
         (a.sharpness[1] ? heads : 0);
}

void link_read_bwd_cuda(const LinkReadBwdArgs& a, int device_index, void* stream) {
  const DeviceGuard guard(device_index);
  with_links_type(a.s.dtype, [&](auto element) {
    using A = decltype(element);
    LinkReadArgs<A> k{};
    char* scratch = static_cast<char*>(a.scratch);
    const auto take = [&](int64_t count) {
      A* const taken = reinterpret_cast<A*>(scratch);
      scratch += aligned(count * sizeof(A));
      return taken;
    };
    const int64_t heads = a.s.batch * a.s.reads * a.s.cells;
    k.link = static_cast<const A*>(a.link);
    k.read_weights = static_cast<const A*>(a.read_weights);
    k.sharp_forward = static_cast<const A*>(a.sharpness[0]);
    k.sharp_backward = static_cast<const A*>(a.sharpness[1]);
    k.projection_forward = static_cast<A*>(const_cast<void*>(a.projection[0]));
    k.projection_backward = static_cast<A*>(const_cast<void*>(a.projection[1]));
    k.weights_forward = static_cast<A*>(const_cast<void*>(a.dweights[0]));
    k.weights_backward = static_cast<A*>(const_cast<void*>(a.dweights[1]));
    k.partial = take(heads * link_tiles(a.s));
    k.dprojection_forward = k.sharp_forward ? take(heads) : k.weights_forward;
    k.dprojection_backward = k.sharp_backward ? take(heads) : k.weights_backward;
    k.dsharp_forward = static_cast<A*>(a.dsharpness[0]);
    k.dsharp_backward = static_cast<A*>(a.dsharpness[1]);
    k.dlink = static_cast<A*>(a.dlink);
    k.dread_weights = static_cast<A*>(a.dread_weights);
    set_link_sizes(k, a.s, a.eps);
    if ((k.sharp_forward || k.sharp_backward) && a.s.reads > 0)
      SYSGEN_LAUNCH_TEMPLATE(link_read_sharpen_bwd_kernel, A, over_heads("link_read_bwd", a.s), stream, k);
    if (a.s.cells == 0) return;
    const std::initializer_list<const void*> vectors = {k.link, k.read_weights, k.dprojection_backward,
                                                        k.dlink};
    with_link_columns<A>(a.s, vectors, [&](auto width) {
      constexpr int V = decltype(width)::V;
      const auto start = [&](auto tile) {
        using P = decltype(tile);
        SYSGEN_LAUNCH_TEMPLATE(link_read_bwd_kernel, P, over_tiles<P>("link_read_bwd", a.s), stream, k);
      };
      a.s.reads == 1 ? start(LinkTile<A, V, 1>()) : start(LinkTile<A, V, 4>());
    });
    if (heads > 0) SYSGEN_LAUNCH_TEMPLATE(link_read_bwd_finish_kernel, A, over_cells(heads), stream, k);
  });
}

}  // namespace sysgen
