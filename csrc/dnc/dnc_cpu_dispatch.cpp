#include "common/cpu.h"
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
SYSGEN_DECLARE(base)
#if SYSGEN_ISAS_BUILT > 1
SYSGEN_DECLARE(avx2)
SYSGEN_DECLARE(avx512)
SYSGEN_DECLARE(avx512_bf16)
#define SYSGEN_TABLE(function) {base::function, avx2::function, avx512::function, avx512_bf16::function}
#else
#define SYSGEN_TABLE(function) {base::function}
#endif
#define SYSGEN_CALL(function, ...)                                              \
  static constexpr decltype(&base::function) kTable[] = SYSGEN_TABLE(function); \
  return kTable[static_cast<int>(isa_in_use())](__VA_ARGS__)

void dnc_fwd_cpu(const DncFwdArgs& args) { SYSGEN_CALL(dnc_fwd, args); }
void dnc_bwd_cpu(const DncBwdArgs& args) { SYSGEN_CALL(dnc_bwd, args); }
int dnc_vector_bytes() { SYSGEN_CALL(dnc_vector); }
int64_t dnc_checkpoint_numel(const DncSizes& s) { SYSGEN_CALL(dnc_checkpoint, s); }
int64_t dnc_fwd_cpu_scratch_bytes(const DncSizes& s, int threads) {
  SYSGEN_CALL(dnc_fwd_scratch, s, threads);
}
int64_t dnc_bwd_cpu_scratch_bytes(const DncSizes& s, int threads) {
  SYSGEN_CALL(dnc_bwd_scratch, s, threads);
}

}  // namespace sysgen
