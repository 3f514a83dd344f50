// Compiled once per instruction-set level (common/cpu.h): dispatch by type.
#include "content/content_cpu_address.h"
#include "content/content_cpu_memory.h"
#include "content/content_cpu_ntm.h"

namespace sysgen::SYSGEN_ISA {
namespace {

template <template <class> class Op, class Args>
void run(const Args& args, int threads) {
  args.s.dtype == DType::f64 ? Op<double>::run(args, threads) : Op<float>::run(args, threads);
}

}  // namespace

void content_address_fwd(const ContentAddressFwdArgs& a, int threads) { run<ContentAddressFwd>(a, threads); }
void content_address_bwd(const ContentAddressBwdArgs& a, int threads) { run<ContentAddressBwd>(a, threads); }
void memory_write_fwd(const MemoryWriteFwdArgs& a, int threads) { run<MemoryWriteFwd>(a, threads); }
void memory_write_bwd(const MemoryWriteBwdArgs& a, int threads) { run<MemoryWriteBwd>(a, threads); }
void memory_read_fwd(const MemoryReadFwdArgs& a, int threads) { run<MemoryReadFwd>(a, threads); }
void memory_read_bwd(const MemoryReadBwdArgs& a, int threads) { run<MemoryReadBwd>(a, threads); }
void ntm_address_fwd(const NtmAddressFwdArgs& a, int threads) { run<NtmAddressFwd>(a, threads); }
void ntm_address_bwd(const NtmAddressBwdArgs& a, int threads) { run<NtmAddressBwd>(a, threads); }

}  // namespace sysgen::SYSGEN_ISA
