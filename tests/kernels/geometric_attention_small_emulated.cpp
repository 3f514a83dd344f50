// The geometric attention kernels for small sizes, every tile of them, against the definition in float64.
#include "geometric_attention/geometric_attention_cuda.cu"
#include "geometric_attention_oracle.h"

namespace sysgen {

// The tiled kernels have their own test: here it counts that larger sizes reach them.
namespace {
int tiled = 0;
}
int64_t geometric_attention_tiled_fwd_scratch_bytes(const GeometricAttentionFwdArgs&) { return 1; }
int64_t geometric_attention_tiled_bwd_scratch_bytes(const GeometricAttentionBwdArgs&) { return 2; }
void geometric_attention_tiled_fwd(const GeometricAttentionFwdArgs&, void*) { ++tiled; }
void geometric_attention_tiled_bwd(const GeometricAttentionBwdArgs&, void*) { ++tiled; }

namespace {

using namespace test;
using Case = GeometricCase;

double worst = 0;

template <class Fwd, class Bwd>
void run(const Case& c, const char* what, Random& random, Fwd fwd, Bwd bwd) {
  const GeometricProblem problem(c, random);
  const std::string name = c.describe(what);
  try {
    fwd(problem.fwd());
    bwd(problem.bwd());
  } catch (const std::exception&) {
    std::printf("in %s:\n", name.c_str());
    throw;
  }
  Comparison compare(name);
  compare_fwd(problem, compare);
  compare_bwd(problem, compare);
  worst = std::max(worst, compare.worst());
}

void run_dispatched(const Case& c, Random& random) {
  run(
      c, "dispatched", random, [](const auto& a) { geometric_attention_fwd_cuda(a, 0, nullptr); },
      [](const auto& a) { geometric_attention_bwd_cuda(a, 0, nullptr); });
}

// A tile that is larger than the shape asks for.
template <int TILE>
void run_tile(const Case& c, Random& random) {
  with_geometric_type(c.dtype, [&](auto element) {
    using T = decltype(element);
    if constexpr (sizeof(T) < 8 || TILE < 128) {
      const auto launch = [](const auto& a) {
        launch_small<GeometricSmall<T, TILE, TILE / 16, 1>>(a, nullptr);
      };
      run(c, cat("tile ", TILE).c_str(), random, launch, launch);
    }
  });
}

constexpr DType kTypes[] = {DType::f64, DType::f32, DType::bf16, DType::f16};

Case random_case(Random& random, int i) {
  Case c;
  c.dtype = kTypes[i % 4];
  c.batch = pick(random, {1, 2, 3});
  c.heads = pick(random, {1, 2, 3});
  c.queries = pick(random, {1, 2, 5, 13, 16, 17, 31, 47});
  c.keys = random() % 3 ? c.queries : pick(random, {1, 3, 11, 16, 19, 37, 53});
  c.width = pick(random, {1, 7, 8, 16, 24, 32, 40, 65, 72});
  c.mask = static_cast<Case::Mask>(random() % 3);
  c.key_mask = static_cast<Case::KeyMask>(random() % 5 ? random() % 2 : 2);
  c.bias = random() % 2;
  c.causal = random() % 4 == 0;
  c.include_self = random() % 2;
  c.normalize = random() % 2;
  c.rem = random() % 2;
  c.early_stop = random() % 2;
  c.dbias = c.bias;
  c.dmask = random() % 2;
  c.mask_shared = random() % 2;
  c.heads_inside = random() % 2;
  c.q_offset = pick(random, {0, 0, 0, 1, -3, 9, 100, -100});
  c.gap = pick(random, {0, 0, 1, 4, 8});
  c.offset = pick(random, {0, 0, 0, 1, 4});
  c.size = pick(random, {1, 1, 1, 5});
  c.scale = 1 / std::sqrt(c.width);
  if (c.mask == Case::Mask::additive && random() % 3 == 0)
    c.extreme = random() % 2 ? 1e4 : std::numeric_limits<double>::infinity();
  return c;
}

void run_shapes(Random& random) {
  for (const DType dtype : kTypes) {
    for (const int n : {0, 1, 63, 64, 65, 127, 128}) {  // edges of the tiles
      if (dtype == DType::f64 && n > 64) continue;
      Case c;
      c.dtype = dtype;
      c.queries = c.keys = n;
      c.width = 9;
      c.rem = c.normalize = c.bias = c.dbias = c.dmask = true;
      run_dispatched(c, random);
      c.queries = n % 3;
      run_dispatched(c, random);
      std::swap(c.queries, c.keys);
      run_dispatched(c, random);
    }
    for (const int width : {0, 256}) {  // parts of the width; no width
      Case c;
      c.dtype = dtype;
      c.batch = 2;
      c.queries = c.keys = 13;
      c.width = width;
      c.rem = true;
      c.key_mask = Case::KeyMask::some;
      c.scale = 1 / 16.;
      run_dispatched(c, random);
      c.keys = 20;
      run_dispatched(c, random);
    }
  }
}

void run_empty_and_large(Random& random) {
  Case c;
  c.batch = 0;
  run_dispatched(c, random);
  c.batch = 1;
  c.heads = 0;
  run_dispatched(c, random);
  c.heads = 1;
  Comparison compare("larger sizes go to the tiled kernels");
  for (const auto& [dtype, n] : {std::pair{DType::f32, 129}, {DType::f64, 65}, {DType::bf16, 129}}) {
    c.dtype = dtype;
    for (const int other : {1, n}) {
      c.queries = n, c.keys = other;
      const GeometricProblem problem(c, random);
      const int before = tiled;
      geometric_attention_fwd_cuda(problem.fwd(), 0, nullptr);
      geometric_attention_bwd_cuda(problem.bwd(), 0, nullptr);
      compare.element("launches", n, other, tiled - before, 2, 0);
      compare.element("fwd scratch", n, other, geometric_attention_fwd_cuda_scratch_bytes(problem.fwd()), 1,
                      0);
      compare.element("bwd scratch", n, other, geometric_attention_bwd_cuda_scratch_bytes(problem.bwd()), 2,
                      0);
    }
  }
}

}  // namespace
}  // namespace sysgen

int main(int argc, char** argv) {
  using namespace sysgen;
  const int count = argc > 1 ? std::atoi(argv[1]) : 100;
  Random random(argc > 2 ? std::atoi(argv[2]) : 1);
  try {
    run_empty_and_large(random);
    if (count >= 20) run_shapes(random);
    for (int i = 0; i < count; ++i) {
      const Case c = random_case(random, i);
      run_dispatched(c, random);
      if (i % 8 < 4) run_tile<64>(c, random);
      if (i % 16 < 4) run_tile<128>(c, random);
    }
  } catch (const std::exception& e) {
    std::printf("FAILED: %s\n", e.what());
    return 1;
  }
  std::printf("largest error: %.2f of its bound\n", worst);
  return test::finish("geometric_attention_small");
}
