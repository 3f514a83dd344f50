// The recurrence on the CPU, compiled once per instruction-set level (common/cpu.h). A thread takes a share
// of the samples through all steps, so that nothing waits and results do not depend on the number of threads.
#include "dnc/dnc_cpu_linear.h"
#include "dnc/dnc_cpu_lstm.h"
#include "dnc/dnc_cpu_samples.h"
#include "dnc/dnc_cpu_step_bwd.h"

namespace sysgen::SYSGEN_ISA {
namespace {

template <class A>
void import_state(const DncSizes& s, const DncState& from, int64_t b, const State<A>& to) {
  import_memory(from.memory, b, s.cells, s.width, to.memory);
  pad_rows(from.link, b, s.cells, s.cells, to.link);
  pad_rows(from.usage, b, 1, s.cells, to.usage);
  pad_rows(from.precedence, b, 1, s.cells, to.precedence);
  pad_rows(from.write_w, b, 1, s.cells, to.write_w);
  pad_rows(from.read_w, b, s.reads, s.cells, to.read_w);
  pad_rows(from.reads, b, 1, s.reads * s.width, to.reads);
  pad_rows(from.h, b, 1, s.hidden, to.h);
  pad_rows(from.c, b, 1, s.hidden, to.c);
}

template <class A>
void export_state(const DncSizes& s, const State<A>& from, int64_t b, const DncState& to) {
  export_memory(from.memory, b, s.cells, s.width, to.memory);
  unpad_rows(from.link, b, s.cells, s.cells, to.link);
  unpad_rows(from.usage, b, 1, s.cells, to.usage);
  unpad_rows(from.precedence, b, 1, s.cells, to.precedence);
  unpad_rows(from.write_w, b, 1, s.cells, to.write_w);
  unpad_rows(from.read_w, b, s.reads, s.cells, to.read_w);
  unpad_rows(from.reads, b, 1, s.reads * s.width, to.reads);
  unpad_rows(from.h, b, 1, s.hidden, to.h);
  unpad_rows(from.c, b, 1, s.hidden, to.c);
}

// The recurrence of the samples first .. last.
template <class A>
void fwd_share(const DncFwdArgs& a, const Interface& at, int64_t first, int64_t last, A* scratch) {
  const DncSizes& s = a.s;
  const int64_t count = last - first, words = s.reads * s.width, states = State<A>::numel(s);
  if (count <= 0) return;
  Carver<A> carver{scratch};
  A* const state_data = carver.take(count * states);
  A* const xi = carver.take(count * at.size);
  int32_t* const spare = reinterpret_cast<int32_t*>(carver.take(s.cells));
  Step<A> step(carver, s, at.size);
  const auto state = [&](int64_t b) {
    Carver<A> of{state_data + (b - first) * states};
    return State<A>(of, s);
  };
  int64_t longest = 0;
  for (int64_t b = first; b < last; ++b) {
    import_state(s, a.initial, b, state(b));
    const int64_t steps = steps_of(s, b);
    longest = steps > longest ? steps : longest;
  }
  const State<A> front = state(first);

  for (int64_t t = 0; t < longest; ++t) {
    if (a.checkpoints && t % s.chunk == 0)
      copy(out<A>(a.checkpoints) + (t / s.chunk * s.batch + first) * states, state_data, count * states);
    // Samples that have ended keep their rows in the products, which then are not used.
    A* const gates = out<A>(a.gates) + (t * s.batch + first) * 4 * s.hidden;
    linear(front.h, states, count, in<A>(a.w.hidden), s.hidden, 4 * s.hidden, gates, 4 * s.hidden);
    linear(front.reads, states, count, in<A>(a.w.reads), words, 4 * s.hidden, gates, 4 * s.hidden);
    for (int64_t b = first; b < last; ++b) {
      if (t >= steps_of(s, b)) continue;
      const State<A> now = state(b);
      lstm_fwd(s.hidden, gates + (b - first) * 4 * s.hidden, now.h, now.c);
    }
    for (int64_t b = 0; b < count; ++b) copy(xi + b * at.size, in<A>(a.w.interface_bias), at.size);
    linear(front.h, states, count, in<A>(a.w.interface), s.hidden, at.size, xi, at.size);
    for (int64_t b = first; b < last; ++b) {
      A* const h_out = out<A>(a.h_out) + (t * s.batch + b) * s.hidden;
      A* const reads_out = out<A>(a.reads_out) + (t * s.batch + b) * words;
      if (t >= steps_of(s, b)) {
        clear(h_out, s.hidden);
        clear(reads_out, words);
        continue;
      }
      const State<A> now = state(b);
      copy(step.xi, xi + (b - first) * at.size, at.size);
      memory_step_fwd(s, at, now, now, step, spare);
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
  for (int64_t b = first; b < last; ++b) export_state(s, state(b), b, a.final);
}

template <class A>
int64_t fwd_scratch(const DncSizes& s, const Interface& at, int64_t count) {
  return count * (State<A>::numel(s) + padded<A>(at.size)) + padded<A>(s.cells) + Step<A>::numel(s, at.size) +
         2 * kLanes<A>;
}

template <class A>
int64_t bwd_scratch(const DncSizes& s, const Interface& at, int64_t count) {
  const int64_t states = State<A>::numel(s), steps = Step<A>::numel(s, at.size),
                chunk = s.chunk < s.steps ? s.chunk : s.steps;
  return count * ((chunk + 1) * states + chunk * steps + states +
                  chunk * (padded<A>(at.size) + padded<A>(s.hidden))) +
         padded<A>(s.cells) + StepScratch<A>::numel(s) + 4 * kLanes<A>;
}

template <class A>
void bwd_share(const DncBwdArgs& a, const Interface& at, int64_t first, int64_t last, A* scratch) {
  const DncSizes& s = a.s;
  const int64_t count = last - first, words = s.reads * s.width, h4 = 4 * s.hidden;
  const int64_t states = State<A>::numel(s), steps = Step<A>::numel(s, at.size);
  const int64_t chunk = s.chunk < s.steps ? s.chunk : s.steps;
  if (count <= 0) return;
  Carver<A> carver{scratch};
  A* const tape = carver.take(count * (chunk + 1) * states);
  A* const step_data = carver.take(count * chunk * steps);
  A* const grad_data = carver.take(count * states);
  A* const xi = carver.take(count * chunk * at.size);
  A* const h = carver.take(count * chunk * s.hidden);
  int32_t* const spare = reinterpret_cast<int32_t*>(carver.take(s.cells));
  const StepScratch<A> step_scratch(carver, s);
  const auto state = [&](int64_t b, int64_t k) {
    Carver<A> of{tape + ((b - first) * (chunk + 1) + k) * states};
    return State<A>(of, s);
  };
  const auto step_of = [&](int64_t b, int64_t k) {
    Carver<A> of{step_data + ((b - first) * chunk + k) * steps};
    return Step<A>(of, s, at.size);
  };
  const auto grad_of = [&](int64_t b) {
    Carver<A> of{grad_data + (b - first) * states};
    return State<A>(of, s);
  };
  for (int64_t b = first; b < last; ++b) import_state(s, a.dfinal, b, grad_of(b));
  const State<A> front = grad_of(first);

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
        copy(xi + ((t - begin) * count + b) * at.size, in<A>(a.w.interface_bias), at.size);
    }
    linear(h, s.hidden, (end - begin) * count, in<A>(a.w.interface), s.hidden, at.size, xi, at.size);
    for (int64_t b = first; b < last; ++b) {
      for (int64_t t = begin; t < end && t < steps_of(s, b); ++t) {
        const int64_t k = t - begin;
        const State<A> prev = state(b, k), next = state(b, k + 1);
        Step<A> step = step_of(b, k);
        copy(step.xi, xi + (k * count + b - first) * at.size, at.size);
        repeat_cell(s.hidden, in<A>(a.gates) + (t * s.batch + b) * h4, prev.c, next.c);
        memory_step_fwd(s, at, prev, next, step, spare);
      }
    }
    for (int64_t t = end - 1; t >= begin; --t) {
      A* const dxi = out<A>(a.dinterface) + (t * s.batch + first) * at.size;
      A* const dgates = out<A>(a.dgates) + (t * s.batch + first) * h4;
      for (int64_t b = first; b < last; ++b) {
        A* const mine = dxi + (b - first) * at.size;
        if (t >= steps_of(s, b)) {
          clear(mine, at.size);
          continue;
        }
        const State<A> grad = grad_of(b);
        const int64_t row = t * s.batch + b;
        if (a.dreads_out)
          for (int64_t w = 0; w < words; ++w) grad.reads[w] += in<A>(a.dreads_out)[row * words + w];
        if (a.dh_out)
          for (int64_t k = 0; k < s.hidden; ++k) grad.h[k] += in<A>(a.dh_out)[row * s.hidden + k];
        memory_step_bwd(s, at, state(b, t - begin), state(b, t - begin + 1), step_of(b, t - begin), grad,
                        step_scratch, mine);
      }
      // A sample that has ended has zeros here.
      linear(dxi, at.size, count, in<A>(a.w.interface_t), at.size, s.hidden, front.h, states);
      for (int64_t b = first; b < last; ++b) {
        A* const mine = dgates + (b - first) * h4;
        if (t >= steps_of(s, b)) {
          clear(mine, h4);
          continue;
        }
        const State<A> grad = grad_of(b);
        lstm_bwd(s.hidden, in<A>(a.gates) + (t * s.batch + b) * h4, state(b, t - begin).c,
                 state(b, t - begin + 1).c, grad.h, grad.c, mine);
        clear(grad.h, s.hidden);
        clear(grad.reads, words);
      }
      linear(dgates, h4, count, in<A>(a.w.hidden), h4, s.hidden, front.h, states);
      linear(dgates, h4, count, in<A>(a.w.reads), h4, words, front.reads, states);
    }
  }
  for (int64_t b = first; b < last; ++b) export_state(s, grad_of(b), b, a.dinitial);
}

template <class A>
void fwd(const DncFwdArgs& a) {
  const Interface at(a.s);
  const int threads = a.threads;
  share_samples(a.s, threads, out<A>(a.scratch), fwd_scratch<A>(a.s, at, largest_share(a.s, threads)),
                [&](int64_t first, int64_t last, A* scratch) { fwd_share(a, at, first, last, scratch); });
}
template <class A>
void bwd(const DncBwdArgs& a) {
  const Interface at(a.s);
  const int threads = a.threads;
  share_samples(a.s, threads, out<A>(a.scratch), bwd_scratch<A>(a.s, at, largest_share(a.s, threads)),
                [&](int64_t first, int64_t last, A* scratch) { bwd_share(a, at, first, last, scratch); });
}

}  // namespace

void dnc_fwd(const DncFwdArgs& a) { a.s.dtype == DType::f64 ? fwd<double>(a) : fwd<float>(a); }
void dnc_bwd(const DncBwdArgs& a) { a.s.dtype == DType::f64 ? bwd<double>(a) : bwd<float>(a); }

int dnc_vector() { return kVectorBytes; }
int64_t dnc_checkpoint(const DncSizes& s) {
  return s.dtype == DType::f64 ? State<double>::numel(s) : State<float>::numel(s);
}
int64_t dnc_fwd_scratch(const DncSizes& s, int threads) {
  const Interface at(s);
  const int64_t share = largest_share(s, threads);
  return s.dtype == DType::f64 ? 8 * threads * fwd_scratch<double>(s, at, share)
                               : 4 * threads * fwd_scratch<float>(s, at, share);
}
int64_t dnc_bwd_scratch(const DncSizes& s, int threads) {
  const Interface at(s);
  const int64_t share = largest_share(s, threads);
  return s.dtype == DType::f64 ? 8 * threads * bwd_scratch<double>(s, at, share)
                               : 4 * threads * bwd_scratch<float>(s, at, share);
}

}  // namespace sysgen::SYSGEN_ISA
