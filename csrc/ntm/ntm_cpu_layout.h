// Where everything lies: the interface vector, the state of one sample, and what one step leaves for its
// backward. Heads are numbered 2 p (reads) and 2 p + 1 (writes).
#pragma once
#include "dnc/dnc_cpu_content.h"
#include "ntm/ntm.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// Offsets into the interface vector.
struct Interface {
  int64_t key, erase, add, strength, gate, sharpness, shift, size;

  explicit Interface(const NtmSizes& s) {
    const int64_t heads = 2 * s.reads;
    key = 0;
    erase = key + heads * s.width;
    add = erase + s.reads * s.width;
    strength = add + s.reads * s.width;
    gate = strength + heads;
    sharpness = gate + heads;
    shift = sharpness + heads;
    size = shift + heads * s.shifts();
  }
};

// Rows over cells have `cells` entries padded to `n`. The memory lies transposed, [W][n]: one lane, one cell.
template <class A>
struct State {
  A *memory, *weights, *c, *reads, *h;  // weights: [2 P][n]

  // What is not held is null.
  State(Carver<A>& carver, const NtmSizes& s, Holds holds) {
    const int64_t n = padded<A>(s.cells);
    memory = carver.take(s.width * n);
    weights = carver.take(2 * s.reads * n);
    c = carver.take(s.hidden);
    reads = holds == Holds::all ? carver.take(s.reads * s.width) : nullptr;
    h = holds == Holds::all ? carver.take(s.hidden) : nullptr;
  }
};

// A row with S more numbers on either side, so that the neighbours of every cell are its neighbours in
// memory.
template <class A>
int64_t ring(int64_t cells, int64_t reach) {
  return padded<A>(padded<A>(cells) + 2 * reach);
}

// One head's addressing behind its content weights.
template <class A>
struct RingHead {
  int64_t cells, reach;
  A gate, sharpness;
  const A *content, *shift;  // [n], [2 S + 1]
  // What forward computes for backward: the weights before the shift, [ring]; behind it, [n]; and the
  // logarithm of these, 0 where they have none.
  A *interpolated, *shifted, *log_shifted;

  int64_t shifts() const { return 2 * reach + 1; }
};

// What one step of a pair of heads computes on its way.
template <class A>
struct Pair {
  Content<A> content;                       // of both heads
  A *gate, *sharpness;                      // [2]
  A *erase, *add;                           // [W]
  A* shift;                                 // [2][padded K]
  A *interpolated, *shifted, *log_shifted;  // of both heads, see RingHead
  A* memory;                                // [W][n], behind the write; unused for the last pair

  Pair(Carver<A>& carver, const NtmSizes& s) : content(carver, s, 2) {
    const int64_t n = padded<A>(s.cells);
    gate = carver.take(2);
    sharpness = carver.take(2);
    erase = carver.take(s.width);
    add = carver.take(s.width);
    shift = carver.take(2 * padded<A>(s.shifts()));
    interpolated = carver.take(2 * ring<A>(s.cells, s.reach));
    shifted = carver.take(2 * n);
    log_shifted = carver.take(2 * n);
    memory = carver.take(s.reads > 1 ? s.width * n : 0);
  }
  RingHead<A> head(const NtmSizes& s, int q) const {
    const int64_t n = padded<A>(s.cells);
    return {s.cells,
            s.reach,
            gate[q],
            sharpness[q],
            content.weight + q * n,
            shift + q * padded<A>(s.shifts()),
            interpolated + q * ring<A>(s.cells, s.reach),
            shifted + q * n,
            log_shifted + q * n};
  }
};

template <class A>
struct Step {
  A *xi, *pairs;  // [I]; P times a Pair

  Step(Carver<A>& carver, const NtmSizes& s)
      : xi(carver.take(s.interface())), pairs(carver.take(s.reads * pair_numel(s))) {}

  Pair<A> pair(const NtmSizes& s, int64_t p) const {
    Carver<A> of{pairs + p * pair_numel(s)};
    return Pair<A>(of, s);
  }
  static int64_t pair_numel(const NtmSizes& s) {
    Carver<A> count{nullptr};
    Pair measured(count, s);
    return count.used;
  }
};

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
