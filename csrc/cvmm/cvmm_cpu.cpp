// Compiled once per instruction-set level (common/cpu.h): dtype dispatch; the work is in cvmm_cpu_fwd.h and
// cvmm_cpu_bwd_w.h.
#include "cvmm/cvmm_cpu_bwd_w.h"
#include "cvmm/cvmm_cpu_fwd.h"

namespace sysgen::SYSGEN_ISA {
namespace {

template <template <class, class> class Op, class Args>
void run(const Args& args, int num_threads) {
  const bool master = args.w_dtype == DType::f32;
  switch (args.dtype) {
    case DType::f64:
      return Op<double, double>(args, num_threads).run();
    case DType::f32:
      return Op<float, float>(args, num_threads).run();
    case DType::bf16:
      return master ? Op<bf16, float>(args, num_threads).run() : Op<bf16, bf16>(args, num_threads).run();
    case DType::f16:
      return master ? Op<f16, float>(args, num_threads).run() : Op<f16, f16>(args, num_threads).run();
    default:
      __builtin_trap();  // the bind header admits no other type
  }
}

}  // namespace

void cvmm_fwd(const CvmmFwdArgs& args, int num_threads) { run<CvmmFwd>(args, num_threads); }
void cvmm_bwd_w(const CvmmBwdWArgs& args, int num_threads) { run<CvmmBwdW>(args, num_threads); }

}  // namespace sysgen::SYSGEN_ISA
