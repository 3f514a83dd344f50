// dnc_bwd: one launch for the whole sequence. A group of blocks repeats the steps of a chunk of its sample
// from the checkpoint, leaves their tapes and states in scratch, and goes back through them.
#pragma once
#include "dnc/dnc_controller.cuh"
#include "dnc/dnc_memory_bwd.cuh"

namespace sysgen {

// Gradients of the state lie in `dinitial` from the start and are changed in place. Shared memory that holds
// links has those themselves while the steps of a chunk are repeated, then their gradient: a step streams the
// links twice, written and read, and a chunk thrice more; without, a step would do so five times.
template <class A>
struct DncBwdKernelArgs {
  DncProblem<A> p;
  const A *w_hidden_t, *w_reads_t, *w_interface, *w_interface_t, *b_interface;
  const A *gates, *h_out;
  A* checkpoints;                    // [num_chunks, B, numel of DncCells], read only
  const A *dh_out, *dreads_out;      // or null: zeros
  const A *dfinal_h, *dfinal_reads;  // or null: zeros
  A *dinitial_h, *dinitial_reads;
  DncCells<A> dfinal, dinitial;  // of the first sample
  A *dgates, *dinterface;
  A* scratch;  // [groups, numel of chunk states, chunk tapes, work], [blocks, numel of own]
};

// Where a group's scratch begins and how large its parts are.
template <class A>
struct DncBwdScratch {
  A *states, *tapes, *work, *own;
  i64 state, tape;  // elements of one

