// Backward of one step of one sample's memory.
#pragma once
#include "dnc/dnc_cpu_step.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// Scratch of one step's backward.
template <class A>
struct StepScratch {
  A *dcontent, *dforward, *dbackward;                     // [R][n]
  A* dread_w;                                             // [R][n]: of the read weights before the step
  A *dwrite_w, *dprecedence;                              // [n]
  A *dretention, *dallocation, *dwrite_content, *before;  // [n]
  A *dsharp, *dmode;                                      // [2 R], [3 R]
  A *derase, *dvalue, *dfree;                             // [W], [W], [R]
  A* word_parts;                                          // [blocks of cells][2 W]
  A* link;                                                // link_bwd_scratch
  ContentGradient<A> write, read;

  StepScratch(Carver<A>& carver, const DncSizes& s)
      : dcontent(carver.take(s.reads * padded<A>(s.cells))),
        dforward(carver.take(s.reads * padded<A>(s.cells))),
        dbackward(carver.take(s.reads * padded<A>(s.cells))),
        dread_w(carver.take(s.reads * padded<A>(s.cells))),
        dwrite_w(carver.take(s.cells)),
        dprecedence(carver.take(s.cells)),
        dretention(carver.take(s.cells)),
        dallocation(carver.take(s.cells)),
        dwrite_content(carver.take(s.cells)),
        before(carver.take(s.cells)),
        dsharp(carver.take(2 * s.reads)),
        dmode(carver.take(3 * s.reads)),
        derase(carver.take(s.width)),
        dvalue(carver.take(s.width)),
        dfree(carver.take(s.reads)),
        word_parts(carver.take(2 * s.width * ceil_div(padded<A>(s.cells), kBlockCells))),
        link(carver.take(link_bwd_scratch<A>(s.cells, s.reads))),
        write(carver, s, 1),
        read(carver, s, s.reads) {}
};

// The links that a step reads, made from `links`, which lack the `behind` updates before it: their states lie
// as far before `prev` and `next` as `prev` lies before `next`.
template <class A>
LinkPass<A> step_links(const DncSizes& s, int64_t behind, const A* links, const State<A>& prev,
                       const State<A>& next) {
  return {s.cells,         padded<A>(s.cells), links,  next.write_w,
          prev.precedence, prev.read_w,        behind, next.write_w - prev.write_w};
}

// dprojection from the gradient of the sharpened weights; dweights is overwritten.
template <class A>
void sharpen_bwd(const DncSizes& s, const A* projection, const A* strength, const A* weights, A* dweights,
                 A* dstrength) {
  const int64_t n = padded<A>(s.cells);
  for (int64_t r = 0; r < s.reads; ++r)
    dstrength[r] = sharpen_row_bwd(projection + r * n, strength[r], static_cast<A>(s.eps), s.cells,
                                   weights + r * n, dweights + r * n);
}

