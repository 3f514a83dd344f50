// Python's side of launches by name: who compiles, and which kernels a call would start.
#pragma once
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "device/launch_driver.h"

namespace sysgen {

inline void register_launch_driver(pybind11::module_& m) {
  namespace py = pybind11;
  // compile(kernel, arguments, bytes, alignment, capability) -> (cubin, entry)
  m.def("set_kernel_compiler", [](py::function compile) {
    driver::set_compiler([compile](const driver::KernelSource& s, int capability) {
      const py::gil_scoped_acquire gil;
      const auto [image, entry] = compile(s.kernel, s.arguments, s.bytes, s.alignment, capability)
                                      .cast<std::pair<std::string, std::string>>();
      return driver::KernelImage{image, entry};
    });
  });
  m.def("dry_run", [](const py::function& call) {
    driver::DryRun run;
    call();
    py::list kernels;
    for (const auto& s : run.launches)
      kernels.append(py::make_tuple(s.kernel, s.arguments, s.bytes, s.alignment));
    return kernels;
  });
}

}  // namespace sysgen
