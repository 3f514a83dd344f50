// The Neural Turing Machine's recurrence on CUDA: one persistent kernel for the forward, one for the
// backward.
#include <algorithm>

#include "common/check.h"
#include "device/launch.h"
#include "device/shared_bytes.h"
#include "ntm/ntm.h"
#include "ntm/ntm_bwd_kernels.cuh"
#include "ntm/ntm_fwd_kernels.cuh"

namespace sysgen {
namespace {

// Of the current device: bytes of shared memory that this recurrence takes at most. Registers let a
// multiprocessor hold one block, so that nothing else is in want of them; the rest is a cache.
size_t most_for_memory() {
  constexpr size_t kMost = 160 << 10;
  return std::min(shared_beside_static(most_shared_bytes("ntm_sequence")), kMost);
}

// Bytes of shared memory for a memory that fits there, else 0.
size_t memory_bytes_in_shared(const NtmSizes& s, size_t most) {
  const size_t bytes = static_cast<size_t>(s.cells * s.width) * (s.dtype == DType::f64 ? 8 : 4);
  return bytes > most ? 0 : shared_to_launch(bytes);
}

// Samples that are under way at once, each in a block of its own: more than 8 on a multiprocessor wait for
// their turn. Of the current device.
unsigned ntm_blocks(const NtmSizes& s) {
  const int64_t most = 8 * int64_t{num_multiprocessors("ntm_sequence")};
  return static_cast<unsigned>(std::clamp<int64_t>(s.batch, 1, most));
}

int fits_int(int64_t value, const char* what) {
  check<NotImplementedError>(value <= INT32_MAX / 64, "ntm_sequence: ", what, " is ", value, ", at most ",
                             INT32_MAX / 64, " are possible on CUDA");
  return static_cast<int>(value);
}

NtmInterfaceMap interface_map(const NtmSizes& s) {
  const int heads = static_cast<int>(2 * s.reads), words = static_cast<int>(s.reads * s.width);
  NtmInterfaceMap m{};
  m.erase = 2 * words;
  m.add = m.erase + words;
  m.strength = m.add + words;
  m.gate = m.strength + heads;
  m.sharpness = m.gate + heads;
  m.shift = m.sharpness + heads;
  m.size = m.shift + heads * static_cast<int>(s.shifts());
  return m;
}

int64_t scratch_bytes(const NtmSizes& s, bool backward) {
  DncCarver<char> work{nullptr, 0}, tape{nullptr, 0}, state{nullptr, 0};
  ntm_work(work, s.cells, s.width, s.reads, s.shifts(), backward);
  ntm_tape(tape, s.cells, s.width, s.reads, s.interface(), backward);
  ntm_cells(state, s.cells, s.width, s.reads, s.hidden);
  const int64_t chunk = std::min(s.chunk, s.steps);
  const int64_t numel = work.used + (backward ? chunk * (state.used + tape.used) : tape.used);
  return ntm_blocks(s) * numel * (s.dtype == DType::f64 ? 8 : 4);
}

template <class A>
NtmProblem<A> ntm_problem(const NtmSizes& s, void* scratch, size_t shared_bytes) {
  NtmProblem<A> p{};
  p.common.steps = s.steps;
  p.common.batch = s.batch;
  p.common.chunk = s.chunk;
  p.common.lengths = reinterpret_cast<const i64*>(s.lengths);
  p.common.counters = static_cast<u32*>(scratch);  // one block shares a sample with nobody: not used
  p.common.hidden = fits_int(s.hidden, "the width of the controller");
  p.common.cells = fits_int(s.cells, "the number of cells");
  p.common.width = fits_int(s.width, "the width of a cell");
  p.common.reads = fits_int(s.reads, "the number of pairs of heads");
  fits_int(s.interface(), "the width of the interface");
  fits_int(2 * s.reads * s.cells, "the number of cells times that of heads");
  fits_int(s.width * s.cells, "the size of the memory");
  p.common.group = 1;
  p.common.eps = static_cast<A>(s.eps);
  p.memory_shared = shared_bytes > 0;
  p.reach = static_cast<int>(s.reach);
  p.shifts = static_cast<int>(s.shifts());
  p.at = interface_map(s);
  return p;
}

template <class A>
NtmCells<A> cells(const NtmState& s) {
  const auto of = [](void* x) { return static_cast<A*>(x); };
  return {of(s.memory), {of(s.read_w), of(s.write_w)}, of(s.c)};
}

template <class A>
void fwd(const NtmFwdArgs& a, size_t most_shared, void* stream) {
  const size_t shared = memory_bytes_in_shared(a.s, most_shared);
  const auto in = [](const void* x) { return static_cast<const A*>(x); };
  const auto out = [](void* x) { return static_cast<A*>(x); };
  NtmFwdKernelArgs<A> k{};
  k.p = ntm_problem<A>(a.s, a.scratch, shared);
  k.w_hidden = in(a.w.hidden);
  k.w_reads = in(a.w.reads);
  k.w_interface = in(a.w.interface);
  k.b_interface = in(a.w.interface_bias);
  k.gates = out(a.gates);
  k.h_out = out(a.h_out);
  k.reads_out = out(a.reads_out);
  k.checkpoints = out(a.checkpoints);
  k.initial_h = in(a.initial.h);
  k.initial_reads = in(a.initial.reads);
  k.final_h = out(a.final.h);
  k.final_reads = out(a.final.reads);
  k.initial = cells<A>(a.initial);
  k.final = cells<A>(a.final);
  k.scratch = out(a.scratch);
  const LaunchConfig config{dim3(ntm_blocks(a.s)), dim3(kDncThreads), shared};
  SYSGEN_LAUNCH_TEMPLATE(ntm_fwd_kernel, A, config, stream, k);
}

template <class A>
void bwd(const NtmBwdArgs& a, size_t most_shared, void* stream) {
  const size_t shared = memory_bytes_in_shared(a.s, most_shared);
  const auto in = [](const void* x) { return static_cast<const A*>(x); };
  const auto out = [](void* x) { return static_cast<A*>(x); };
  NtmBwdKernelArgs<A> k{};
  k.p = ntm_problem<A>(a.s, a.scratch, shared);
  k.w_hidden_t = in(a.w.hidden);
  k.w_reads_t = in(a.w.reads);
  k.w_interface = in(a.w.interface);
  k.w_interface_t = in(a.w.interface_t);
  k.b_interface = in(a.w.interface_bias);
  k.gates = in(a.gates);
  k.h_out = in(a.h_out);
  k.checkpoints = const_cast<A*>(in(a.checkpoints));
  k.dh_out = in(a.dh_out);
  k.dreads_out = in(a.dreads_out);
  k.dfinal_h = in(a.dfinal.h);
  k.dfinal_reads = in(a.dfinal.reads);
  k.dinitial_h = out(a.dinitial.h);
  k.dinitial_reads = out(a.dinitial.reads);
  k.dfinal = cells<A>(a.dfinal);
  k.dinitial = cells<A>(a.dinitial);
  k.dgates = out(a.dgates);
  k.dinterface = out(a.dinterface);
  k.scratch = out(a.scratch);
  const LaunchConfig config{dim3(ntm_blocks(a.s)), dim3(kDncThreads), shared};
  SYSGEN_LAUNCH_TEMPLATE(ntm_bwd_kernel, A, config, stream, k);
}

}  // namespace

int64_t ntm_cuda_checkpoint_numel(const NtmSizes& s) {
  DncCarver<char> count{nullptr, 0};
  ntm_cells(count, s.cells, s.width, s.reads, s.hidden);
  return count.used;
}

int64_t ntm_fwd_cuda_scratch_bytes(const NtmSizes& s, int device_index) {
  const DeviceGuard guard(device_index);
  return scratch_bytes(s, false);
}
int64_t ntm_bwd_cuda_scratch_bytes(const NtmSizes& s, int device_index) {
  const DeviceGuard guard(device_index);
  return scratch_bytes(s, true);
}

void ntm_fwd_cuda(const NtmFwdArgs& args, int device_index, void* stream) {
  if (args.s.batch == 0) return;
  const DeviceGuard guard(device_index);
  const size_t most = most_for_memory();
  args.s.dtype == DType::f64 ? fwd<double>(args, most, stream) : fwd<float>(args, most, stream);
}

void ntm_bwd_cuda(const NtmBwdArgs& args, int device_index, void* stream) {
  if (args.s.batch == 0) return;
  const DeviceGuard guard(device_index);
  const size_t most = most_for_memory();
  args.s.dtype == DType::f64 ? bwd<double>(args, most, stream) : bwd<float>(args, most, stream);
}

}  // namespace sysgen
