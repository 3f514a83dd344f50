// The Hopper path of cvmm_fwd: against a sum in float64, and its results beside those of the sm_80 path. Part
// of the program cvmm_fwd, whose kernels it needs too and which take long to compile.
#pragma once
#include <stdlib.h>

#include "cvmm/cvmm_hopper_cuda.cu"
#include "cvmm/cvmm_hopper_slim_cuda.cu"
#include "cvmm_problem.h"

namespace sysgen {
namespace {
namespace hopper_path {

using namespace test;

// By the tiles of P, or by those that the shapes choose; for `chunk` tokens at a time.
template <class P>
struct Tiles {
  int64_t chunk;
  int64_t scratch_bytes(const CvmmFwdArgs& a) const { return scratch_of<P>(a, chunk).bytes(); }
  void launch(const CvmmFwdArgs& a) const { launch_product<P>(a, nullptr, chunk); }
};
template <>
struct Tiles<void> {
  int64_t scratch_bytes(const CvmmFwdArgs& a) const { return cvmm_fwd_cuda_scratch_bytes(a); }
  void launch(const CvmmFwdArgs& a) const { cvmm_fwd_cuda(a, 0, nullptr); }
};

// The results of one of the two paths.
template <class Tiles>
CvmmResults launched(const CvmmProblem& p, const Tiles& tiles, bool hopper) {
  CvmmResults results(p);
  CvmmFwdArgs a = results.args(p);
  const Buffer scratch(DType::f32, (tiles.scratch_bytes(a) + 3) / 4);
  a.scratch = scratch.data();
  setenv("SYSGEN_HOPPER", hopper ? "1" : "0", 1);
  emulator::counters = {};
  tiles.launch(a);
  const bool expected = hopper && p.routes.expert != std::vector<int>(p.routes.count(), -1);
  if ((emulator::counters.wgmma > 0) != expected)
    throw std::runtime_error(cat("it was ", hopper ? "not " : "", "taken"));
  if (expected) expect_no_bank_conflicts(describe(p.c, "hopper"));
  return results;
}

template <class Tiles>
void run(const CvmmProblem& p, const Tiles& tiles) {
  try {
    const CvmmResults sm_80 = launched(p, tiles, false), hopper = launched(p, tiles, true);
    Comparison compare(describe(p.c, "hopper"));
    CvmmExpected(p).compare(compare, p, hopper, &sm_80);
  } catch (const std::exception&) {
    std::printf("in %s:\n", describe(p.c, "hopper").c_str());
    throw;
  }
}

void run_both(const CvmmCase& c, Random& random) {
  const CvmmProblem p(c, random);
  run(p, Tiles<void>());
  const int64_t chunk = c.reduce && c.out ? 1 + c.tokens / 3 : c.tokens;
  const auto large = [&](auto t) {
    using T = decltype(t);
    c.kn ? run(p, Tiles<HalfLarge<T, T, true>>{chunk}) : run(p, Tiles<HalfLarge<T, T, false>>{chunk});
  };
  c.dtype == DType::bf16 ? large(bf16()) : large(f16());
}

// Tiles of few routes: of any number, although the launcher takes them for small groups only.
void run_slim(const CvmmCase& c, Random& random) {
  const CvmmProblem p(c, random);
  const auto slim = [&](auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    const int64_t chunk = c.reduce && c.out ? 1 + c.tokens / 3 : c.tokens;
    c.kn ? run(p, Tiles<HalfSlim<T, W, true>>{chunk}) : run(p, Tiles<HalfSlim<T, W, false>>{chunk});
  };
  const bool master = c.w_dtype != c.dtype;
  if (c.dtype == DType::bf16) master ? slim(bf16(), float()) : slim(bf16(), bf16());
  if (c.dtype == DType::f16) master ? slim(f16(), float()) : slim(f16(), f16());
}

CvmmCase slim_case(Random& random, int i) {
  CvmmCase c{};
  c.dtype = i % 2 ? DType::bf16 : DType::f16;
  c.w_dtype = i % 4 < 2 ? DType::f32 : c.dtype;
  c.experts = pick(random, {1, 3, 7});
  c.k = pick(random, {1, 2, 3});
  c.tokens = pick(random, {1, 5, 17, 40, 90});
  c.d = pick(random, {8, 40, 64, 72, 136, 328});
  c.h = pick(random, {8, 64, 72, 128, 136, 264});
  choose_options(c, random);
  c.gap = pick(random, {0, 8, 24});
  c.other_gap = pick(random, {0, 3, 8});
  return c;
}

// The launcher's choice, by the number of routes an expert has.
void run_choice(Random& random) {
  CvmmCase c{140, 1, 140, 64, 72, DType::bf16, DType::f32};
  run(CvmmProblem(c, random), Tiles<void>());
}

CvmmCase random_case(Random& random, int i) {
  CvmmCase c{};
  c.dtype = c.w_dtype = i % 2 ? DType::bf16 : DType::f16;
  c.experts = pick(random, {1, 2, 3});
  c.k = pick(random, {1, 2, 3});
  // from 64 rows an expert on; ragged, and with tiles that only one of the multipliers has rows of
  c.tokens = (64 * c.experts + c.k - 1) / c.k + pick(random, {0, 7, 61, 90});
  c.d = pick(random, {8, 40, 64, 72, 136, 200, 520});
  c.h = pick(random, {8, 40, 64, 72, 128, 136, 200});
  choose_options(c, random);
  c.gap = pick(random, {0, 8, 24});
  c.other_gap = pick(random, {0, 3, 8});
  return c;
}

void run_all(int count, Random& random) {
  for (int i = 0; i < count; ++i) {
    run_both(random_case(random, i), random);
    run_slim(slim_case(random, i), random);
  }
  run_choice(random);
  setenv("SYSGEN_HOPPER", "0", 1);
}

}  // namespace hopper_path
}  // namespace
}  // namespace sysgen
