// The DNC's kernels against plain loops in float64: values, and gradients along a random direction of each
// input, which forward-mode derivatives of the plain loops give. Any number of blocks must give the same
// bits, with links held in shared memory or streamed through it.
#include <array>

#include "dnc/dnc_cuda.cu"
#include "dnc_oracle.h"
#include "kernel_test.h"

namespace sysgen {
namespace {

using namespace test;

constexpr size_t kTile = 4096;  // bytes of a tile of the links, in float32 and in float64
constexpr size_t kA100 = (163 - 1) * 1024, kH100 = (227 - 1) * 1024;

constexpr int kStates = 9;
constexpr const char* kStateNames[kStates] = {"h",          "c",       "memory", "usage", "link",
                                              "precedence", "write_w", "read_w", "reads"};

DncState state_of(const std::vector<Buffer>& b) {
  const auto at = [&](int i) { return b.empty() ? nullptr : b[i].data(); };
  return {at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8)};
}

struct Problem {
  DncSizes s{};
  int64_t numel[kStates];
  std::vector<int64_t> lengths;
  Buffer w_hidden, w_reads, w_interface, b_interface, gates_in;
  Buffer w_hidden_t, w_reads_t, w_interface_t;
  std::vector<Buffer> initial, dfinal;  // dfinal empty: nothing comes back from the state
  Buffer dh_out, dreads_out;
  bool with_dout;

  static Buffer random_buffer(DType dtype, int64_t n, Random& random, double scale, bool positive = false) {
    Buffer b(dtype, n);
    for (int64_t i = 0; i < n; ++i) b.set(i, scale * (positive ? std::abs(value(random)) : value(random)));
    return b;
  }
  static Buffer transposed(const Buffer& b, int64_t rows) {
    const int64_t columns = b.count() / rows;
    Buffer t(b.dtype(), b.count());
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) t.set(j * rows + i, b.get(i * columns + j));
    return t;
  }

  Problem(const DncSizes& sizes, bool some_lengths, bool state_gradient, bool output_gradient, Random& random)
      : s(sizes),
        numel{s.hidden, s.hidden, s.cells * s.width, s.cells,          s.cells * s.cells,
              s.cells,  s.cells,  s.reads * s.cells, s.reads * s.width},
        w_hidden(random_buffer(s.dtype, 4 * s.hidden * s.hidden, random, 0.5)),
        w_reads(random_buffer(s.dtype, 4 * s.hidden * s.reads * s.width, random, 0.5)),
        w_interface(random_buffer(s.dtype, s.interface() * s.hidden, random, 1)),
        b_interface(random_buffer(s.dtype, s.interface(), random, 0.5)),
        gates_in(random_buffer(s.dtype, s.steps * s.batch * 4 * s.hidden, random, 1)),
        w_hidden_t(transposed(w_hidden, 4 * s.hidden)),
        w_reads_t(transposed(w_reads, 4 * s.hidden)),
        w_interface_t(transposed(w_interface, s.interface())),
        dh_out(random_buffer(s.dtype, s.steps * s.batch * s.hidden, random, 1)),
        dreads_out(random_buffer(s.dtype, s.steps * s.batch * s.reads * s.width, random, 1)),
        with_dout(output_gradient) {
    b_interface.set(0, 3 * s.clip);  // clamped, from both sides
    b_interface.set(s.interface() - 1, -3 * s.clip);
    for (int k = 0; k < kStates; ++k) {  // weights: a share of what may be distributed
      const bool weights = k >= 3 && k <= 7;
      initial.push_back(
          random_buffer(s.dtype, s.batch * numel[k], random, weights ? 0.3 / s.cells : 0.5, weights));
      if (state_gradient) dfinal.push_back(random_buffer(s.dtype, s.batch * numel[k], random, 1));
    }
    for (int64_t b = 0; b < s.batch; ++b)
      for (int64_t i = 0; i < s.cells; ++i) {
        initial[4].set((b * s.cells + i) * s.cells + i, 0);
        if (i % 3) initial[3].set(b * s.cells + i, i % 3 == 1 ? 0.25 : 0.9);  // equal usages
      }
    if (some_lengths) {
      for (int64_t b = 0; b < s.batch; ++b) lengths.push_back(static_cast<int64_t>(random() % (s.steps + 1)));
      s.lengths = lengths.data();
    }
  }
  int64_t length(int64_t b) const { return lengths.empty() ? s.steps : lengths[b]; }
};

