// Compiled once per instruction-set level (common/cpu.h): dispatch by type.
#include "router/select_experts_cpu_bwd.h"
#include "router/select_experts_cpu_fwd.h"

namespace sysgen::SYSGEN_ISA {

void select_experts_fwd(const SelectExpertsFwdArgs& a, int threads) {
  a.s.dtype == DType::f64 ? SelectExpertsFwd<double>::run(a, threads)
                          : SelectExpertsFwd<float>::run(a, threads);
}
void select_experts_bwd(const SelectExpertsBwdArgs& a, int threads) {
  a.s.dtype == DType::f64 ? SelectExpertsBwd<double>::run(a, threads)
                          : SelectExpertsBwd<float>::run(a, threads);
}

}  // namespace sysgen::SYSGEN_ISA
