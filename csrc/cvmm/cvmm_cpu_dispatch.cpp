#include "common/isa_table.h"
#include "cvmm/cvmm.h"

namespace sysgen {

#define SYSGEN_DECLARE(isa)                  \
  namespace isa {                            \
  void cvmm_fwd(const CvmmFwdArgs&, int);    \
  void cvmm_bwd_w(const CvmmBwdWArgs&, int); \
  }
SYSGEN_EACH_ISA(SYSGEN_DECLARE)

void cvmm_fwd_cpu(const CvmmFwdArgs& args, int num_threads) { SYSGEN_ISA_CALL(cvmm_fwd, args, num_threads); }
void cvmm_bwd_w_cpu(const CvmmBwdWArgs& args, int num_threads) {
  SYSGEN_ISA_CALL(cvmm_bwd_w, args, num_threads);
}

}  // namespace sysgen
