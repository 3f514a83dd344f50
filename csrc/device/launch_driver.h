// The body of device/launch.h for a core that was built without nvcc. g++ compiles the launchers and knows a
// kernel only by its name; a compiler that Python registers (sysgen/_nvrtc.py) turns the name into code at
// the first launch, and the driver starts it. Nothing here is linked to CUDA.
#pragma once
#include <functional>
#include <string>
#include <string_view>
#include <type_traits>
#include <typeinfo>
#include <vector>

#include "common/check.h"
#include "device/device.cuh"

namespace sysgen {

struct LaunchConfig {
  dim3 grid, block;
  size_t shared_bytes = 0;
};

// Makes `index` the device of this thread's launches for a scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int index);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_;
};

namespace driver {

// One kernel, with its template argument if it has one, and its only parameter. All of it is static.
struct KernelId {
  const char* name;
  const std::type_info* traits;  // or null
  const std::type_info* arguments;
  size_t bytes, alignment;  // of the arguments
};

// The same in the words of CUDA C++: sysgen::cvmm_dot_kernel<float>, sysgen::CvmmDotArgs<float>.
struct KernelSource {
  std::string kernel, arguments;
  size_t bytes, alignment;  // that the compiler must find too
};
struct KernelImage {
  std::string image, entry;  // cubin, and the symbol of the kernel in it
};
// `capability` is 10 * major + minor of the device.
using Compiler = std::function<KernelImage(const KernelSource&, int capability)>;
void set_compiler(Compiler compiler);

// While it is alive, the launches of this thread are noted instead of done.
class DryRun {
 public:
  DryRun();
  ~DryRun();
  std::vector<KernelSource> launches;
};

void launch(const KernelId& id, const LaunchConfig& config, void* stream, const void* arguments);

}  // namespace driver

template <class Kernel, class Args>
void launch(const char* name, const std::type_info* traits, const LaunchConfig& config, void* stream,
            const Args& args) {
  static_assert(std::is_same_v<Kernel, void (*)(Args)>, "the kernel takes these arguments, by value");
  static_assert(std::is_trivially_copyable_v<Args>, "the driver copies the arguments byte by byte");
  driver::launch({name, traits, &typeid(Args), sizeof(Args), alignof(Args)}, config, stream, &args);
}

}  // namespace sysgen

// decltype declares the kernel, but compiles nothing of it.
#define SYSGEN_LAUNCH(KERNEL, CONFIG, STREAM, ARGS)                              \
  ([&] {                                                                         \
    static_assert(std::string_view(#KERNEL).find('<') == std::string_view::npos, \
                  "a template is launched by SYSGEN_LAUNCH_TEMPLATE");           \
    ::sysgen::launch<decltype(&KERNEL)>(#KERNEL, nullptr, CONFIG, STREAM, ARGS); \
  }())
#define SYSGEN_LAUNCH_TEMPLATE(KERNEL, TRAITS, CONFIG, STREAM, ARGS) \
  ::sysgen::launch<decltype(&KERNEL<TRAITS>)>(#KERNEL, &typeid(TRAITS), CONFIG, STREAM, ARGS)
