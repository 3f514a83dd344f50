// What the core says about itself and the machine, and the switch of the instruction-set level that tests
// use.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "common/arguments.h"
#include "common/cpu.h"

namespace sysgen {

inline void register_build_info(pybind11::module_& m) {
  namespace py = pybind11;
  m.attr("version") = SYSGEN_VERSION;
  m.attr("emulated") = kEmulated;  // the CUDA kernels run on the host, over CPU tensors
#if defined(SYSGEN_CUDA_ROUTE)
  m.attr("cuda_route") = SYSGEN_CUDA_ROUTE;
#else
  m.attr("cuda_route") = py::none();
#endif
#if defined(SYSGEN_CUDA_ARCHS)
  m.attr("cuda_version") = SYSGEN_CUDA_VERSION;
  m.attr("cuda_archs") = SYSGEN_CUDA_ARCHS;
#else
  m.attr("cuda_version") = py::none();
  m.attr("cuda_archs") = py::none();
#endif
  m.def("cpu_isa", [] { return std::string(isa_name(isa_in_use())); });
  m.def("cpu_isas", [] {  // built and supported by this machine
    std::vector<std::string> names;
    for (int i = 0; i < kNumIsas; ++i)
      if (isa_supported(static_cast<Isa>(i))) names.emplace_back(isa_name(static_cast<Isa>(i)));
    return names;
  });
  m.def("set_cpu_isa", [](const std::string& name) {
    std::string allowed;
    for (int i = 0; i < kNumIsas; ++i) {
      const Isa isa = static_cast<Isa>(i);
      if (!isa_supported(isa)) continue;
      if (name == isa_name(isa)) return set_isa(isa);
      allowed += (allowed.empty() ? "" : ", ") + std::string(isa_name(isa));
    }
    throw ValueError(cat("set_cpu_isa: this machine and build have ", allowed, ", got ", name));
  });
}

}  // namespace sysgen
