// Activations of hidden rows, element by element.
#pragma once
#include <cstdint>

#include "common/tensor_view.h"

namespace sysgen {

enum class HiddenActivation : int {
  identity = 0,
  relu = 1,
  tanh = 2,
  gelu = 3,
  silu = 4
};  // gelu: the exact one
inline constexpr int kNumHiddenActivations = 5;

// Rows of `width` elements of a matrix, `count` of them: those that `index` names, or the first ones if it is
// null.
struct HiddenRows {
  const int32_t* index;
  int64_t count, width;
};

// h = act(z); h may be z.
void activation_fwd_cpu(HiddenActivation activation, DType dtype, const void* z, void* h, HiddenRows rows);
// dh *= act', where kept is h for identity, relu and tanh, z for gelu and silu.
void activation_bwd_cpu(HiddenActivation activation, DType dtype, const void* kept, void* dh,
                        HiddenRows rows);

}  // namespace sysgen
