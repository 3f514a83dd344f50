#include "common/isa_table.h"
#include "dnc/dnc.h"

namespace sysgen {

#define SYSGEN_DECLARE(isa)                      \
  namespace isa {                                \
  void dnc_fwd(const DncFwdArgs&);               \
  void dnc_bwd(const DncBwdArgs&);               \
  int dnc_vector();                              \
  int64_t dnc_checkpoint(const DncSizes&);       \
  int64_t dnc_fwd_scratch(const DncSizes&, int); \
  int64_t dnc_bwd_scratch(const DncSizes&, int); \
  }
SYSGEN_EACH_ISA(SYSGEN_DECLARE)

void dnc_fwd_cpu(const DncFwdArgs& args) { SYSGEN_ISA_CALL(dnc_fwd, args); }
void dnc_bwd_cpu(const DncBwdArgs& args) { SYSGEN_ISA_CALL(dnc_bwd, args); }
int dnc_vector_bytes() { SYSGEN_ISA_CALL(dnc_vector); }
int64_t dnc_checkpoint_numel(const DncSizes& s) { SYSGEN_ISA_CALL(dnc_checkpoint, s); }
int64_t dnc_fwd_cpu_scratch_bytes(const DncSizes& s, int threads) {
  SYSGEN_ISA_CALL(dnc_fwd_scratch, s, threads);
}
int64_t dnc_bwd_cpu_scratch_bytes(const DncSizes& s, int threads) {
  SYSGEN_ISA_CALL(dnc_bwd_scratch, s, threads);
}

}  // namespace sysgen
