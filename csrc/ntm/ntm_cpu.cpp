// The recurrence on the CPU, compiled once per instruction-set level (common/cpu.h).
#include "dnc/dnc_cpu_sequence.h"
#include "ntm/ntm_cpu_step_bwd.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// The family of operations that this file compiles, for dnc_cpu_sequence.h.
template <class A>
struct Ntm {
  using Real = A;
  const NtmSizes& s;
  const Interface at;
  const Team team;

  explicit Ntm(const NtmSizes& sizes, Team t = {1}) : s(sizes), at(sizes), team(t) {}
  State<A> state(Carver<A>& carver, Holds holds) const { return State<A>(carver, s, holds); }
  State<A> step_state(Carver<A>& carver, A*) const { return State<A>(carver, s, Holds::step); }
  int64_t record() const { return 0; }
  int64_t halfway() const { return 0; }
  void go_halfway(int64_t, const A*, const State<A>&, const State<A>&) const {}
  Step<A> step(Carver<A>& carver, A*) const { return Step<A>(carver, s); }
  StepScratch<A> scratch(Carver<A>& carver) const { return StepScratch<A>(carver, s); }
  int64_t spare() const { return 0; }

  void import(const NtmState& from, int64_t b, const State<A>& to) const {
    const int64_t n = padded<A>(s.cells);
    import_memory(from.memory, b, s.cells, s.width, to.memory);
    for (int64_t p = 0; p < s.reads; ++p) {
      pad_rows(from.read_w, b * s.reads + p, 1, s.cells, to.weights + 2 * p * n);
      pad_rows(from.write_w, b * s.reads + p, 1, s.cells, to.weights + (2 * p + 1) * n);
    }
    pad_rows(from.reads, b, 1, s.reads * s.width, to.reads);
    pad_rows(from.h, b, 1, s.hidden, to.h);
    pad_rows(from.c, b, 1, s.hidden, to.c);
  }
  void export_to(const State<A>& from, int64_t b, const NtmState& to) const {
    const int64_t n = padded<A>(s.cells);
    export_memory(from.memory, b, s.cells, s.width, to.memory);
    for (int64_t p = 0; p < s.reads; ++p) {
      unpad_rows(from.weights + 2 * p * n, b * s.reads + p, 1, s.cells, to.read_w);
      unpad_rows(from.weights + (2 * p + 1) * n, b * s.reads + p, 1, s.cells, to.write_w);
    }
    unpad_rows(from.reads, b, 1, s.reads * s.width, to.reads);
    unpad_rows(from.h, b, 1, s.hidden, to.h);
    unpad_rows(from.c, b, 1, s.hidden, to.c);
  }
  void fwd(bool again, const State<A>& prev, const State<A>& next, const Step<A>& step, A*) const {
    memory_step_fwd(s, at, again, prev, next, step);
  }
  void bwd(int64_t, const State<A>& prev, const State<A>& next, const Step<A>& step, const State<A>& grad,
           const StepScratch<A>& scratch, A* dxi) const {
    memory_step_bwd(s, at, prev, next, step, grad, scratch, dxi);
  }
};

}  // namespace

void ntm_fwd(const NtmFwdArgs& a) {
  a.s.dtype == DType::f64 ? sequence_fwd<Ntm<double>>(a) : sequence_fwd<Ntm<float>>(a);
}
void ntm_bwd(const NtmBwdArgs& a) {
  a.s.dtype == DType::f64 ? sequence_bwd<Ntm<double>>(a) : sequence_bwd<Ntm<float>>(a);
}

int ntm_vector() { return kVectorBytes; }
int64_t ntm_checkpoint(const NtmSizes& s) {
  return s.dtype == DType::f64 ? CheckpointLayout(Ntm<double>(s)).numel
                               : CheckpointLayout(Ntm<float>(s)).numel;
}
int64_t ntm_fwd_scratch(const NtmSizes& s, int threads) {
  return s.dtype == DType::f64 ? fwd_scratch_bytes<Ntm<double>>(s, threads)
                               : fwd_scratch_bytes<Ntm<float>>(s, threads);
}
int64_t ntm_bwd_scratch(const NtmSizes& s, int threads) {
  return s.dtype == DType::f64 ? bwd_scratch_bytes<Ntm<double>>(s, threads)
                               : bwd_scratch_bytes<Ntm<float>>(s, threads);
}

}  // namespace sysgen::SYSGEN_ISA
