// Routing: one stable counting sort of the routes by expert.
//
//   R  number of routes (tokens times k)     E  number of experts
//
// A route is one (token, slot) pair, numbered token * k + slot. Its expert id is in [0, E), or -1 to drop it.
#pragma once
#include <cstdint>

#include "common/tensor_view.h"

namespace sysgen {

struct RouteArgs {
  const void* experts;  // [R], int32 or int64, contiguous
  DType experts_dtype;
  int64_t num_routes;   // R <= 2^31 - 1
  int64_t num_experts;  // E
  int32_t* order;       // [R] out: routes by expert, stable; the dropped ones, in order, at the tail
  int32_t* inverse;     // [R] out: place of a route in `order`, -1 if it is dropped
  int32_t* offsets;     // [E + 1] out: expert e owns order[offsets[e] : offsets[e + 1]]
  void* scratch;        // CUDA only: route_cuda_scratch_bytes(R, E) bytes, need not survive the call
};

// An id outside [-1, E) throws ValueError; nothing of the outputs may be used then.
void route_fwd_cpu(const RouteArgs& args, int num_threads);

// An id outside [-1, E) drops its route. Order and offsets equal the CPU's. No host synchronisation.
void route_fwd_cuda(const RouteArgs& args, int device_index, void* stream);
int64_t route_cuda_scratch_bytes(int64_t num_routes, int64_t num_experts);

}  // namespace sysgen
