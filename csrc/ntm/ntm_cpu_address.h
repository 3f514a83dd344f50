// Addressing behind the content: interpolation with the weights of the step before, circular shift,
// sharpening (Graves et al. 2014, Eq. 7 to 9), of one head.
#pragma once
#include "ntm/ntm_cpu_layout.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// Gives both ends of a row of `cells` numbers at row + reach the numbers of the other end.
template <class A>
void close_ring(A* row, int64_t cells, int64_t reach, int64_t size) {
  for (int64_t j = 0; j < reach; ++j) {
    row[j] = row[reach + (j % cells - reach % cells + cells) % cells];
    row[reach + cells + j] = row[reach + j % cells];
  }
  clear(row + cells + 2 * reach, size - cells - 2 * reach);
}

// ln x for any x above 0.
template <class A>
inline Vector<A> log_of_any(Vector<A> x) {
  constexpr A kLeast = __is_same(A, double) ? A(0x1p-1022) : A(0x1p-126f), kScale = A(0x1p64);
  const Vector<A> least = splat<A>(kLeast);
  const Vector<A> y = vlog<A>(x < least ? x * kScale : x);
  return x < least ? y - A(64 * 0.69314718055994530942) : y;
}

// w[i] proportional to shifted[i]^sharpness, as softmax(sharpness log shifted), which cannot underflow as a
// whole. Numbers that are not above 0 stay 0, even all of them; a NaN is not one of them.
template <class A>
void sharpen(const A* shifted, A sharpness, int64_t cells, A* log_shifted, A* weights) {
  const int64_t n = padded<A>(cells);
  const Vector<A> zero{}, lowest = splat<A>(A(-__builtin_inf()));
  Vector<A> largest = lowest, present{};
  for (int64_t i = 0; i < n; i += kLanes<A>) {
    const Vector<A> x = load(shifted + i);
    const Vector<A> l = x <= zero ? zero : log_of_any<A>(x <= zero ? splat<A>(1) : x);
    const Vector<A> exponent = x <= zero ? lowest : sharpness * l;
    store(log_shifted + i, l);
    store(weights + i, exponent);
    largest = select_max(largest, exponent);
    present = x <= zero ? present : splat<A>(1);
  }
  if (sum_of_lanes<A>(present) == 0) return clear(weights, n);
  A top = largest[0];
  for (int i = 1; i < kLanes<A>; ++i) top = largest[i] > top ? largest[i] : top;
  Vector<A> total{};
  for (int64_t i = 0; i < n; i += kLanes<A>) {
    const Vector<A> e = vexp<A>(load(weights + i) - top);
    store(weights + i, e);
    total += e;
  }
  const A scale = A(1) / sum_of_lanes<A>(total);
  for (int64_t i = 0; i < n; i += kLanes<A>) store(weights + i, load(weights + i) * scale);
  clear(weights + cells, n - cells);
}

// The weights of a head from those of the step before.
template <class A>
void address_fwd(const RingHead<A>& h, const A* before, A* weights) {
  const int64_t n = padded<A>(h.cells);
  for (int64_t i = 0; i < n; i += kLanes<A>)
    store(h.interpolated + h.reach + i, h.gate * load(h.content + i) + (1 - h.gate) * load(before + i));
  close_ring(h.interpolated, h.cells, h.reach, ring<A>(h.cells, h.reach));
  for (int64_t i = 0; i < n; i += kLanes<A>) {
    Vector<A> sum{};
    for (int64_t k = 0; k < h.shifts(); ++k) sum += h.shift[k] * load(h.interpolated + i + k);
    store(h.shifted + i, sum);
  }
  clear(h.shifted + h.cells, n - h.cells);
  sharpen(h.shifted, h.sharpness, h.cells, h.log_shifted, weights);
}

// From dweights, the gradient of the weights (overwritten by that of the weights of the step before):
// dcontent [n], dgate, dsharpness and dshift [2 S + 1]. `row` [ring]: scratch.
template <class A>
void address_bwd(const RingHead<A>& h, const A* before, const A* weights, A* dweights, A* dcontent, A* dgate,
                 A* dsharpness, A* dshift, A* row) {
  const int64_t n = padded<A>(h.cells);
  const Vector<A> zero{};

  softmax_bwd(weights, dweights, dweights, n);
  Vector<A> by_sharpness{};
  for (int64_t i = 0; i < n; i += kLanes<A>) {
    const Vector<A> g = load(dweights + i), x = load(h.shifted + i);
    by_sharpness += g * load(h.log_shifted + i);
    store(row + h.reach + i, x <= zero ? zero : h.sharpness * g / x);
  }
  *dsharpness = sum_of_lanes<A>(by_sharpness);

  for (int64_t k = 0; k < h.shifts(); ++k) {
    Vector<A> by_shift{};
    for (int64_t i = 0; i < n; i += kLanes<A>)
      by_shift += load(row + h.reach + i) * load(h.interpolated + i + k);
    dshift[k] = sum_of_lanes<A>(by_shift);
  }
  close_ring(row, h.cells, h.reach, ring<A>(h.cells, h.reach));

  Vector<A> by_gate{};
  for (int64_t i = 0; i < n; i += kLanes<A>) {
    Vector<A> d{};
    for (int64_t k = 0; k < h.shifts(); ++k) d += h.shift[k] * load(row + i + 2 * h.reach - k);
    by_gate += d * (load(h.content + i) - load(before + i));
    store(dcontent + i, h.gate * d);
    store(dweights + i, (1 - h.gate) * d);
  }
  clear(dcontent + h.cells, n - h.cells);
  clear(dweights + h.cells, n - h.cells);
  *dgate = sum_of_lanes<A>(by_gate);
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
