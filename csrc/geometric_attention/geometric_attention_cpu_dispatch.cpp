#include "common/cpu.h"
#include "geometric_attention/geometric_attention.h"

namespace sysgen {

#define SYSGEN_DECLARE(isa)                                            \
  namespace isa {                                                      \
  void geometric_attention_fwd(const GeometricAttentionFwdArgs&, int); \
  void geometric_attention_bwd(const GeometricAttentionBwdArgs&, int); \
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

void geometric_attention_fwd_cpu(const GeometricAttentionFwdArgs& args, int num_threads) {
  static constexpr decltype(&base::geometric_attention_fwd) kTable[] = SYSGEN_TABLE(geometric_attention_fwd);
  kTable[static_cast<int>(isa_in_use())](args, num_threads);
}

void geometric_attention_bwd_cpu(const GeometricAttentionBwdArgs& args, int num_threads) {
  static constexpr decltype(&base::geometric_attention_bwd) kTable[] = SYSGEN_TABLE(geometric_attention_bwd);
  kTable[static_cast<int>(isa_in_use())](args, num_threads);
}

}  // namespace sysgen
