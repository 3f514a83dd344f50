// Independent tasks over OpenMP threads. For *_cpu.cpp files (see cpu.h), which compile it for their level.
#pragma once
#include <cstdint>

namespace sysgen::SYSGEN_ISA {
namespace {

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One copy of the code behind it, for any number of threads: two might contract products and sums
// differently.
#define SYSGEN_ONE_COPY __attribute__((noinline, noclone))

// Calls task(i) for each i < count, in any order.
template <class F>
void for_each_task(int64_t count, int threads, const F& task) {
  if (threads <= 1 || count <= 1) {
    for (int64_t i = 0; i < count; ++i) task(i);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t i = 0; i < count; ++i) task(i);
}

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
