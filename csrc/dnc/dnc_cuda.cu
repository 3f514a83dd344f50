// The DNC's recurrence on CUDA: one persistent kernel for the forward, one for the backward.
#include <algorithm>

#include "common/check.h"
#include "device/launch.h"
#include "device/shared_bytes.h"
#include "dnc/dnc.h"
#include "dnc/dnc_bwd_kernels.cuh"
#include "dnc/dnc_fwd_kernels.cuh"

namespace sysgen {
namespace {

struct DncPlan {
  int group;          // blocks that share a sample
  int64_t groups;     // samples that are under way at once
  size_t shared = 0;  // bytes of dynamic shared memory that a block can have

  unsigned blocks() const { return static_cast<unsigned>(group * groups); }
};

// A sample gets more blocks where that saves more than the barriers between them cost: a multiprocessor
// streams some 100 KB in the time of a barrier across the device, of which a step has seven. All blocks must
// be resident, and registers let a multiprocessor hold one: there are never more, and each takes the samples
// in turn.
DncPlan dnc_plan(const DncSizes& s, int multiprocessors) {
  const int64_t weights = 4 * s.hidden * (s.hidden + s.reads * s.width) + s.interface() * s.hidden,
                state = 2 * s.cells * s.cells + 3 * s.cells * s.width,
                bytes = (weights + state) * (s.dtype == DType::f64 ? 8 : 4);
  constexpr int64_t kAlone = int64_t{1} << 20, kShare = int64_t{1} << 18, kMost = 32;
  const int64_t there = s.batch > 0 ? multiprocessors / s.batch : 1;
  const int64_t group =
      bytes <= kAlone ? 1 : std::clamp<int64_t>(std::min(there, (bytes + kShare - 1) / kShare), 1, kMost);
  return {static_cast<int>(group), std::clamp<int64_t>(s.batch, 1, multiprocessors / group)};
}

int fits_int(int64_t value, const char* what) {
  check<NotImplementedError>(value <= INT32_MAX / 64, "dnc_sequence: ", what, " is ", value, ", at most ",
                             INT32_MAX / 64, " are possible on CUDA");
  return static_cast<int>(value);
}

DncInterfaceMap interface_map(const DncSizes& s) {
  fits_int(s.interface(), "the width of the interface");
  const DncInterface at(s);
  const auto of = [](int64_t offset) { return static_cast<int>(offset); };
  return {of(at.write_key),      of(at.erase),
          of(at.value),          of(at.free),
          of(at.write_strength), of(at.allocation_gate),
          of(at.write_gate),     of(at.read_mask),
          of(at.read_key),       of(at.read_strength),
          of(at.mode),           of(at.sharp_forward),
          of(at.sharp_backward), of(at.size)};
}

// Scratch: the groups' barriers, then what the kernels carve.
template <class A>
struct DncScratch {
  u32* counters;
  A* data;
};
int64_t counter_bytes(const DncPlan& plan) { return (plan.groups * 4 + 15) / 16 * 16; }
template <class A>
DncScratch<A> split_scratch(const DncPlan& plan, void* scratch) {
  return {static_cast<u32*>(scratch),
          reinterpret_cast<A*>(static_cast<char*>(scratch) + counter_bytes(plan))};
}

template <class A>
int64_t scratch_bytes(const DncSizes& s, const DncPlan& plan, bool backward) {
  DncCarver<A> each{nullptr, 0}, tape{nullptr, 0}, state{nullptr, 0}, own{nullptr, 0};
  dnc_work(each, s.cells, s.width, s.reads, backward);
  dnc_tape(tape, s.cells, s.reads, s.interface(), s.sharpen);
  dnc_cells(state, s.cells, s.width, s.reads, s.hidden);
  dnc_own(own, s.width, s.reads);
  const int64_t chunk = std::min(s.chunk, s.steps);
  DncCarver<A> states{nullptr, backward ? chunk * state.used : 0};
  states.align();
  const int64_t numel = each.used + states.used + (backward ? chunk : 1) * tape.used;
  return counter_bytes(plan) + plan.groups * (numel + plan.group * own.used) * int64_t{sizeof(A)};
}
int64_t scratch_bytes(const DncSizes& s, const DncPlan& plan, bool backward) {
  return s.dtype == DType::f64 ? scratch_bytes<double>(s, plan, backward)
                               : scratch_bytes<float>(s, plan, backward);
}

// Tiles of shared memory for the links (DncProblem). Nothing else is in want of it: registers let a
// multiprocessor hold one block.
struct DncLinkShare {
  bool held, ahead;
  int tiles, prev_tiles;
  size_t bytes;  // dynamic shared memory of the launch
};
template <class A>
DncLinkShare dnc_link_share(const DncSizes& s, const DncPlan& plan, bool backward) {
  constexpr size_t kTile = sizeof(DncLinkTile<A>);
  static_assert(sizeof(DncStepBwd<A>) <= kStaticShared);  // the kernels' only static array
  const int64_t own = dnc_link_tiles<A>(s.cells, plan.group),
                there = static_cast<int64_t>(plan.shared / kTile);
  const int64_t least = backward ? kDncWarps : 0;
  const bool held = own + least <= there, ahead = held && backward && own > least && 2 * own <= there;
  const int tiles = static_cast<int>(held ? own : kDncWarps),
            prev_tiles = static_cast<int>(ahead ? own : least);
  return {held, ahead, tiles, prev_tiles, shared_to_launch((tiles + prev_tiles) * kTile)};
}

template <class A>
DncProblem<A> dnc_problem(const DncSizes& s, const DncPlan& plan, const DncLinkShare& links, u32* counters) {
  static_assert(sizeof(i64) == sizeof(int64_t));
  DncProblem<A> p{};
  p.steps = s.steps;
  p.batch = s.batch;
  p.chunk = s.chunk;
  p.lengths = reinterpret_cast<const i64*>(s.lengths);
  p.counters = counters;
  p.hidden = fits_int(s.hidden, "the width of the controller");
  p.cells = fits_int(s.cells, "the number of cells");
  p.width = fits_int(s.width, "the width of a cell");
  p.reads = fits_int(s.reads, "the number of read heads");
  fits_int((1 + s.reads) * s.cells, "the number of cells times that of heads");
  fits_int((1 + s.reads) * s.width * (1 + s.cells / kDncTile),
           "the size of the memory times the number of heads");
  p.group = plan.group;
  p.held = links.held;
  p.ahead = links.ahead;
  p.link_tiles = links.tiles;
  p.prev_tiles = links.prev_tiles;
  p.masked = s.masked;
  p.dealloc = s.dealloc;
  p.sharpen = s.sharpen;
  p.detach_write = s.detach_write;
  p.eps = static_cast<A>(s.eps);
  p.clip = static_cast<A>(s.clip);
  p.mask_min = static_cast<A>(s.mask_min);
  p.at = interface_map(s);
  return p;
}

template <class A>
DncCells<A> cells(const DncState& s) {
  const auto of = [](void* x) { return static_cast<A*>(x); };
  return {of(s.link), of(s.memory), of(s.usage), of(s.precedence), of(s.write_w), of(s.read_w), of(s.c)};
}

LaunchConfig config(const DncPlan& plan, const DncLinkShare& links) {
  return {dim3(plan.blocks()), dim3(kDncThreads), links.bytes, plan.group > 1};
}

void clear_barriers(const DncPlan& plan, u32* counters, void* stream) {
  if (plan.group == 1) return;
  const DncClearArgs k{counters, plan.groups};
  SYSGEN_LAUNCH(dnc_clear_kernel, (LaunchConfig{dim3(1), dim3(kDncThreads)}), stream, k);
}

template <class A>
void fwd(const DncFwdArgs& a, const DncPlan& plan, void* stream) {
  const auto in = [](const void* x) { return static_cast<const A*>(x); };
  const auto out = [](void* x) { return static_cast<A*>(x); };
  const DncScratch<A> scratch = split_scratch<A>(plan, a.scratch);
  const DncLinkShare links = dnc_link_share<A>(a.s, plan, false);
  DncFwdKernelArgs<A> k{};
  k.p = dnc_problem<A>(a.s, plan, links, scratch.counters);
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
  k.scratch = scratch.data;
  clear_barriers(plan, scratch.counters, stream);
  SYSGEN_LAUNCH_TEMPLATE(dnc_fwd_kernel, A, config(plan, links), stream, k);
}

template <class A>
void bwd(const DncBwdArgs& a, const DncPlan& plan, void* stream) {
  const auto in = [](const void* x) { return static_cast<const A*>(x); };
  const auto out = [](void* x) { return static_cast<A*>(x); };
  const DncScratch<A> scratch = split_scratch<A>(plan, a.scratch);
  const DncLinkShare links = dnc_link_share<A>(a.s, plan, true);
  DncBwdKernelArgs<A> k{};
  k.p = dnc_problem<A>(a.s, plan, links, scratch.counters);
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
  k.scratch = scratch.data;
  clear_barriers(plan, scratch.counters, stream);
  SYSGEN_LAUNCH_TEMPLATE(dnc_bwd_kernel, A, config(plan, links), stream, k);
}

// Of the current device.
DncPlan plan_here(const DncSizes& s) {
  DncPlan plan = dnc_plan(s, num_multiprocessors("dnc_sequence"));
  plan.shared = shared_beside_static(most_shared_bytes("dnc_sequence"));
  return plan;
}

}  // namespace

int64_t dnc_cuda_checkpoint_numel(const DncSizes& s) {
  DncCarver<char> count{nullptr, 0};
  dnc_cells(count, s.cells, s.width, s.reads, s.hidden);
  return count.used;
}

int64_t dnc_fwd_cuda_scratch_bytes(const DncSizes& s, int device_index) {
  const DeviceGuard guard(device_index);
  return scratch_bytes(s, plan_here(s), false);
}
int64_t dnc_bwd_cuda_scratch_bytes(const DncSizes& s, int device_index) {
  const DeviceGuard guard(device_index);
  return scratch_bytes(s, plan_here(s), true);
}

void dnc_fwd_cuda(const DncFwdArgs& args, int device_index, void* stream) {
  if (args.s.batch == 0) return;
  const DeviceGuard guard(device_index);
  const DncPlan plan = plan_here(args.s);
  args.s.dtype == DType::f64 ? fwd<double>(args, plan, stream) : fwd<float>(args, plan, stream);
}

void dnc_bwd_cuda(const DncBwdArgs& args, int device_index, void* stream) {
  if (args.s.batch == 0) return;
  const DeviceGuard guard(device_index);
  const DncPlan plan = plan_here(args.s);
  args.s.dtype == DType::f64 ? bwd<double>(args, plan, stream) : bwd<float>(args, plan, stream);
}

}  // namespace sysgen
