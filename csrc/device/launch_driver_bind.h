// Python's side of launches by name: who compiles, and which kernels there are.
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
  // Kernels as (kernel, arguments, bytes, alignment): all of this library, and those that a call would
  // launch.
  const auto described = [](const std::vector<driver::KernelSource>& kernels) {
    py::list list;
    for (const auto& s : kernels) list.append(py::make_tuple(s.kernel, s.arguments, s.bytes, s.alignment));
    return list;
  };
  m.def("kernels", [described] { return described(driver::kernels()); });
  m.def("dry_run", [described](const py::function& call) {
    driver::DryRun run;
    call();
    return described(run.launches);
  });
}

}  // namespace sysgen
