// The controller: one step of an LSTM behind the products of its gates, order input, forget, cell, output.
#pragma once
#include "dnc/dnc_cpu_math.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// Activates the gates in place and advances h and c.
template <class A>
void lstm_fwd(int64_t hidden, A* gates, A* h, A* c) {
  for (int64_t k = 0; k < hidden; k += kLanes<A>) {
    const int64_t n = hidden - k;
    const Vector<A> i = vsigmoid<A>(load(gates + k, n)), f = vsigmoid<A>(load(gates + hidden + k, n));
    const Vector<A> g = vtanh<A>(load(gates + 2 * hidden + k, n)),
                    o = vsigmoid<A>(load(gates + 3 * hidden + k, n));
    const Vector<A> cell = multiply_add(f, load(c + k, n), i * g);
    store(gates + k, i, n);
    store(gates + hidden + k, f, n);
    store(gates + 2 * hidden + k, g, n);
    store(gates + 3 * hidden + k, o, n);
    store(c + k, cell, n);
    store(h + k, o * vtanh<A>(cell), n);
  }
}

// c_t from activated gates and c_{t - 1}, by the operation of lstm_fwd.
template <class A>
void repeat_cell(int64_t hidden, const A* gates, const A* before, A* c) {
  for (int64_t k = 0; k < hidden; k += kLanes<A>) {
    const int64_t n = hidden - k;
    store(c + k,
          multiply_add(load(gates + hidden + k, n), load(before + k, n),
                       load(gates + k, n) * load(gates + 2 * hidden + k, n)),
          n);
  }
}

// dc: of c_t on entry, of c_{t - 1} at the end. dgates: of the gates before their activation.
template <class A>
void lstm_bwd(int64_t hidden, const A* gates, const A* before, const A* after, const A* dh, A* dc,
              A* dgates) {
  for (int64_t k = 0; k < hidden; k += kLanes<A>) {
    const int64_t n = hidden - k;
    const Vector<A> i = load(gates + k, n), f = load(gates + hidden + k, n),
                    g = load(gates + 2 * hidden + k, n), o = load(gates + 3 * hidden + k, n),
                    d = load(dh + k, n), t = vtanh<A>(load(after + k, n));
    const Vector<A> dcell = load(dc + k, n) + d * o * (A(1) - t * t);
    store(dgates + k, dcell * g * i * (A(1) - i), n);
    store(dgates + hidden + k, dcell * load(before + k, n) * f * (A(1) - f), n);
    store(dgates + 2 * hidden + k, dcell * i * (A(1) - g * g), n);
    store(dgates + 3 * hidden + k, d * t * o * (A(1) - o), n);
    store(dc + k, dcell * f, n);
  }
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
