// dnc_fwd: one launch for the whole sequence. A group of blocks takes a sample through all its steps. And the
// launch that comes before it and before dnc_bwd where groups have several blocks.
#pragma once
#include "dnc/dnc_controller.cuh"
#include "dnc/dnc_memory.cuh"

namespace sysgen {

// Sets the counters of the groups' barriers to zero.
struct DncClearArgs {
  u32* counters;
  i64 count;
};
__global__ void __launch_bounds__(kDncThreads) dnc_clear_kernel(const DncClearArgs a) {
  for (i64 i = i64(blockIdx.x) * kDncThreads + threadIdx.x; i < a.count; i += i64(gridDim.x) * kDncThreads)
    a.counters[i] = 0;
}

// The state lies in `final` from the start and is changed in place, but for links that are held.
template <class A>
struct DncFwdKernelArgs {
  DncProblem<A> p;
  const A *w_hidden, *w_reads, *w_interface, *b_interface;
  A *gates, *h_out, *reads_out;
  A* checkpoints;  // [num_chunks, B, numel of DncCells] or null
  const A *initial_h, *initial_reads;
  A *final_h, *final_reads;
  DncCells<A> initial, final;  // of the first sample
  A* scratch;                  // [groups, numel of tape and work], [blocks, numel of own]
};

// The step of a group, whose state is changed in place.
template <class A>
__device__ __forceinline__ DncStep<A> fwd_step(const DncFwdKernelArgs<A>& a, const DncCells<A>& state,
                                               int group, int groups) {
  const DncProblem<A>& p = a.p;
  DncCarver<A> count{nullptr, 0}, own_count{nullptr, 0};
  dnc_tape(count, p.cells, p.reads, p.at.size, p.sharpen);
  dnc_work(count, p.cells, p.width, p.reads, false);
  dnc_own(own_count, p.width, p.reads);
  DncCarver<A> carver{a.scratch, group * count.used},
      own{a.scratch, groups * count.used + blockIdx.x * own_count.used};
  DncStep<A> s;
  s.prev = s.next = state;
  if (p.held) s.next.link = nullptr;
  s.tape = dnc_tape(carver, p.cells, p.reads, p.at.size, p.sharpen);
  s.work = dnc_work(carver, p.cells, p.width, p.reads, false);
  s.own = dnc_own(own, p.width, p.reads);
  return s;
}

template <class A>
__global__ void __launch_bounds__(kDncThreads, 1) dnc_fwd_kernel(const DncFwdKernelArgs<A> a) {
  const DncProblem<A>& p = a.p;
  DncGroup g(p);
  const int groups = gridDim.x / p.group, group = blockIdx.x / p.group;
  const i64 words = i64(p.reads) * p.width, hidden = p.hidden, state = dnc_cells_numel(p);

  SYSGEN_SHARED(DncStep<A>, steps, [1]);
  DncStep<A>& step = steps[0];
  Smem smem;
  DncLinkTile<A>* const tiles = smem.elements<DncLinkTile<A>>(p.link_tiles);

  for (i64 b = group; b < p.batch; b += groups) {
    const i64 length = dnc_length(p, b);
    const DncCells<A> now = cells_of(p, a.final, b);
    if (threadIdx.x == 0) step = fwd_step(a, now, group, groups);
    __syncthreads();
    const DncCells<A> initial = cells_of(p, a.initial, b);
    import_cells(p, g, initial, now, !p.held);
    if (p.held) copy_tiles<A>(initial.link, g, p.cells, tiles, true);
    for (i64 w = threadIdx.x; w < words; w += kDncThreads) step.own.reads[w] = a.initial_reads[b * words + w];
    g.barrier();

    for (i64 t = 0; t < length; ++t) {
      const i64 row = t * p.batch + b;
      if (a.checkpoints && t % p.chunk == 0) {
        DncCarver<A> at{a.checkpoints + (t / p.chunk * p.batch + b) * state, 0};
        const DncCells<A> checkpoint = dnc_cells(at, p.cells, p.width, p.reads, p.hidden);
        import_cells(p, g, now, checkpoint, !p.held);
        if (p.held) store_links<A>(tiles, g, p.cells, checkpoint.link);
        g.barrier();  // the cells of the controller belong to other threads
      }
      A *const h = a.h_out + row * hidden, *const reads = a.reads_out + row * words;
      const A* const h_before = t == 0 ? a.initial_h + b * hidden : h - p.batch * hidden;
      lstm_fwd(p, g, h_before, step.own.reads, a.w_hidden, a.w_reads, a.gates + row * 4 * hidden, now.c, h);
      g.barrier();
      interface_fwd(p, g, h, a.w_interface, a.b_interface, step.tape);
      g.barrier();
      memory_fwd(p, g, step, tiles);
      const i64 parts = dnc_tiles(p.cells, kDncTile);
      for (i64 w = threadIdx.x; w < words; w += kDncThreads) {
        A sum = 0;
        for (i64 part = 0; part < parts; ++part) sum += step.work.read_part[part * words + w];
        step.own.reads[w] = sum;
        if (g.block == 0) reads[w] = sum;
      }
      __syncthreads();
    }

    if (p.held) store_links<A>(tiles, g, p.cells, now.link);
    // A sample that has ended: outputs are 0, and so are checkpoints that nobody reads.
    for (i64 t = length; t < p.steps; ++t) {
      const i64 row = t * p.batch + b;
      for (i64 k = g.thread(); k < hidden; k += g.threads()) a.h_out[row * hidden + k] = 0;
      for (i64 w = g.thread(); w < words; w += g.threads()) a.reads_out[row * words + w] = 0;
      if (a.checkpoints && t % p.chunk == 0)
        for (i64 i = g.thread(); i < state; i += g.threads())
          a.checkpoints[(t / p.chunk * p.batch + b) * state + i] = 0;
    }
    const A* const h =
        length == 0 ? a.initial_h + b * hidden : a.h_out + ((length - 1) * p.batch + b) * hidden;
    for (i64 k = g.thread(); k < hidden; k += g.threads()) a.final_h[b * hidden + k] = h[k];
    if (g.block == 0)
      for (i64 w = threadIdx.x; w < words; w += kDncThreads) a.final_reads[b * words + w] = step.own.reads[w];
    g.barrier();
  }
}

}  // namespace sysgen
