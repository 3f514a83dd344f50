// Content-based operations on an external memory (Graves et al. 2014, 2016; Csordas 2023, chapter 2), each by
// itself. The definitions: sysgen/reference/dnc.py.
//
//   B  batch    N  cells    W  width of a cell    R  heads    K  shifts (odd)
//
// Everything has one type, float32 or float64, and is contiguous. Every element of every output is written.
// Sums run in an order that depends on the shapes only: results are bitwise repeatable, on the CPU whatever
// the number of threads. Backward needs nothing but the inputs.
#pragma once
#include <cstdint>

#include "common/tensor_view.h"

namespace sysgen {

struct MemorySizes {
  DType dtype = DType::f32;
  int64_t batch = 0, cells = 0, width = 0;
  int64_t heads = 0;
};

// Content addressing. With q = mask^2,
//
//   D[r, i] = <q[r] k[r], M[i]> / (|mask[r] k[r]| |mask[r] M[i]| + eps),   |mask x| = sqrt(<q, x^2>)
//
//   weights[r] = softmax over the cells of strength[r] D[r]
//
// The mask enters through its square, so nothing has the size R N W. Where a norm is 0 its gradient is 0.
struct ContentAddressing {
  MemorySizes s;
  const void* memory = nullptr;    // [B, N, W]
  const void* key = nullptr;       // [B, R, W]
  const void* strength = nullptr;  // [B, R]
  const void* mask = nullptr;      // [B, R, W] or null: ones
  double eps = 0;
};
struct ContentAddressFwdArgs : ContentAddressing {
  void* weights = nullptr;  // [B, R, N]
  void* scratch = nullptr;  // CUDA: content_address_fwd_cuda_scratch_bytes; need not survive
};
struct ContentAddressBwdArgs : ContentAddressing {
  const void* dweights = nullptr;  // [B, R, N]
  void *dmemory = nullptr, *dkey = nullptr, *dstrength = nullptr;
  void* dmask = nullptr;    // null without a mask
  void* scratch = nullptr;  // CUDA: content_address_bwd_cuda_scratch_bytes; need not survive
};

// written[i] = memory[i] (1 - weights[i] erase) retention[i] + weights[i] value
struct MemoryWriteFwdArgs {
  MemorySizes s;
  const void* memory = nullptr;                   // [B, N, W]
  const void* weights = nullptr;                  // [B, N]
  const void *erase = nullptr, *value = nullptr;  // [B, W]
  const void* retention = nullptr;                // [B, N] or null: ones
  void* written = nullptr;                        // [B, N, W]
  void* scratch = nullptr;                        // none
};
struct MemoryWriteBwdArgs {
  MemorySizes s;
  const void *memory = nullptr, *weights = nullptr, *erase = nullptr, *value = nullptr, *retention = nullptr;
  const void* dwritten = nullptr;  // [B, N, W]
  void *dmemory = nullptr, *dweights = nullptr, *derase = nullptr, *dvalue = nullptr;
  void* dretention = nullptr;  // null without a retention
  void* scratch = nullptr;     // CUDA: memory_write_bwd_cuda_scratch_bytes; need not survive
};

// reads[r] = sum over the cells of weights[r, i] memory[i]
struct MemoryReadFwdArgs {
  MemorySizes s;
  const void* memory = nullptr;   // [B, N, W]
  const void* weights = nullptr;  // [B, R, N]
  void* reads = nullptr;          // [B, R, W]
  void* scratch = nullptr;        // CUDA: memory_read_fwd_cuda_scratch_bytes; need not survive
};
struct MemoryReadBwdArgs {
  MemorySizes s;
  const void *memory = nullptr, *weights = nullptr;
  const void* dreads = nullptr;  // [B, R, W]
  void *dmemory = nullptr, *dweights = nullptr;
  void* scratch = nullptr;  // none
};

// Addressing of the Neural Turing Machine (Graves et al. 2014, Eq. 5 to 9), cells in a ring, S = K / 2:
//
//   g = gate content + (1 - gate) previous,   content: the weights of content addressing without a mask
//   shifted[i] = sum over k of shift[k] g[i + k - S]
//   weights = softmax of sharpness log(shifted) over the cells where it is above 0, the others 0
struct NtmAddressing : ContentAddressing {           // mask: null
  int64_t shifts = 1;                                // K
  const void *gate = nullptr, *sharpness = nullptr;  // [B, R]
  const void* shift = nullptr;                       // [B, R, K]
  const void* previous = nullptr;                    // [B, R, N]
};
struct NtmAddressFwdArgs : NtmAddressing {
  void* weights = nullptr;  // [B, R, N]
  void* scratch = nullptr;  // CUDA: ntm_address_fwd_cuda_scratch_bytes; need not survive
};
struct NtmAddressBwdArgs : NtmAddressing {
  const void* dweights = nullptr;  // [B, R, N]
  void *dmemory = nullptr, *dkey = nullptr, *dstrength = nullptr, *dgate = nullptr, *dshift = nullptr,
       *dsharpness = nullptr, *dprevious = nullptr;
  void* scratch = nullptr;  // CUDA: ntm_address_bwd_cuda_scratch_bytes; need not survive
};

void content_address_fwd_cpu(const ContentAddressFwdArgs& args, int num_threads);
void content_address_bwd_cpu(const ContentAddressBwdArgs& args, int num_threads);
void memory_write_fwd_cpu(const MemoryWriteFwdArgs& args, int num_threads);
void memory_write_bwd_cpu(const MemoryWriteBwdArgs& args, int num_threads);
void memory_read_fwd_cpu(const MemoryReadFwdArgs& args, int num_threads);
void memory_read_bwd_cpu(const MemoryReadBwdArgs& args, int num_threads);
void ntm_address_fwd_cpu(const NtmAddressFwdArgs& args, int num_threads);
void ntm_address_bwd_cpu(const NtmAddressBwdArgs& args, int num_threads);

// Scratch sizes depend on shapes and types only.
int64_t content_address_fwd_cuda_scratch_bytes(const ContentAddressFwdArgs& args);
int64_t content_address_bwd_cuda_scratch_bytes(const ContentAddressBwdArgs& args);
int64_t memory_write_fwd_cuda_scratch_bytes(const MemoryWriteFwdArgs& args);
int64_t memory_write_bwd_cuda_scratch_bytes(const MemoryWriteBwdArgs& args);
int64_t memory_read_fwd_cuda_scratch_bytes(const MemoryReadFwdArgs& args);
int64_t memory_read_bwd_cuda_scratch_bytes(const MemoryReadBwdArgs& args);
int64_t ntm_address_fwd_cuda_scratch_bytes(const NtmAddressFwdArgs& args);
int64_t ntm_address_bwd_cuda_scratch_bytes(const NtmAddressBwdArgs& args);
void content_address_fwd_cuda(const ContentAddressFwdArgs& args, int device_index, void* stream);
void content_address_bwd_cuda(const ContentAddressBwdArgs& args, int device_index, void* stream);
void memory_write_fwd_cuda(const MemoryWriteFwdArgs& args, int device_index, void* stream);
void memory_write_bwd_cuda(const MemoryWriteBwdArgs& args, int device_index, void* stream);
void memory_read_fwd_cuda(const MemoryReadFwdArgs& args, int device_index, void* stream);
void memory_read_bwd_cuda(const MemoryReadBwdArgs& args, int device_index, void* stream);
void ntm_address_fwd_cuda(const NtmAddressFwdArgs& args, int device_index, void* stream);
void ntm_address_bwd_cuda(const NtmAddressBwdArgs& args, int device_index, void* stream);

}  // namespace sysgen
