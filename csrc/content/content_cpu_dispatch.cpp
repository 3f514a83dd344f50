#include "common/isa_table.h"
#include "content/content.h"

namespace sysgen {

#define SYSGEN_DECLARE(isa)                                    \
  namespace isa {                                              \
  void content_address_fwd(const ContentAddressFwdArgs&, int); \
  void content_address_bwd(const ContentAddressBwdArgs&, int); \
  void memory_write_fwd(const MemoryWriteFwdArgs&, int);       \
  void memory_write_bwd(const MemoryWriteBwdArgs&, int);       \
  void memory_read_fwd(const MemoryReadFwdArgs&, int);         \
  void memory_read_bwd(const MemoryReadBwdArgs&, int);         \
  void ntm_address_fwd(const NtmAddressFwdArgs&, int);         \
  void ntm_address_bwd(const NtmAddressBwdArgs&, int);         \
  }
SYSGEN_EACH_ISA(SYSGEN_DECLARE)

void content_address_fwd_cpu(const ContentAddressFwdArgs& args, int num_threads) {
  SYSGEN_ISA_CALL(content_address_fwd, args, num_threads);
}
void content_address_bwd_cpu(const ContentAddressBwdArgs& args, int num_threads) {
  SYSGEN_ISA_CALL(content_address_bwd, args, num_threads);
}
void memory_write_fwd_cpu(const MemoryWriteFwdArgs& args, int num_threads) {
  SYSGEN_ISA_CALL(memory_write_fwd, args, num_threads);
}
void memory_write_bwd_cpu(const MemoryWriteBwdArgs& args, int num_threads) {
  SYSGEN_ISA_CALL(memory_write_bwd, args, num_threads);
}
void memory_read_fwd_cpu(const MemoryReadFwdArgs& args, int num_threads) {
  SYSGEN_ISA_CALL(memory_read_fwd, args, num_threads);
}
void memory_read_bwd_cpu(const MemoryReadBwdArgs& args, int num_threads) {
  SYSGEN_ISA_CALL(memory_read_bwd, args, num_threads);
}
void ntm_address_fwd_cpu(const NtmAddressFwdArgs& args, int num_threads) {
  SYSGEN_ISA_CALL(ntm_address_fwd, args, num_threads);
}
void ntm_address_bwd_cpu(const NtmAddressBwdArgs& args, int num_threads) {
  SYSGEN_ISA_CALL(ntm_address_bwd, args, num_threads);
}

}  // namespace sysgen
