// The host's body of device/launch.h. A launch has finished when it returns; the stream is not looked at.
#pragma once
#include <stdexcept>

#include "common/check.h"
#include "emulator/runtime.h"

namespace sysgen {

using LaunchConfig = emulator::Grid;

class DeviceGuard {
 public:
  explicit DeviceGuard(int index) {
    if (index != 0) throw std::runtime_error(cat("the CUDA emulator has device 0 only, got device ", index));
  }
};

template <class Args>
void launch(const char* name, void (*kernel)(Args), const LaunchConfig& config, void* /*stream*/,
            const Args& args) {
  struct Call {
    void (*kernel)(Args);
    const Args& args;
  } call{kernel, args};
  emulator::run_grid(
      name, config,
      [](void* p) {
        const Call& c = *static_cast<Call*>(p);
        c.kernel(c.args);
      },
      &call);
}

// Few, so that tests see launchers that have more work than blocks.
inline int num_multiprocessors(const char* /*what*/) { return 4; }

inline int most_shared_bytes(const char* /*what*/) { return 227 << 10; }

inline int compute_capability(const char* /*what*/) { return 90; }

}  // namespace sysgen
