// Compiled once per instruction-set level (common/cpu.h): dtype dispatch; the work is in
// geometric_attention_cpu_fwd.h and geometric_attention_cpu_bwd.h.
#include "geometric_attention/geometric_attention_cpu_bwd.h"
#include "geometric_attention/geometric_attention_cpu_fwd.h"

namespace sysgen::SYSGEN_ISA {
namespace {

template <template <class> class Op, class Args>
void run(const Args& args, int num_threads) {
  switch (args.s.dtype) {
    case DType::f64:
      return Op<double>(args, num_threads).run();
    case DType::f32:
      return Op<float>(args, num_threads).run();
    case DType::bf16:
      return Op<bf16>(args, num_threads).run();
    case DType::f16:
      return Op<f16>(args, num_threads).run();
    default:
      __builtin_trap();  // the bind header admits no other type
  }
}

}  // namespace

void geometric_attention_fwd(const GeometricAttentionFwdArgs& args, int num_threads) {
  run<Fwd>(args, num_threads);
}
void geometric_attention_bwd(const GeometricAttentionBwdArgs& args, int num_threads) {
  run<Bwd>(args, num_threads);
}

}  // namespace sysgen::SYSGEN_ISA