// What the kernels write, NaN before.
struct Run {
  Buffer gates, h_out, reads_out, checkpoints, dgates, dinterface;
  std::vector<Buffer> final, dinitial;

  Run(const Problem& p, const DncPlan& plan)
      : gates(p.s.dtype, p.gates_in.count()),
        h_out(p.s.dtype, p.dh_out.count()),
        reads_out(p.s.dtype, p.dreads_out.count()),
        checkpoints(p.s.dtype,
                    (p.s.steps + p.s.chunk - 1) / p.s.chunk * p.s.batch * dnc_cuda_checkpoint_numel(p.s)),
        dgates(p.s.dtype, gates.count()),
        dinterface(p.s.dtype, p.s.steps * p.s.batch * p.s.interface()) {
    const DncSizes& s = p.s;
    for (int k = 0; k < kStates; ++k) {
      final.emplace_back(s.dtype, p.initial[k].count());
      dinitial.emplace_back(s.dtype, p.initial[k].count());
    }
    std::memcpy(gates.data(), p.gates_in.data(), gates.count() * size_of(s.dtype));
    const auto scratch = [&](bool backward) { return Buffer(DType::u8, scratch_bytes(s, plan, backward)); };
    const auto go = [&](const auto& args, auto launch32, auto launch64) {
      s.dtype == DType::f64 ? launch64(args, plan, nullptr) : launch32(args, plan, nullptr);
    };

    const Buffer fwd_scratch = scratch(false), bwd_scratch = scratch(true);
    DncFwdArgs f{};
    f.s = s;
    f.w = {p.w_hidden.data(), p.w_reads.data(), p.w_interface.data(), nullptr, p.b_interface.data()};
    f.gates = gates.data();
    f.initial = state_of(p.initial);
    f.final = state_of(final);
    f.h_out = h_out.data();
    f.reads_out = reads_out.data();
    f.checkpoints = checkpoints.data();
    f.scratch = fwd_scratch.data();
    go(f, &fwd<float>, &fwd<double>);

    DncBwdArgs b{};
    b.s = s;
    b.w = {p.w_hidden_t.data(), p.w_reads_t.data(), p.w_interface.data(), p.w_interface_t.data(),
           p.b_interface.data()};
    b.gates = gates.data();
    b.h_out = h_out.data();
    b.reads_out = reads_out.data();
    b.checkpoints = checkpoints.data();
    b.dh_out = p.with_dout ? p.dh_out.data() : nullptr;
    b.dreads_out = p.with_dout ? p.dreads_out.data() : nullptr;
    b.dfinal = state_of(p.dfinal);
    b.dgates = dgates.data();
    b.dinterface = dinterface.data();
    b.dinitial = state_of(dinitial);
    b.scratch = bwd_scratch.data();
    go(b, &bwd<float>, &bwd<double>);
  }

  std::vector<const Buffer*> all() const {
    std::vector<const Buffer*> a{&gates, &h_out, &reads_out, &checkpoints, &dgates, &dinterface};
    for (const auto* list : {&final, &dinitial})
      for (const Buffer& b : *list) a.push_back(&b);
    return a;
  }
};

// Everything along one direction: that of the input `which` (0: gates, 1: interface, 2 ..: state).
struct Direction {
  int which;
  std::vector<double> along;
};

