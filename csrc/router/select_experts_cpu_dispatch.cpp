#include "common/isa_table.h"
#include "router/select_experts.h"

namespace sysgen {

#define SYSGEN_DECLARE(isa)                                  \
  namespace isa {                                            \
  void select_experts_fwd(const SelectExpertsFwdArgs&, int); \
  void select_experts_bwd(const SelectExpertsBwdArgs&, int); \
  }
SYSGEN_EACH_ISA(SYSGEN_DECLARE)

void select_experts_fwd_cpu(const SelectExpertsFwdArgs& args, int num_threads) {
  SYSGEN_ISA_CALL(select_experts_fwd, args, num_threads);
}
void select_experts_bwd_cpu(const SelectExpertsBwdArgs& args, int num_threads) {
  SYSGEN_ISA_CALL(select_experts_bwd, args, num_threads);
}

}  // namespace sysgen
