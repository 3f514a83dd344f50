// A recurrence over a memory on the CPU: LSTM controller, interface, one step of the memory; forward, and
// backward that repeats the steps between two checkpoints. A thread takes a share of the samples through all
// steps, so that nothing waits; only with fewer samples than threads do they share the passes of a step. What
// is summed in which order does not depend on their number.
//
// `F` is the family's step: Real; the sizes s, with at.size numbers of interface; the team of a share; state,
// step and scratch from a carver; import and export_to; fwd and bwd of one step. A State has h, c and reads,
// a Step has xi.
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
int64_t state_numel(const F& f) {
  return measured<typename F::Real>([&](auto& carver) { f.state(carver); });
}
template <class F>
int64_t step_numel(const F& f) {
  return measured<typename F::Real>([&](auto& carver) { f.step(carver); });
}

// The recurrence of the samples first .. last.
template <class F, class Args>
void fwd_share(const F& f, const Args& a, int64_t first, int64_t last, typename F::Real* scratch) {
  using A = typename F::Real;
  const auto& s = f.s;
  const int64_t count = last - first, words = s.reads * s.width, states = state_numel(f), size = f.at.size;
  if (count <= 0) return;
  Carver<A> carver{scratch};
  A* const state_data = carver.take(count * states);
  A* const xi = carver.take(count * size);
  A* const spare = carver.take(f.spare());
  auto step = f.step(carver);
  const auto state = [&](int64_t b) {
    Carver<A> of{state_data + (b - first) * states};
    return f.state(of);
  };
  int64_t longest = 0;
  for (int64_t b = first; b < last; ++b) {
    f.import(a.initial, b, state(b));
    const int64_t steps = steps_of(s, b);
    longest = steps > longest ? steps : longest;
  }
  const auto front = state(first);

  for (int64_t t = 0; t < longest; ++t) {
    if (a.checkpoints && t % s.chunk == 0)
      copy(out<A>(a.checkpoints) + (t / s.chunk * s.batch + first) * states, state_data, count * states);
    // Samples that have ended keep their rows in the products, which then are not used.
    A* const gates = out<A>(a.gates) + (t * s.batch + first) * 4 * s.hidden;
    linear(f.team, front.h, states, count, in<A>(a.w.hidden), s.hidden, 4 * s.hidden, gates, 4 * s.hidden);
    linear(f.team, front.reads, states, count, in<A>(a.w.reads), words, 4 * s.hidden, gates, 4 * s.hidden);
    for (int64_t b = first; b < last; ++b) {
      if (t >= steps_of(s, b)) continue;
      const auto now = state(b);
      lstm_fwd(s.hidden, gates + (b - first) * 4 * s.hidden, now.h, now.c);
    }
    for (int64_t b = 0; b < count; ++b) copy(xi + b * size, in<A>(a.w.interface_bias), size);
    linear(f.team, front.h, states, count, in<A>(a.w.interface), s.hidden, size, xi, size);
    for (int64_t b = first; b < last; ++b) {
      A* const h_out = out<A>(a.h_out) + (t * s.batch + b) * s.hidden;
      A* const reads_out = out<A>(a.reads_out) + (t * s.batch + b) * words;
      if (t >= steps_of(s, b)) {
        clear(h_out, s.hidden);
        clear(reads_out, words);
        continue;
      }
      const auto now = state(b);
      copy(step.xi, xi + (b - first) * size, size);
      f.fwd(now, now, step, spare);
      copy(h_out, now.h, s.hidden);
      copy(reads_out, now.reads, words);
    }
  }
  for (int64_t t = longest; t < s.steps; ++t) {
    clear(out<A>(a.h_out) + (t * s.batch + first) * s.hidden, count * s.hidden);
    clear(out<A>(a.reads_out) + (t * s.batch + first) * words, count * words);
    if (a.checkpoints && t % s.chunk == 0)
      clear(out<A>(a.checkpoints) + (t / s.chunk * s.batch + first) * states, count * states);
  }
  for (int64_t b = first; b < last; ++b) f.export_to(state(b), b, a.final);
}

template <class F>
int64_t fwd_scratch(const F& f, int64_t count) {
  using A = typename F::Real;
  return count * (state_numel(f) + padded<A>(f.at.size)) + padded<A>(f.spare()) + step_numel(f) +
         2 * kLanes<A>;
}

template <class F>
int64_t bwd_scratch(const F& f, int64_t count) {
  using A = typename F::Real;
  const int64_t states = state_numel(f), chunk = f.s.chunk < f.s.steps ? f.s.chunk : f.s.steps;
  return count * ((chunk + 1) * states + chunk * step_numel(f) + states +
                  chunk * (padded<A>(f.at.size) + padded<A>(f.s.hidden))) +
         padded<A>(f.spare()) + measured<A>([&](auto& carver) { f.scratch(carver); }) + 4 * kLanes<A>;
}