// Values of the plain loops go into `compare`, against `run`; returns the derivative of the loss along it.
double oracle(const Problem& p, const Run& run, const Direction& direction, Comparison* compare,
              double bound) {
  const DncSizes& s = p.s;
  const auto moved = [&](const Buffer& b, int which, int64_t from, int64_t count) {
    Duals x;
    for (int64_t i = from; i < from + count; ++i)
      x.emplace_back(b.get(i), direction.which == which ? direction.along[i] : 0);
    return x;
  };
  const auto plain = [](const Buffer& b) {
    std::vector<double> x;
    for (int64_t i = 0; i < b.count(); ++i) x.push_back(b.get(i));
    return x;
  };
  const Oracle loops{s, plain(p.w_hidden), plain(p.w_reads), plain(p.w_interface),
                     moved(p.b_interface, 1, 0, s.interface())};
  double slope = 0;
  const auto see = [&](const char* name, const Buffer& got, int64_t from, const Duals& x,
                       const Buffer* gradient) {
    for (size_t i = 0; i < x.size(); ++i) {
      if (compare)
        compare->element(name, from, static_cast<int64_t>(i), got.get(from + i), x[i].v,
                         bound * (1 + std::abs(x[i].v)));
      if (gradient) slope += gradient->get(from + i) * x[i].d;
    }
  };
  const int64_t words = s.reads * s.width;
  for (int64_t b = 0; b < s.batch; ++b) {
    OracleState a;
    Duals* const parts[kStates] = {&a.h,          &a.c,       &a.memory, &a.usage, &a.link,
                                   &a.precedence, &a.write_w, &a.read_w, &a.reads};
    for (int k = 0; k < kStates; ++k) *parts[k] = moved(p.initial[k], 2 + k, b * p.numel[k], p.numel[k]);
    for (int64_t t = 0; t < s.steps; ++t) {
      const int64_t row = t * s.batch + b;
      Duals gates = moved(p.gates_in, 0, row * 4 * s.hidden, 4 * s.hidden);
      const bool runs = t < p.length(b);
      if (runs) loops.step(a, gates.data());
      see("gates", run.gates, row * 4 * s.hidden, gates, nullptr);
      see("h_out", run.h_out, row * s.hidden, runs ? a.h : Duals(s.hidden),
          p.with_dout ? &p.dh_out : nullptr);
      see("reads_out", run.reads_out, row * words, runs ? a.reads : Duals(words),
          p.with_dout ? &p.dreads_out : nullptr);
    }
    for (int k = 0; k < kStates; ++k)
      see(kStateNames[k], run.final[k], b * p.numel[k], *parts[k], p.dfinal.empty() ? nullptr : &p.dfinal[k]);
  }
  return slope;
}

double worst = 0;

void check_case(const DncSizes& sizes, bool some_lengths, bool state_gradient, bool output_gradient,
                DncPlan plan, Random& random) {
  const Problem p(sizes, some_lengths, state_gradient, output_gradient, random);
  const DncSizes& s = p.s;
  const std::string name =
      cat(name_of(s.dtype), " T", s.steps, " B", s.batch, " H", s.hidden, " N", s.cells, " W", s.width, " R",
          s.reads, s.masked ? " M" : "", s.dealloc ? " D" : "", s.sharpen ? " S" : "", " chunk ", s.chunk,
          " blocks ", plan.group, " of ", plan.groups, " samples with ", plan.shared, " bytes");
  const Run streamed(p, DncPlan{1, std::min<int64_t>(s.batch, 2), 0}), run(p, plan);
  Comparison compare(name);
  const auto expected = streamed.all(), got = run.all();
  for (size_t k = 0; k < got.size(); ++k)
    compare.element("bits of result", static_cast<int64_t>(k), 0,
                    std::memcmp(expected[k]->data(), got[k]->data(), got[k]->count() * size_of(s.dtype)), 0,
                    0);
  for (const Buffer* b : got)
    for (int64_t i = 0; i < b->count(); ++i)
      if (std::isnan(b->get(i))) compare.element("not a number", i, 0, 1, 0, 0);

  // A step's values are sums of at most some hundred products, each of them rounded; steps add up.
  const double unit = s.dtype == DType::f64 ? 0x1p-53 : 0x1p-24, bound = 100 * s.steps * unit;
  for (int which = 0; which < 2 + kStates; ++which) {
    const Buffer& input = which == 0 ? p.gates_in : which == 1 ? p.b_interface : p.initial[which - 2];
    const Buffer& gradient = which == 0 ? run.dgates : which == 1 ? run.dinterface : run.dinitial[which - 2];
    Direction direction{which, {}};
    for (int64_t i = 0; i < input.count(); ++i) direction.along.push_back(value(random));
    const double slope = oracle(p, run, direction, which == 0 ? &compare : nullptr, bound);
    double sum = 0, size = 0;
    for (int64_t i = 0; i < gradient.count(); ++i) {
      const double part = gradient.get(i) * direction.along[i % input.count()];
      sum += part;
      size += std::abs(part);
    }
    compare.element("slope along", which, 0, sum, slope, 10 * bound * (1 + size));
  }
  worst = std::max(worst, compare.worst());
}

