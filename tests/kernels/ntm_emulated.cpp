// The Neural Turing Machine's kernels against those of the CPU in float64, which tests/test_ntm_sequence.py
// checks against plain formulas: every value and every gradient.
#define SYSGEN_ISA base
#include "ntm/ntm_cpu.cpp"
#include "ntm/ntm_cuda.cu"
//
#include "kernel_test.h"

namespace sysgen {
namespace {

using namespace test;

constexpr int kStates = 6;
constexpr const char* kStateNames[kStates] = {"h", "c", "memory", "read_w", "write_w", "reads"};

NtmState state_of(const std::vector<Buffer>& b) {
  const auto at = [&](int i) { return b.empty() ? nullptr : b[i].data(); };
  return {at(0), at(1), at(2), at(3), at(4), at(5)};
}

Buffer random_buffer(DType dtype, int64_t n, Random& random, double scale, bool positive = false) {
  Buffer b(dtype, n);
  for (int64_t i = 0; i < n; ++i) b.set(i, scale * (positive ? std::abs(value(random)) : value(random)));
  return b;
}
Buffer converted(const Buffer& b, DType dtype) {
  Buffer t(dtype, b.count());
  for (int64_t i = 0; i < b.count(); ++i) t.set(i, b.get(i));
  return t;
}
Buffer transposed(const Buffer& b, int64_t rows) {
  const int64_t columns = b.count() / rows;
  Buffer t(b.dtype(), b.count());
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) t.set(j * rows + i, b.get(i * columns + j));
  return t;
}

// Strengths of 21.5 and powers of 26: past the thresholds of softplus.
bool steep(const NtmSizes& s) { return s.steps == 1 && s.dtype == DType::f64; }

struct Problem {
  NtmSizes s;
  int64_t numel[kStates];
  std::vector<int64_t> lengths;
  std::vector<Buffer> weights;  // hidden, reads, interface, its bias
  std::vector<Buffer> initial, dfinal;
  Buffer gates, dh_out, dreads_out;
  bool with_dout;

  Problem(const NtmSizes& sizes, bool some_lengths, bool state_gradient, bool output_gradient, Random& random)
      : s(sizes),
        numel{s.hidden, s.hidden, s.cells * s.width, s.reads * s.cells, s.reads * s.cells, s.reads * s.width},
        gates(random_buffer(s.dtype, s.steps * s.batch * 4 * s.hidden, random, 1)),
        dh_out(random_buffer(s.dtype, s.steps * s.batch * s.hidden, random, 1)),
        dreads_out(random_buffer(s.dtype, s.steps * s.batch * s.reads * s.width, random, 1)),
        with_dout(output_gradient) {
    weights.push_back(random_buffer(s.dtype, 4 * s.hidden * s.hidden, random, 0.5));
    weights.push_back(random_buffer(s.dtype, 4 * s.hidden * s.reads * s.width, random, 0.5));
    weights.push_back(random_buffer(s.dtype, s.interface() * s.hidden, random, 1));
    weights.push_back(random_buffer(s.dtype, s.interface(), random, 0.5));
    if (steep(s)) {
      const int64_t strength = s.reads * s.width * 4;
      weights[3].set(strength, 21.5);
      weights[3].set(strength + 4 * s.reads, 25);
    }
    for (int k = 0; k < kStates; ++k) {
      const bool of_cells = k == 3 || k == 4;
      initial.push_back(
          random_buffer(s.dtype, s.batch * numel[k], random, of_cells ? 1.0 / s.cells : 0.5, of_cells));
      if (state_gradient) dfinal.push_back(random_buffer(s.dtype, s.batch * numel[k], random, 1));
    }
    for (int64_t i = 0; i < s.width; ++i) initial[2].set(i, 0);  // a cell that is empty
    if (some_lengths)
      for (int64_t b = 0; b < s.batch; ++b) lengths.push_back(static_cast<int64_t>(random() % (s.steps + 1)));
  }
};

// What a backend writes in this dtype, NaN before.
struct Run {
  Buffer gates, h_out, reads_out, dgates, dinterface;
  std::vector<Buffer> final, dinitial;

