#include "common/isa_table.h"
#include "gated_update/gated_update.h"

namespace sysgen {

#define SYSGEN_DECLARE(isa)                                 \
  namespace isa {                                           \
  void dropout(const DropoutArgs&, int);                    \
  void gated_update_attended_fwd(const AttendedArgs&, int); \
  void gated_update_attended_bwd(const AttendedArgs&, int); \
  void gated_update_hidden_fwd(const HiddenArgs&, int);     \
  void gated_update_hidden_bwd(const HiddenArgs&, int);     \
  void gated_update_gate_fwd(const GateArgs&, int);         \
  void gated_update_gate_bwd(const GateArgs&, int);         \
  }
SYSGEN_EACH_ISA(SYSGEN_DECLARE)

int64_t gated_update_segments(int64_t rows) {
  const int64_t of_64 = (rows + 63) / 64;
  return of_64 < 1 ? 1 : of_64 < 32 ? of_64 : 32;
}

void dropout_cpu(const DropoutArgs& args, int num_threads) { SYSGEN_ISA_CALL(dropout, args, num_threads); }
void gated_update_attended_fwd_cpu(const AttendedArgs& args, int num_threads) {
  SYSGEN_ISA_CALL(gated_update_attended_fwd, args, num_threads);
}
void gated_update_attended_bwd_cpu(const AttendedArgs& args, int num_threads) {
  SYSGEN_ISA_CALL(gated_update_attended_bwd, args, num_threads);
}
void gated_update_hidden_fwd_cpu(const HiddenArgs& args, int num_threads) {
  SYSGEN_ISA_CALL(gated_update_hidden_fwd, args, num_threads);
}
void gated_update_hidden_bwd_cpu(const HiddenArgs& args, int num_threads) {
  SYSGEN_ISA_CALL(gated_update_hidden_bwd, args, num_threads);
}
void gated_update_gate_fwd_cpu(const GateArgs& args, int num_threads) {
  SYSGEN_ISA_CALL(gated_update_gate_fwd, args, num_threads);
}
void gated_update_gate_bwd_cpu(const GateArgs& args, int num_threads) {
  SYSGEN_ISA_CALL(gated_update_gate_bwd, args, num_threads);
}

}  // namespace sysgen
