// A recurrence over a memory on the CPU: LSTM controller, interface, one step of the memory; forward, and
// backward that repeats the steps between two checkpoints. A thread takes a share of the samples through all
// steps, so that nothing waits; only with fewer samples than threads do they share the passes of a step. What
// is summed in which order does not depend on their number.
//
// `F` is the family's step: Real; the sizes s, with at.size numbers of interface; the team of a share; state,
// step and scratch from a carver; record, the numbers of a step that forward keeps for a step of backward;
// import and export_to; fwd and bwd of one step; and what the later steps of a chunk need of the state at its
// middle, `halfway` numbers. A State has h, c and reads, a Step has xi.
#pragma once
#include "dnc/dnc_cpu_linear.h"
#include "dnc/dnc_cpu_lstm.h"
#include "dnc/dnc_cpu_rows.h"
#include "dnc/dnc_cpu_samples.h"

namespace sysgen::SYSGEN_ISA {
namespace {

// Numbers that `carve(carver)` takes.
template <class A, class C>
int64_t measured(const C& carve) {
  Carver<A> count{nullptr};
  carve(count);
  return count.used;
}
template <class F>
int64_t state_numel(const F& f, Holds holds) {
  return measured<typename F::Real>([&](auto& carver) { f.state(carver, holds); });
}
template <class F>
int64_t step_numel(const F& f) {
  return measured<typename F::Real>([&](auto& carver) { f.step(carver, nullptr); });
}

// What forward keeps of a sample and a chunk: the state before it, then the records of its steps.
struct CheckpointLayout {
  int64_t batch, chunk, state, record, numel;

  template <class F>
  explicit CheckpointLayout(const F& f)
      : batch(f.s.batch),
        chunk(min_of(f.s.chunk, max_of(f.s.steps, 1))),
        state(state_numel(f, Holds::checkpoint)),
        record(f.record()),
        numel(state + min_of(chunk, f.s.steps) * record) {}

  template <class P>
  P* state_of(P* checkpoints, int64_t t, int64_t b) const {
    return checkpoints + (t / chunk * batch + b) * numel;
  }
  template <class P>
  P* record_of(P* checkpoints, int64_t t, int64_t b) const {
    return state_of(checkpoints, t, b) + state + t % chunk * record;
  }
};

struct NoWeights {
  const void *hidden = nullptr, *reads = nullptr, *interface = nullptr;
};

// The weights of a pass, packed behind `carver` if the steps of a share use them often. Backward multiplies
// with the transposes of `hidden` and `reads`, and with `interface_t` besides: as they are, each lies by
// rows.
template <class A>
struct SequenceWeights {
  Weight<A> hidden, reads, interface, interface_t;

  template <class F, class W>
  SequenceWeights(const F& f, const W& w, bool backward, int64_t share, int threads, Carver<A>& carver) {
    const auto& s = f.s;
    const int64_t h = s.hidden, words = s.reads * s.width, size = f.at.size;
    const auto weight = [&](const void* data, int64_t columns, int64_t k, Lies lies, int64_t uses) {
      const Weight<A> as_is{in<A>(data), columns, k, lies};
      if (uses < kUsesToPack) return as_is;
      A* const to = carver.take(Weight<A>::packed_numel(columns, k));
      return to ? pack_weight(as_is, threads, to) : Weight<A>{};
    };
    const int64_t uses = s.steps * ceil_div(share, kRowsOfBlock);
    if (backward) {
      hidden = weight(w.hidden, h, 4 * h, Lies::by_row, uses);
      reads = weight(w.reads, words, 4 * h, Lies::by_row, uses);
      interface = weight(w.interface, size, h, Lies::by_column, ceil_div(s.steps * share, kRowsOfBlock));
      interface_t = weight(w.interface, h, size, Lies::by_row, uses);
    } else {
      hidden = weight(w.hidden, 4 * h, h, Lies::by_column, uses);
      reads = weight(w.reads, 4 * h, words, Lies::by_column, uses);
      interface = weight(w.interface, size, h, Lies::by_column, uses);
    }
  }

