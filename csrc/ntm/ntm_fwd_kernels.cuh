// ntm_fwd: one launch for the whole sequence. A block takes a sample through all its steps.
#pragma once
#include "ntm/ntm_memory.cuh"

namespace sysgen {

// The state lies in `final` from the start and is changed in place, but for a memory in shared memory.
template <class A>
struct NtmFwdKernelArgs {
  NtmProblem<A> p;
  const A *w_hidden, *w_reads, *w_interface, *b_interface;
  A *gates, *h_out, *reads_out;
  A* checkpoints;  // [num_chunks, B, numel of NtmCells] or null
  const A *initial_h, *initial_reads;
  A *final_h, *final_reads;
  NtmCells<A> initial, final;  // of the first sample
  A* scratch;                  // [blocks, numel of tape and work]
};

template <class A>
__device__ __forceinline__ NtmStep<A> fwd_step(const NtmFwdKernelArgs<A>& a, const NtmCells<A>& state) {
  const NtmProblem<A>& p = a.p;
  const i64 n = p.cells(), w = p.width(), pairs = p.common.reads;
  const auto lay = [&](DncCarver<A>& carver) {
    const NtmTape<A> tape = ntm_tape(carver, n, w, pairs, p.at.size, false);
    return NtmStep<A>{state, state, tape, ntm_work(carver, n, w, pairs, p.shifts, false)};
  };
  DncCarver<A> count{nullptr, 0};
  lay(count);
  DncCarver<A> carver{a.scratch, blockIdx.x * count.used};
  return lay(carver);
}

template <class A>
__global__ void __launch_bounds__(kDncThreads, 1) ntm_fwd_kernel(const NtmFwdKernelArgs<A> a) {
  const NtmProblem<A>& p = a.p;
  const DncProblem<A>& common = p.common;
  const DncGroup g(common);
  const i64 words = i64(common.reads) * p.width(), hidden = common.hidden, state = ntm_cells_numel(p);
  SYSGEN_SHARED(NtmStep<A>, steps, [1]);
  NtmStep<A>& step = steps[0];
  A* const in_shared = memory_in_shared(p);

  for (i64 b = blockIdx.x; b < common.batch; b += gridDim.x) {
    const i64 length = dnc_length(common, b);
    NtmCells<A> now = cells_of(p, a.final, b);
    A* const final_memory = now.memory;
    if (in_shared) now.memory = in_shared;
    if (threadIdx.x == 0) step = fwd_step(a, now);
    __syncthreads();
    A* const reads = step.work.reads;
    import_cells(p, cells_of(p, a.initial, b), now);
    import_array(a.initial_reads + b * words, reads, words);
    __syncthreads();

    for (i64 t = 0; t < length; ++t) {
      const i64 row = t * common.batch + b;
      if (a.checkpoints && t % common.chunk == 0) {
        DncCarver<A> at{a.checkpoints + (t / common.chunk * common.batch + b) * state, 0};
        import_cells(p, now, ntm_cells(at, p.cells(), p.width(), common.reads, hidden));
        __syncthreads();  // the cells of the controller belong to other threads
      }
      A* const h = a.h_out + row * hidden;
      const A* const h_before = t == 0 ? a.initial_h + b * hidden : h - common.batch * hidden;
      lstm_fwd(common, g, h_before, reads, a.w_hidden, a.w_reads, a.gates + row * 4 * hidden, now.c, h);
      __syncthreads();
      interface_fwd(p, g, h, a.w_interface, a.b_interface, step.tape);
      __syncthreads();
      memory_fwd(p, step, reads);
      import_array(reads, a.reads_out + row * words, words);
    }

    // A sample that has ended: outputs are 0, and so are checkpoints that nobody reads.
    const A* const none = nullptr;
    for (i64 t = length; t < common.steps; ++t) {
      const i64 row = t * common.batch + b;
      import_array(none, a.h_out + row * hidden, hidden);
      import_array(none, a.reads_out + row * words, words);
      if (a.checkpoints && t % common.chunk == 0)
        import_array(none, a.checkpoints + (t / common.chunk * common.batch + b) * state, state);
    }
    const A* const h =
        length == 0 ? a.initial_h + b * hidden : a.h_out + ((length - 1) * common.batch + b) * hidden;
    import_array(h, a.final_h + b * hidden, hidden);
    import_array(reads, a.final_reads + b * words, words);
    if (in_shared) import_array(now.memory, final_memory, p.cells() * p.width());
    __syncthreads();
  }
}

}  // namespace sysgen
