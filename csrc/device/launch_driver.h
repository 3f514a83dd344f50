// The body of device/launch.h for a core that was built without nvcc. g++ compiles the launchers and knows a
// kernel only by its name; a compiler that Python registers (sysgen/_nvrtc.py) turns the name into code at
// the first launch, and the driver starts it. Nothing here is linked to CUDA.
#pragma once
#include <algorithm>
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
  bool cooperative = false;  // all blocks are resident at once, or it is an error
};

// Of this thread's device; 1 while launches are noted instead of done.
int num_multiprocessors(const char* what);

// Bytes of shared memory that a block can have on it, static ones included; 0 while launches are noted.
int most_shared_bytes(const char* what);

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

// A kernel's name as a template argument.
template <size_t kSize>
struct KernelName {
  char text[kSize];
  constexpr KernelName(const char (&name)[kSize]) { std::copy_n(name, kSize, text); }
};

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

// Every kernel that a launcher of this library names, launched or not.
std::vector<KernelSource> kernels();
bool add_kernel(const KernelId& id);

template <KernelName kName, class Traits, class Args>
struct Kernel {
  static KernelId id() {
    const std::type_info* traits = std::is_void_v<Traits> ? nullptr : &typeid(Traits);
    return {kName.text, traits, &typeid(Args), sizeof(Args), alignof(Args)};
  }
  static inline const bool added = add_kernel(id());  // when the library is loaded
};

}  // namespace driver

template <driver::KernelName kName, class Traits, class Function, class Args>
void launch(const LaunchConfig& config, void* stream, const Args& args) {
  static_assert(std::string_view(kName.text).find('<') == std::string_view::npos,
                "a template is launched by SYSGEN_LAUNCH_TEMPLATE");
  static_assert(std::is_same_v<Function, void (*)(Args)>, "the kernel takes these arguments, by value");
  static_assert(std::is_trivially_copyable_v<Args>, "the driver copies the arguments byte by byte");
  using Kernel = driver::Kernel<kName, Traits, Args>;
  static_cast<void>(Kernel::added);
  driver::launch(Kernel::id(), config, stream, &args);
}

}  // namespace sysgen

// decltype declares the kernel, but compiles nothing of it.
#define SYSGEN_LAUNCH(KERNEL, CONFIG, STREAM, ARGS) \
  ::sysgen::launch<#KERNEL, void, decltype(&KERNEL)>(CONFIG, STREAM, ARGS)
#define SYSGEN_LAUNCH_TEMPLATE(KERNEL, TRAITS, CONFIG, STREAM, ARGS) \
  ::sysgen::launch<#KERNEL, TRAITS, decltype(&KERNEL<TRAITS>)>(CONFIG, STREAM, ARGS)
