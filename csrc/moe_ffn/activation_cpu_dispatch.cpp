#include "common/isa_table.h"
#include "moe_ffn/activation.h"

namespace sysgen {

#define SYSGEN_DECLARE(isa)                                               \
  namespace isa {                                                         \
  void activation_fwd(Activation, DType, const void*, void*, HiddenRows); \
  void activation_bwd(Activation, DType, const void*, void*, HiddenRows); \
  }
SYSGEN_EACH_ISA(SYSGEN_DECLARE)

void activation_fwd_cpu(Activation activation, DType dtype, const void* z, void* h, HiddenRows rows) {
  SYSGEN_ISA_CALL(activation_fwd, activation, dtype, z, h, rows);
}
void activation_bwd_cpu(Activation activation, DType dtype, const void* kept, void* dh, HiddenRows rows) {
  SYSGEN_ISA_CALL(activation_bwd, activation, dtype, kept, dh, rows);
}

}  // namespace sysgen
