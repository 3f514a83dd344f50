#include "device/launch_driver.h"

#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>

namespace sysgen {
namespace {

thread_local int current_device = 0;

}  // namespace

DeviceGuard::DeviceGuard(int index) : previous_(current_device) { current_device = index; }
DeviceGuard::~DeviceGuard() { current_device = previous_; }

namespace driver {
namespace {

using Result = int;
using Handle = void*;

// The entry points of libcuda that a launch needs, as cuda.h declares them.
struct Api {
  Result (*init)(unsigned flags);
  Result (*device_get)(int* device, int ordinal);
  Result (*device_attribute)(int* value, int attribute, int device);
  Result (*primary_retain)(Handle* context, int device);
  Result (*context_get)(Handle* context);
  Result (*context_push)(Handle context);
  Result (*context_pop)(Handle* context);
  Result (*module_load)(Handle* module, const void* image);
  Result (*module_function)(Handle* function, Handle module, const char* name);
  Result (*function_set)(Handle function, int attribute, int value);
  Result (*launch)(Handle function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                   unsigned shared, Handle stream, void** parameters, void** extra);
  Result (*launch_cooperative)(Handle function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                               unsigned shared, Handle stream, void** parameters);
  Result (*error_name)(Result error, const char** text);
  Result (*error_text)(Result error, const char** text);
};

constexpr int kMajor = 75, kMinor = 76;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
constexpr int kMultiprocessors = 16;     // CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
constexpr int kMostSharedBytes = 97;     // CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
constexpr int kDynamicSharedBytes = 8;   // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr size_t kSharedWithoutAsking = 48 * 1024;

void check_result(const Api& api, Result result, const char* what) {
  if (result == 0) return;
  const char *name = "unknown error", *text = "";
  api.error_name(result, &name);
  api.error_text(result, &text);
  throw std::runtime_error(cat(what, ": ", name, ": ", text));
}

Api load_api(const char* kernel) {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library)
    throw std::runtime_error(
        cat(kernel, ": no NVIDIA driver on this machine (", dlerror(), "); move the tensors to the CPU"));
  Api api{};
  const auto find = [&](auto& entry, const char* name) {
    entry = reinterpret_cast<std::decay_t<decltype(entry)>>(dlsym(library, name));
    if (!entry) throw std::runtime_error(cat(kernel, ": the NVIDIA driver has no ", name, "; update it"));
  };
  find(api.init, "cuInit");
  find(api.device_get, "cuDeviceGet");
  find(api.device_attribute, "cuDeviceGetAttribute");
  find(api.primary_retain, "cuDevicePrimaryCtxRetain");
  find(api.context_get, "cuCtxGetCurrent");
  find(api.context_push, "cuCtxPushCurrent_v2");
  find(api.context_pop, "cuCtxPopCurrent_v2");
  find(api.module_load, "cuModuleLoadData");
  find(api.module_function, "cuModuleGetFunction");
  find(api.function_set, "cuFuncSetAttribute");
  find(api.launch, "cuLaunchKernel");
  find(api.launch_cooperative, "cuLaunchCooperativeKernel");
  find(api.error_name, "cuGetErrorName");
  find(api.error_text, "cuGetErrorString");
  check_result(api, api.init(0), kernel);
  return api;
}

const Api& api_for(const char* kernel) {
  static const Api api = load_api(kernel);  // tried again if it throws
  return api;
}

// Makes the context that torch uses current for a scope: autograd's threads may have none.
class ContextGuard {
 public:
  ContextGuard(const Api& api, int device, const char* kernel) : api_(api) {
    const Handle context = primary_context(api, device, kernel);
    Handle current = nullptr;
    check_result(api, api.context_get(&current), kernel);
    if (current == context) return;
    check_result(api, api.context_push(context), kernel);
    pushed_ = true;
  }
  ~ContextGuard() {
    Handle context;
    if (pushed_) api_.context_pop(&context);
  }
  ContextGuard(const ContextGuard&) = delete;
  ContextGuard& operator=(const ContextGuard&) = delete;

 private:
  static Handle primary_context(const Api& api, int device, const char* kernel) {
    static std::mutex mutex;
    static std::map<int, Handle> contexts;  // retained once, for the life of the process
    const std::lock_guard lock(mutex);
    if (const auto found = contexts.find(device); found != contexts.end()) return found->second;
    int handle = 0;
    Handle context = nullptr;
    check_result(api, api.device_get(&handle, device), kernel);
    check_result(api, api.primary_retain(&context, handle), kernel);
    contexts.emplace(device, context);
    return context;
  }