  // most_shared: bytes of shared memory that a memory may take on a device.
  Run(const Problem& p, DType dtype, bool cpu, size_t most_shared)
      : gates(converted(p.gates, dtype)),
        h_out(dtype, p.dh_out.count()),
        reads_out(dtype, p.dreads_out.count()),
        dgates(dtype, gates.count()),
        dinterface(dtype, p.s.steps * p.s.batch * p.s.interface()) {
    NtmSizes s = p.s;
    s.dtype = dtype;
    s.lengths = p.lengths.empty() ? nullptr : p.lengths.data();
    const auto all = [&](const std::vector<Buffer>& from) {
      std::vector<Buffer> to;
      for (const Buffer& b : from) to.push_back(converted(b, dtype));
      return to;
    };
    const std::vector<Buffer> w = all(p.weights), initial = all(p.initial), dfinal = all(p.dfinal);
    const Buffer w_hidden_t = transposed(w[0], 4 * s.hidden), w_reads_t = transposed(w[1], 4 * s.hidden),
                 w_interface_t = transposed(w[2], s.interface()), dh = converted(p.dh_out, dtype),
                 dreads = converted(p.dreads_out, dtype);
    for (int k = 0; k < kStates; ++k) {
      final.emplace_back(dtype, initial[k].count());
      dinitial.emplace_back(dtype, initial[k].count());
    }
    const int64_t chunks = (s.steps + s.chunk - 1) / s.chunk;
    const Buffer checkpoints(
        dtype, chunks * s.batch * (cpu ? base::ntm_checkpoint(s) : ntm_cuda_checkpoint_numel(s))),
        fwd_scratch(DType::u8, cpu ? base::ntm_fwd_scratch(s, 1) : ntm_fwd_cuda_scratch_bytes(s, 0)),
        bwd_scratch(DType::u8, cpu ? base::ntm_bwd_scratch(s, 1) : ntm_bwd_cuda_scratch_bytes(s, 0));

    NtmFwdArgs f{};
    f.s = s;
    f.w = {w[0].data(), w[1].data(), w[2].data(), nullptr, w[3].data()};
    f.gates = gates.data();
    f.initial = state_of(initial);
    f.final = state_of(final);
    f.h_out = h_out.data();
    f.reads_out = reads_out.data();
    f.checkpoints = checkpoints.data();
    f.scratch = fwd_scratch.data();
    f.threads = 1;
    const auto on_device = [&](const auto& args, auto launch32, auto launch64) {
      dtype == DType::f64 ? launch64(args, most_shared, nullptr) : launch32(args, most_shared, nullptr);
    };
    cpu ? base::ntm_fwd(f) : on_device(f, &fwd<float>, &fwd<double>);

    NtmBwdArgs b{};
    b.s = s;
    b.w = f.w;
    if (!cpu) {
      b.w.hidden = w_hidden_t.data();
      b.w.reads = w_reads_t.data();
      b.w.interface_t = w_interface_t.data();
    }
    b.gates = gates.data();
    b.h_out = h_out.data();
    b.reads_out = reads_out.data();
    b.checkpoints = checkpoints.data();
    b.dh_out = p.with_dout ? dh.data() : nullptr;
    b.dreads_out = p.with_dout ? dreads.data() : nullptr;
    b.dfinal = state_of(dfinal);
    b.dgates = dgates.data();
    b.dinterface = dinterface.data();
    b.dinitial = state_of(dinitial);
    b.scratch = bwd_scratch.data();
    b.threads = 1;
    cpu ? base::ntm_bwd(b) : on_device(b, &bwd<float>, &bwd<double>);
  }

