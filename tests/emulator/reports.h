// What the programs share that check what the emulator refuses: a line of output for every check, and a right
// kernel that must run after every refusal.
#pragma once
#include <cstdio>
#include <string>
#include <vector>

#include "device/launch.h"

namespace {

using namespace sysgen;

int failures = 0;

void check_that(bool ok, const std::string& what, const std::string& details = "") {
  std::printf("%s %s%s\n", ok ? "ok    " : "FAILED", what.c_str(), ok ? "" : (": " + details).c_str());
  failures += !ok;
}

struct Arguments {
  int mode = 0;
  unsigned* data = nullptr;
};

__global__ void right_kernel(const Arguments a) {
  SYSGEN_SHARED(unsigned, values, [64]);
  values[threadIdx.x] = threadIdx.x;
  __syncthreads();
  const unsigned sum = __reduce_add_sync(~0u, values[63 - threadIdx.x]);
  if (lane_id() == 0) atomicAdd(a.data, sum);
}
bool right_kernel_works() {
  std::vector<unsigned> sum(1);
  SYSGEN_LAUNCH(right_kernel, (LaunchConfig{2, 64}), nullptr, (Arguments{0, sum.data()}));
  return sum[0] == 2 * 64 * 63 / 2;
}

template <class F>
void refused(const std::string& what, std::initializer_list<const char*> parts, F f) {
  std::string message;
  try {
    f();
  } catch (const std::exception& e) {
    message = e.what();
  }
  bool ok = !message.empty();
  for (const char* part : parts) ok = ok && message.find(part) != std::string::npos;
  check_that(ok, what, message.empty() ? "no error" : message);
  if (!right_kernel_works()) check_that(false, "a right kernel after " + what);
}

}  // namespace
