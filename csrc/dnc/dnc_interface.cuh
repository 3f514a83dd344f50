// The interface vector: xi = W h + b, clamped and activated, and the derivative of that.
#pragma once
#include "dnc/dnc_group.cuh"

namespace sysgen {

enum class DncKind { same, gate, mask, strength };

__device__ __forceinline__ DncKind dnc_kind(const DncInterfaceMap& at, int j) {
  if (j < at.read_mask) {
    if (j < at.write_key) return DncKind::mask;
    if (j < at.erase) return DncKind::same;
    if (j < at.value) return DncKind::gate;
    if (j < at.free) return DncKind::same;
    return j == at.write_strength ? DncKind::strength : DncKind::gate;
  }
  if (j < at.read_key) return DncKind::mask;
  if (j < at.read_strength) return DncKind::same;
  return j < at.mode || j >= at.sharp_forward ? DncKind::strength : DncKind::same;
}

template <class A>
__device__ __forceinline__ A dnc_activate(const DncProblem<A>& p, int j, A xi) {
  const A x = xi > p.clip ? p.clip : (xi < -p.clip ? -p.clip : xi);
  switch (dnc_kind(p.at, j)) {
    case DncKind::same:
      return x;
    case DncKind::gate:
      return dnc_sigmoid(x);
    case DncKind::mask:
      return dnc_sigmoid(x) * (1 - p.mask_min) + p.mask_min;
    default:  // 1 + softplus, with torch's threshold
      return A(1) + (x > A(20) ? x : (x > A(0) ? x : A(0)) + log1p_of(exp_of(x > A(0) ? -x : x)));
  }
}

// The gradient of xi[j] from that of its activation.
template <class A>
__device__ __forceinline__ A dnc_activate_bwd(const DncProblem<A>& p, int j, A xi, A grad) {
  if (xi > p.clip || xi < -p.clip) return A(0);
  const DncKind kind = dnc_kind(p.at, j);
  if (kind == DncKind::same) return grad;
  const A y = dnc_sigmoid(xi);
  if (kind == DncKind::strength) return xi > A(20) ? grad : grad * y;
  return grad * y * (A(1) - y) * (kind == DncKind::mask ? 1 - p.mask_min : A(1));
}

// Of the rows of this group's warps.
template <class A>
__device__ __forceinline__ void interface_fwd(const DncProblem<A>& p, const DncGroup& g, const A* h,
                                              const A* weight, const A* bias, const DncTape<A>& tape) {
  product(g, h, p.hidden, weight, p.at.size, [&](int j, A sum) {
    const A xi = sum + bias[j];
    tape.xi[j] = xi;
    tape.act[j] = dnc_activate(p, j, xi);
  });
}

// How a read head mixes: softmax of three entries.
template <class A>
struct DncMode {
  A backward, content, forward;
};
template <class A>
__device__ __forceinline__ DncMode<A> dnc_mode(const DncProblem<A>& p, const DncTape<A>& tape, int r) {
  const A *const x = tape.act + p.at.mode + 3 * r, low = x[0] > x[1] ? x[0] : x[1],
                 largest = low > x[2] ? low : x[2];
  const A b = exp_of(x[0] - largest), c = exp_of(x[1] - largest), f = exp_of(x[2] - largest),
          scale = A(1) / (b + c + f);
  return {b * scale, c * scale, f * scale};
}

// q and q key of one head of content addressing; head 0 writes.
template <class A>
struct DncKey {
  const A *mask, *key;  // mask: null without
  A strength;
  __device__ __forceinline__ A square(int w) const { return mask ? mask[w] * mask[w] : A(1); }
};
template <class A>
__device__ __forceinline__ DncKey<A> dnc_key(const DncProblem<A>& p, const DncTape<A>& tape, int head) {
  const A* const act = tape.act;
  if (head == 0) return {p.masked ? act : nullptr, act + p.at.write_key, act[p.at.write_strength]};
  const int r = head - 1;
  return {p.masked ? act + p.at.read_mask + r * p.width : nullptr, act + p.at.read_key + r * p.width,
          act[p.at.read_strength + r]};
}

}  // namespace sysgen