  __device__ __forceinline__ explicit DncBwdScratch(const DncBwdKernelArgs<A>& a) {
    const DncProblem<A>& p = a.p;
    const i64 group = blockIdx.x / p.group, groups = gridDim.x / p.group,
              chunk = p.chunk < p.steps ? p.chunk : p.steps;
    DncCarver<A> tape_count{nullptr, 0}, work_count{nullptr, 0}, own_count{nullptr, 0};
    dnc_tape(tape_count, p.cells, p.reads, p.at.size, p.sharpen);
    dnc_work(work_count, p.cells, p.width, p.reads, true);
    dnc_own(own_count, p.width, p.reads);
    state = dnc_cells_numel(p);
    tape = tape_count.used;
    DncCarver<A> count{nullptr, chunk * state};
    count.align();
    const i64 each = count.used + chunk * tape + work_count.used;
    states = a.scratch + group * each;
    tapes = states + count.used;
    work = tapes + chunk * tape;
    own = a.scratch + groups * each + blockIdx.x * own_count.used;
  }
  __device__ __forceinline__ DncTape<A> tape_of(const DncProblem<A>& p, i64 k) const {
    DncCarver<A> at{tapes + k * tape, 0};
    return dnc_tape(at, p.cells, p.reads, p.at.size, p.sharpen);
  }
};

// Step k of the chunk that begins at the checkpoint of chunk c. Nobody reads the links after the last one.
template <class A>
__device__ __forceinline__ DncStepBwd<A> bwd_step(const DncBwdKernelArgs<A>& a, i64 b, i64 c, i64 k,
                                                  bool last) {
  const DncProblem<A>& p = a.p;
  const DncBwdScratch<A> scratch(a);
  const auto state_after = [&](i64 n) {
    DncCarver<A> at{
        n < 0 ? a.checkpoints + (c * p.batch + b) * scratch.state : scratch.states + n * scratch.state, 0};
    return dnc_cells(at, p.cells, p.width, p.reads, p.hidden);
  };
  DncCarver<A> work{scratch.work, 0}, own{scratch.own, 0};
  DncStepBwd<A> r;
  r.s.prev = state_after(k - 1);
  r.s.next = state_after(k);
  if (last) r.s.next.link = nullptr;
  r.s.tape = scratch.tape_of(p, k);
  r.s.work = dnc_work(work, p.cells, p.width, p.reads, true);
  r.s.own = dnc_own(own, p.width, p.reads);
  r.grad = cells_of(p, a.dinitial, b);
  r.dinterface = a.dinterface + ((c * p.chunk + k) * p.batch + b) * p.at.size;
  r.dreads = r.s.own.reads;
  r.by_mode = r.s.own.stats;
  r.slope = r.by_mode + 3 * p.reads;
  r.left = r.slope + 1 + p.reads;
  r.along = r.left + 1;
  return r;
}

template <class A>
__global__ void __launch_bounds__(kDncThreads, 1) dnc_bwd_kernel(const DncBwdKernelArgs<A> a) {
  const DncProblem<A>& p = a.p;
  DncGroup g(p);
  const int groups = gridDim.x / p.group, group = blockIdx.x / p.group;
  const i64 words = i64(p.reads) * p.width, hidden = p.hidden, interface = p.at.size;
  SYSGEN_SHARED(DncStepBwd<A>, steps, [1]);
  DncStepBwd<A>& step = steps[0];
  Smem smem;
  DncLinkTile<A>* const tiles = smem.elements<DncLinkTile<A>>(p.prev_tiles);
  DncLinkTile<A>* const dtiles = smem.elements<DncLinkTile<A>>(p.link_tiles);
  // Between two barriers, so that nobody reads the step before.
  const auto set_step = [&](i64 b, i64 c, i64 k, bool last) {
    if (threadIdx.x == 0) step = bwd_step(a, b, c, k, last);
    __syncthreads();
  };

  for (i64 b = group; b < p.batch; b += groups) {
    const i64 length = dnc_length(p, b);
    const DncCells<A> grad = cells_of(p, a.dinitial, b);
    A *const dh = a.dinitial_h + b * hidden, *const dreads = a.dinitial_reads + b * words;
    import_cells(p, g, cells_of(p, a.dfinal, b), grad, true);
    for (i64 k = g.thread(); k < hidden; k += g.threads())
      dh[k] = a.dfinal_h ? a.dfinal_h[b * hidden + k] : A(0);
    for (i64 w = g.thread(); w < words; w += g.threads())
      dreads[w] = a.dfinal_reads ? a.dfinal_reads[b * words + w] : A(0);
    for (i64 t = length; t < p.steps; ++t) {
      const i64 row = t * p.batch + b;
      for (i64 k = g.thread(); k < 4 * hidden; k += g.threads()) a.dgates[row * 4 * hidden + k] = 0;
      for (i64 j = g.thread(); j < interface; j += g.threads()) a.dinterface[row * interface + j] = 0;
    }

    for (i64 c = (length + p.chunk - 1) / p.chunk - 1; c >= 0; --c) {
      const i64 begin = c * p.chunk, end = length - begin < p.chunk ? length : begin + p.chunk;
      const DncBwdScratch<A> scratch(a);
      for (i64 t = begin; t < end; ++t)
        interface_fwd(p, g, a.h_out + (t * p.batch + b) * hidden, a.w_interface, a.b_interface,
                      scratch.tape_of(p, t - begin));
      g.barrier();
      for (i64 t = begin; t < end; ++t) {
        set_step(b, c, t - begin, t + 1 == end);
        if (p.held && t == begin) copy_tiles<A>(step.s.prev.link, g, p.cells, dtiles, true);
        repeat_cell(p, g, a.gates + (t * p.batch + b) * 4 * hidden, step.s.prev.c, step.s.next.c);
        memory_fwd(p, g, step.s, p.held ? dtiles : tiles);
      }
      if (p.held) copy_tiles<A>(grad.link, g, p.cells, dtiles, true);
      for (i64 t = end - 1; t >= begin; --t) {
        const i64 row = t * p.batch + b;
        set_step(b, c, t - begin, t + 1 == end);
        for (i64 w = threadIdx.x; w < words; w += kDncThreads)
          step.s.own.reads[w] = dreads[w] + (a.dreads_out ? a.dreads_out[row * words + w] : A(0));
        __syncthreads();
        memory_bwd(p, g, step, tiles, dtiles);

        A* const dgates = a.dgates + row * 4 * hidden;
        product(g, static_cast<const A*>(step.dinterface), p.at.size, a.w_interface_t, p.hidden,
                [&](int k, A sum) {
                  const A d = dh[k] + (a.dh_out ? a.dh_out[row * hidden + k] : A(0)) + sum;
                  lstm_unit_bwd(hidden, k, a.gates + row * 4 * hidden, step.s.prev.c[k], step.s.next.c[k], d,
                                step.grad.c, dgates);
                });
        g.barrier();
        const A* const back = dgates;
        product(g, back, 4 * p.hidden, a.w_hidden_t, p.hidden, [&](int k, A sum) { dh[k] = sum; });
        product(g, back, 4 * p.hidden, a.w_reads_t, p.reads * p.width,
                [&](int w, A sum) { dreads[w] = sum; });
        g.barrier();
      }
      if (p.held) store_links<A>(dtiles, g, p.cells, grad.link);
    }
    g.barrier();
  }
}

}  // namespace sysgen