DncSizes sizes_of(int64_t steps, int64_t batch, int64_t hidden, int64_t cells, int64_t width, int64_t reads) {
  DncSizes s{};
  s.dtype = DType::f64;
  s.steps = steps;
  s.batch = batch;
  s.hidden = hidden;
  s.cells = cells;
  s.width = width;
  s.reads = reads;
  s.masked = s.dealloc = s.sharpen = true;
  s.eps = 1e-3;  // at 1e-6 the slope of the sharpening drowns everything else
  s.clip = 4;
  s.mask_min = 0.1;
  s.chunk = 2;
  return s;
}

void random_case(Random& random, int i) {
  DncSizes s = sizes_of(1 + random() % 4, pick(random, {1, 1, 2, 3}), pick(random, {1, 3, 5, 9}),
                        pick(random, {1, 2, 5, 15, 16, 17, 33, 40, 65, 70}), pick(random, {1, 2, 3, 7, 8, 9}),
                        pick(random, {1, 1, 2, 3, 4, 5, 6}));
  s.dtype = i % 4 == 3 ? DType::f32 : DType::f64;
  s.masked = i & 1;
  s.dealloc = i & 2;
  s.sharpen = (i / 3) & 1;
  s.detach_write = random() % 2;
  s.chunk = pick(random, {1, 2, 3, 100});
  const int group = pick(random, {1, 2, 3});
  const int64_t groups = group > 1 ? 1 : 1 + static_cast<int64_t>(random() % s.batch);
  // Held in both passes, with less room in the backward, in the forward alone (up to 6 tiles), or streamed.
  const size_t shared = std::array{kH100, kH100, 23 * kTile, 6 * kTile, size_t{0}}[random() % 5];
  check_case(s, random() % 2, random() % 4, random() % 4, {group, groups, shared}, random);
}

