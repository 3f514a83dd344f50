// Memory that the C library has just taken from the system costs a page fault every 4 KiB when a kernel first
// writes to it: more time than many kernels need themselves. With huge pages it is one every 2 MiB.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sysgen {

// A hint, for whole pages within `bytes` from `address` on; without effect where the system has none.
inline void use_huge_pages(std::uintptr_t address, std::uintptr_t bytes) {
#if defined(__linux__)
  constexpr std::uintptr_t kPage = 4096;
  const std::uintptr_t begin = (address + kPage - 1) & ~(kPage - 1), end = (address + bytes) & ~(kPage - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

inline void register_huge_pages(pybind11::module_& m) { m.def("use_huge_pages", &use_huge_pages); }

}  // namespace sysgen
