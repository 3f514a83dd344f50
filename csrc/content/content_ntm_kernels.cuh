// Addressing of the Neural Turing Machine, see content.h: the kernels of content addressing, with more to do
// for each head once its scores are there.
#pragma once
#include "content/content_address_kernels.cuh"

namespace sysgen {

template <class A>
struct NtmHeads {
  const A *gate, *sharpness;  // [B, R]
  const A* shift;             // [B, R, shifts]
  const A* previous;          // [B, R, N]
  i64 shifts;

  // Cell i of a row turned by `by` cells, |by| <= shifts.
  static __device__ __forceinline__ i64 turned(i64 i, i64 by, i64 cells) {
    const i64 j = (i + by) % cells;
    return j < 0 ? j + cells : j;
  }
  // The interpolated weights, shifted, at cell i.
  __device__ __forceinline__ A shifted(i64 head, const A* interpolated, i64 i, i64 cells) const {
    A sum = 0;
    for (i64 k = 0; k < shifts; ++k)
      sum += shift[head * shifts + k] * interpolated[turned(i, k - shifts / 2, cells)];
    return sum;
  }
};

// row[i] = sharpness * log(shifted[i]), -infinity where there is no weight. Whether there is any.
template <class P, class A>
__device__ __forceinline__ bool ntm_exponents(const NtmHeads<A>& h, i64 head, const A* interpolated, A* row,
                                              i64 cells, A& largest, A (&parts)[P::WARPS]) {
  A any = 0;
  largest = minus_infinity<A>();
  for (i64 i = threadIdx.x; i < cells; i += P::THREADS) {
    const A x = h.shifted(head, interpolated, i, cells);
    const bool absent = x <= 0;  // a NaN is not
    row[i] = absent ? minus_infinity<A>() : h.sharpness[head] * log_of(x);
    largest = Largest()(largest, row[i]);
    any = absent ? any : A(1);
  }
  largest = over_block<Largest>(largest, parts);
  return over_block<Largest>(any, parts) > 0;
}

template <class A>
struct NtmAddressFwdDevice {
  ContentHeads<A> c;
  NtmHeads<A> h;
  A* weights;
  A* rows;  // scratch [B, R, N]: logits, then interpolated weights
  AddressingPhases phases;
};

template <class P>
__global__ void __launch_bounds__(P::THREADS, P::MIN_BLOCKS)
    ntm_address_fwd_kernel(const NtmAddressFwdDevice<typename P::A> a) {
  using A = typename P::A;
  SYSGEN_SHARED(A, parts, [P::WARPS]);
  const i64 n = a.c.s.cells;
  address_in_phases<P>(a.c, a.rows, a.phases, [&](i64 head, A* row) {
    softmax_by_block<P>(row, n, parts);
    const A gate = a.h.gate[head];
    for (i64 i = threadIdx.x; i < n; i += P::THREADS)
      row[i] = gate * row[i] + (1 - gate) * a.h.previous[head * n + i];
    __syncthreads();
    A* const weights = a.weights + head * n;
    A largest, sum = 0;
    const bool any = ntm_exponents<P>(a.h, head, row, weights, n, largest, parts);
    for (i64 i = threadIdx.x; i < n; i += P::THREADS) {
      const A e = exp_of(weights[i] - largest);
      weights[i] = any ? e : A(0);
      sum += weights[i];
    }
    sum = over_block<Sum>(sum, parts);
    const A scale = any ? A(1) / sum : A(0);
    for (i64 i = threadIdx.x; i < n; i += P::THREADS) weights[i] *= scale;
  });
}

template <class A>
struct NtmAddressBwdDevice {
  ContentBackward<A> a;
  NtmHeads<A> h;
  const A* dweights;
  A *dgate, *dshift, *dsharpness, *dprevious;
  // Scratch [B, R, N]: content weights, later their gradient; interpolated weights; exponents, later the
  // gradient of the shifted weights.
  A *content, *interpolated, *dshifted;
  AddressingBwdPhases phases;
};

// From dweights to the gradient of the content weights, for one head. Where an element is read and written
// without a barrier between, it belongs to the thread.
template <class P, class A>
__device__ __forceinline__ const A* ntm_row_bwd(const NtmAddressBwdDevice<A>& a, i64 head,
                                                A (&parts)[P::WARPS]) {
  const i64 n = a.a.c.s.cells, shifts = a.h.shifts;
  const A gate = a.h.gate[head], sharpness = a.h.sharpness[head];
  A *const content = a.content + head * n, *const interpolated = a.interpolated + head * n,
           *const dshifted = a.dshifted + head * n;
  const A *const previous = a.h.previous + head * n, *const dweights = a.dweights + head * n;
  for (i64 i = threadIdx.x; i < n; i += P::THREADS) content[i] = a.a.c.strength[head] * a.a.cosine(head, i);
  softmax_by_block<P>(content, n, parts);
  for (i64 i = threadIdx.x; i < n; i += P::THREADS)
    interpolated[i] = gate * content[i] + (1 - gate) * previous[i];
  __syncthreads();

  A largest, sum = 0, mean = 0, dsharpness = 0;
  const bool any = ntm_exponents<P>(a.h, head, interpolated, dshifted, n, largest, parts);
  for (i64 i = threadIdx.x; i < n; i += P::THREADS) {
    const A e = exp_of(dshifted[i] - largest);
    sum += e;
    mean += e * dweights[i];
  }
  sum = over_block<Sum>(sum, parts);
  mean = over_block<Sum>(mean, parts) / sum;
  for (i64 i = threadIdx.x; i < n; i += P::THREADS) {
    const A x = a.h.shifted(head, interpolated, i, n);
    A slope = 0;
    if (any && !(x <= 0)) {
      const A g = exp_of(dshifted[i] - largest) / sum * (dweights[i] - mean);
      dsharpness += g * log_of(x);
      slope = sharpness * g / x;
    }
    dshifted[i] = slope;
  }
  dsharpness = over_block<Sum>(dsharpness, parts);
  for (i64 k = 0; k < shifts; ++k) {
    A dshift = 0;
    for (i64 i = threadIdx.x; i < n; i += P::THREADS)
      dshift += dshifted[i] * interpolated[NtmHeads<A>::turned(i, k - shifts / 2, n)];
    dshift = over_block<Sum>(dshift, parts);
    if (threadIdx.x == 0) a.dshift[head * shifts + k] = dshift;
  }
  A dgate = 0;
  for (i64 i = threadIdx.x; i < n; i += P::THREADS) {
    A d = 0;
    for (i64 k = 0; k < shifts; ++k)
      d += a.h.shift[head * shifts + k] * dshifted[NtmHeads<A>::turned(i, shifts / 2 - k, n)];
    dgate += d * (content[i] - previous[i]);
    content[i] = gate * d;
    a.dprevious[head * n + i] = (1 - gate) * d;
  }
  dgate = over_block<Sum>(dgate, parts);
  if (threadIdx.x == 0) {
    a.dsharpness[head] = dsharpness;
    a.dgate[head] = dgate;
  }
  return content;
}

template <class P>
__global__ void __launch_bounds__(P::THREADS, P::MIN_BLOCKS)
    ntm_address_bwd_kernel(const NtmAddressBwdDevice<typename P::A> a) {
  using A = typename P::A;
  SYSGEN_SHARED(A, parts, [P::WARPS]);
  address_bwd_in_phases<P>(a.a, a.phases, parts, [&](i64 head) { return ntm_row_bwd<P>(a, head, parts); });
}

}  // namespace sysgen
