// The recurrence on the CPU, compiled once per instruction-set level (common/cpu.h).
#include "dnc/dnc_cpu_sequence.h"
#include "dnc/dnc_cpu_step_bwd.h"

namespace sysgen::SYSGEN_ISA {
namespace {

template <class A>
void import_state(const DncSizes& s, const DncState& from, int64_t b, const State<A>& to) {
  import_memory(from.memory, b, s.cells, s.width, to.memory);
  pad_rows(from.link, b, s.cells, s.cells, to.link);
  pad_rows(from.usage, b, 1, s.cells, to.usage);
  pad_rows(from.precedence, b, 1, s.cells, to.precedence);
  pad_rows(from.write_w, b, 1, s.cells, to.write_w);
  pad_rows(from.read_w, b, s.reads, s.cells, to.read_w);
  pad_rows(from.reads, b, 1, s.reads * s.width, to.reads);
  pad_rows(from.h, b, 1, s.hidden, to.h);
  pad_rows(from.c, b, 1, s.hidden, to.c);
}

template <class A>
void export_state(const DncSizes& s, const State<A>& from, int64_t b, const DncState& to) {
  export_memory(from.memory, b, s.cells, s.width, to.memory);
  unpad_rows(from.link, b, s.cells, s.cells, to.link);
  unpad_rows(from.usage, b, 1, s.cells, to.usage);
  unpad_rows(from.precedence, b, 1, s.cells, to.precedence);
  unpad_rows(from.write_w, b, 1, s.cells, to.write_w);
  unpad_rows(from.read_w, b, s.reads, s.cells, to.read_w);
  unpad_rows(from.reads, b, 1, s.reads * s.width, to.reads);
  unpad_rows(from.h, b, 1, s.hidden, to.h);
  unpad_rows(from.c, b, 1, s.hidden, to.c);
}

// The family of operations that this file compiles, for dnc_cpu_sequence.h.
template <class A>
struct Dnc {
  using Real = A;
  const DncSizes& s;
  const Interface at;
  const Team team;

  explicit Dnc(const DncSizes& sizes, Team t = {1}) : s(sizes), at(sizes), team(t) {}
  State<A> state(Carver<A>& carver, Holds holds) const { return State<A>(carver, s, holds); }
  // Its links stay those before the chunk, with which a checkpoint begins, or those at its middle.
  State<A> step_state(Carver<A>& carver, A* links) const {
    State<A> of_step(carver, s, Holds::step);
    of_step.link = links;
    return of_step;
  }
  int64_t halfway() const { return s.cells * padded<A>(s.cells); }
  void go_halfway(int64_t behind, const A* links, const State<A>& prev, const State<A>& next) const {
    links_again(step_links(s, behind, links, prev, next), team, prev.link);
  }
  int64_t record() const { return 2 * s.reads * padded<A>(s.cells); }  // the projections
  Step<A> step(Carver<A>& carver, A* record) const { return Step<A>(carver, record, s, at.size); }
  StepScratch<A> scratch(Carver<A>& carver) const { return StepScratch<A>(carver, s); }
  int64_t spare() const { return step_spare<A>(s); }

  void import(const DncState& from, int64_t b, const State<A>& to) const { import_state(s, from, b, to); }
  void export_to(const State<A>& from, int64_t b, const DncState& to) const { export_state(s, from, b, to); }
  void fwd(bool again, const State<A>& prev, const State<A>& next, const Step<A>& step, A* spare) const {
    memory_step_fwd(s, at, team, again, prev, next, step, spare);
  }
  // `behind`: steps between the links of `prev` and this one.
  void bwd(int64_t behind, const State<A>& prev, const State<A>& next, const Step<A>& step,
           const State<A>& grad, const StepScratch<A>& scratch, A* dxi) const {
    memory_step_bwd(s, at, team, behind, prev, next, step, grad, scratch, dxi);
  }
};

}  // namespace

void dnc_fwd(const DncFwdArgs& a) {
  a.s.dtype == DType::f64 ? sequence_fwd<Dnc<double>>(a) : sequence_fwd<Dnc<float>>(a);
}
void dnc_bwd(const DncBwdArgs& a) {
  a.s.dtype == DType::f64 ? sequence_bwd<Dnc<double>>(a) : sequence_bwd<Dnc<float>>(a);
}

int dnc_vector() { return kVectorBytes; }
int64_t dnc_checkpoint(const DncSizes& s) {
  return s.dtype == DType::f64 ? CheckpointLayout(Dnc<double>(s)).numel
                               : CheckpointLayout(Dnc<float>(s)).numel;
}
int64_t dnc_fwd_scratch(const DncSizes& s, int threads) {
  return s.dtype == DType::f64 ? fwd_scratch_bytes<Dnc<double>>(s, threads)
                               : fwd_scratch_bytes<Dnc<float>>(s, threads);
}
int64_t dnc_bwd_scratch(const DncSizes& s, int threads) {
  return s.dtype == DType::f64 ? bwd_scratch_bytes<Dnc<double>>(s, threads)
                               : bwd_scratch_bytes<Dnc<float>>(s, threads);
}

}  // namespace sysgen::SYSGEN_ISA
