// What the kernel tests share: buffers of exactly the needed size (an overrun is an error of the sanitizers),
// NaN before a kernel writes them, routings made by a plain sort, and a comparison with a bound for every
// element.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "common/arguments.h"
#include "cvmm/cvmm.h"
#include "device/device.cuh"

namespace sysgen::test {

// The emulator counts alike in all kinds of programs: a plain one is enough for cases that only look at
// counters.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

// A typed array on the heap. The allocation begins `offset` elements earlier: 1 leaves the array aligned to
// one element, 0 to 16 bytes.
class Buffer {
 public:
  Buffer(DType dtype, int64_t count, int64_t offset = 0)
      : dtype_(dtype), count_(count), bytes_(std::malloc((offset + count) * size_of(dtype)), std::free) {
    data_ = static_cast<char*>(bytes_.get()) + offset * size_of(dtype);
    poison();
  }
  void* data() const { return data_; }
  int64_t count() const { return count_; }
  void poison() const { std::memset(data_, 0xff, count_ * size_of(dtype_)); }
  std::string bits() const { return {static_cast<const char*>(data_), size_t(count_ * size_of(dtype_))}; }
  DType dtype() const { return dtype_; }
  double get(int64_t i) const {
    switch (dtype_) {
      case DType::f64:
        return static_cast<const double*>(data_)[i];
      case DType::f32:
        return static_cast<const float*>(data_)[i];
      case DType::bf16:
        return to_float(static_cast<const bf16*>(data_)[i]);
      default:
        return to_float(static_cast<const f16*>(data_)[i]);
    }
  }
  void set(int64_t i, double v) {
    switch (dtype_) {
      case DType::f64:
        static_cast<double*>(data_)[i] = v;
        break;
      case DType::f32:
        static_cast<float*>(data_)[i] = static_cast<float>(v);
        break;
      case DType::bf16:
        static_cast<bf16*>(data_)[i] = from_float<bf16>(static_cast<float>(v));
        break;
      default:
        static_cast<f16*>(data_)[i] = from_float<f16>(static_cast<float>(v));
    }
  }

 private:
  DType dtype_;
  int64_t count_;
  std::unique_ptr<void, void (*)(void*)> bytes_;
  void* data_;
};

inline double rounded(double v, DType t) {
  Buffer b(t, 1);
  b.set(0, v);
  return b.get(0);
}
inline double unit_roundoff(DType t) {
  return t == DType::f64 ? 0x1p-53 : t == DType::f32 ? 0x1p-24 : t == DType::bf16 ? 0x1p-8 : 0x1p-11;
}

using Random = std::mt19937;
inline int pick(Random& random, std::initializer_list<int> values) {
  return values.begin()[random() % values.size()];
}
inline double value(Random& random) { return std::normal_distribution<double>()(random); }

// A routing of tokens * k routes, sorted the obvious way.
struct Routes {
  int64_t tokens, k, experts;
  std::vector<int> expert;  // by route; -1: dropped
  std::vector<int32_t> order, inverse, offsets;

  Routes(int64_t tokens_, int64_t k_, int64_t experts_, std::vector<int> expert_)
      : tokens(tokens_), k(k_), experts(experts_), expert(std::move(expert_)), inverse(expert.size(), -1) {
    const auto key = [this](int r) { return expert[r] < 0 ? experts : expert[r]; };
    order.resize(expert.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return key(a) < key(b); });
    offsets.assign(experts + 1, 0);
    for (size_t p = 0; p < order.size(); ++p)
      if (expert[order[p]] >= 0) inverse[order[p]] = static_cast<int32_t>(p), ++offsets[key(order[p]) + 1];
    std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
  }
  int64_t count() const { return tokens * k; }
  Routing view() const { return {order.data(), inverse.data(), offsets.data(), tokens, k, experts}; }
};

enum class Pattern { uniform, dropping, one_expert, few_experts, all_dropped, in_turn };
inline Routes make_routes(Random& random, int64_t tokens, int64_t k, int64_t experts, Pattern pattern) {
  std::vector<int> ids(tokens * k);
  const int some = experts > 0 ? static_cast<int>(random() % experts) : -1;
  for (size_t i = 0; i < ids.size(); ++i) {
    int& id = ids[i];
    id = experts > 0 ? static_cast<int>(random() % experts) : -1;
    if (pattern == Pattern::dropping && random() % 3 == 0) id = -1;
    if (pattern == Pattern::one_expert) id = some;
    if (pattern == Pattern::few_experts && id % 3) id = some;
    if (pattern == Pattern::all_dropped) id = -1;
    if (pattern == Pattern::in_turn && experts > 0) id = static_cast<int>(i % experts);
  }
  return {tokens, k, experts, std::move(ids)};
}

