// One step of one sample's memory: from the interface vector and the state before to the state after.
#pragma once
#include "dnc/dnc_cpu_activate.h"
#include "dnc/dnc_cpu_allocation.h"
#include "dnc/dnc_cpu_layout.h"
#include "dnc/dnc_cpu_link.h"
#include "dnc/dnc_cpu_sharpen.h"

namespace sysgen::SYSGEN_ISA {
namespace {

template <class A>
void activate_interface(const DncSizes& s, const Interface& at, const Step<A>& step) {
  const A* const xi = step.xi;
  const A clip = static_cast<A>(s.clip), least = static_cast<A>(s.mask_min);
  const auto same = [](Vector<A> x) { return x; };
  const auto gate = [](Vector<A> x) { return vsigmoid<A>(x); };
  const auto strength = [](Vector<A> x) { return oneplus<A>(x); };
  const auto mask = [least](Vector<A> x) { return vsigmoid<A>(x) * (1 - least) + least; };
  if (s.masked) {
    activate(xi + at.write_mask, s.width, clip, step.write.mask, mask);
    activate(xi + at.read_mask, s.reads * s.width, clip, step.read.mask, mask);
  }
  activate(xi + at.write_key, s.width, clip, step.write.key, same);
  activate(xi + at.read_key, s.reads * s.width, clip, step.read.key, same);
  activate(xi + at.erase, s.width, clip, step.erase, gate);
  activate(xi + at.value, s.width, clip, step.value, same);
  activate(xi + at.free, s.reads, clip, step.free, gate);
  activate(xi + at.allocation_gate, 2, clip, step.gates, gate);
  activate(xi + at.write_strength, 1, clip, step.write.strength, strength);
  activate(xi + at.read_strength, s.reads, clip, step.read.strength, strength);
  activate(xi + at.mode, 3 * s.reads, clip, step.mode, same);
  for (int64_t r = 0; r < s.reads; ++r) {
    A* const mode = step.mode + 3 * r;
    const A largest =
        mode[0] > mode[1] ? (mode[0] > mode[2] ? mode[0] : mode[2]) : (mode[1] > mode[2] ? mode[1] : mode[2]);
    A part[kLanes<A> < 4 ? 4 : kLanes<A>] = {};
    for (int k = 0; k < 3; ++k) part[k] = mode[k] - largest;
    for (int k = 0; k < 3; k += kLanes<A>) store(part + k, vexp<A>(load(part + k)));
    const A total = part[0] + part[1] + part[2];
    for (int k = 0; k < 3; ++k) mode[k] = part[k] / total;
  }
  if (s.sharpen) {
    activate(xi + at.sharp_forward, s.reads, clip, step.sharp_forward, strength);
    activate(xi + at.sharp_backward, s.reads, clip, step.sharp_backward, strength);
  }
}

template <class A>
void retention_fwd(const DncSizes& s, const A* read_w, const A* free, A* retention) {
  const int64_t n = padded<A>(s.cells);
  for (int64_t i = 0; i < n; i += kLanes<A>) {
    Vector<A> kept = splat<A>(1);
    for (int64_t r = 0; r < s.reads; ++r) kept *= A(1) - free[r] * load(read_w + r * n + i);
    store(retention + i, kept);
  }
}

// weights [R][n] = softmax of strength * log(projection + eps)
template <class A>
void sharpen_fwd(const DncSizes& s, const A* projection, const A* strength, A* weights) {
  const int64_t n = padded<A>(s.cells);
  for (int64_t r = 0; r < s.reads; ++r)
    sharpen_row(projection + r * n, strength[r], static_cast<A>(s.eps), s.cells, weights + r * n);
}

// Cells and words of a block of the memory, which one thread passes over.
inline constexpr int64_t kBlockCells = 128, kBlockWords = 8;

// Scratch of a step: [cells] for sorting, and the parts of the links' sums.
template <class A>
int64_t step_spare(const DncSizes& s) {
  return padded<A>(s.cells) * (1 + s.reads * later_link_blocks(s.cells));
}

// `next` may share its arrays with `prev`. step.xi holds the interface vector. `spare`: see step_spare. A
// step that is done again finds its projections in its record, and makes neither links nor reads.
template <class A>
void memory_step_fwd(const DncSizes& s, const Interface& at, const Team& team, bool again,
                     const State<A>& prev, const State<A>& next, const Step<A>& step, A* spare) {
  const int64_t n = padded<A>(s.cells), heads = s.reads, numbers = n * s.width;
  activate_interface(s, at, step);

  content_prepare(step.write, s, 1);
  content_prepare(step.read, s, heads);
  team.over(n, kBlockCells, 2 * numbers, [&](int64_t i, int64_t end) {
    for (; i < end; i += kLanes<A>)
      content_scores<1, A>(step.write, s, 0, i, [&](int64_t w) { return load(prev.memory + w * n + i); });
  });
  content_finish(step.write, s, 1);

  retention_fwd(s, prev.read_w, step.free, step.retention);
  for (int64_t i = 0; i < n; i += kLanes<A>) {
    const Vector<A> u = load(prev.usage + i), w = load(prev.write_w + i);
    store(next.usage + i, (u + w * (A(1) - u)) * load(step.retention + i));
  }
  sort_by_usage(next.usage, s.cells, step.order, reinterpret_cast<int32_t*>(spare));
  clear(step.allocation, n);
  allocation_fwd(next.usage, s.cells, static_cast<A>(s.eps), step.order, step.allocation);

  const A allocation_gate = step.gates[0], write_gate = step.gates[1];
  for (int64_t i = 0; i < n; i += kLanes<A>)
    store(next.write_w + i, write_gate * (allocation_gate * load(step.allocation + i) +
                                          (1 - allocation_gate) * load(step.write.weight + i)));

  // Write, and score for reading what was just written.
  team.over(n, kBlockCells, (3 + 2 * heads) * numbers, [&](int64_t begin, int64_t end) {
    by_heads(heads, [&]<int HEADS>(int64_t first) {
      for (int64_t i = begin; i < end; i += kLanes<A>) {
        const Vector<A> weight = load(next.write_w + i);
        const Vector<A> kept = s.dealloc ? load(step.retention + i) : splat<A>(1);
        content_scores<HEADS, A>(step.read, s, first, i, [&](int64_t w) {
          if (first > 0) return load(next.memory + w * n + i);
          const Vector<A> m =
              load(prev.memory + w * n + i) * kept * (A(1) - weight * step.erase[w]) + weight * step.value[w];
          store(next.memory + w * n + i, m);
          return m;
        });
      }
    });
  });

  if (!again) {
    const LinkPass<A> pass{s.cells, n, prev.link, next.write_w, prev.precedence, prev.read_w};
    link_fwd(pass, heads, team, next.link, step.forward_d, step.backward_d, spare + n);
  }
  const A left = 1 - sum(next.write_w, n);
  for (int64_t i = 0; i < n; i += kLanes<A>)
    store(next.precedence + i, left * load(prev.precedence + i) + load(next.write_w + i));

  if (s.sharpen) {
    sharpen_fwd(s, step.forward_d, step.sharp_forward, step.forward_w);
    sharpen_fwd(s, step.backward_d, step.sharp_backward, step.backward_w);
  }
  content_finish(step.read, s, heads);
  for (int64_t r = 0; r < heads; ++r)
    for (int64_t i = r * n; i < (r + 1) * n; i += kLanes<A>)
      store(next.read_w + i, step.mode[3 * r] * load(step.backward_w + i) +
                                 step.mode[3 * r + 1] * load(step.read.weight + i) +
                                 step.mode[3 * r + 2] * load(step.forward_w + i));

  if (again) return;
  team.over(s.width, kBlockWords, heads * numbers, [&](int64_t begin, int64_t end) {
    by_heads(heads, [&]<int HEADS>(int64_t first) {
      for (int64_t w = begin; w < end; ++w) {
        Vector<A> sums[HEADS] = {};
        for (int64_t i = 0; i < n; i += kLanes<A>) {
          const Vector<A> m = load(next.memory + w * n + i);
          for (int r = 0; r < HEADS; ++r) sums[r] += m * load(next.read_w + (first + r) * n + i);
        }
        for (int r = 0; r < HEADS; ++r) next.reads[(first + r) * s.width + w] = sum_of_lanes<A>(sums[r]);
      }
    });
  });
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