  template <class F>
  static int64_t numel(const F& f, bool backward, int64_t share) {
    return measured<A>([&](auto& carver) { SequenceWeights(f, NoWeights{}, backward, share, 1, carver); });
  }
};

// The recurrence of the samples first .. last.
template <class F, class Args>
void fwd_share(const F& f, const Args& a, const SequenceWeights<typename F::Real>& w, int64_t first,
               int64_t last, typename F::Real* scratch) {
  using A = typename F::Real;
  const auto& s = f.s;
  const int64_t count = last - first, words = s.reads * s.width, states = state_numel(f, Holds::all),
                size = f.at.size;
  if (count <= 0) return;
  const CheckpointLayout layout(f);
  A* const checkpoints = out<A>(a.checkpoints);
  Carver<A> carver{scratch};
  A* const state_data = carver.take(count * states);
  A* const xi = carver.take(count * size);
  A* const spare = carver.take(f.spare());
  A* const record = carver.take(layout.record);
  A* const step_data = carver.take(step_numel(f));
  const auto state = [&](int64_t b) {
    Carver<A> of{state_data + (b - first) * states};
    return f.state(of, Holds::all);
  };
  int64_t longest = 0;
  for (int64_t b = first; b < last; ++b) {
    f.import(a.initial, b, state(b));
    const int64_t steps = steps_of(s, b);
    longest = steps > longest ? steps : longest;
  }
  const auto front = state(first);

  for (int64_t t = 0; t < longest; ++t) {
    if (checkpoints && t % layout.chunk == 0)
      for (int64_t b = first; b < last; ++b)
        copy(layout.state_of(checkpoints, t, b), state_data + (b - first) * states, layout.state);
    // Samples that have ended keep their rows in the products, which then are not used.
    A* const gates = out<A>(a.gates) + (t * s.batch + first) * 4 * s.hidden;
    linear(f.team, front.h, states, count, w.hidden, gates, 4 * s.hidden);
    linear(f.team, front.reads, states, count, w.reads, gates, 4 * s.hidden);
    for (int64_t b = first; b < last; ++b) {
      if (t >= steps_of(s, b)) continue;
      const auto now = state(b);
      lstm_fwd(s.hidden, gates + (b - first) * 4 * s.hidden, now.h, now.c);
    }
    for (int64_t b = 0; b < count; ++b) copy(xi + b * size, in<A>(a.w.interface_bias), size);
    linear(f.team, front.h, states, count, w.interface, xi, size);
    for (int64_t b = first; b < last; ++b) {
      A* const h_out = out<A>(a.h_out) + (t * s.batch + b) * s.hidden;
      A* const reads_out = out<A>(a.reads_out) + (t * s.batch + b) * words;
      if (t >= steps_of(s, b)) {
        clear(h_out, s.hidden);
        clear(reads_out, words);
        if (checkpoints) clear(layout.record_of(checkpoints, t, b), layout.record);
        continue;
      }
      const auto now = state(b);
      Carver<A> of{step_data};
      const auto step = f.step(of, checkpoints ? layout.record_of(checkpoints, t, b) : record);
      copy(step.xi, xi + (b - first) * size, size);
      f.fwd(false, now, now, step, spare);
      copy(h_out, now.h, s.hidden);
      copy(reads_out, now.reads, words);
    }
  }
  for (int64_t t = longest; t < s.steps; ++t) {
    clear(out<A>(a.h_out) + (t * s.batch + first) * s.hidden, count * s.hidden);
    clear(out<A>(a.reads_out) + (t * s.batch + first) * words, count * words);
  }
  if (checkpoints)  // what no step has filled
    for (int64_t t = longest; t < ceil_div(s.steps, layout.chunk) * layout.chunk; ++t)
      for (int64_t b = first; b < last; ++b) {
        if (t % layout.chunk == 0) clear(layout.state_of(checkpoints, t, b), layout.state);
        clear(layout.record_of(checkpoints, t, b), layout.record);
      }
  for (int64_t b = first; b < last; ++b) f.export_to(state(b), b, a.final);
}

template <class F>
int64_t fwd_scratch(const F& f, int64_t count) {
  using A = typename F::Real;
  return count * (state_numel(f, Holds::all) + padded<A>(f.at.size)) + padded<A>(f.spare()) +
         padded<A>(f.record()) + step_numel(f) + 2 * kLanes<A>;
}

// Samples that go back through their steps together: as many as leave what a step touches of each, and a
// chunk of steps, to a share of the last cache; for more of them the weights are read less often.
template <class F>
int64_t bwd_group(const F& f, int64_t count) {
  constexpr int64_t kShareOfCache = 8 << 20;
  const CheckpointLayout layout(f);
  const int64_t sample = layout.numel + f.halfway() + state_numel(f, Holds::all) +
                         layout.chunk * (state_numel(f, Holds::step) + step_numel(f));
  const int64_t fit = kShareOfCache / (sample * int64_t{sizeof(typename F::Real)});
  return max_of(1, min_of(count, fit));
}

template <class F>
int64_t bwd_scratch(const F& f, int64_t share) {
  using A = typename F::Real;
  const int64_t count = bwd_group(f, share), chunk = CheckpointLayout(f).chunk;
  return count * ((chunk + 1) * state_numel(f, Holds::step) + chunk * step_numel(f) + f.halfway() +
                  state_numel(f, Holds::all) + chunk * (padded<A>(f.at.size) + padded<A>(f.s.hidden))) +
         padded<A>(f.spare()) + measured<A>([&](auto& carver) { f.scratch(carver); }) + 4 * kLanes<A>;
}

// Samples first .. last, a group.
template <class F, class Args>
void bwd_samples(const F& f, const Args& a, const SequenceWeights<typename F::Real>& w, int64_t first,
                 int64_t last, typename F::Real* scratch) {
  using A = typename F::Real;
  const auto& s = f.s;
  const int64_t count = last - first, words = s.reads * s.width, h4 = 4 * s.hidden, size = f.at.size;
  const int64_t states = state_numel(f, Holds::all), tapes = state_numel(f, Holds::step),
                steps = step_numel(f);
  const CheckpointLayout layout(f);
  const int64_t chunk = layout.chunk, middle = max_of(1, chunk / 2), halfway = f.halfway();
  A* const checkpoints = const_cast<A*>(in<A>(a.checkpoints));  // read only
  Carver<A> carver{scratch};
  A* const tape = carver.take(count * (chunk + 1) * tapes);
  A* const step_data = carver.take(count * chunk * steps);
  A* const halfway_data = carver.take(count * halfway);
  A* const grad_data = carver.take(count * states);
  A* const xi = carver.take(count * chunk * size);
  A* const h = carver.take(count * chunk * s.hidden);
  A* const spare = carver.take(f.spare());
  const auto step_scratch = f.scratch(carver);
  const auto grad_of = [&](int64_t b) {
    Carver<A> of{grad_data + (b - first) * states};
    return f.state(of, Holds::all);
  };
  for (int64_t b = first; b < last; ++b) f.import(a.dfinal, b, grad_of(b));
  const auto front = grad_of(first);

  for (int64_t begin = (ceil_div(s.steps, chunk) - 1) * chunk; begin >= 0; begin -= chunk) {
    const int64_t end = min_of(begin + chunk, s.steps);
    const auto checkpoint = [&](int64_t b) { return layout.state_of(checkpoints, begin, b); };
    // The state before step begin + k.
    const auto state = [&](int64_t b, int64_t k) {
      Carver<A> of{tape + ((b - first) * (chunk + 1) + k) * tapes};
      return f.step_state(of, k < middle ? checkpoint(b) : halfway_data + (b - first) * halfway);
    };
    const auto step_of = [&](int64_t b, int64_t k) {
      Carver<A> of{step_data + ((b - first) * chunk + k) * steps};
      return f.step(of, layout.record_of(checkpoints, begin + k, b));
    };
    // Forward once more, from the checkpoint.
    for (int64_t b = first; b < last; ++b)
      copy(tape + (b - first) * (chunk + 1) * tapes, checkpoint(b) + layout.state - tapes, tapes);
    for (int64_t t = begin; t < end; ++t) {
      copy(h + (t - begin) * count * s.hidden, in<A>(a.h_out) + (t * s.batch + first) * s.hidden,
           count * s.hidden);
      for (int64_t b = 0; b < count; ++b)
        copy(xi + ((t - begin) * count + b) * size, in<A>(a.w.interface_bias), size);
    }
    linear(f.team, h, s.hidden, (end - begin) * count, w.interface, xi, size);
    for (int64_t b = first; b < last; ++b) {
      for (int64_t t = begin; t < end && t < steps_of(s, b); ++t) {
        const int64_t k = t - begin;
        const auto prev = state(b, k), next = state(b, k + 1);
        const auto step = step_of(b, k);
        copy(step.xi, xi + (k * count + b - first) * size, size);
        repeat_cell(s.hidden, in<A>(a.gates) + (t * s.batch + b) * h4, prev.c, next.c);
        f.fwd(true, prev, next, step, spare);
      }
      if (min_of(end, steps_of(s, b)) - begin > middle)
        f.go_halfway(middle, checkpoint(b), state(b, middle), state(b, middle + 1));
    }
    for (int64_t t = end - 1; t >= begin; --t) {
      A* const dxi = out<A>(a.dinterface) + (t * s.batch + first) * size;
      A* const dgates = out<A>(a.dgates) + (t * s.batch + first) * h4;
      for (int64_t b = first; b < last; ++b) {
        A* const mine = dxi + (b - first) * size;
        if (t >= steps_of(s, b)) {
          clear(mine, size);
          continue;
        }
        const auto grad = grad_of(b);
        const int64_t row = t * s.batch + b;
        if (a.dreads_out)
          for (int64_t k = 0; k < words; ++k) grad.reads[k] += in<A>(a.dreads_out)[row * words + k];
        if (a.dh_out)
          for (int64_t k = 0; k < s.hidden; ++k) grad.h[k] += in<A>(a.dh_out)[row * s.hidden + k];
        const int64_t k = t - begin;
        f.bwd(k < middle ? k : k - middle, state(b, k), state(b, k + 1), step_of(b, k), grad, step_scratch,
              mine);
      }
      // A sample that has ended has zeros here.
      linear(f.team, dxi, size, count, w.interface_t, front.h, states);
      for (int64_t b = first; b < last; ++b) {
        A* const mine = dgates + (b - first) * h4;
        if (t >= steps_of(s, b)) {
          clear(mine, h4);
          continue;
        }
        const auto grad = grad_of(b);
        lstm_bwd(s.hidden, in<A>(a.gates) + (t * s.batch + b) * h4, state(b, t - begin).c,
                 state(b, t - begin + 1).c, grad.h, grad.c, mine);
        clear(grad.h, s.hidden);
        clear(grad.reads, words);
      }
      linear(f.team, dgates, h4, count, w.hidden, front.h, states);
      linear(f.team, dgates, h4, count, w.reads, front.reads, states);
    }
  }
  for (int64_t b = first; b < last; ++b) f.export_to(grad_of(b), b, a.dinitial);
}

template <class S>
Team team_of(const S& s, int threads) {
  return {num_shares(s, threads) == 1 ? threads : 1};
}

// f(weights, first, last, scratch) for each share of the samples; `each`: scratch of a share.
template <class F, class Args, class G>
void sequence_shares(const F& f, const Args& a, bool backward, int64_t each, const G& g) {
  using A = typename F::Real;
  A* const scratch = out<A>(a.scratch);
  Carver<A> carver{scratch};
  const SequenceWeights<A> w(f, a.w, backward, largest_share(a.s, a.threads), a.threads, carver);
  share_samples(a.s, a.threads, scratch + carver.used, each,
                [&](int64_t first, int64_t last, A* mine) { g(w, first, last, mine); });
}

template <class F, class Args>
void sequence_fwd(const Args& a) {
  const F f(a.s, team_of(a.s, a.threads));
  sequence_shares(f, a, false, fwd_scratch(f, largest_share(a.s, a.threads)),
                  [&](const auto& w, int64_t first, int64_t last, auto* scratch) {
                    fwd_share(f, a, w, first, last, scratch);
                  });
}
template <class F, class Args>
void sequence_bwd(const Args& a) {
  const F f(a.s, team_of(a.s, a.threads));
  sequence_shares(f, a, true, bwd_scratch(f, largest_share(a.s, a.threads)),
                  [&](const auto& w, int64_t first, int64_t last, auto* scratch) {
                    const int64_t group = bwd_group(f, last - first);
                    for (; first < last; first += group)
                      bwd_samples(f, a, w, first, min_of(first + group, last), scratch);
                  });
}

template <class F, class S>
int64_t fwd_scratch_bytes(const S& s, int threads) {
  using A = typename F::Real;
  const F f(s);
  return int64_t{sizeof(A)} * (SequenceWeights<A>::numel(f, false, largest_share(s, threads)) +
                               num_shares(s, threads) * fwd_scratch(f, largest_share(s, threads)));
}
template <class F, class S>
int64_t bwd_scratch_bytes(const S& s, int threads) {
  using A = typename F::Real;
  const F f(s);
  return int64_t{sizeof(A)} * (SequenceWeights<A>::numel(f, true, largest_share(s, threads)) +
                               num_shares(s, threads) * bwd_scratch(f, largest_share(s, threads)));
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
