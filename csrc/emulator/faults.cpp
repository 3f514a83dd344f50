// A kernel that crashes or does not end becomes an Error of its launch.
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "common/check.h"
#include "emulator/sanitizer.h"
#include "emulator/state.h"

// The function behind sigaction: ThreadSanitizer delays signals for handlers that it knows of, forever if the
// kernel loops without a call.
extern "C" int __sigaction(int signal, const struct sigaction* action, struct sigaction* old);

namespace sysgen::emulator {

namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE};
constexpr int kTimeoutSignal = SIGXCPU;

struct sigaction previous[NSIG];
thread_local bool guarded = false;
char signal_stack[64 << 10];  // a thread whose own stack is full needs another one
stack_t previous_stack;
timer_t timer;
double timeout_seconds = 120;

void on_fault(int signal, siginfo_t* info, void*) {
  if (!guarded || !machine.running) {  // not ours: let it happen again
    __sigaction(signal, &previous[signal], nullptr);
    return;
  }
  const Fibre& f = *machine.running;
  const char* address = static_cast<const char*>(info->si_addr);
  if (signal == SIGFPE)
    report(nullptr, "integer division by zero, or overflow of a division");
  else if (address < f.stack && address >= f.stack - 4096)
    report(nullptr, "the stack of a thread overflowed: endless recursion, or too large local arrays");
  else
    report(nullptr, "invalid access to address %p (build with -fsanitize=address for the line)",
           info->si_addr);
  end_kernel();
}

[[noreturn]] void end_timed_out_kernel() {
  const Location& where = machine.running->where;
  const bool synchronised = where.line() != 0;
  report(synchronised ? &where : nullptr,
         "no end after %g s of CPU time (SYSGEN_EMULATOR_TIMEOUT); the thread named below runs, %s",
         timeout_seconds, synchronised ? "its last synchronisation was" : "it has not synchronised yet");
  if (has_tsan()) {  // it may hold a lock of libtsan
    static_cast<void>(!write(2, machine.error, std::strlen(machine.error)));
    static_cast<void>(!write(2, "\n", 1));
    _exit(1);
  }
  end_kernel();
}

void on_timeout(int, siginfo_t*, void*) {
  if (!guarded) return;
  machine.timed_out = true;
  if (machine.running && !machine.switching) end_timed_out_kernel();
}

void install(int signal, void (*handler)(int, siginfo_t*, void*)) {
  struct sigaction action{};
  action.sa_sigaction = handler;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // a handler may leave for good
  __sigaction(signal, &action, &previous[signal]);
}

bool reports_faults() { return !has_asan() && !has_tsan(); }  // the sanitizers say more

void start_timer() {
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = kTimeoutSignal;
  event._sigev_un._tid = static_cast<pid_t>(syscall(SYS_gettid));
  if (timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer) != 0)
    throw Error("CUDA emulator: no timer for the time limit of a kernel");
  itimerspec spec{};
  spec.it_value.tv_sec = static_cast<time_t>(timeout_seconds);
  spec.it_value.tv_nsec =
      static_cast<long>((timeout_seconds - static_cast<double>(spec.it_value.tv_sec)) * 1e9);
  timer_settime(timer, 0, &spec, nullptr);
}

}  // namespace

void end_if_timed_out() {
  if (machine.timed_out) end_timed_out_kernel();
}

void set_timeout(double seconds) {
  if (!(seconds > 0))
    throw Error(cat("SYSGEN_EMULATOR_TIMEOUT: a positive number of seconds was expected, got ", seconds));
  timeout_seconds = seconds;
}

FaultGuard::FaultGuard() {
  machine.timed_out = false;
  machine.switching = false;
  start_timer();
  install(kTimeoutSignal, on_timeout);
  if (reports_faults()) {
    const stack_t alternative{signal_stack, 0, sizeof signal_stack};
    sigaltstack(&alternative, &previous_stack);
    for (int signal : kSignals) install(signal, on_fault);
  }
  guarded = true;
}

FaultGuard::~FaultGuard() {
  guarded = false;
  timer_delete(timer);
  if (reports_faults()) {
    for (int signal : kSignals) __sigaction(signal, &previous[signal], nullptr);
    sigaltstack(&previous_stack, nullptr);
  }
  __sigaction(kTimeoutSignal, &previous[kTimeoutSignal], nullptr);
}

}  // namespace sysgen::emulator
