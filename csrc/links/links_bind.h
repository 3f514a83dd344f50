// Python entry points of allocation and links: argument checks, then the CPU or CUDA host function.
#pragma once
#include "common/define_op.h"
#include "links/links.h"

namespace sysgen {

template <class Args>
int64_t no_scratch(const Args&) {
  return 0;
}

// Checks the arguments of one operation, of which the first one decides type, device and sizes.
struct LinksChecker {
  const char* op;
  const TensorView& first;
  LinksSizes s;

  LinksChecker(const char* op_, const char* name, const TensorView& t, int dimensions) : op(op_), first(t) {
    check_dtype(op, name, t, {DType::f64, DType::f32});
    check(t.ndim == dimensions, op, ": ", name, " must have ", dimensions, " dimensions, got shape ",
          shape_of(t));
    s.dtype = t.dtype;
    s.batch = t.shape[0];
    s.cells = t.shape[dimensions - 1];
    if (dimensions == 3) s.reads = t.shape[1];
    check(s.cells <= INT32_MAX, op, ": at most 2^31 - 1 cells are supported, got ", s.cells);
  }
  void set_reads(const char* name, const TensorView& t) {
    check(t.ndim == 3, op, ": ", name, " must have 3 dimensions, got shape ", shape_of(t));
    s.reads = t.shape[1];
  }
  void* of(const char* name, const std::optional<TensorView>& t, std::initializer_list<int64_t> shape) const {
    return check_dense(op, name, t, first.dtype, shape, first);
  }
  void* cells(const char* name, const std::optional<TensorView>& t) const {
    return of(name, t, {s.batch, s.cells});
  }
  void* links(const char* name, const std::optional<TensorView>& t) const {
    return of(name, t, {s.batch, s.cells, s.cells});
  }
  void* heads(const char* name, const std::optional<TensorView>& t) const {
    return of(name, t, {s.batch, s.reads});
  }
  void* head_cells(const char* name, const std::optional<TensorView>& t) const {
    return of(name, t, {s.batch, s.reads, s.cells});
  }
};

inline void register_links(pybind11::module_& m) {
  using T = const TensorView&;
  using M = const std::optional<TensorView>&;
  using Number = Types<double>;

  define_op<RetentionFwdArgs>(
      m, "retention_fwd", Types<T, T, T>(), Types<>(),
      [](const char* op, T read_weights, T free_gate, T retention) {
        const LinksChecker c(op, "read_weights", read_weights, 3);
        return RetentionFwdArgs{c.s, c.head_cells("read_weights", read_weights),
                                c.heads("free_gate", free_gate), c.cells("retention", retention), nullptr};
      },
      SYSGEN_IF_CPU(&retention_fwd_cpu), &no_scratch, SYSGEN_IF_CUDA(&retention_fwd_cuda));
  define_op<RetentionBwdArgs>(
      m, "retention_bwd", Types<T, T, T, T, T>(), Types<>(),
      [](const char* op, T read_weights, T free_gate, T dretention, T dread_weights, T dfree_gate) {
        const LinksChecker c(op, "read_weights", read_weights, 3);
        return RetentionBwdArgs{c.s,
                                c.head_cells("read_weights", read_weights),
                                c.heads("free_gate", free_gate),
                                c.cells("dretention", dretention),
                                c.head_cells("dread_weights", dread_weights),
                                c.heads("dfree_gate", dfree_gate),
                                nullptr};
      },
      SYSGEN_IF_CPU(&retention_bwd_cpu), &no_scratch, SYSGEN_IF_CUDA(&retention_bwd_cuda));
  define_op<UsageUpdateFwdArgs>(
      m, "usage_update_fwd", Types<T, T, T, T>(), Types<>(),
      [](const char* op, T usage, T write_weights, T retention, T updated) {
        const LinksChecker c(op, "usage", usage, 2);
        return UsageUpdateFwdArgs{c.s,
                                  c.cells("usage", usage),
                                  c.cells("write_weights", write_weights),
                                  c.cells("retention", retention),
                                  c.cells("updated", updated),
                                  nullptr};
      },
      SYSGEN_IF_CPU(&usage_update_fwd_cpu), &no_scratch, SYSGEN_IF_CUDA(&usage_update_fwd_cuda));
  define_op<UsageUpdateBwdArgs>(
      m, "usage_update_bwd", Types<T, T, T, T, T, T, T>(), Types<>(),
      [](const char* op, T usage, T write_weights, T retention, T dupdated, T dusage, T dwrite_weights,
         T dretention) {
        const LinksChecker c(op, "usage", usage, 2);
        return UsageUpdateBwdArgs{c.s,
                                  c.cells("usage", usage),
                                  c.cells("write_weights", write_weights),
                                  c.cells("retention", retention),
                                  c.cells("dupdated", dupdated),
                                  c.cells("dusage", dusage),
                                  c.cells("dwrite_weights", dwrite_weights),
                                  c.cells("dretention", dretention),
                                  nullptr};
      },
      SYSGEN_IF_CPU(&usage_update_bwd_cpu), &no_scratch, SYSGEN_IF_CUDA(&usage_update_bwd_cuda));
  define_op<AllocationFwdArgs>(
      m, "allocation_fwd", Types<T, T>(), Number(),
      [](const char* op, T usage, T allocation, double eps) {
        const LinksChecker c(op, "usage", usage, 2);
        return AllocationFwdArgs{c.s, eps, c.cells("usage", usage), c.cells("allocation", allocation),
                                 nullptr};
      },
      SYSGEN_IF_CPU(&allocation_fwd_cpu), &no_scratch, SYSGEN_IF_CUDA(&allocation_fwd_cuda));
  define_op<AllocationBwdArgs>(
      m, "allocation_bwd", Types<T, T, T>(), Number(),
      [](const char* op, T usage, T dallocation, T dusage, double eps) {
        const LinksChecker c(op, "usage", usage, 2);
        return AllocationBwdArgs{c.s,
                                 eps,
                                 c.cells("usage", usage),
                                 c.cells("dallocation", dallocation),
                                 c.cells("dusage", dusage),
                                 nullptr};
      },
      SYSGEN_IF_CPU(&allocation_bwd_cpu), &no_scratch, SYSGEN_IF_CUDA(&allocation_bwd_cuda));
  define_op<LinkUpdateFwdArgs>(
      m, "link_update_fwd", Types<T, T, T, T, T>(), Types<>(),
      [](const char* op, T link, T precedence, T write_weights, T updated_link, T updated_precedence) {
        const LinksChecker c(op, "link", link, 3);
        return LinkUpdateFwdArgs{c.s,
                                 c.links("link", link),
                                 c.cells("precedence", precedence),
                                 c.cells("write_weights", write_weights),
                                 c.links("updated_link", updated_link),
                                 c.cells("updated_precedence", updated_precedence),
                                 nullptr};
      },
      SYSGEN_IF_CPU(&link_update_fwd_cpu), &no_scratch, SYSGEN_IF_CUDA(&link_update_fwd_cuda));
  define_op<LinkUpdateBwdArgs>(
      m, "link_update_bwd", Types<T, T, T, M, M, T, T, T>(), Types<>(),
      [](const char* op, T link, T precedence, T write_weights, M dupdated_link, M dupdated_precedence,
         T dlink, T dprecedence, T dwrite_weights) {
        const LinksChecker c(op, "link", link, 3);
        return LinkUpdateBwdArgs{c.s,
                                 c.links("link", link),
                                 c.cells("precedence", precedence),
                                 c.cells("write_weights", write_weights),
                                 c.links("dupdated_link", dupdated_link),
                                 c.cells("dupdated_precedence", dupdated_precedence),
                                 c.links("dlink", dlink),
                                 c.cells("dprecedence", dprecedence),
                                 c.cells("dwrite_weights", dwrite_weights),
                                 nullptr};
      },
      SYSGEN_IF_CPU(&link_update_bwd_cpu), SYSGEN_IF_CUDA(&link_update_bwd_cuda_scratch_bytes),
      SYSGEN_IF_CUDA(&link_update_bwd_cuda));
  define_op<LinkReadFwdArgs>(
      m, "link_read_fwd", Types<T, T, M, M, T, T, M, M>(), Number(),
      [](const char* op, T link, T read_weights, M sharp_forward, M sharp_backward, T forward, T backward,
         M projection_forward, M projection_backward, double eps) {
        LinksChecker c(op, "link", link, 3);
        c.set_reads("read_weights", read_weights);
        LinkReadFwdArgs a{};
        a.s = c.s;
        a.eps = eps;
        a.link = c.links("link", link);
        a.read_weights = c.head_cells("read_weights", read_weights);
        a.sharpness[0] = c.heads("sharp_forward", sharp_forward);
        a.sharpness[1] = c.heads("sharp_backward", sharp_backward);
        a.weights[0] = c.head_cells("forward", forward);
        a.weights[1] = c.head_cells("backward", backward);
        a.projection[0] = sharp_forward ? c.head_cells("projection_forward", projection_forward) : nullptr;
        a.projection[1] = sharp_backward ? c.head_cells("projection_backward", projection_backward) : nullptr;
        check(!sharp_forward == !projection_forward && !sharp_backward == !projection_backward, op,
              ": each sharpness needs its projection");
        return a;
      },
      SYSGEN_IF_CPU(&link_read_fwd_cpu), SYSGEN_IF_CUDA(&link_read_fwd_cuda_scratch_bytes),
      SYSGEN_IF_CUDA(&link_read_fwd_cuda));
  define_op<LinkReadBwdArgs>(
      m, "link_read_bwd", Types<T, T, M, M, M, M, M, M, T, T, M, M>(), Number(),
      [](const char* op, T link, T read_weights, M sharp_forward, M sharp_backward, M projection_forward,
         M projection_backward, M dforward, M dbackward, T dlink, T dread_weights, M dsharp_forward,
         M dsharp_backward, double eps) {
        LinksChecker c(op, "link", link, 3);
        c.set_reads("read_weights", read_weights);
        LinkReadBwdArgs a{};
        a.s = c.s;
        a.eps = eps;
        a.link = c.links("link", link);
        a.read_weights = c.head_cells("read_weights", read_weights);
        a.sharpness[0] = c.heads("sharp_forward", sharp_forward);
        a.sharpness[1] = c.heads("sharp_backward", sharp_backward);
        a.projection[0] = c.head_cells("projection_forward", projection_forward);
        a.projection[1] = c.head_cells("projection_backward", projection_backward);
        a.dweights[0] = c.head_cells("dforward", dforward);
        a.dweights[1] = c.head_cells("dbackward", dbackward);
        a.dlink = c.links("dlink", dlink);
        a.dread_weights = c.head_cells("dread_weights", dread_weights);
        a.dsharpness[0] = c.heads("dsharp_forward", dsharp_forward);
        a.dsharpness[1] = c.heads("dsharp_backward", dsharp_backward);
        check(!sharp_forward == !projection_forward && !sharp_forward == !dsharp_forward &&
                  !sharp_backward == !projection_backward && !sharp_backward == !dsharp_backward,
              op, ": each sharpness needs its projection and its gradient");
        return a;
      },
      SYSGEN_IF_CPU(&link_read_bwd_cpu), SYSGEN_IF_CUDA(&link_read_bwd_cuda_scratch_bytes),
      SYSGEN_IF_CUDA(&link_read_bwd_cuda));
}

}  // namespace sysgen
