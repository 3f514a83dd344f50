// Fibres: their stacks, the switch between them, and what the sanitizers must be told about it.
#include <pthread.h>
#include <sys/mman.h>

#include <cstdio>

#include "common/check.h"
#include "emulator/sanitizer.h"
#include "emulator/state.h"

// Saves the callee-saved registers and the stack pointer, and takes up another stack the same way.
extern "C" void sysgen_switch_stack(void** save, void* to);
asm(R"(
  .text
  .globl sysgen_switch_stack
  .hidden sysgen_switch_stack
  .type sysgen_switch_stack, @function
sysgen_switch_stack:
  .cfi_startproc
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .cfi_endproc
  .size sysgen_switch_stack, .-sysgen_switch_stack
)");

namespace sysgen::emulator {

ThreadContext* current = nullptr;

namespace {

constexpr size_t kStackBytes = size_t{256} << 10, kGuardBytes = 4096;
constexpr size_t kCopiesBytes = (kMaxCopies * sizeof(AsyncCopy) + 4095) / 4096 * 4096;
constexpr size_t kFibreBytes = kCopiesBytes + kGuardBytes + kStackBytes;
constexpr size_t kMaxFibres = 16384;
constexpr size_t kMaxTsanFibres = 7500;  // libtsan of GCC 12 has room for 8128 threads

Fibre* fibres = nullptr;
size_t num_fibres = 0;

void* host_stack_pointer = nullptr;
void* host_fake_stack = nullptr;
void* host_stack = nullptr;
size_t host_stack_bytes = 0;
void* host_tsan = nullptr;

char* map(size_t bytes) {  // address space; pages come with the first touch
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw Error("CUDA emulator: no address space left for the stacks of the CUDA threads");
  return static_cast<char*>(p);
}

}  // namespace

Fibre* fibres_for(size_t count) {
  const size_t most = has_tsan() ? kMaxTsanFibres : kMaxFibres;
  if (count > most)
    throw Error(cat(machine.kernel, ": the emulator has room for ", most,
                    " resident threads, the launch needs ", count, ": use fewer or smaller blocks"));
  if (!fibres) fibres = reinterpret_cast<Fibre*>(map(kMaxFibres * sizeof(Fibre)));
  if (count > num_fibres) {
    char* memory = map((count - num_fibres) * kFibreBytes);
    for (; num_fibres < count; ++num_fibres, memory += kFibreBytes) {
      Fibre& f = fibres[num_fibres];
      f.queue.copies = reinterpret_cast<AsyncCopy*>(memory);
      mprotect(memory + kCopiesBytes, kGuardBytes, PROT_NONE);
      f.stack = memory + kCopiesBytes + kGuardBytes;
      f.done = true;
      if (has_tsan()) f.tsan = __tsan_create_fiber(0);
    }
  }
  return fibres;
}

void prepare(Fibre& f, void (*entry)()) {
  // Stack tops on different cache sets, else a block's stacks evict one another.
  const size_t colour = f.context.linear * 320 % 3968 / 16 * 16;
  void** top = reinterpret_cast<void**>(f.stack + kStackBytes - 64 - colour);
  *--top = nullptr;  // the end of the call chain, for debuggers
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // the registers that the switch pops
  f.stack_pointer = top;
  f.fake_stack = nullptr;
  if (has_tsan()) {
    const ThreadContext& c = f.context;
    char name[160];
    std::snprintf(name, sizeof name, "%.80s block (%u,%u,%u) thread (%u,%u,%u)", machine.kernel, c.blockIdx.x,
                  c.blockIdx.y, c.blockIdx.z, c.threadIdx.x, c.threadIdx.y, c.threadIdx.z);
    __tsan_set_fiber_name(f.tsan, name);
  }
}

void note_host_stack() {
  if (has_tsan()) host_tsan = __tsan_get_current_fiber();
  if (has_asan()) {
    pthread_attr_t attributes;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &host_stack, &host_stack_bytes);
    pthread_attr_destroy(&attributes);
  }
}

void switch_to(Fibre* to) {
  Fibre* from = machine.running;
  if (to == from) return;
  ++counters.switches;
  machine.switching = true;
  machine.running = to;
  current = to ? &to->context : nullptr;
  if (has_asan()) {
    // Never a null pointer for the fake stack: libasan would free the fake stack of the host thread with it.
    __sanitizer_start_switch_fiber(from ? &from->fake_stack : &host_fake_stack, to ? to->stack : host_stack,
                                   to ? kStackBytes : host_stack_bytes);
  }
  if (has_tsan()) tsan_switch(to ? to->tsan : host_tsan);
  sysgen_switch_stack(from ? &from->stack_pointer : &host_stack_pointer,
                      to ? to->stack_pointer : host_stack_pointer);
  if (has_asan())
    __sanitizer_finish_switch_fiber(from ? from->fake_stack : host_fake_stack, nullptr, nullptr);
  machine.switching = false;
  if (from) end_if_timed_out();
}

void arrived_on_fibre() {
  if (has_asan()) __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
  machine.switching = false;
  end_if_timed_out();
}

void abandon_fibres() {
  for (size_t i = 0; i < num_fibres; ++i) {
    Fibre& f = fibres[i];
    if (f.done) continue;
    f.done = true;
    if (has_asan()) unpoison(f.stack, kStackBytes);
    if (!has_tsan()) continue;
    // What the fibre did happens before whatever the host does next. Its shadow call stack is stuck in the
    // kernel, so it gets a successor.
    tsan_switch(f.tsan);
    hb_release(&machine.end_edge);
    tsan_switch(host_tsan);
    __tsan_destroy_fiber(f.tsan);
    f.tsan = __tsan_create_fiber(0);
  }
  hb_acquire(&machine.end_edge);
}

// A release fence hands on what the thread did before it, a later relaxed atomic only carries that. So the
// atomic's edge is drawn by a second ThreadSanitizer fibre that learns nothing but what was before the
// fences.
void fence() {
  Fibre& f = *machine.running;
  for (unsigned i = 0; i < f.num_relaxed; ++i) hb_acquire(f.relaxed[i]);
  f.num_relaxed = 0;
  f.fenced = true;
  hb_release(&f.fence_clock);
}

void atomic_before(const void* p) {
  if (!has_tsan() || !machine.running->fenced) return;
  Fibre& f = *machine.running;
  if (!f.tsan_fenced) f.tsan_fenced = __tsan_create_fiber(0);
  tsan_switch(f.tsan_fenced);
  hb_acquire(&f.fence_clock);
  hb_release(p);
  tsan_switch(f.tsan);
}

void atomic_after(const void* p) {
  if (!has_tsan()) return;
  Fibre& f = *machine.running;
  for (unsigned i = 0; i < f.num_relaxed; ++i)
    if (f.relaxed[i] == p) return;
  if (f.num_relaxed < kMaxRelaxed) f.relaxed[f.num_relaxed++] = p;
}

}  // namespace sysgen::emulator