// How many blocks share a sample, and what links they hold.
void run_plans() {
  Comparison compare("plans");
  const auto plan = [&](const DncSizes& s, int multiprocessors, int group, int64_t groups) {
    const DncPlan p = dnc_plan(s, multiprocessors);
    compare.element("blocks", s.cells, s.batch, p.group, group, 0);
    compare.element("samples at once", s.cells, s.batch, static_cast<double>(p.groups),
                    static_cast<double>(groups), 0);
  };
  plan(sizes_of(64, 16, 32, 16, 16, 1), 108, 1, 16);  // copying: one block streams little
  plan(sizes_of(64, 2000, 32, 16, 16, 1), 108, 1, 108);
  plan(sizes_of(100, 2, 256, 256, 64, 4), 108, 28, 2);  // question answering
  plan(sizes_of(100, 16, 256, 256, 64, 4), 108, 6, 16);
  plan(sizes_of(100, 200, 256, 256, 64, 4), 108, 1, 108);
  plan(sizes_of(100, 100, 256, 256, 64, 4), 108, 1, 100);

  const auto share = [&](int64_t cells, int group, size_t shared, bool backward, bool held, int tiles,
                         int prev_tiles, size_t bytes) {
    const DncLinkShare got =
        dnc_link_share<float>(sizes_of(1, 1, 1, cells, 1, 1), {group, 1, shared}, backward);
    compare.element("held", cells, group, got.held, held, 0);
    compare.element("ahead", cells, group, got.ahead, held && prev_tiles > kDncWarps, 0);
    compare.element("tiles", cells, group, got.tiles, tiles, 0);
    compare.element("tiles before a step", cells, group, got.prev_tiles, prev_tiles, 0);
    compare.element("bytes", cells, group, static_cast<double>(got.bytes), static_cast<double>(bytes), 0);
  };
  share(16, 1, kA100, false, true, 1, 0, kTile);
  share(16, 1, kA100, true, true, 1, 8, 9 * kTile);
  share(192, 1, kA100, false, true, 36, 0, 36 * kTile);
  share(192, 1, kA100, true, false, 8, 8, 16 * kTile);
  share(192, 1, kH100, true, true, 36, 8, 44 * kTile);
  share(256, 1, kH100, false, false, 8, 0, 8 * kTile);
  share(256, 2, kA100, true, true, 32, 8, 40 * kTile);
  share(288, 2, kH100, false, true, 50, 0, 50 * kTile);  // five times 32 rows of nine
  share(512, 16, kA100, true, true, 16, 16, 32 * kTile);
  share(1024, 32, kA100, true, true, 32, 8, 40 * kTile);
  share(192, 3, kA100, false, true, 12, 0, 12 * kTile + 128);  // more than what needs no asking
  share(16, 1, 0, false, false, 8, 0, 8 * kTile);              // where launches are only noted
  share(1 << 24, 1, kH100, true, false, 8, 8, 16 * kTile);
}

// The tiles that come from global memory: held links do so once a sequence and their gradient once a chunk,
// and then only the links before a step of the backward; without, the links come in every step of the
// forward, when it is repeated, and in the backward, where their gradient comes too.
void count_copies(Random& random) {
  const DncSizes s = sizes_of(5, 1, 3, 40, 2, 2);  // in three chunks
  const Problem p(s, false, true, true, random);
  const int64_t own = dnc_link_tiles<double>(s.cells, 1);
  Comparison compare("tiles copied");
  const auto copied = [&](size_t shared, int64_t each) {
    emulator::counters = {};
    const Run run(p, {1, 1, shared});
    compare.element("tiles", static_cast<int64_t>(shared), 0,
                    static_cast<double>(emulator::counters.cp_async_bytes), double(own * each * kTile), 0);
  };
  copied(kH100, 1 + 2 * 3 + 5);
  copied(own * kTile, 1 + 3 * 5);  // too little for the backward
  copied(0, 4 * 5);
}

void run_edges(Random& random, bool large) {
  check_case(sizes_of(0, 2, 3, 5, 2, 1), false, true, true, {1, 2, kH100}, random);  // no step
  check_case(sizes_of(3, 5, 4, 9, 3, 2), true, true, true, {2, 1, kH100},
             random);  // more samples than groups
  count_copies(random);
  if (large) {
    check_case(sizes_of(5, 2, 3, 70, 3, 5), true, true, true, {2, 2, kH100}, random);    // 32 rows and 38
    check_case(sizes_of(3, 1, 3, 130, 2, 1), false, true, true, {1, 1, kH100}, random);  // many tiles a warp
  }
  DncFwdArgs f{};
  DncBwdArgs b{};
  f.s = b.s = sizes_of(2, 0, 3, 5, 2, 1);  // no sample: nothing is read
  dnc_fwd_cuda(f, 0, nullptr);
  dnc_bwd_cuda(b, 0, nullptr);
}

}  // namespace
}  // namespace sysgen

int main(int argc, char** argv) {
  using namespace sysgen;
  const int count = argc > 1 ? std::atoi(argv[1]) : 60;
  Random random(argc > 2 ? std::atoi(argv[2]) : 1);
  try {
    run_plans();
    run_edges(random, count >= 20);
    for (int i = 0; i < count; ++i) random_case(random, i);
  } catch (const std::exception& e) {
    std::printf("FAILED: %s\n", e.what());
    return 1;
  }
  std::printf("largest error: %.2g of its bound\n", worst);
  return test::finish("dnc");
}
