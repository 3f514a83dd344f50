// Runs the kernels of planted_kernels.cuh, right ones and wrong ones, and prints for each what came out:
//
//   == <kernel>/<bug>
//   -- right | wrong | error: <what the emulator said>
//
// Reports of a sanitizer stand between the two lines. Arguments: an order ("forward", "reverse",
// "random:<seed>") or the number of a random orders, then "right" (the right kernels only), or the name of
// the case to begin with.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "device/launch.h"
#include "device/tensor_map.h"
#include "planted_hopper.cuh"
#include "planted_kernels.cuh"

namespace {

using namespace planted;

std::mt19937 random_numbers(7);
int random_below(int n) { return static_cast<int>(random_numbers() % static_cast<unsigned>(n)); }

template <class T>
T value_of(int v);  // small integers are exact in every type
template <>
float value_of<float>(int v) {
  return static_cast<float>(v);
}
template <>
bf16 value_of<bf16>(int v) {
  return from_float<bf16>(static_cast<float>(v));
}

template <class T>
std::vector<T> small_values(size_t n) {
  std::vector<T> v;
  for (size_t i = 0; i < n; ++i) v.push_back(value_of<T>(random_below(9) - 4));
  v.shrink_to_fit();  // so that AddressSanitizer sees an overrun
  return v;
}

const float kNan = std::nanf("");

// With small integers every sum is exact.
template <class T, class Launch>
bool product(int K, Launch launch) {
  constexpr int M = 75, N = 40, X_ROWS = 50, EXPERTS = 5;
  const std::vector<int> offsets{0, 0, 33, 40, 40, M};
  const std::vector<T> x = small_values<T>(X_ROWS * K), w = small_values<T>(EXPERTS * K * N);
  std::vector<int> gather(M);
  for (int& g : gather) g = random_below(X_ROWS);
  std::vector<float> out(M * N, kNan);
  launch(ProductArgs{x.data(), w.data(), gather.data(), offsets.data(), out.data(), EXPERTS, K, N},
         dim3((N + 31) / 32, M / 32 + EXPERTS));
  for (int e = 0; e < EXPERTS; ++e)
    for (int r = offsets[e]; r < offsets[e + 1]; ++r)
      for (int n = 0; n < N; ++n) {
        float sum = 0;
        for (int k = 0; k < K; ++k) sum += to_float(x[gather[r] * K + k]) * to_float(w[(e * K + k) * N + n]);
        if (out[r * N + n] != sum) return false;
      }
  return true;
}

template <Bug BUG>
bool run_product_f32() {
  return product<float>(84, [](const ProductArgs& a, dim3 grid) {
    const LaunchConfig config{grid, ProductF32::THREADS,
                              ProductF32::SHARED - (BUG == Bug::short_launch ? 128 : 0)};
    SYSGEN_LAUNCH(product_f32<BUG>, config, nullptr, a);
  });
}

template <Bug BUG>
bool run_product_bf16() {
  emulator::counters = {};
  const bool right = product<bf16>(136, [](const ProductArgs& a, dim3 grid) {
    const LaunchConfig config{grid, ProductBf16<BUG>::THREADS, ProductBf16<BUG>::SHARED};
    SYSGEN_LAUNCH(product_bf16<BUG>, config, nullptr, a);
  });
  std::printf("bank conflicts: %llu\n",
              static_cast<unsigned long long>(emulator::counters.ldmatrix_conflicts));
  return right;
}

template <Bug BUG>
bool run_row_scan() {
  constexpr int ROWS = 4, N = 300;
  std::vector<int> in(ROWS * N), out(ROWS * N, -1);
  for (int& v : in) v = random_below(100);
  SYSGEN_LAUNCH(row_scan<BUG>, (LaunchConfig{ROWS, kScanThreads}), nullptr,
                (ScanArgs{in.data(), out.data(), N}));
  for (int i = 0, sum = 0; i < ROWS * N; sum += in[i++]) {
    if (i % N == 0) sum = 0;
    if (out[i] != sum) return false;
  }
  return true;
}

template <Bug BUG>
bool run_histogram_offsets() {
  constexpr int N = 2000, BLOCKS = 4;
  std::vector<unsigned> keys(N), ticket(1);
  std::vector<int> partial(BLOCKS * kBins, -1), offsets(kBins, -1), counts(kBins);
  for (unsigned& k : keys) ++counts[(k = random_numbers() % 1000) % kBins];
  const HistogramArgs args{keys.data(), N, partial.data(), offsets.data(), ticket.data()};
  SYSGEN_LAUNCH(histogram_offsets<BUG>, (LaunchConfig{BLOCKS, kBins}), nullptr, args);
  for (int i = 0, sum = 0; i < kBins; sum += counts[i++])
    if (offsets[i] != sum) return false;
  return true;
}

template <Bug BUG>
bool run_persistent_smooth() {
  constexpr int N = 500, STEPS = 6;
  std::vector<float> a = small_values<float>(N), b(N, kNan), from = a, to(N);
  std::vector<unsigned> arrived(1);
  const LaunchConfig config{4, 64, 0, BUG != Bug::not_resident};
  SYSGEN_LAUNCH(persistent_smooth<BUG>, config, nullptr,
                (SmoothArgs{a.data(), b.data(), N, STEPS, arrived.data()}));
  for (int s = 0; s < STEPS; ++s, from.swap(to))
    for (int i = 0; i < N; ++i) to[i] = from[(i + N - 1) % N] + 2 * from[i] + from[(i + 1) % N];
  return a == from;
}

template <Bug BUG>
bool run_warp_transpose() {
  constexpr int BLOCKS = 2;
  const std::vector<float> in = small_values<float>(BLOCKS * 2048);
  std::vector<float> out(in.size(), kNan);
  SYSGEN_LAUNCH(warp_transpose<BUG>, (LaunchConfig{BLOCKS, 64}), nullptr,
                (FloatArgs{in.data(), out.data(), 0, 0}));
  for (size_t i = 0; i < in.size(); ++i)
    if (out[i] != in[i / 1024 * 1024 + i % 32 * 32 + i / 32 % 32]) return false;
  return true;
}

template <Bug BUG>
bool run_paired_warps() {
  const std::vector<float> in = small_values<float>(128);
  std::vector<float> out(128, kNan);
  SYSGEN_LAUNCH(paired_warps<BUG>, (LaunchConfig{1, 128}), nullptr, (FloatArgs{in.data(), out.data(), 0, 0}));
  for (int i = 0; i < 128; ++i)
    if (out[i] != in[i ^ 32] + static_cast<float>(i / 64)) return false;
  return true;
}

template <Bug BUG>
bool run_mixed() {
  const std::vector<float> in = small_values<float>(257);
  std::vector<float> out(64, kNan);
  SYSGEN_LAUNCH(mixed<BUG>, (LaunchConfig{1, 64}), nullptr,
                (FloatArgs{in.data(), out.data(), 100000, 50000}));
  for (int i = 0; i < 64; ++i) {
    const float* v = &in[4 * (63 - i)];
    if (out[i] != v[0] + v[1] + v[2] + v[3]) return false;
  }
  return true;
}

template <Bug BUG>
bool run_ring_product() {
  constexpr int M = 64, N = 64, K = 328, X_ROWS = 30;
  const auto halves = [](size_t n) {
    std::vector<f16> v;
    for (size_t i = 0; i < n; ++i) v.push_back(from_float<f16>(static_cast<float>(random_below(9) - 4)));
    return v;
  };
  const std::vector<f16> x = halves(X_ROWS * K), w = halves(K * N);
  std::vector<int> gather(M);
  for (int& g : gather) g = random_below(X_ROWS);
  std::vector<float> out(M * N, kNan);
  RingArgs a{{}, x.data(), gather.data(), out.data(), K};
  if (!encode_tensor_map(a.w, {w.data(), N, K, 1, N * 2, K * N * 2, 64})) return false;
  SYSGEN_LAUNCH(ring_product<BUG>, (LaunchConfig{1, Ring::THREADS, Ring::SHARED}), nullptr, a);
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) {
      float sum = 0;
      for (int k = 0; k < K; ++k) sum += to_float(x[gather[m] * K + k]) * to_float(w[k * N + n]);
      if (out[m * N + n] != sum) return false;
    }
  return true;
}