// prev.link lacks `behind` updates, see step_links. `grad` holds the gradients of the state after the step on
// entry, of the one before at the end; its h and c are not used, its reads are overwritten by the caller. dxi
// [I]: gradient of step.xi.
template <class A>
void memory_step_bwd(const DncSizes& s, const Interface& at, const Team& team, int64_t behind,
                     const State<A>& prev, const State<A>& next, const Step<A>& step, const State<A>& grad,
                     const StepScratch<A>& b, A* dxi) {
  const int64_t n = padded<A>(s.cells), heads = s.reads, numbers = n * s.width;
  const auto lanes = [n](const auto& f) {
    for (int64_t i = 0; i < n; i += kLanes<A>) f(i);
  };

  // reads = read_w M
  team.over(n, kBlockCells, 2 * heads * numbers, [&](int64_t begin, int64_t end) {
    by_heads(heads, [&]<int HEADS>(int64_t first) {
      const A* const dreads = grad.reads + first * s.width;
      for (int64_t i = begin; i < end; i += kLanes<A>) {
        Vector<A> weight[HEADS], dweight[HEADS];
        for (int r = 0; r < HEADS; ++r) {
          weight[r] = load(next.read_w + (first + r) * n + i);
          dweight[r] = load(grad.read_w + (first + r) * n + i);
        }
        for (int64_t w = 0; w < s.width; ++w) {
          const Vector<A> m = load(next.memory + w * n + i);
          Vector<A> dm = load(grad.memory + w * n + i);
          for (int r = 0; r < HEADS; ++r) {
            dweight[r] += m * dreads[r * s.width + w];
            dm += weight[r] * dreads[r * s.width + w];
          }
          store(grad.memory + w * n + i, dm);
        }
        for (int r = 0; r < HEADS; ++r) store(grad.read_w + (first + r) * n + i, dweight[r]);
      }
    });
  });

  // read_w = mode . (backward, content, forward)
  for (int64_t r = 0; r < heads; ++r) {
    const A* const mode = step.mode + 3 * r;
    Vector<A> dots[3] = {};
    lanes([&](int64_t i) {
      const int64_t k = r * n + i;
      const Vector<A> d = load(grad.read_w + k);
      dots[0] += d * load(step.backward_w + k);
      dots[1] += d * load(step.read.weight + k);
      dots[2] += d * load(step.forward_w + k);
      store(b.dbackward + k, mode[0] * d);
      store(b.dcontent + k, mode[1] * d);
      store(b.dforward + k, mode[2] * d);
    });
    A dmode[3], mean = 0;
    for (int k = 0; k < 3; ++k) mean += (dmode[k] = sum_of_lanes<A>(dots[k])) * mode[k];
    for (int k = 0; k < 3; ++k) b.dmode[3 * r + k] = mode[k] * (dmode[k] - mean);
  }

  content_bwd_prepare(step.read, s, heads, b.dcontent, b.read);
  const auto content_bwd = [&](const Content<A>& c, int64_t c_heads, const A* memory,
                               const ContentGradient<A>& g) {
    team.over(s.width, kBlockWords, 5 * c_heads * numbers, [&](int64_t begin, int64_t end) {
      content_bwd_pass(c, s, c_heads, begin, end, memory, grad.memory, g);
    });
  };
  content_bwd(step.read, heads, next.memory, b.read);
  if (s.sharpen) {
    sharpen_bwd(s, step.forward_d, step.sharp_forward, step.forward_w, b.dforward, b.dsharp);
    sharpen_bwd(s, step.backward_d, step.sharp_backward, step.backward_w, b.dbackward, b.dsharp + heads);
  }

  // precedence = (1 - sum w) p + w
  const A left = 1 - sum(next.write_w, n), along = dot(grad.precedence, prev.precedence, n);
  lanes([&](int64_t i) {
    const Vector<A> dp = load(grad.precedence + i);
    store(b.dwrite_w + i, load(grad.write_w + i) + dp - along);
    store(b.dprecedence + i, left * dp);
  });
  for (int64_t i = s.cells; i < n; ++i) b.dwrite_w[i] = 0;

  clear(b.dread_w, heads * n);
  link_bwd(step_links(s, behind, prev.link, prev, next), heads, team,
           LinkGradient<A>{b.dforward, b.dbackward, grad.link, b.dread_w, b.dwrite_w, b.dprecedence}, b.link);
  copy(grad.precedence, b.dprecedence, n);

  // M' = psi M (1 - w e) + w v
  clear(b.dretention, n);
  team.over(n, kBlockCells, 8 * numbers, [&](int64_t begin, int64_t end) {
    A* const parts = b.word_parts + begin / kBlockCells * 2 * s.width;
    for (int64_t w = 0; w < s.width; ++w) {
      const A erase = step.erase[w], value = step.value[w];
      Vector<A> derase{}, dvalue{};
      for (int64_t i = begin; i < end; i += kLanes<A>) {
        const Vector<A> m = load(prev.memory + w * n + i), weight = load(next.write_w + i);
        const Vector<A> kept = s.dealloc ? load(step.retention + i) : splat<A>(1);
        const Vector<A> d = load(grad.memory + w * n + i), stays = A(1) - weight * erase, dm = d * m,
                        dmk = dm * kept;
        store(b.dretention + i, load(b.dretention + i) + dm * stays);
        store(b.dwrite_w + i, load(b.dwrite_w + i) + d * value - dmk * erase);
        derase -= dmk * weight;
        dvalue += d * weight;
        store(grad.memory + w * n + i, d * kept * stays);
      }
      parts[w] = sum_of_lanes<A>(derase);
      parts[s.width + w] = sum_of_lanes<A>(dvalue);
    }
  });
  for (int64_t w = 0; w < s.width; ++w) {
    A derase = 0, dvalue = 0;
    for (int64_t k = 0; k < n; k += kBlockCells) {
      const A* const parts = b.word_parts + k / kBlockCells * 2 * s.width;
      derase += parts[w];
      dvalue += parts[s.width + w];
    }
    b.derase[w] = derase;
    b.dvalue[w] = dvalue;
  }
  if (!s.dealloc) clear(b.dretention, n);

  // w = write_gate (allocation_gate a + (1 - allocation_gate) content)
  const A allocation_gate = step.gates[0], write_gate = step.gates[1];
  Vector<A> by_write_gate{}, by_allocation_gate{};
  lanes([&](int64_t i) {
    const Vector<A> d = load(b.dwrite_w + i), a = load(step.allocation + i), c = load(step.write.weight + i);
    by_write_gate += d * (allocation_gate * a + (1 - allocation_gate) * c);
    by_allocation_gate += d * (a - c);
    store(b.dallocation + i, d * (write_gate * allocation_gate));
    store(b.dwrite_content + i, d * (write_gate * (1 - allocation_gate)));
  });
  const A dgates[2] = {sum_of_lanes<A>(by_allocation_gate) * write_gate, sum_of_lanes<A>(by_write_gate)};

  allocation_bwd(next.usage, s.cells, static_cast<A>(s.eps), step.order, b.dallocation, grad.usage, b.before);

  // u' = (u + w (1 - u)) psi
  lanes([&](int64_t i) {
    const Vector<A> u = load(prev.usage + i), w = load(prev.write_w + i), d = load(grad.usage + i);
    const Vector<A> through = d * load(step.retention + i);
    store(b.dretention + i, load(b.dretention + i) + d * (u + w * (A(1) - u)));
    store(grad.usage + i, through * (A(1) - w));
    store(grad.write_w + i, s.detach_write ? Vector<A>{} : through * (A(1) - u));
  });

  content_bwd_prepare(step.write, s, 1, b.dwrite_content, b.write);
  content_bwd(step.write, 1, prev.memory, b.write);

  // psi = product over the heads of (1 - free read_w); the product without one head: before it times behind
  // it
  for (int64_t r = 0; r < heads; ++r) {
    Vector<A> total{};
    lanes([&](int64_t i) {
      Vector<A> others = load(b.dretention + i);
      for (int64_t q = 0; q < heads; ++q)
        if (q != r) others *= A(1) - step.free[q] * load(prev.read_w + q * n + i);
      total += others * load(prev.read_w + r * n + i);
      store(grad.read_w + r * n + i, load(b.dread_w + r * n + i) - others * step.free[r]);
    });
    b.dfree[r] = -sum_of_lanes<A>(total);
  }

  const A clip = static_cast<A>(s.clip), least = static_cast<A>(s.mask_min);
  const A* const xi = step.xi;
  const auto same = [](int64_t, Vector<A>) { return splat<A>(1); };
  const auto strength = [](int64_t, Vector<A> x) { return softplus_slope<A>(x); };
  const auto gate = [](int64_t, Vector<A> x) {
    const Vector<A> y = vsigmoid<A>(x);
    return y * (A(1) - y);
  };
  const auto mask = [least](int64_t, Vector<A> x) {
    const Vector<A> y = vsigmoid<A>(x);
    return y * (A(1) - y) * (1 - least);
  };
  const auto put = [&](int64_t where, const A* grad_of, int64_t count, const auto& slope) {
    activate_bwd(xi + where, grad_of, count, clip, dxi + where, slope);
  };
  if (s.masked) {
    put(at.write_mask, b.write.dmask, s.width, mask);
    put(at.read_mask, b.read.dmask, heads * s.width, mask);
  }
  put(at.write_key, b.write.dkey, s.width, same);
  put(at.read_key, b.read.dkey, heads * s.width, same);
  put(at.erase, b.derase, s.width, gate);
  put(at.value, b.dvalue, s.width, same);
  put(at.free, b.dfree, heads, gate);
  put(at.allocation_gate, dgates, 2, gate);
  put(at.write_strength, b.write.dstrength, 1, strength);
  put(at.read_strength, b.read.dstrength, heads, strength);
  put(at.mode, b.dmode, 3 * heads, same);
  if (s.sharpen) {
    put(at.sharp_forward, b.dsharp, heads, strength);
    put(at.sharp_backward, b.dsharp + heads, heads, strength);
  }
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
