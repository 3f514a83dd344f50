// ntm_bwd: one launch for the whole sequence. A block repeats the steps of a chunk of its sample from the
// checkpoint, leaves their tapes and states in scratch, and goes back through them.
#pragma once
#include "ntm/ntm_memory_bwd.cuh"

namespace sysgen {

// Gradients of the state lie in `dinitial` from the start and are changed in place, but for that of a memory
// in shared memory. The memories of a chunk, which are read on the way back, lie in scratch.
template <class A>
struct NtmBwdKernelArgs {
  NtmProblem<A> p;
  const A *w_hidden_t, *w_reads_t, *w_interface, *w_interface_t, *b_interface;
  const A *gates, *h_out;
  A* checkpoints;                    // [num_chunks, B, numel of NtmCells], read only
  const A *dh_out, *dreads_out;      // or null: zeros
  const A *dfinal_h, *dfinal_reads;  // or null: zeros
  A *dinitial_h, *dinitial_reads;
  NtmCells<A> dfinal, dinitial;  // of the first sample
  A *dgates, *dinterface;
  A* scratch;  // [blocks, numel of chunk states, chunk tapes, work]
};

// Step k of the chunk that begins at the checkpoint of chunk c.
template <class A>
__device__ __forceinline__ NtmStepBwd<A> bwd_step(const NtmBwdKernelArgs<A>& a, const NtmCells<A>& grad,
                                                  i64 b, i64 c, i64 k) {
  const NtmProblem<A>& p = a.p;
  const DncProblem<A>& common = p.common;
  const i64 n = p.cells(), w = p.width(), pairs = common.reads, state = ntm_cells_numel(p),
            chunk = common.chunk < common.steps ? common.chunk : common.steps;
  DncCarver<A> tape_count{nullptr, 0}, work_count{nullptr, 0};
  ntm_tape(tape_count, n, w, pairs, p.at.size, true);
  ntm_work(work_count, n, w, pairs, p.shifts, true);
  A* const mine = a.scratch + blockIdx.x * (chunk * (state + tape_count.used) + work_count.used);
  const auto state_after = [&](i64 i) {
    DncCarver<A> at{i < 0 ? a.checkpoints + (c * common.batch + b) * state : mine + i * state, 0};
    return ntm_cells(at, n, w, pairs, common.hidden);
  };
  DncCarver<A> tape{mine + chunk * state + k * tape_count.used, 0},
      work{mine + chunk * (state + tape_count.used), 0};
  NtmStepBwd<A> r;
  r.s.prev = state_after(k - 1);
  r.s.next = state_after(k);
  r.s.tape = ntm_tape(tape, n, w, pairs, p.at.size, true);
  r.s.work = ntm_work(work, n, w, pairs, p.shifts, true);
  r.grad = grad;
  r.dinterface = a.dinterface + ((c * common.chunk + k) * common.batch + b) * p.at.size;
  return r;
}

template <class A>
__global__ void __launch_bounds__(kDncThreads, 1) ntm_bwd_kernel(const NtmBwdKernelArgs<A> a) {
  const NtmProblem<A>& p = a.p;
  const DncProblem<A>& common = p.common;
  const DncGroup g(common);
  const i64 words = i64(common.reads) * p.width(), hidden = common.hidden, interface = p.at.size;
  SYSGEN_SHARED(NtmStepBwd<A>, steps, [1]);
  NtmStepBwd<A>& step = steps[0];
  A* const in_shared = memory_in_shared(p);

  for (i64 b = blockIdx.x; b < common.batch; b += gridDim.x) {
    const i64 length = dnc_length(common, b);
    A *const dh = a.dinitial_h + b * hidden, *const dreads = a.dinitial_reads + b * words;
    NtmCells<A> grad = cells_of(p, a.dinitial, b);
    A* const dinitial_memory = grad.memory;
    if (in_shared) grad.memory = in_shared;
    // Between two barriers, so that nobody reads the step before.
    const auto set_step = [&](i64 c, i64 k) {
      if (threadIdx.x == 0) step = bwd_step(a, grad, b, c, k);
      __syncthreads();
    };
    import_cells(p, cells_of(p, a.dfinal, b), grad);
    const A* const none = nullptr;
    import_array(a.dfinal_h ? a.dfinal_h + b * hidden : none, dh, hidden);
    import_array(a.dfinal_reads ? a.dfinal_reads + b * words : none, dreads, words);
    for (i64 t = length; t < common.steps; ++t) {
      const i64 row = t * common.batch + b;
      import_array(none, a.dgates + row * 4 * hidden, 4 * hidden);
      import_array(none, a.dinterface + row * interface, interface);
    }
    __syncthreads();

    for (i64 c = (length + common.chunk - 1) / common.chunk - 1; c >= 0; --c) {
      const i64 begin = c * common.chunk, end = length - begin < common.chunk ? length : begin + common.chunk;
      for (i64 t = begin; t < end; ++t) {
        const i64 row = t * common.batch + b;
        set_step(c, t - begin);
        repeat_cell(common, g, a.gates + row * 4 * hidden, step.s.prev.c, step.s.next.c);
        interface_fwd(p, g, a.h_out + row * hidden, a.w_interface, a.b_interface, step.s.tape);
        __syncthreads();
        memory_fwd(p, step.s, step.s.work.reads);
      }
      for (i64 t = end - 1; t >= begin; --t) {
        const i64 row = t * common.batch + b;
        set_step(c, t - begin);
        for (i64 w = threadIdx.x; w < words; w += kDncThreads)
          step.s.work.reads[w] = dreads[w] + (a.dreads_out ? a.dreads_out[row * words + w] : A(0));
        __syncthreads();
        memory_bwd(p, step);

        A* const dgates = a.dgates + row * 4 * hidden;
        product(g, step.dinterface, p.at.size, a.w_interface_t, common.hidden, [&](int k, A sum) {
          const A d = dh[k] + (a.dh_out ? a.dh_out[row * hidden + k] : A(0)) + sum;
          lstm_unit_bwd(hidden, k, a.gates + row * 4 * hidden, step.s.prev.c[k], step.s.next.c[k], d,
                        step.grad.c, dgates);
        });
        __syncthreads();
        const A* const back = dgates;
        product(g, back, 4 * common.hidden, a.w_hidden_t, common.hidden, [&](int k, A sum) { dh[k] = sum; });
        product(g, back, 4 * common.hidden, a.w_reads_t, static_cast<int>(words),
                [&](int w, A sum) { dreads[w] = sum; });
        __syncthreads();
      }
    }
    if (in_shared) {
      import_array(in_shared, dinitial_memory, p.cells() * p.width());
      __syncthreads();
    }
  }
}

}  // namespace sysgen