// ---- the list of cases

struct Case {
  const char* name;
  bool (*run)();
};
#define RIGHT(KERNEL) {#KERNEL "/none", run_##KERNEL<Bug::none>}
#define WRONG(KERNEL, BUG) {#KERNEL "/" #BUG, run_##KERNEL<Bug::BUG>}
constexpr Case kCases[] = {
    RIGHT(product_f32),
    RIGHT(product_bf16),
    RIGHT(row_scan),
    RIGHT(histogram_offsets),
    RIGHT(persistent_smooth),
    RIGHT(warp_transpose),
    RIGHT(paired_warps),
    RIGHT(mixed),
    RIGHT(ring_product),
    WRONG(product_f32, shared_overrun),
    WRONG(product_f32, inner_index),
    WRONG(product_f32, misaligned_copy),
    WRONG(product_f32, no_sync_after_wait),
    WRONG(product_f32, refill_too_early),
    WRONG(product_f32, one_group_too_few),
    WRONG(product_f32, no_wait),
    WRONG(product_f32, unguarded_load),
    WRONG(product_f32, unguarded_store),
    WRONG(product_f32, uninitialised_sum),
    WRONG(product_f32, short_launch),
    WRONG(product_f32, copies_not_waited_for),
    WRONG(product_bf16, mma_no_sync),
    WRONG(product_bf16, mma_one_group_too_few),
    WRONG(product_bf16, swapped_fragments),
    WRONG(product_bf16, divergent_mma),
    WRONG(product_bf16, no_padding),
    WRONG(row_scan, shuffle_in_branch),
    WRONG(row_scan, no_sync_before_read),
    WRONG(row_scan, too_many_lanes),
    WRONG(row_scan, no_sync_after_read),
    WRONG(row_scan, threads_skip_function),
    WRONG(row_scan, early_exit),
    WRONG(histogram_offsets, no_sync_after_zero),
    WRONG(histogram_offsets, lost_update),
    WRONG(histogram_offsets, no_fence_before),
    WRONG(histogram_offsets, no_fence_after),
    WRONG(histogram_offsets, fence_too_early),
    WRONG(persistent_smooth, no_sync_after_grid_barrier),
    WRONG(persistent_smooth, skipped_grid_barrier),
    WRONG(persistent_smooth, not_resident),
    WRONG(warp_transpose, no_syncwarp),
    WRONG(paired_warps, barrier_count),
    WRONG(mixed, misaligned_load),
    WRONG(mixed, index_overflow),
    WRONG(mixed, two_barriers),
    WRONG(ring_product, released_too_early),
    WRONG(ring_product, full_stage_overwritten),
    WRONG(ring_product, one_lane_waits),
    WRONG(ring_product, no_proxy_fence),
    WRONG(ring_product, no_wgmma_fence),
    WRONG(ring_product, wrong_k_step),
    WRONG(ring_product, too_few_bytes),
    WRONG(ring_product, arrival_not_counted),
    WRONG(ring_product, wgmma_not_waited_for),
    WRONG(ring_product, divergent_wgmma),
    WRONG(ring_product, barriers_not_published),
    WRONG(ring_product, not_swizzled),
};
constexpr size_t kNumRight = 9;
static_assert(sizeof kCases / sizeof kCases[0] - kNumRight == static_cast<size_t>(Bug::last) - 1,
              "every bug has a case");

void run(const Case& c) {
  std::printf("== %s\n", c.name);
  try {
    std::printf("-- %s\n", c.run() ? "right" : "wrong");
  } catch (const std::exception& e) {
    std::printf("-- error: %s\n", e.what());
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IONBF, 0);  // in step with the reports of the sanitizers
  const std::string orders = argc > 1 ? argv[1] : "forward", what = argc > 2 ? argv[2] : "";
  const int random_orders = std::atoi(orders.c_str());
  for (int seed = 1; seed <= std::max(random_orders, 1); ++seed) {
    sysgen::emulator::set_order(random_orders ? ("random:" + std::to_string(seed)).c_str() : orders.c_str());
    bool begun = what.empty() || what == "right";
    const size_t count = what == "right" ? kNumRight : sizeof kCases / sizeof kCases[0];
    for (size_t i = 0; i < count; ++i) {
      if (what == kCases[i].name) begun = true;
      if (begun) run(kCases[i]);
    }
    for (size_t i = 0; i < kNumRight && count > kNumRight; ++i)
      run(kCases[i]);  // a wrong kernel leaves no trace
  }
}