  const Api& api_;
  bool pushed_ = false;
};

std::string type_name(const std::type_info& type) {
  const std::unique_ptr<char, void (*)(void*)> name(
      abi::__cxa_demangle(type.name(), nullptr, nullptr, nullptr), std::free);
  return name ? name.get() : type.name();
}

KernelSource source_of(const KernelId& id) {
  std::string kernel = cat("sysgen::", id.name);
  if (id.traits) kernel += cat("<", type_name(*id.traits), ">");
  return {kernel, type_name(*id.arguments), id.bytes, id.alignment};
}

Compiler& compiler() {
  static Compiler* const held = new Compiler;  // outlives Python, whose objects it may hold
  return *held;
}

std::vector<KernelId>& all_kernels() {  // they are added before this file's own variables exist
  static std::vector<KernelId> all;
  return all;
}

thread_local DryRun* dry_run = nullptr;

Handle compile(const Api& api, const KernelId& id, int device) {
  if (!compiler()) throw std::runtime_error(cat(id.name, ": no compiler is registered; import sysgen"));
  int handle = 0, major = 0, minor = 0;
  check_result(api, api.device_get(&handle, device), id.name);
  check_result(api, api.device_attribute(&major, kMajor, handle), id.name);
  check_result(api, api.device_attribute(&minor, kMinor, handle), id.name);
  const KernelImage code = compiler()(source_of(id), 10 * major + minor);
  Handle module = nullptr, function = nullptr;  // never unloaded: launches may be under way at any time
  check_result(api, api.module_load(&module, code.image.data()), id.name);
  check_result(api, api.module_function(&function, module, code.entry.c_str()), id.name);
  return function;
}

// The lock is not held while Python compiles: two threads may compile the same kernel, none can wait for the
// other's GIL.
Handle function_of(const Api& api, const KernelId& id, int device) {
  static std::mutex mutex;
  static std::map<std::tuple<const char*, const std::type_info*, int>, Handle> functions;
  const std::tuple key{id.name, id.traits, device};
  {
    const std::lock_guard lock(mutex);
    if (const auto found = functions.find(key); found != functions.end()) return found->second;
  }
  const Handle function = compile(api, id, device);
  const std::lock_guard lock(mutex);
  return functions.emplace(key, function).first->second;
}

// A function belongs to one device. Its limit is only ever raised: another thread may be about to launch it
// with more, and to set it may wait for copies that are under way.
void allow_shared(const Api& api, Handle function, size_t bytes, const char* what) {
  static std::mutex mutex;
  static std::map<Handle, size_t> limits;
  const std::lock_guard lock(mutex);
  size_t& limit = limits[function];
  if (bytes <= limit) return;
  check_result(api, api.function_set(function, kDynamicSharedBytes, static_cast<int>(bytes)), what);
  limit = bytes;
}

}  // namespace

void set_compiler(Compiler c) { compiler() = std::move(c); }

bool add_kernel(const KernelId& id) {
  all_kernels().push_back(id);
  return true;
}
std::vector<KernelSource> kernels() {
  std::vector<KernelSource> sources;
  for (const KernelId& id : all_kernels()) sources.push_back(source_of(id));
  return sources;
}

DryRun::DryRun() { dry_run = this; }
DryRun::~DryRun() { dry_run = nullptr; }

void launch(const KernelId& id, const LaunchConfig& config, void* stream, const void* arguments) {
  if (dry_run) {
    dry_run->launches.push_back(source_of(id));
    return;
  }
  const Api& api = api_for(id.name);
  const ContextGuard guard(api, current_device, id.name);
  const Handle function = function_of(api, id, current_device);
  if (config.shared_bytes > kSharedWithoutAsking) allow_shared(api, function, config.shared_bytes, id.name);
  void* parameters[] = {const_cast<void*>(arguments)};
  const dim3 &g = config.grid, &b = config.block;
  const unsigned shared = static_cast<unsigned>(config.shared_bytes);
  check_result(
      api,
      config.cooperative
          ? api.launch_cooperative(function, g.x, g.y, g.z, b.x, b.y, b.z, shared, stream, parameters)
          : api.launch(function, g.x, g.y, g.z, b.x, b.y, b.z, shared, stream, parameters, nullptr),
      id.name);
}

}  // namespace driver

namespace driver {

int attribute(int which, const char* what) {
  const Api& api = api_for(what);
  int handle = 0, value = 0;
  check_result(api, api.device_get(&handle, current_device), what);
  check_result(api, api.device_attribute(&value, which, handle), what);
  return value;
}

}  // namespace driver

int num_multiprocessors(const char* what) {
  return driver::dry_run ? 1 : driver::attribute(driver::kMultiprocessors, what);
}
int most_shared_bytes(const char* what) {
  return driver::dry_run ? 0 : driver::attribute(driver::kMostSharedBytes, what);
}

}  // namespace sysgen
