// The kernels of content addressing, of the Neural Turing Machine's addressing, of writing and of reading
// against their definitions in float64; and all ways to launch them against each other, to the bit.
#include <map>

#include "content/content_address_cuda.cu"
#include "content/content_memory_cuda.cu"
#include "content/content_ntm_cuda.cu"
#include "content_oracle.h"
#include "kernel_test.h"

namespace sysgen {
namespace {

using namespace test;

double worst = 0;

struct Case : ContentSizes {
  DType dtype = DType::f32;
  bool optional = true;  // a mask, a retention
  bool zeros = false;    // an empty cell and an empty key; weights that are exactly 0

  std::string describe(const char* op) const {
    return cat(op, " B", b, " N", n, " W", w, " R", r, " K", shifts, " ", name_of(dtype),
               optional ? " optional" : "", zeros ? " zeros" : "");
  }
};

// Tensors of one call by name: what a kernel gets, and the same numbers in float64.
class Tensors {
 public:
  Tensors(const Case& c, Random& random) : c_(c), random_(random) {}

  // Numbers of either sign, away from 0, or between 0 and 1.
  void input(const char* name, int64_t count, bool positive = false) {
    Buffer& buffer = made_.try_emplace(name, c_.dtype, count).first->second;
    for (int64_t i = 0; i < count; ++i) {
      const double v = value(random_);
      buffer.set(i, positive ? 0.05 + 0.9 * (std::erf(v) + 1) / 2 : v + std::copysign(0.25, v));
    }
    read(name);
  }
  void output(const char* name, int64_t count) {
    made_.try_emplace(name, c_.dtype, count);
    exact_[name].assign(count, 0);
  }
  void clear(const char* name, int64_t first, int64_t count) {
    for (int64_t i = first; i < first + count; ++i) made_.at(name).set(i, 0);
    read(name);
  }
  void* operator[](const char* name) { return made_.at(name).data(); }
  Numbers& exact(const char* name) { return exact_.at(name); }
  Numbers& row(const char* name, int64_t index, int64_t size) {
    row_.assign(exact(name).begin() + index * size, exact(name).begin() + (index + 1) * size);
    return row_;
  }

  // First order: K roundings of the largest terms, see tests/content_checks.py.
  void compare(const char* op, std::initializer_list<const char*> outputs, double roundings, double terms) {
    Comparison comparison(c_.describe(op));
    for (const char* name : outputs) {
      double largest = terms;
      for (double x : exact(name)) largest = std::max(largest, std::abs(x));
      for (int64_t i = 0; i < made_.at(name).count(); ++i)
        comparison.element(name, i, 0, made_.at(name).get(i), exact(name)[i],
                           roundings * (unit_roundoff(c_.dtype) + 0x1p-53) * largest);
    }
    worst = std::max(worst, comparison.worst());
  }
  // The outputs of this call to the bit, and NaN in their place for the next.
  std::map<std::string, std::string> take(std::initializer_list<const char*> outputs) {
    std::map<std::string, std::string> bytes;
    for (const char* name : outputs) {
      Buffer& buffer = made_.at(name);
      const size_t size = buffer.count() * size_of(c_.dtype);
      bytes[name].assign(static_cast<char*>(buffer.data()), size);
      std::memset(buffer.data(), 0xff, size);
    }
    return bytes;
  }

