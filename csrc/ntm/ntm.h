// The Neural Turing Machine (Graves et al. 2014) as one recurrence: LSTM controller, interface, memory.
//
//   T  steps    B  batch    H  width of the controller    N  cells    W  width of a cell
//   P  pairs of a read and a write head    S  farthest shift of the focus    K  shifts = 2 S + 1
//   I  width of the interface = 2 P (2 W + 3 + K)
//
// Step t, state of t - 1 in, state of t out (the equations: sysgen/reference/ntm.py):
//
//   gates = gates_in[t] + w_hidden h + w_reads reads;   i, f, o = sigmoid, g = tanh
//   c = f c + i g;   h = o tanh c;   xi = w_interface h + b_interface, in this order:
//        keys [P, 2, W], erase [P, W], add [P, W], strengths [P, 2], gates [P, 2], sharpness [P, 2],
//        shifts [P, 2, K]; of two heads the first one reads
//   then for each pair: weights of both heads from the memory as it is, read, write
//
// A sample of length n takes part in the first n steps: afterwards its state stays as it is, and h_out and
// reads_out are 0. Everything has the type of `dtype` (float32 or float64).
//
// Saved for backward are the gates, h_out, reads_out, and the state before every `chunk` steps. Backward
// repeats the steps of a chunk, by the same operations in the same order and so to the same bits, and then
// goes back through them.
#pragma once
#include <cstdint>

#include "common/always_inline.h"
#include "common/tensor_view.h"

namespace sysgen {

struct NtmSizes {
  DType dtype;
  int64_t steps, batch, hidden, cells, width, reads, reach;  // reads: P; reach: S
  double eps;                                                // of the cosines
  const int64_t* lengths;                                    // [B] or null
  int64_t chunk;                                             // steps between two checkpoints
  static constexpr bool masked = false;                      // of content addressing, which the DNC shares

  SYSGEN_INLINE int64_t shifts() const { return 2 * reach + 1; }
  SYSGEN_INLINE int64_t interface() const { return 2 * reads * (2 * width + 3 + shifts()); }
};

// Each [B, ...], contiguous. Gradients of a state have the same layout; there a null pointer of an input
// means zeros.
struct NtmState {
  void* h;        // [H]
  void* c;        // [H]
  void* memory;   // [N, W]
  void* read_w;   // [P, N]
  void* write_w;  // [P, N]
  void* reads;    // [P, W]
};

// Contiguous, all of them.
struct NtmWeights {
  const void* hidden;          // [4 H, H]; backward on CUDA: its transpose
  const void* reads;           // [4 H, P W]; backward on CUDA: its transpose
  const void* interface;       // [I, H]
  const void* interface_t;     // backward on CUDA: [H, I]
  const void* interface_bias;  // [I]
};

struct NtmFwdArgs {
  NtmSizes s;
  NtmWeights w;
  void*
      gates;  // [T, B, 4 H], order i, f, g, o: in: projections of the input, with bias; out: activated gates
  NtmState initial, final;
  void* h_out;        // [T, B, H]
  void* reads_out;    // [T, B, P, W]
  void* checkpoints;  // [num_chunks, B, ntm_checkpoint_numel], or null
  void* scratch;      // ntm_fwd_scratch_bytes
  int threads;
};

struct NtmBwdArgs {
  NtmSizes s;
  NtmWeights w;
  const void *gates, *h_out, *reads_out, *checkpoints;  // as forward left them
  const void *dh_out, *dreads_out;                      // like h_out, reads_out; null: zeros
  NtmState dfinal;
  void* dgates;      // [T, B, 4 H]: gradient of gates_in
  void* dinterface;  // [T, B, I]: gradient of xi
  NtmState dinitial;
  void* scratch;  // ntm_bwd_scratch_bytes
  int threads;
};

// A checkpoint is a state without h and the reads, its rows padded to whole vectors.
int ntm_vector_bytes();
int64_t ntm_checkpoint_numel(const NtmSizes& s);
int64_t ntm_fwd_cpu_scratch_bytes(const NtmSizes& s, int threads);
int64_t ntm_bwd_cpu_scratch_bytes(const NtmSizes& s, int threads);
void ntm_fwd_cpu(const NtmFwdArgs& args);
void ntm_bwd_cpu(const NtmBwdArgs& args);

// On CUDA a checkpoint has no padding, `threads` is not used, and scratch also
// depends on the device.
int64_t ntm_cuda_checkpoint_numel(const NtmSizes& s);
int64_t ntm_fwd_cuda_scratch_bytes(const NtmSizes& s, int device_index);
int64_t ntm_bwd_cuda_scratch_bytes(const NtmSizes& s, int device_index);
void ntm_fwd_cuda(const NtmFwdArgs& args, int device_index, void* stream);
void ntm_bwd_cuda(const NtmBwdArgs& args, int device_index, void* stream);

}  // namespace sysgen
