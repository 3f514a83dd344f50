// Where everything lies: the interface vector, the state of one sample, and what one step leaves for its
// backward.
#pragma once
#include "dnc/dnc.h"
#include "dnc/dnc_cpu_content.h"

namespace sysgen::SYSGEN_ISA {
namespace {

using Interface = DncInterface;

// Rows over cells have `cells` entries padded to `n`. The memory lies transposed, [W][n]: one lane, one cell.
template <class A>
struct State {
  A *link, *memory, *usage, *precedence, *write_w, *read_w, *c, *reads, *h;

  // What is not held is null.
  State(Carver<A>& carver, const DncSizes& s, Holds holds) {
    const int64_t n = padded<A>(s.cells);
    link = holds == Holds::step ? nullptr : carver.take(s.cells * n);
    memory = carver.take(s.width * n);
    usage = carver.take(n);
    precedence = carver.take(n);
    write_w = carver.take(n);
    read_w = carver.take(s.reads * n);
    c = carver.take(s.hidden);
    reads = holds == Holds::all ? carver.take(s.reads * s.width) : nullptr;
    h = holds == Holds::all ? carver.take(s.hidden) : nullptr;
  }
};

// What one step computes on its way.
template <class A>
struct Step {
  A* xi;                              // [I], not clamped
  A *erase, *value, *free, *mode;     // activated
  A* gates;                           // allocation gate, write gate
  A *sharp_forward, *sharp_backward;  // [R]
  A *retention, *allocation;          // [n]
  int32_t* order;                     // [cells]: ascending usage
  A *forward_d, *backward_d;          // [R][n]: projections, in the step's record
  A *forward_w, *backward_w;          // [R][n]: the weights after sharpening (the projections without it)
  Content<A> write, read;

  // `record` [2 R][n]
  Step(Carver<A>& carver, A* record, const DncSizes& s, int64_t interface_size)
      : xi(carver.take(interface_size)),
        erase(carver.take(s.width)),
        value(carver.take(s.width)),
        free(carver.take(s.reads)),
        mode(carver.take(3 * s.reads)),
        gates(carver.take(2)),
        sharp_forward(carver.take(s.reads)),
        sharp_backward(carver.take(s.reads)),
        retention(carver.take(padded<A>(s.cells))),
        allocation(carver.take(padded<A>(s.cells))),
        order(reinterpret_cast<int32_t*>(carver.take(s.cells))),
        forward_d(record),
        backward_d(record + s.reads * padded<A>(s.cells)),
        forward_w(s.sharpen ? carver.take(s.reads * padded<A>(s.cells)) : forward_d),
        backward_w(s.sharpen ? carver.take(s.reads * padded<A>(s.cells)) : backward_d),
        write(carver, s, 1),
        read(carver, s, s.reads) {}
};

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
