#include "common/isa_table.h"
#include "geometric_attention/geometric_attention.h"

namespace sysgen {

#define SYSGEN_DECLARE(isa)                                            \
  namespace isa {                                                      \
  void geometric_attention_fwd(const GeometricAttentionFwdArgs&, int); \
  void geometric_attention_bwd(const GeometricAttentionBwdArgs&, int); \
  }
SYSGEN_EACH_ISA(SYSGEN_DECLARE)

void geometric_attention_fwd_cpu(const GeometricAttentionFwdArgs& args, int num_threads) {
  SYSGEN_ISA_CALL(geometric_attention_fwd, args, num_threads);
}
void geometric_attention_bwd_cpu(const GeometricAttentionBwdArgs& args, int num_threads) {
  SYSGEN_ISA_CALL(geometric_attention_bwd, args, num_threads);
}

}  // namespace sysgen