  bool same_bits(const Run& other) const {
    const auto same = [](const Buffer& a, const Buffer& b) {
      return std::memcmp(a.data(), b.data(), a.count() * size_of(a.dtype())) == 0;
    };
    const auto all = [&](const std::vector<Buffer>& a, const std::vector<Buffer>& b) {
      return std::equal(a.begin(), a.end(), b.begin(), same);
    };
    return same(h_out, other.h_out) && same(reads_out, other.reads_out) && same(dgates, other.dgates) &&
           same(dinterface, other.dinterface) && all(final, other.final) && all(dinitial, other.dinitial);
  }
};

double worst = 0;

void check_case(const NtmSizes& s, bool some_lengths, bool state_gradient, bool output_gradient,
                Random& random) {
  const Problem p(s, some_lengths, state_gradient, output_gradient, random);
  const size_t memory = s.cells * s.width * size_of(s.dtype);
  const Run expected(p, DType::f64, true, 0), got(p, s.dtype, false, memory);
  Comparison compare(cat(name_of(s.dtype), " T", s.steps, " B", s.batch, " H", s.hidden, " N", s.cells, " W",
                         s.width, " P", s.reads, " S", s.reach, " chunk ", s.chunk));
  // Every number is a sum of at most some hundred products, each of them rounded, and steps add up. Gradients
  // are differences of such sums, so that the rounding of the largest of them may show in any. In a steep
  // place a similarity's relative error, some ten roundings, becomes that of a weight times 21.5 (strength)
  // times 26 (power).
  const double bound = (steep(s) ? 10 * 21.5 * 26 : 1000 * s.steps) * unit_roundoff(s.dtype);
  double largest = 1;
  const auto measure = [&](const Buffer& e) {
    for (int64_t i = 0; i < e.count(); ++i) largest = std::max(largest, std::abs(e.get(i)));
  };
  measure(expected.dgates);
  measure(expected.dinterface);
  for (const Buffer& e : expected.dinitial) measure(e);
  const auto same = [&](const char* name, const Buffer& a, const Buffer& e, double size) {
    for (int64_t i = 0; i < e.count(); ++i) compare.element(name, i, 0, a.get(i), e.get(i), bound * size);
  };
  const int64_t each = 4 * s.hidden;
  for (int64_t i = 0; i < got.gates.count(); ++i) {
    const int64_t t = i / each / s.batch, b = i / each % s.batch;
    if (some_lengths && t >= p.lengths[b]) continue;  // nobody reads those of a sample that has ended
    compare.element("gates", i, 0, got.gates.get(i), expected.gates.get(i), bound);
  }
  same("h_out", got.h_out, expected.h_out, 1);
  same("reads_out", got.reads_out, expected.reads_out, 4);
  same("dgates", got.dgates, expected.dgates, largest);
  same("dinterface", got.dinterface, expected.dinterface, largest);
  for (int k = 0; k < kStates; ++k) {
    same(kStateNames[k], got.final[k], expected.final[k], 4);
    same(cat("d", kStateNames[k]).c_str(), got.dinitial[k], expected.dinitial[k], largest);
  }
  worst = std::max(worst, compare.worst());
  // A memory that does not fit shared memory.
  if (!got.same_bits(Run(p, s.dtype, false, memory - 1)))
    throw std::runtime_error("bits depend on where the memory lies");
}

NtmSizes sizes_of(int64_t steps, int64_t batch, int64_t hidden, int64_t cells, int64_t width, int64_t pairs,
                  int64_t reach) {
  NtmSizes s{};
  s.dtype = DType::f64;
  s.steps = steps;
  s.batch = batch;
  s.hidden = hidden;
  s.cells = cells;
  s.width = width;
  s.reads = pairs;
  s.reach = reach;
  s.eps = 1e-2;  // at 1e-6 the slope at the empty cell drowns everything else
  s.chunk = 2;
  return s;
}

void random_case(Random& random, int i) {
  NtmSizes s = sizes_of(1 + random() % 4, pick(random, {1, 1, 2, 3}), pick(random, {1, 3, 5, 9}),
                        pick(random, {1, 2, 5, 8, 9, 33, 70}), pick(random, {1, 2, 7, 8, 9}),
                        pick(random, {1, 1, 2, 3}), pick(random, {0, 1, 1, 2, 5}));
  s.dtype = i % 4 == 3 ? DType::f32 : DType::f64;
  s.chunk = pick(random, {1, 2, 3, 100});
  check_case(s, random() % 2, random() % 4, random() % 4, random);
}

void run_edges(Random& random) {
  check_case(sizes_of(0, 2, 3, 5, 2, 1, 1), false, true, true, random);  // no step
  // 48 KiB, which a launch gets without asking, but not together with the kernels' static arrays.
  check_case(sizes_of(1, 1, 1, 96, 64, 1, 1), false, true, true, random);
  NtmFwdArgs f{};
  NtmBwdArgs b{};
  f.s = b.s = sizes_of(2, 0, 3, 5, 2, 1, 1);  // no sample: nothing is read
  ntm_fwd_cuda(f, 0, nullptr);
  ntm_bwd_cuda(b, 0, nullptr);
}

}  // namespace
}  // namespace sysgen

int main(int argc, char** argv) {
  using namespace sysgen;
  const int count = argc > 1 ? std::atoi(argv[1]) : 60;
  Random random(argc > 2 ? std::atoi(argv[2]) : 1);
  try {
    run_edges(random);
    for (int i = 0; i < count; ++i) random_case(random, i);
  } catch (const std::exception& e) {
    std::printf("FAILED: %s\n", e.what());
    return 1;
  }
  std::printf("largest error: %.2g of its bound\n", worst);
  return test::finish("ntm");
}
