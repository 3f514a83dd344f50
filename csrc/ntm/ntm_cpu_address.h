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

// Weights of head q of the pair from its content weights and those of the step before.
template <class A>
void address_fwd(const NtmSizes& s, const Pair<A>& pair, int q, const A* before, A* weights) {
  const int64_t n = padded<A>(s.cells);
  const A* const content = pair.content.weight + q * n;
  const A* const shift = pair.shift + q * padded<A>(s.shifts());
  A* const row = pair.interpolated + q * ring<A>(s);
  const A gate = pair.gate[q];
  for (int64_t i = 0; i < n; i += kLanes<A>)
    store(row + s.reach + i, gate * load(content + i) + (1 - gate) * load(before + i));
  close_ring(row, s.cells, s.reach, ring<A>(s));
  A* const shifted = pair.shifted + q * n;
  for (int64_t i = 0; i < n; i += kLanes<A>) {
    Vector<A> sum{};
    for (int64_t k = 0; k < s.shifts(); ++k) sum += shift[k] * load(row + i + k);
    store(shifted + i, sum);
  }
  clear(shifted + s.cells, n - s.cells);
  sharpen(shifted, pair.sharpness[q], s.cells, pair.log_shifted + q * n, weights);
}

// From dweights, the gradient of the weights (overwritten by that of the weights of the step before):
// dcontent [n], and dgate, dsharpness and dshift [padded K] of the activated values. `row` [ring]: scratch.
template <class A>
void address_bwd(const NtmSizes& s, const Pair<A>& pair, int q, const A* before, const A* weights,
                 A* dweights, A* dcontent, A* dgate, A* dsharpness, A* dshift, A* row) {
  const int64_t n = padded<A>(s.cells);
  const A* const content = pair.content.weight + q * n;
  const A* const shift = pair.shift + q * padded<A>(s.shifts());
  const A* const interpolated = pair.interpolated + q * ring<A>(s);
  const A *const shifted = pair.shifted + q * n, *const log_shifted = pair.log_shifted + q * n;
  const A gate = pair.gate[q], sharpness = pair.sharpness[q];
  const Vector<A> zero{};

  softmax_bwd(weights, dweights, dweights, n);
  Vector<A> by_sharpness{};
  for (int64_t i = 0; i < n; i += kLanes<A>) {
    const Vector<A> g = load(dweights + i), x = load(shifted + i);
    by_sharpness += g * load(log_shifted + i);
    store(row + s.reach + i, x <= zero ? zero : sharpness * g / x);
  }
  *dsharpness = sum_of_lanes<A>(by_sharpness);

  clear(dshift, padded<A>(s.shifts()));
  for (int64_t k = 0; k < s.shifts(); ++k) {
    Vector<A> by_shift{};
    for (int64_t i = 0; i < n; i += kLanes<A>)
      by_shift += load(row + s.reach + i) * load(interpolated + i + k);
    dshift[k] = sum_of_lanes<A>(by_shift);
  }
  softmax_bwd(shift, dshift, dshift, padded<A>(s.shifts()));
  close_ring(row, s.cells, s.reach, ring<A>(s));

  Vector<A> by_gate{};
  for (int64_t i = 0; i < n; i += kLanes<A>) {
    Vector<A> d{};
    for (int64_t k = 0; k < s.shifts(); ++k) d += shift[k] * load(row + i + 2 * s.reach - k);
    by_gate += d * (load(content + i) - load(before + i));
    store(dcontent + i, gate * d);
    store(dweights + i, (1 - gate) * d);
  }
  clear(dcontent + s.cells, n - s.cells);
  clear(dweights + s.cells, n - s.cells);
  *dgate = sum_of_lanes<A>(by_gate);
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
