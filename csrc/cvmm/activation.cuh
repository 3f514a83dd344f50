// The activations of hidden rows, by name: for host and device.
#pragma once

namespace sysgen {

// gelu is the exact one. Those behind relu are smooth, and need elementary functions.
enum class Activation : int { identity = 0, relu = 1, tanh = 2, gelu = 3, silu = 4 };

}  // namespace sysgen
