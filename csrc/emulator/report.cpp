// What the emulator says when a kernel is wrong.
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "emulator/sanitizer.h"
#include "emulator/state.h"

namespace sysgen::emulator {

namespace {

// The path below csrc or tests, which is how people name a file.
const char* short_name(const char* path) {
  const char* found = path;
  for (const char* root : {"/csrc/", "/tests/"})
    if (const char* p = std::strstr(path, root)) found = p + 1;
  return found;
}

struct Writer {
  char* at = machine.error;
  size_t room = sizeof machine.error;
  void write(const char* format, va_list values) {
    const int n = std::vsnprintf(at, room, format, values);
    const size_t used = n < 0 ? 0 : static_cast<size_t>(n) < room ? static_cast<size_t>(n) : room - 1;
    at += used;
    room -= used;
  }
  void operator()(const char* format, ...) __attribute__((format(printf, 2, 3))) {
    va_list values;
    va_start(values, format);
    write(format, values);
    va_end(values);
  }
  void place(const Location& where) {
    if (where.line())
      (*this)(" at %s:%u", short_name(where.file_name()), static_cast<unsigned>(where.line()));
  }
};

void write_report(const Location* where, const char* format, va_list values) {
  Writer out;
  out("%s: ", machine.kernel);
  out.write(format, values);
  if (where) out.place(*where);
  if (const Fibre* f = machine.running) {
    const ThreadContext& c = f->context;
    out(", block (%u,%u,%u) thread (%u,%u,%u)", c.blockIdx.x, c.blockIdx.y, c.blockIdx.z, c.threadIdx.x,
        c.threadIdx.y, c.threadIdx.z);
  }
  machine.failed = true;
}

bool same(const Fibre& a, const Fibre& b) {
  return a.block == b.block && a.waiting == b.waiting && a.where.line() == b.where.line() &&
         a.where.file_name() == b.where.file_name();
}

}  // namespace

void report(const Location* where, const char* format, ...) {
  va_list values;
  va_start(values, format);
  write_report(where, format, values);
  va_end(values);
}

void fail(const Location& where, const char* format, ...) {
  va_list values;
  va_start(values, format);
  write_report(&where, format, values);
  va_end(values);
  end_kernel();
}

void report_deadlock(const Block* blocks, unsigned count) {
  constexpr int kMostLines = 12;
  Writer out;
  out("%s: deadlock: %u threads wait and nothing can wake them:", machine.kernel, machine.alive);
  int lines = 0;
  for (unsigned k = 0; k < count; ++k) {
    const Block& b = blocks[k];
    for (unsigned t = 0; t < b.threads; ++t) {
      const Fibre& f = b.fibres[t];
      if (f.done) continue;
      bool first = true;
      unsigned like_it = 0;
      for (unsigned o = 0; o < b.threads; ++o) {
        if (b.fibres[o].done || !same(f, b.fibres[o])) continue;
        if (o < t) first = false;
        ++like_it;
      }
      if (!first || ++lines > kMostLines) continue;
      const ThreadContext& c = f.context;
      out("\n  block (%u,%u,%u): %u threads, the first is thread (%u,%u,%u), wait in %s", c.blockIdx.x,
          c.blockIdx.y, c.blockIdx.z, like_it, c.threadIdx.x, c.threadIdx.y, c.threadIdx.z,
          f.waiting ? f.waiting : "a spin loop");
      out.place(f.where);
    }
  }
  if (lines > kMostLines) out("\n  and %d more groups", lines - kMostLines);
  machine.failed = true;
}

}  // namespace sysgen::emulator

// AddressSanitizer calls this before it writes its report.
extern "C" void __asan_on_error() {
  using namespace sysgen::emulator;
  if (!machine.running) return;
  const ThreadContext& c = machine.running->context;
  std::fprintf(stderr, "%s: the report below is of block (%u,%u,%u) thread (%u,%u,%u)\n", machine.kernel,
               c.blockIdx.x, c.blockIdx.y, c.blockIdx.z, c.threadIdx.x, c.threadIdx.y, c.threadIdx.z);
}