template <class F, class Args>
void bwd_share(const F& f, const Args& a, int64_t first, int64_t last, typename F::Real* scratch) {
  using A = typename F::Real;
  const auto& s = f.s;
  const int64_t count = last - first, words = s.reads * s.width, h4 = 4 * s.hidden, size = f.at.size;
  const int64_t states = state_numel(f), steps = step_numel(f);
  const int64_t chunk = s.chunk < s.steps ? s.chunk : s.steps;
  if (count <= 0) return;
  Carver<A> carver{scratch};
  A* const tape = carver.take(count * (chunk + 1) * states);
  A* const step_data = carver.take(count * chunk * steps);
  A* const grad_data = carver.take(count * states);
  A* const xi = carver.take(count * chunk * size);
  A* const h = carver.take(count * chunk * s.hidden);
  A* const spare = carver.take(f.spare());
  const auto step_scratch = f.scratch(carver);
  const auto state = [&](int64_t b, int64_t k) {
    Carver<A> of{tape + ((b - first) * (chunk + 1) + k) * states};
    return f.state(of);
  };
  const auto step_of = [&](int64_t b, int64_t k) {
    Carver<A> of{step_data + ((b - first) * chunk + k) * steps};
    return f.step(of);
  };
  const auto grad_of = [&](int64_t b) {
    Carver<A> of{grad_data + (b - first) * states};
    return f.state(of);
  };
  for (int64_t b = first; b < last; ++b) f.import(a.dfinal, b, grad_of(b));
  const auto front = grad_of(first);

  for (int64_t c = (s.steps + s.chunk - 1) / s.chunk - 1; c >= 0; --c) {
    const int64_t begin = c * s.chunk, end = begin + chunk < s.steps ? begin + chunk : s.steps;
    // Forward once more, from the checkpoint.
    for (int64_t b = first; b < last; ++b)
      copy(tape + (b - first) * (chunk + 1) * states, in<A>(a.checkpoints) + (c * s.batch + b) * states,
           states);
    for (int64_t t = begin; t < end; ++t) {
      copy(h + (t - begin) * count * s.hidden, in<A>(a.h_out) + (t * s.batch + first) * s.hidden,
           count * s.hidden);
      for (int64_t b = 0; b < count; ++b)
        copy(xi + ((t - begin) * count + b) * size, in<A>(a.w.interface_bias), size);
    }
    linear(f.team, h, s.hidden, (end - begin) * count, in<A>(a.w.interface), s.hidden, size, xi, size);
    for (int64_t b = first; b < last; ++b) {
      for (int64_t t = begin; t < end && t < steps_of(s, b); ++t) {
        const int64_t k = t - begin;
        const auto prev = state(b, k), next = state(b, k + 1);
        auto step = step_of(b, k);
        copy(step.xi, xi + (k * count + b - first) * size, size);
        repeat_cell(s.hidden, in<A>(a.gates) + (t * s.batch + b) * h4, prev.c, next.c);
        f.fwd(prev, next, step, spare);
      }
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
          for (int64_t w = 0; w < words; ++w) grad.reads[w] += in<A>(a.dreads_out)[row * words + w];
        if (a.dh_out)
          for (int64_t k = 0; k < s.hidden; ++k) grad.h[k] += in<A>(a.dh_out)[row * s.hidden + k];
        f.bwd(state(b, t - begin), state(b, t - begin + 1), step_of(b, t - begin), grad, step_scratch, mine);
      }
      // A sample that has ended has zeros here.
      linear(f.team, dxi, size, count, in<A>(a.w.interface_t), size, s.hidden, front.h, states);
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
      linear(f.team, dgates, h4, count, in<A>(a.w.hidden), h4, s.hidden, front.h, states);
      linear(f.team, dgates, h4, count, in<A>(a.w.reads), h4, words, front.reads, states);
    }
  }
  for (int64_t b = first; b < last; ++b) f.export_to(grad_of(b), b, a.dinitial);
}

template <class S>
Team team_of(const S& s, int threads) {
  return {num_shares(s, threads) == 1 ? threads : 1};
}

template <class F, class Args>
void sequence_fwd(const Args& a) {
  const F f(a.s, team_of(a.s, a.threads));
  share_samples(a.s, a.threads, out<typename F::Real>(a.scratch),
                fwd_scratch(f, largest_share(a.s, a.threads)),
                [&](int64_t first, int64_t last, auto* scratch) { fwd_share(f, a, first, last, scratch); });
}
template <class F, class Args>
void sequence_bwd(const Args& a) {
  const F f(a.s, team_of(a.s, a.threads));
  share_samples(a.s, a.threads, out<typename F::Real>(a.scratch),
                bwd_scratch(f, largest_share(a.s, a.threads)),
                [&](int64_t first, int64_t last, auto* scratch) { bwd_share(f, a, first, last, scratch); });
}

template <class F, class S>
int64_t fwd_scratch_bytes(const S& s, int threads) {
  return int64_t(sizeof(typename F::Real)) * num_shares(s, threads) *
         fwd_scratch(F(s), largest_share(s, threads));
}
template <class F, class S>
int64_t bwd_scratch_bytes(const S& s, int threads) {
  return int64_t(sizeof(typename F::Real)) * num_shares(s, threads) *
         bwd_scratch(F(s), largest_share(s, threads));
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
