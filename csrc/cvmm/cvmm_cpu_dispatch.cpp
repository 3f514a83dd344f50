#include "common/cpu.h"
#include "cvmm/cvmm.h"

namespace sysgen {

#define SYSGEN_DECLARE(isa)                  \
  namespace isa {                            \
  void cvmm_fwd(const CvmmFwdArgs&, int);    \
  void cvmm_bwd_w(const CvmmBwdWArgs&, int); \
  }
SYSGEN_DECLARE(base)
#if SYSGEN_ISAS_BUILT > 1
SYSGEN_DECLARE(avx2)
SYSGEN_DECLARE(avx512)
SYSGEN_DECLARE(avx512_bf16)
#define SYSGEN_TABLE(function) {base::function, avx2::function, avx512::function, avx512_bf16::function}
#else
#define SYSGEN_TABLE(function) {base::function}
#endif

void cvmm_fwd_cpu(const CvmmFwdArgs& args, int num_threads) {
  static constexpr decltype(&base::cvmm_fwd) kTable[] = SYSGEN_TABLE(cvmm_fwd);
  kTable[static_cast<int>(isa_in_use())](args, num_threads);
}

void cvmm_bwd_w_cpu(const CvmmBwdWArgs& args, int num_threads) {
  static constexpr decltype(&base::cvmm_bwd_w) kTable[] = SYSGEN_TABLE(cvmm_bwd_w);
  kTable[static_cast<int>(isa_in_use())](args, num_threads);
}

}  // namespace sysgen