 private:
  void read(const char* name) {
    const Buffer& buffer = made_.at(name);
    Numbers& numbers = exact_[name];
    numbers.clear();
    for (int64_t i = 0; i < buffer.count(); ++i) numbers.push_back(buffer.get(i));
  }
  Case c_;
  Random& random_;
  std::map<std::string, Buffer> made_;
  std::map<std::string, Numbers> exact_;
  Numbers row_;
};

MemorySizes sizes_of(const Case& c) { return {c.dtype, c.b, c.n, c.w, c.r}; }

double roundings_of(const Case& c, double exponent) {
  return 4 * (std::sqrt(c.w) + std::sqrt(c.n) + std::sqrt(c.r)) + 2 * exponent + 20;
}

// Runs the operation as its launcher does, compares, and then runs it by `other`, with another grid and other
// launches, for the same bits.
template <class Host, class Other, class Args>
void run(const Case& c, const char* op, Tensors& t, Args args, int64_t scratch_bytes,
         std::initializer_list<const char*> outputs, double roundings, double terms, Host host, Other other) {
  std::map<std::string, std::string> found;
  try {
    {
      const Buffer scratch(DType::f64, scratch_bytes / 8);
      args.scratch = scratch.data();
      host(args, 0, nullptr);
    }
    t.compare(op, outputs, roundings, terms);
    found = t.take(outputs);
    const Buffer scratch(DType::f64, scratch_bytes / 8);
    args.scratch = scratch.data();
    with_content_type(c.dtype, [&](auto element) { other(args, element); });
  } catch (const std::exception&) {
    std::printf("in %s:\n", c.describe(op).c_str());
    throw;
  }
  Comparison comparison(c.describe(op) + ", launched otherwise");
  for (const auto& [name, bytes] : t.take(outputs))
    comparison.element(name.c_str(), 0, 0, bytes == found.at(name), 1, 0);
}

// A grid that leaves most of the work to the loops of the kernels.
template <class P>
LaunchConfig few_blocks(unsigned x) {
  return {dim3(x), dim3(P::THREADS)};
}

void run_content(const Case& c, Random& random) {
  Tensors t(c, random);
  t.input("memory", c.b * c.n * c.w);
  t.input("key", c.b * c.r * c.w);
  t.input("strength", c.b * c.r, true);
  t.input("mask", c.b * c.r * c.w, true);
  t.input("dweights", c.b * c.r * c.n);
  t.output("weights", c.b * c.r * c.n);
  t.output("dmemory", c.b * c.n * c.w);
  t.output("dkey", c.b * c.r * c.w);
  t.output("dstrength", c.b * c.r);
  t.output("dmask", c.b * c.r * c.w);
  if (c.zeros) {
    t.clear("memory", 0, c.w);
    t.clear("key", 0, c.w);
  }
  const double eps = 1e-6;
  for (int64_t b = 0; b < c.b; ++b)
    for (int64_t r = 0; r < c.r; ++r) {
      const int64_t at = b * c.r + r, words = at * c.w;
      const ContentHead head(c, &t.exact("memory")[b * c.n * c.w], &t.exact("key")[words],
                             c.optional ? &t.exact("mask")[words] : nullptr, t.exact("strength")[at], eps);
      std::copy(head.weights.begin(), head.weights.end(), &t.exact("weights")[at * c.n]);
      head.backward(t.row("dweights", at, c.n), &t.exact("dmemory")[b * c.n * c.w], &t.exact("dkey")[words],
                    &t.exact("dstrength")[at], c.optional ? &t.exact("dmask")[words] : nullptr);
    }
  const ContentAddressing given{
      sizes_of(c), t["memory"], t["key"], t["strength"], c.optional ? t["mask"] : nullptr, eps};
  ContentAddressFwdArgs fwd{given};
  fwd.weights = t["weights"];
  run(c, "content_address_fwd", t, fwd, content_address_fwd_cuda_scratch_bytes(fwd), {"weights"},
      roundings_of(c, 1), 0, content_address_fwd_cuda, [&](const auto& a, auto element) {
        using P = ContentTile<decltype(element)>;
        using A = typename P::A;
        ContentAddressFwdDevice<A> k{content_heads<A>(a), static_cast<A*>(a.weights), {true, true}};
        if (!one_block_is_enough<P>(k.c.s))
          return SYSGEN_LAUNCH_TEMPLATE(content_address_fwd_kernel, P, few_blocks<P>(1), nullptr, k);
        k.phases = {true, false};
        SYSGEN_LAUNCH_TEMPLATE(content_address_fwd_kernel, P, few_blocks<P>(2), nullptr, k);
        k.phases = {false, true};
        SYSGEN_LAUNCH_TEMPLATE(content_address_fwd_kernel, P, few_blocks<P>(2), nullptr, k);
      });
  ContentAddressBwdArgs bwd{given};
  bwd.dweights = t["dweights"];
  bwd.dmemory = t["dmemory"];
  bwd.dkey = t["dkey"];
  bwd.dstrength = t["dstrength"];
  bwd.dmask = c.optional ? t["dmask"] : nullptr;
  const auto other = [&](const auto& a, auto element) {
    using P = ContentTile<decltype(element)>;
    ScratchPieces scratch(a.scratch);
    auto k = bwd_device<typename P::A>(a, scratch);
    const auto launch = [&](AddressingBwdPhases phases, unsigned blocks) {
      k.phases = phases;
      SYSGEN_LAUNCH_TEMPLATE(content_address_bwd_kernel, P, few_blocks<P>(blocks), nullptr, k);
    };
    if (!one_block_is_enough<P>(k.a.c.s)) return launch({true, true, true, true}, 1);
    launch({true, false, false, false}, 2);
    launch({false, true, false, false}, 2);
    launch({false, false, true, false}, 2);
    launch({false, false, false, true}, 2);
  };
  // An empty cell's slope is its strength over eps |key|, where eps is the whole denominator.
  const double terms = c.zeros ? 3 / eps : 12, roundings = roundings_of(c, 1);
  if (c.optional) {
    run(c, "content_address_bwd", t, bwd, content_address_bwd_cuda_scratch_bytes(bwd),
        {"dmemory", "dkey", "dstrength", "dmask"}, roundings, terms, content_address_bwd_cuda, other);
  } else {
    run(c, "content_address_bwd", t, bwd, content_address_bwd_cuda_scratch_bytes(bwd),
        {"dmemory", "dkey", "dstrength"}, roundings, terms, content_address_bwd_cuda, other);
  }
}

void run_ntm(const Case& c, Random& random) {
  Tensors t(c, random);
  const int64_t heads = c.b * c.r;
  t.input("memory", c.b * c.n * c.w);
  t.input("key", heads * c.w);
  for (const char* name : {"strength", "gate", "sharpness"}) t.input(name, heads, true);
  t.input("shift", heads * c.shifts, true);
  t.input("previous", heads * c.n, true);
  t.input("dweights", heads * c.n);
  t.output("weights", heads * c.n);
  t.output("dmemory", c.b * c.n * c.w);
  t.output("dkey", heads * c.w);
  for (const char* name : {"dstrength", "dgate", "dsharpness"}) t.output(name, heads);
  t.output("dshift", heads * c.shifts);
  t.output("dprevious", heads * c.n);
  if (c.zeros) {  // the first head has no weights at all, the second, if there is one, on its first cells
                  // only
    t.clear("gate", 0, heads);
    t.clear("previous", 0, c.n);
    if (heads > 1) t.clear("previous", c.n + c.n / 2, c.n - c.n / 2);
  }
  const double eps = 1e-6;
  for (int64_t b = 0; b < c.b; ++b)
    for (int64_t r = 0; r < c.r; ++r) {
      const int64_t at = b * c.r + r, words = at * c.w;
      const ContentHead content(c, &t.exact("memory")[b * c.n * c.w], &t.exact("key")[words], nullptr,
                                t.exact("strength")[at], eps);
      const NtmHead head(c, content.weights, t.exact("gate")[at], &t.exact("shift")[at * c.shifts],
                         t.exact("sharpness")[at], &t.exact("previous")[at * c.n]);
      std::copy(head.weights.begin(), head.weights.end(), &t.exact("weights")[at * c.n]);
      Numbers dcontent(c.n);
      head.backward(t.row("dweights", at, c.n), content.weights, dcontent, &t.exact("dgate")[at],
                    &t.exact("dshift")[at * c.shifts], &t.exact("dsharpness")[at],
                    &t.exact("dprevious")[at * c.n]);
      content.backward(dcontent, &t.exact("dmemory")[b * c.n * c.w], &t.exact("dkey")[words],
                       &t.exact("dstrength")[at], nullptr);
    }
  NtmAddressing given{{sizes_of(c), t["memory"], t["key"], t["strength"], nullptr, eps}};
  given.shifts = c.shifts;
  given.gate = t["gate"];
  given.sharpness = t["sharpness"];
  given.shift = t["shift"];
  given.previous = t["previous"];
  NtmAddressFwdArgs fwd{given};
  fwd.weights = t["weights"];
  const double roundings = roundings_of(c, 8);  // logarithms of weights
  run(c, "ntm_address_fwd", t, fwd, ntm_address_fwd_cuda_scratch_bytes(fwd), {"weights"}, roundings, 0,
      ntm_address_fwd_cuda, [&](const auto& a, auto element) {
        using P = ContentTile<decltype(element)>;
        ScratchPieces scratch(a.scratch);
        auto k = fwd_device<typename P::A>(a, scratch);
        k.phases = {true, false};
        SYSGEN_LAUNCH_TEMPLATE(ntm_address_fwd_kernel, P, few_blocks<P>(2), nullptr, k);
        k.phases = {false, true};
        SYSGEN_LAUNCH_TEMPLATE(ntm_address_fwd_kernel, P, few_blocks<P>(1), nullptr, k);
      });
  NtmAddressBwdArgs bwd{given};
  bwd.dweights = t["dweights"];
  bwd.dmemory = t["dmemory"];
  bwd.dkey = t["dkey"];
  bwd.dstrength = t["dstrength"];
  bwd.dgate = t["dgate"];
  bwd.dshift = t["dshift"];
  bwd.dsharpness = t["dsharpness"];
  bwd.dprevious = t["dprevious"];
  // The slope of a shifted weight is the sharpness over it, and it is at least 0.05^2.
  run(c, "ntm_address_bwd", t, bwd, ntm_address_bwd_cuda_scratch_bytes(bwd),
      {"dmemory", "dkey", "dstrength", "dgate", "dshift", "dsharpness", "dprevious"}, roundings, 100,
      ntm_address_bwd_cuda, [&](const auto& a, auto element) {
        using P = ContentTile<decltype(element)>;
        ScratchPieces scratch(a.scratch);
        auto k = bwd_device<typename P::A>(a, scratch);
        for (const AddressingBwdPhases phases : {AddressingBwdPhases{true, false, false, false},
                                                 {false, true, false, false},
                                                 {false, false, true, false},
                                                 {false, false, false, true}}) {
          k.phases = phases;
          SYSGEN_LAUNCH_TEMPLATE(ntm_address_bwd_kernel, P, few_blocks<P>(2), nullptr, k);
        }
      });
}

void run_write(const Case& c, Random& random) {
  Tensors t(c, random);
  t.input("memory", c.b * c.n * c.w);
  t.input("weights", c.b * c.n, true);
  t.input("erase", c.b * c.w, true);
  t.input("value", c.b * c.w);
  t.input("retention", c.b * c.n, true);
  t.input("dwritten", c.b * c.n * c.w);
  for (const char* name : {"written", "dmemory"}) t.output(name, c.b * c.n * c.w);
  for (const char* name : {"dweights", "dretention"}) t.output(name, c.b * c.n);
  for (const char* name : {"derase", "dvalue"}) t.output(name, c.b * c.w);
  for (int64_t b = 0; b < c.b; ++b)
    for (int64_t i = 0; i < c.n; ++i)
      for (int64_t w = 0; w < c.w; ++w) {
        const int64_t cell = b * c.n + i, word = b * c.w + w, at = cell * c.w + w;
        const double weight = t.exact("weights")[cell], e = t.exact("erase")[word],
                     v = t.exact("value")[word];
        const double kept = c.optional ? t.exact("retention")[cell] : 1, m = t.exact("memory")[at];
        const double d = t.exact("dwritten")[at], rest = 1 - weight * e;
        t.exact("written")[at] = m * rest * kept + weight * v;
        t.exact("dmemory")[at] = d * rest * kept;
        t.exact("dweights")[cell] += d * (v - m * kept * e);
        t.exact("dretention")[cell] += d * m * rest;
        t.exact("derase")[word] -= d * m * kept * weight;
        t.exact("dvalue")[word] += d * weight;
      }
  const void* const retention = c.optional ? t["retention"] : nullptr;
  MemoryWriteFwdArgs fwd{sizes_of(c), t["memory"], t["weights"], t["erase"], t["value"], retention};
  fwd.written = t["written"];
  run(c, "memory_write_fwd", t, fwd, memory_write_fwd_cuda_scratch_bytes(fwd), {"written"},
      roundings_of(c, 0), 1, memory_write_fwd_cuda, [&](const auto& a, auto element) {
        using P = ContentTile<decltype(element)>;
        using A = typename P::A;
        const MemoryWriteFwdDevice<A> k{memory_writing<A>(a), static_cast<A*>(a.written)};
        SYSGEN_LAUNCH_TEMPLATE(memory_write_fwd_kernel, P, few_blocks<P>(1), nullptr, k);
      });
  MemoryWriteBwdArgs bwd{sizes_of(c), t["memory"], t["weights"], t["erase"], t["value"], retention};
  bwd.dwritten = t["dwritten"];
  bwd.dmemory = t["dmemory"];
  bwd.dweights = t["dweights"];
  bwd.derase = t["derase"];
  bwd.dvalue = t["dvalue"];
  bwd.dretention = c.optional ? t["dretention"] : nullptr;
  const auto other = [&](const auto& a, auto element) {
    using P = WriteTile<decltype(element)>;
    ScratchPieces scratch(a.scratch);
    auto k = write_bwd_device<typename P::A>(a, scratch);
    const auto launch = [&](bool rows, bool sums, unsigned blocks) {
      k.rows = rows;
      k.sums = sums;
      SYSGEN_LAUNCH_TEMPLATE(memory_write_bwd_kernel, P, few_blocks<P>(blocks), nullptr, k);
    };
    if (!one_block_is_enough<P>(k.m.s)) return launch(true, true, 1);
    launch(true, false, 2);
    launch(false, true, 2);
  };
  const double terms = 4 * std::sqrt(double(c.n + c.w));  // of both signs, up to some 4 each
  if (c.optional) {
    run(c, "memory_write_bwd", t, bwd, memory_write_bwd_cuda_scratch_bytes(bwd),
        {"dmemory", "dweights", "derase", "dvalue", "dretention"}, roundings_of(c, 0), terms,
        memory_write_bwd_cuda, other);
  } else {
    run(c, "memory_write_bwd", t, bwd, memory_write_bwd_cuda_scratch_bytes(bwd),
        {"dmemory", "dweights", "derase", "dvalue"}, roundings_of(c, 0), terms, memory_write_bwd_cuda, other);
  }
}

void run_read(const Case& c, Random& random) {
  Tensors t(c, random);
  t.input("memory", c.b * c.n * c.w);
  t.input("weights", c.b * c.r * c.n, true);
  t.input("dreads", c.b * c.r * c.w);
  t.output("reads", c.b * c.r * c.w);
  t.output("dmemory", c.b * c.n * c.w);
  t.output("dweights", c.b * c.r * c.n);
  for (int64_t b = 0; b < c.b; ++b)
    for (int64_t r = 0; r < c.r; ++r)
      for (int64_t i = 0; i < c.n; ++i)
        for (int64_t w = 0; w < c.w; ++w) {
          const int64_t at = (b * c.n + i) * c.w + w, head = b * c.r + r;
          t.exact("reads")[head * c.w + w] += t.exact("weights")[head * c.n + i] * t.exact("memory")[at];
          t.exact("dmemory")[at] += t.exact("weights")[head * c.n + i] * t.exact("dreads")[head * c.w + w];
          t.exact("dweights")[head * c.n + i] += t.exact("dreads")[head * c.w + w] * t.exact("memory")[at];
        }
  const double terms = 4 * std::sqrt(double(c.n + c.w + c.r));
  MemoryReadFwdArgs fwd{sizes_of(c), t["memory"], t["weights"], t["reads"], nullptr};
  run(c, "memory_read_fwd", t, fwd, memory_read_fwd_cuda_scratch_bytes(fwd), {"reads"}, roundings_of(c, 0),
      terms, memory_read_fwd_cuda, [&](const auto& a, auto element) {
        using P = ContentTile<decltype(element)>;
        ScratchPieces scratch(a.scratch);
        auto k = read_fwd_device<typename P::A>(a, scratch);
        const auto launch = [&](bool rows, bool sums, unsigned blocks) {
          k.rows = rows;
          k.sums = sums;
          SYSGEN_LAUNCH_TEMPLATE(memory_read_fwd_kernel, P, few_blocks<P>(blocks), nullptr, k);
        };
        if (!one_block_is_enough<P>(k.s)) return launch(true, true, 1);
        launch(true, false, 2);
        launch(false, true, 2);
      });
  MemoryReadBwdArgs bwd{sizes_of(c),  t["memory"],   t["weights"], t["dreads"],
                        t["dmemory"], t["dweights"], nullptr};
  run(c, "memory_read_bwd", t, bwd, memory_read_bwd_cuda_scratch_bytes(bwd), {"dmemory", "dweights"},
      roundings_of(c, 0), terms, memory_read_bwd_cuda, [&](const auto& a, auto element) {
        using P = ContentTile<decltype(element)>;
        using A = typename P::A;
        const MemoryReadBwdDevice<A> k{memory_shape(a.s),
                                       static_cast<const A*>(a.memory),
                                       static_cast<const A*>(a.weights),
                                       static_cast<const A*>(a.dreads),
                                       static_cast<A*>(a.dmemory),
                                       static_cast<A*>(a.dweights)};
        SYSGEN_LAUNCH_TEMPLATE(memory_read_bwd_kernel, P, few_blocks<P>(1), nullptr, k);
      });
}

void run_all(const Case& c, Random& random) {
  run_content(c, random);
  run_ntm(c, random);
  run_write(c, random);
  run_read(c, random);
}

Case random_case(Random& random, int i) {
  Case c;
  c.dtype = i % 2 ? DType::f64 : DType::f32;
  c.b = pick(random, {1, 1, 2});
  c.n = pick(random, {1, 2, 5, 31, 32, 33, 65});
  c.w = pick(random, {1, 3, 20, 32, 35});
  c.r = pick(random, {1, 2, 4, 5, 8});
  c.shifts = pick(random, {1, 3, 5});
  c.optional = random() % 2;
  c.zeros = random() % 3 == 0;
  return c;
}

}  // namespace
}  // namespace sysgen

int main(int argc, char** argv) {
  using namespace sysgen;
  const int count = argc > 1 ? std::atoi(argv[1]) : 100;
  Random random(argc > 2 ? std::atoi(argv[2]) : 1);
  try {
    if (count >= 20) {  // more than one launch
      Case c;
      c.n = 203, c.w = 65, c.r = 9, c.shifts = 3;
      for (const DType dtype : {DType::f32, DType::f64}) {
        c.dtype = dtype;
        run_all(c, random);
      }
    }
    for (int i = 0; i < count; i += 4)
      run_all(random_case(random, i / 4), random);  // each is some eight cases
  } catch (const std::exception& e) {
    std::printf("FAILED: %s\n", e.what());
    return 1;
  }
  std::printf("largest error: %.2f of its bound\n", worst);
  return test::finish("content");
}
