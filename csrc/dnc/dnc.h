// The Differentiable Neural Computer (Graves et al. 2016) with masking, de-allocation and sharpening (Csordas
// 2023, chapter 2 and App. A) as one recurrence: LSTM controller, interface, memory.
//
//   T  steps    B  batch    H  width of the controller    N  cells    W  width of a cell    R  read heads
//   I  width of the interface = W (3 + R) + 5 R + 3, + W (1 + R) if masked, + 2 R if sharpened
//
// Step t, state of t - 1 in, state of t out (the equations: sysgen/reference/dnc.py):
//
//   gates = gates_in[t] + w_hidden h + w_reads reads;   i, f, o = sigmoid, g = tanh;   c = f c + i g;   h = o
//   tanh c xi = clamp(w_interface h + b_interface, -clip, clip), in this order:
//        write mask W (if masked), write key W, erase W, value W, free gates R, write strength, allocation
//        gate, write gate, read masks R W (if masked), read keys R W, read strengths R, read modes 3 R
//        (backward, content, forward), forward sharpness R and backward sharpness R (if sharpened)
//   then: write content, retention, usage, allocation, write weights, memory, links, precedence, forward and
//   backward weights, read content, read weights, reads
//
// A sample of length n takes part in the first n steps: afterwards its state stays as it is, and h_out and
// reads_out are 0. State, links and all else have the type of `dtype` (float32 or float64).
//
// Saved for backward are the gates, h_out, reads_out, and the state before every `chunk` steps, with the
// steps' projections on the CPU. Backward repeats the steps of a chunk, by the same operations in the same
// order (and so to the same bits, unless a GPU's compiler contracts products and sums of the two kernels
// differently), and then goes back through them.
#pragma once
#include <cstdint>

#include "common/always_inline.h"
#include "common/tensor_view.h"

namespace sysgen {

struct DncSizes {
  DType dtype;
  int64_t steps, batch, hidden, cells, width, reads;
  bool masked, dealloc, sharpen;
  bool detach_write;  // no gradient from the usage to the write weights, as released
  double eps, clip, mask_min;
  const int64_t* lengths;  // [B] or null
  int64_t chunk;           // steps between two checkpoints

  int64_t interface() const;  // its width
};

// Offsets into the interface vector; a part that is absent is empty.
struct DncInterface {
  int64_t write_mask, write_key, erase, value, free, write_strength, allocation_gate, write_gate;
  int64_t read_mask, read_key, read_strength, mode, sharp_forward, sharp_backward, size;

  SYSGEN_INLINE explicit DncInterface(const DncSizes& s) {
    int64_t at = 0;
    const auto take = [&](int64_t n) SYSGEN_INLINE {
      const int64_t from = at;
      at += n;
      return from;
    };
    write_mask = take(s.masked ? s.width : 0);
    write_key = take(s.width);
    erase = take(s.width);
    value = take(s.width);
    free = take(s.reads);
    write_strength = take(1);
    allocation_gate = take(1);
    write_gate = take(1);
    read_mask = take(s.masked ? s.reads * s.width : 0);
    read_key = take(s.reads * s.width);
    read_strength = take(s.reads);
    mode = take(3 * s.reads);
    sharp_forward = take(s.sharpen ? s.reads : 0);
    sharp_backward = take(s.sharpen ? s.reads : 0);
    size = at;
  }
};
inline int64_t DncSizes::interface() const { return DncInterface(*this).size; }

// Each [B, ...], contiguous. Gradients of a state have the same layout; there a null pointer of an input
// means zeros.
struct DncState {
  void* h;           // [H]
  void* c;           // [H]
  void* memory;      // [N, W]
  void* usage;       // [N]
  void* link;        // [N, N]
  void* precedence;  // [N]
  void* write_w;     // [N]
  void* read_w;      // [R, N]
  void* reads;       // [R, W]
};

// Contiguous, all of them.
struct DncWeights {
  const void* hidden;          // [4 H, H]; backward on CUDA: its transpose
  const void* reads;           // [4 H, R W]; backward on CUDA: its transpose
  const void* interface;       // [I, H]
  const void* interface_t;     // backward on CUDA: [H, I]
  const void* interface_bias;  // [I]
};

struct DncFwdArgs {
  DncSizes s;
  DncWeights w;
  void*
      gates;  // [T, B, 4 H], order i, f, g, o: in: projections of the input, with bias; out: activated gates
  DncState initial, final;
  void* h_out;        // [T, B, H]
  void* reads_out;    // [T, B, R, W]
  void* checkpoints;  // [num_chunks, B, dnc_checkpoint_numel], or null
  void* scratch;      // dnc_fwd_scratch_bytes
  int threads;
};

struct DncBwdArgs {
  DncSizes s;
  DncWeights w;
  const void *gates, *h_out, *reads_out, *checkpoints;  // as forward left them
  const void *dh_out, *dreads_out;                      // like h_out, reads_out; null: zeros
  DncState dfinal;
  void* dgates;      // [T, B, 4 H]: gradient of gates_in
  void* dinterface;  // [T, B, I]: gradient of w_interface h + b_interface
  DncState dinitial;
  void* scratch;  // dnc_bwd_scratch_bytes
  int threads;
};

// A checkpoint is a state without h and the reads, its rows padded to whole vectors; then come the
// projections [2, R, N] of each step of the chunk.
int dnc_vector_bytes();
int64_t dnc_checkpoint_numel(const DncSizes& s);
int64_t dnc_fwd_cpu_scratch_bytes(const DncSizes& s, int threads);
int64_t dnc_bwd_cpu_scratch_bytes(const DncSizes& s, int threads);
void dnc_fwd_cpu(const DncFwdArgs& args);
void dnc_bwd_cpu(const DncBwdArgs& args);

// On CUDA rows are not padded, projections are not kept, `threads` is not used, and scratch also depends on
// the device.
int64_t dnc_cuda_checkpoint_numel(const DncSizes& s);
int64_t dnc_fwd_cuda_scratch_bytes(const DncSizes& s, int device_index);
int64_t dnc_bwd_cuda_scratch_bytes(const DncSizes& s, int device_index);
void dnc_fwd_cuda(const DncFwdArgs& args, int device_index, void* stream);
void dnc_bwd_cuda(const DncBwdArgs& args, int device_index, void* stream);

}  // namespace sysgen
