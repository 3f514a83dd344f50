#include "common/isa_table.h"
#include "links/links.h"

namespace sysgen {

#define SYSGEN_DECLARE(isa)                              \
  namespace isa {                                        \
  void retention_fwd(const RetentionFwdArgs&, int);      \
  void retention_bwd(const RetentionBwdArgs&, int);      \
  void usage_update_fwd(const UsageUpdateFwdArgs&, int); \
  void usage_update_bwd(const UsageUpdateBwdArgs&, int); \
  void allocation_fwd(const AllocationFwdArgs&, int);    \
  void allocation_bwd(const AllocationBwdArgs&, int);    \
  void link_update_fwd(const LinkUpdateFwdArgs&, int);   \
  void link_update_bwd(const LinkUpdateBwdArgs&, int);   \
  void link_read_fwd(const LinkReadFwdArgs&, int);       \
  void link_read_bwd(const LinkReadBwdArgs&, int);       \
  }
SYSGEN_EACH_ISA(SYSGEN_DECLARE)

void retention_fwd_cpu(const RetentionFwdArgs& a, int threads) { SYSGEN_ISA_CALL(retention_fwd, a, threads); }
void retention_bwd_cpu(const RetentionBwdArgs& a, int threads) { SYSGEN_ISA_CALL(retention_bwd, a, threads); }
void usage_update_fwd_cpu(const UsageUpdateFwdArgs& a, int threads) {
  SYSGEN_ISA_CALL(usage_update_fwd, a, threads);
}
void usage_update_bwd_cpu(const UsageUpdateBwdArgs& a, int threads) {
  SYSGEN_ISA_CALL(usage_update_bwd, a, threads);
}
void allocation_fwd_cpu(const AllocationFwdArgs& a, int threads) {
  SYSGEN_ISA_CALL(allocation_fwd, a, threads);
}
void allocation_bwd_cpu(const AllocationBwdArgs& a, int threads) {
  SYSGEN_ISA_CALL(allocation_bwd, a, threads);
}
void link_update_fwd_cpu(const LinkUpdateFwdArgs& a, int threads) {
  SYSGEN_ISA_CALL(link_update_fwd, a, threads);
}
void link_update_bwd_cpu(const LinkUpdateBwdArgs& a, int threads) {
  SYSGEN_ISA_CALL(link_update_bwd, a, threads);
}
void link_read_fwd_cpu(const LinkReadFwdArgs& a, int threads) { SYSGEN_ISA_CALL(link_read_fwd, a, threads); }
void link_read_bwd_cpu(const LinkReadBwdArgs& a, int threads) { SYSGEN_ISA_CALL(link_read_bwd, a, threads); }

}  // namespace sysgen
