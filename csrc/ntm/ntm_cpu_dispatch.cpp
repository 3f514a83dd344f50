#include "common/isa_table.h"
#include "ntm/ntm.h"

namespace sysgen {

#define SYSGEN_DECLARE(isa)                      \
  namespace isa {                                \
  void ntm_fwd(const NtmFwdArgs&);               \
  void ntm_bwd(const NtmBwdArgs&);               \
  int ntm_vector();                              \
  int64_t ntm_checkpoint(const NtmSizes&);       \
  int64_t ntm_fwd_scratch(const NtmSizes&, int); \
  int64_t ntm_bwd_scratch(const NtmSizes&, int); \
  }
SYSGEN_EACH_ISA(SYSGEN_DECLARE)

void ntm_fwd_cpu(const NtmFwdArgs& args) { SYSGEN_ISA_CALL(ntm_fwd, args); }
void ntm_bwd_cpu(const NtmBwdArgs& args) { SYSGEN_ISA_CALL(ntm_bwd, args); }
int ntm_vector_bytes() { SYSGEN_ISA_CALL(ntm_vector); }
int64_t ntm_checkpoint_numel(const NtmSizes& s) { SYSGEN_ISA_CALL(ntm_checkpoint, s); }
int64_t ntm_fwd_cpu_scratch_bytes(const NtmSizes& s, int threads) {
  SYSGEN_ISA_CALL(ntm_fwd_scratch, s, threads);
}
int64_t ntm_bwd_cpu_scratch_bytes(const NtmSizes& s, int threads) {
  SYSGEN_ISA_CALL(ntm_bwd_scratch, s, threads);
}

}  // namespace sysgen
