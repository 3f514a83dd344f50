// Dynamic allocation and temporal links of the Differentiable Neural Computer (Graves et al. 2016; Csordas
// 2023, App. A), each operation by itself. The definitions: sysgen/reference/dnc.py.
//
//   B  batch    N  cells    R  read heads
//
// Everything has one type, float32 or float64, and is contiguous. Every element of every output is written.
// Sums run in an order that depends on the shapes only: results are bitwise repeatable, on the CPU whatever
// the number of threads. Backward needs the inputs, and of link_read also the projections; a gradient that
// arrives as null is zero.
#pragma once
#include <cstdint>

#include "common/tensor_view.h"

namespace sysgen {

struct LinksSizes {
  DType dtype;
  int64_t batch, cells;
  int64_t reads = 0;
};

// retention[i] = product over the read heads r of (1 - free_gate[r] read_weights[r, i])
struct RetentionFwdArgs {
  LinksSizes s;
  const void* read_weights;  // [B, R, N]
  const void* free_gate;     // [B, R]
  void* retention;           // [B, N]
  void* scratch;             // none
};
struct RetentionBwdArgs {
  LinksSizes s;
  const void *read_weights, *free_gate;
  const void* dretention;            // [B, N]
  void *dread_weights, *dfree_gate;  // [B, R, N], [B, R]
  void* scratch;                     // none
};

// updated = (u + w (1 - u)) retention
struct UsageUpdateFwdArgs {
  LinksSizes s;
  const void *usage, *write_weights, *retention;  // [B, N]
  void* updated;                                  // [B, N]
  void* scratch;                                  // none
};
struct UsageUpdateBwdArgs {
  LinksSizes s;
  const void *usage, *write_weights, *retention;
  const void* dupdated;                        // [B, N]
  void *dusage, *dwrite_weights, *dretention;  // [B, N]
  void* scratch;                               // none
};

// allocation[i] = (1 - u[i]) times the product of u over the cells used less, u = eps + (1 - eps) usage. Of
// equal cells the lower index counts as used less, and NaN as used most.
struct AllocationFwdArgs {
  LinksSizes s;
  double eps;
  const void* usage;  // [B, N]
  void* allocation;   // [B, N]
  void* scratch;      // none
};
struct AllocationBwdArgs {
  LinksSizes s;
  double eps;
  const void* usage;
  const void* dallocation;  // [B, N]
  void* dusage;             // [B, N]
  void* scratch;            // none
};

// link[i, j] = (1 - w[i] - w[j]) link[i, j] + w[i] p[j], 0 on the diagonal; p = (1 - sum of w) p + w
struct LinkUpdateFwdArgs {
  LinksSizes s;
  const void* link;                         // [B, N, N]
  const void *precedence, *write_weights;   // [B, N]
  void *updated_link, *updated_precedence;  // [B, N, N], [B, N]
  void* scratch;                            // none
};
struct LinkUpdateBwdArgs {
  LinksSizes s;
  const void *link, *precedence, *write_weights;
  const void *dupdated_link, *dupdated_precedence;  // [B, N, N], [B, N]; or null
  void *dlink, *dprecedence, *dwrite_weights;       // [B, N, N], [B, N], [B, N]
  void* scratch;                                    // CUDA: link_update_bwd_cuda_scratch_bytes
};

// Projections forward = link r and backward = link^T r of every head r of read_weights, and of each with a
// sharpness s the weights softmax(s log(max(projection, 0) + eps)); without one the weights are the
// projections.
struct LinkReadFwdArgs {
  LinksSizes s;
  double eps;
  const void* link;          // [B, N, N]
  const void* read_weights;  // [B, R, N]
  const void* sharpness[2];  // forward, backward: [B, R] or null
  void* weights[2];          // [B, R, N]
  void* projection[2];       // [B, R, N]; null without sharpness
  void* scratch;             // CUDA: link_read_fwd_cuda_scratch_bytes
};
struct LinkReadBwdArgs {
  LinksSizes s;
  double eps;
  const void *link, *read_weights, *sharpness[2];
  const void* projection[2];  // of the forward pass; null without sharpness
  const void* dweights[2];    // [B, R, N] or null
  void *dlink, *dread_weights;
  void* dsharpness[2];  // [B, R]; null without sharpness
  void* scratch;        // CUDA: link_read_bwd_cuda_scratch_bytes
};

void retention_fwd_cpu(const RetentionFwdArgs& args, int num_threads);
void retention_bwd_cpu(const RetentionBwdArgs& args, int num_threads);
void usage_update_fwd_cpu(const UsageUpdateFwdArgs& args, int num_threads);
void usage_update_bwd_cpu(const UsageUpdateBwdArgs& args, int num_threads);
void allocation_fwd_cpu(const AllocationFwdArgs& args, int num_threads);
void allocation_bwd_cpu(const AllocationBwdArgs& args, int num_threads);
void link_update_fwd_cpu(const LinkUpdateFwdArgs& args, int num_threads);
void link_update_bwd_cpu(const LinkUpdateBwdArgs& args, int num_threads);
void link_read_fwd_cpu(const LinkReadFwdArgs& args, int num_threads);
void link_read_bwd_cpu(const LinkReadBwdArgs& args, int num_threads);

void retention_fwd_cuda(const RetentionFwdArgs& args, int device_index, void* stream);
void retention_bwd_cuda(const RetentionBwdArgs& args, int device_index, void* stream);
void usage_update_fwd_cuda(const UsageUpdateFwdArgs& args, int device_index, void* stream);
void usage_update_bwd_cuda(const UsageUpdateBwdArgs& args, int device_index, void* stream);
void allocation_fwd_cuda(const AllocationFwdArgs& args, int device_index, void* stream);
void allocation_bwd_cuda(const AllocationBwdArgs& args, int device_index, void* stream);
void link_update_fwd_cuda(const LinkUpdateFwdArgs& args, int device_index, void* stream);
void link_update_bwd_cuda(const LinkUpdateBwdArgs& args, int device_index, void* stream);
void link_read_fwd_cuda(const LinkReadFwdArgs& args, int device_index, void* stream);
void link_read_bwd_cuda(const LinkReadBwdArgs& args, int device_index, void* stream);

// Scratch depends on the sizes and on which pointers are null; it need not survive the call.
int64_t link_update_bwd_cuda_scratch_bytes(const LinkUpdateBwdArgs& args);
int64_t link_read_fwd_cuda_scratch_bytes(const LinkReadFwdArgs& args);
int64_t link_read_bwd_cuda_scratch_bytes(const LinkReadBwdArgs& args);

}  // namespace sysgen
