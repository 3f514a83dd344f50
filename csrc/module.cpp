// The extension module: one line per operation family.
#include <pybind11/pybind11.h>

#include "common/build_info_bind.h"
#include "common/check.h"
#include "content/content_bind.h"
#include "cvmm/cvmm_bind.h"
#include "dnc/dnc_bind.h"
#include "geometric_attention/geometric_attention_bind.h"
#include "links/links_bind.h"
#include "moe_ffn/moe_ffn_bind.h"
#include "ntm/ntm_bind.h"
#include "router/select_experts_bind.h"
#include "routing/route_bind.h"
#if !defined(SYSGEN_EMULATOR)
#include "common/kept_blocks_bind.h"
#include "gated_update/gated_update_bind.h"
#include "tasks/tasks_bind.h"
#endif
#if defined(SYSGEN_DRIVER_LAUNCH)
#include "device/launch_driver_bind.h"
#endif

#if !defined(SYSGEN_MODULE)  // the test builds have other names: pybind11 keeps one module of a name
#define SYSGEN_MODULE _core
#endif

PYBIND11_MODULE(SYSGEN_MODULE, m) {
  m.doc() = "Compiled kernels of sysgen. They neither allocate nor synchronise; call sysgen.ops instead.";
  pybind11::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const sysgen::TypeError& e) {
      PyErr_SetString(PyExc_TypeError, e.what());
    } catch (const sysgen::ValueError& e) {
      PyErr_SetString(PyExc_ValueError, e.what());
    } catch (const sysgen::NotImplementedError& e) {
      PyErr_SetString(PyExc_NotImplementedError, e.what());
    }
  });
  sysgen::register_build_info(m);
  sysgen::register_routing(m);
  sysgen::register_cvmm(m);
  sysgen::register_dnc(m);
  sysgen::register_geometric_attention(m);
  sysgen::register_content(m);
  sysgen::register_links(m);
  sysgen::register_moe_ffn(m);
  sysgen::register_ntm(m);
  sysgen::register_router(m);
#if !defined(SYSGEN_EMULATOR)
  sysgen::register_kept_blocks(m);
  sysgen::register_gated_update(m);
  sysgen::register_tasks(m);
#endif
#if defined(SYSGEN_DRIVER_LAUNCH)
  sysgen::register_launch_driver(m);
#endif
}
