// Activations of hidden rows, element by element.
#pragma once
#include <cstdint>

#include "common/tensor_view.h"
#include "cvmm/activation.cuh"

namespace sysgen {

inline constexpr int kNumActivations = 5;

// Rows of `width` elements of a matrix, `count` of them: those that `index` names, or the first ones if it is
// null.
struct HiddenRows {
  const int32_t* index;
  int64_t count, width;
};

// h = act(z); h may be z.
void activation_fwd_cpu(Activation activation, DType dtype, const void* z, void* h, HiddenRows rows);
// dh *= act', where kept is h for identity, relu and tanh, z for gelu and silu.
void activation_bwd_cpu(Activation activation, DType dtype, const void* kept, void* dh, HiddenRows rows);

}  // namespace sysgen