// A row operand whose rows are `gap` elements further apart than they are wide; the gaps stay NaN.
struct RowBuffer {
  int64_t rows, width, stride;
  bool routed;
  Buffer values;
  RowBuffer(Random& random, DType dtype, const Routes& routes, int64_t width_, bool routed_, int gap,
            int offset)
      : rows(routed_ ? routes.count() : routes.tokens),
        width(width_),
        stride(width_ + gap),
        routed(routed_),
        values(dtype, rows > 0 ? (rows - 1) * stride + width : 0, offset) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < width; ++c) values.set(r * stride + c, value(random));
  }
  Rows view() const { return {values.data(), stride, routed}; }
  double at(const Routes& routes, int64_t route, int64_t c) const {
    return values.get((routed ? route : route / routes.k) * stride + c);
  }
};

// A buffer of which only a few pages are ever touched: rows further apart than 32 bits can say.
class FarBuffer {
 public:
  explicit FarBuffer(int64_t bytes) : bytes_(bytes) {
    data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data_ == MAP_FAILED) throw std::runtime_error("mmap failed");
  }
  ~FarBuffer() { munmap(data_, bytes_); }
  FarBuffer(const FarBuffer&) = delete;
  FarBuffer& operator=(const FarBuffer&) = delete;
  float* data() const { return static_cast<float*>(data_); }

 private:
  void* data_;
  int64_t bytes_;
};

// ---- comparison
inline int failures = 0, cases = 0;

// Counts a case as failed, and shows the first of its elements that is wrong.
class Comparison {
 public:
  explicit Comparison(std::string what) : what_(std::move(what)) { ++cases; }
  void element(const char* tensor, int64_t i, int64_t j, double got, double expected, double bound) {
    const double error = std::abs(got - expected);
    if (bound > 0 && error / bound > worst_) worst_ = error / bound;
    if (error <= bound || (std::isnan(got) && std::isnan(expected))) return;
    if (!wrong_++)
      std::printf("FAILED %s: %s[%lld, %lld] is %.9g, expected %.9g +- %.3g\n", what_.c_str(), tensor,
                  static_cast<long long>(i), static_cast<long long>(j), got, expected, bound);
  }
  double worst() const { return worst_; }  // largest error as a share of its bound
  ~Comparison() {
    if (wrong_ > 0) {
      ++failures;
      std::printf("  %lld elements of this case are wrong\n", static_cast<long long>(wrong_));
    }
  }

 private:
  std::string what_;
  double worst_ = 0;
  int64_t wrong_ = 0;
};

// Launches in other ways: the outputs must have the same bits as they have now.
inline void expect_same_bits(const std::string& what, std::initializer_list<const Buffer*> outputs,
                             std::initializer_list<std::function<void()>> launches) {
  std::vector<std::string> expected;
  for (const Buffer* b : outputs) expected.push_back(b->bits());
  for (const auto& launch : launches) {
    for (const Buffer* b : outputs) b->poison();
    launch();
    ++cases;
    auto e = expected.begin();
    for (const Buffer* b : outputs)
      if (b->bits() != *e++) {
        ++failures;
        std::printf("FAILED %s: other bits with launch %d\n", what.c_str(), int(&launch - launches.begin()));
      }
  }
}

// Fails unless what was launched since the counters were set to zero used shared memory without bank
// conflicts.
inline void expect_no_bank_conflicts(const std::string& what) {
  const emulator::Counters& c = emulator::counters;
  ++cases;
  if (c.shared_phases > 0 && c.shared_conflicts == 0 && c.ldmatrix_conflicts == 0) return;
  ++failures;
  std::printf("FAILED %s: %llu bank conflicts in %llu accesses, %llu in %llu of ldmatrix\n", what.c_str(),
              static_cast<unsigned long long>(c.shared_conflicts),
              static_cast<unsigned long long>(c.shared_phases),
              static_cast<unsigned long long>(c.ldmatrix_conflicts),
              static_cast<unsigned long long>(c.ldmatrix_phases));
}

inline int finish(const char* name) {
  std::printf("%s: %d cases, %d failed\n", name, cases, failures);
  return failures || !cases ? 1 : 0;
}

}  // namespace sysgen::test
