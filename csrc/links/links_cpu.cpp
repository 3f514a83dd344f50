// Compiled once per instruction-set level (common/cpu.h): the choice of the type; the work is in
// links_cpu_cells.h and links_cpu_link.h.
#include "links/links_cpu_cells.h"
#include "links/links_cpu_link.h"

namespace sysgen::SYSGEN_ISA {

#define SYSGEN_BY_TYPE(OP, ARGS)                                              \
  void OP(const ARGS& a, int threads) {                                       \
    a.s.dtype == DType::f64 ? OP<double>(a, threads) : OP<float>(a, threads); \
  }

SYSGEN_BY_TYPE(retention_fwd, RetentionFwdArgs)
SYSGEN_BY_TYPE(retention_bwd, RetentionBwdArgs)
SYSGEN_BY_TYPE(usage_update_fwd, UsageUpdateFwdArgs)
SYSGEN_BY_TYPE(usage_update_bwd, UsageUpdateBwdArgs)
SYSGEN_BY_TYPE(allocation_fwd, AllocationFwdArgs)
SYSGEN_BY_TYPE(allocation_bwd, AllocationBwdArgs)
SYSGEN_BY_TYPE(link_update_fwd, LinkUpdateFwdArgs)
SYSGEN_BY_TYPE(link_update_bwd, LinkUpdateBwdArgs)
SYSGEN_BY_TYPE(link_read_fwd, LinkReadFwdArgs)
SYSGEN_BY_TYPE(link_read_bwd, LinkReadBwdArgs)

}  // namespace sysgen::SYSGEN_ISA
