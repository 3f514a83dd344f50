// Host side of a launch: the only place that knows the CUDA runtime. Launchers fill one argument struct and
// call SYSGEN_LAUNCH, or SYSGEN_LAUNCH_TEMPLATE for a kernel with one type parameter. The macros have two
// further bodies: the emulator's, and the driver's for a core that was built without nvcc.
#pragma once
#include <cstddef>

#include "common/check.h"
#include "device/device.cuh"

#if defined(SYSGEN_DRIVER_LAUNCH)
#include "device/launch_driver.h"
#elif defined(SYSGEN_EMULATOR)
#include "emulator/launch.h"
#else
#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <utility>

namespace sysgen {

struct LaunchConfig {
  dim3 grid, block;
  size_t shared_bytes = 0;
  bool cooperative = false;  // all blocks are resident at once, or it is an error
};

inline void throw_on_cuda_error(cudaError_t e, const char* what) {
  if (e == cudaSuccess) return;
  cudaGetLastError();  // forget it: the next CUDA call of somebody else must not report it again
  int driver = 0;
  if (e == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0)
    throw std::runtime_error(cat(what, ": no NVIDIA driver on this machine; move the tensors to the CPU"));
  if (e == cudaErrorNoKernelImageForDevice)
    throw std::runtime_error(cat(what,
                                 ": sysgen was built for other GPU architectures than this device's; "
                                 "rebuild with SYSGEN_CUDA_ARCHS (python -m sysgen.info shows both)"));
  throw std::runtime_error(cat(what, ": ", cudaGetErrorName(e), ": ", cudaGetErrorString(e)));
}

// Makes `index` the current device for a scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int index) {
    throw_on_cuda_error(cudaGetDevice(&previous_), "cudaGetDevice");
    if (previous_ != index) throw_on_cuda_error(cudaSetDevice(index), "cudaSetDevice");
    changed_ = previous_ != index;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

// Lets a kernel have so much dynamic shared memory on the current device. The limit is only ever raised:
// another thread may be about to launch the kernel with more, and to set it may wait for copies that are
// under way.
inline void allow_shared(const void* kernel, size_t bytes, const char* what) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, size_t> limits;
  int device = 0;
  throw_on_cuda_error(cudaGetDevice(&device), what);
  const std::lock_guard lock(mutex);
  size_t& limit = limits[{kernel, device}];
  if (bytes <= limit) return;
  throw_on_cuda_error(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
      what);
  limit = bytes;
}

template <class Args>
void launch(const char* name, void (*kernel)(Args), const LaunchConfig& config, void* stream,
            const Args& args) {
  void* parameters[] = {const_cast<Args*>(&args)};
  const void* const entry = reinterpret_cast<const void*>(kernel);
  if (config.shared_bytes > 48 * 1024) allow_shared(entry, config.shared_bytes, name);
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  throw_on_cuda_error(
      config.cooperative
          ? cudaLaunchCooperativeKernel(entry, config.grid, config.block, parameters, config.shared_bytes, on)
          : cudaLaunchKernel(entry, config.grid, config.block, parameters, config.shared_bytes, on),
      name);
}

// Of the current device: what a launcher with `cooperative` must fit its grid to.
inline int num_multiprocessors(const char* what) {
  int device = 0, count = 0;
  throw_on_cuda_error(cudaGetDevice(&device), what);
  throw_on_cuda_error(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), what);
  return count;
}

// Bytes of shared memory that a block can have on the current device, static ones included.
inline int most_shared_bytes(const char* what) {
  int device = 0, bytes = 0;
  throw_on_cuda_error(cudaGetDevice(&device), what);
  throw_on_cuda_error(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), what);
  return bytes;
}

// 10 * major + minor of the current device.
inline int compute_capability(const char* what) {
  int device = 0, major = 0, minor = 0;
  throw_on_cuda_error(cudaGetDevice(&device), what);
  throw_on_cuda_error(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), what);
  throw_on_cuda_error(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), what);
  return 10 * major + minor;
}

}  // namespace sysgen
#endif

#if !defined(SYSGEN_DRIVER_LAUNCH)
#define SYSGEN_LAUNCH(KERNEL, CONFIG, STREAM, ARGS) ::sysgen::launch(#KERNEL, &KERNEL, CONFIG, STREAM, ARGS)
#define SYSGEN_LAUNCH_TEMPLATE(KERNEL, TRAITS, CONFIG, STREAM, ARGS) \
  SYSGEN_LAUNCH(KERNEL<TRAITS>, CONFIG, STREAM, ARGS)
#endif
