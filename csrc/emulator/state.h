// The state of the emulated machine, inside the runtime only.
//
// Fibres share it without locks: they run one at a time on the thread that launched the kernel. Whatever a
// fibre executes must not call memcpy, memset or the allocator on this state: ThreadSanitizer intercepts
// those and would report the scheduler itself as a race. Hence plain arrays, and fields that are reset one by
// one.
#pragma once
#include <cstddef>
#include <cstdint>

#include "emulator/runtime.h"

namespace sysgen::emulator {

inline constexpr unsigned kMaxThreads = 1024;  // of a block
inline constexpr unsigned kMaxWarps = kMaxThreads / 32;
inline constexpr unsigned kNumBarriers = 16;
inline constexpr unsigned kMaxSharedArrays = 64;
inline constexpr unsigned kMaxCopies = 512;  // cp.async in flight, of a thread
inline constexpr unsigned kMaxCopyGroups = 64;
inline constexpr unsigned kMaxRelaxed = 64;  // addresses of atomics between two fences of a thread

struct Block;
struct Warp;
struct AccessLog;
struct HopperBlock;
struct HopperThread;

struct CopyQueue {
  AsyncCopy* copies;                              // [kMaxCopies], used as a ring
  unsigned issued, arrived, committed, complete;  // running counts: of copies, and of groups
  unsigned group_end[kMaxCopyGroups];             // a ring as well
};

struct Fibre {
  ThreadContext context;
  Block* block;
  Warp* warp;
  const char* waiting;  // for what; null while it can run
  Location where;       // its last synchronisation
  bool done;            // or not started
  unsigned num_carved;  // dynamic shared arrays
  CopyQueue queue;

  char* stack;  // its lowest address
  void* stack_pointer;
  void* fake_stack;   // AddressSanitizer's
  void* tsan;         // ThreadSanitizer's fibre
  void* tsan_fenced;  // a second one that only knows what this thread did before its last fence
  bool fenced;
  char fence_clock;  // its address carries that knowledge from one to the other
  unsigned num_relaxed;
  const void* relaxed[kMaxRelaxed];
  HopperThread* hopper;  // null until it needs one
};

struct Barrier {
  unsigned arrived, expected, phase;
  const char* name;
  Location where;
  int count;   // of the values that are not zero
  int result;  // of the phase that was completed last
  Fibre* waiting[kMaxThreads];
};

struct Meeting {  // lanes on their way into one warp operation
  const WarpOperation* operation;
  unsigned mask, arrived, number;
  Location where;
  void* operands[32];
  Fibre* lanes[32];
};

struct Warp {
  unsigned alive;
  unsigned num_meetings, next_number;
  Meeting meetings[32];
};

struct SharedArray {
  const void* key;  // of a static array; null for a dynamic one
  const char* name;
  Location where;
  char* data;
  size_t bytes;
};

struct Block {
  uint3 index;
  unsigned threads, alive;
  Fibre* fibres;
  Warp warps[kMaxWarps];
  Barrier barriers[kNumBarriers];
  char* arena;
  size_t arena_used, static_bytes, dynamic_bytes;
  SharedArray statics[kMaxSharedArrays], dynamics[kMaxSharedArrays];
  unsigned num_statics, num_dynamics;
  AccessLog* accesses;  // null until the first
  HopperBlock* hopper;  // null until it needs one
  char* edges;          // addresses for its happens-before edges; never shared by two blocks
};

enum class Order { forward, reverse, random };

inline bool same_place(const Location& a, const Location& b) {
  return a.line() == b.line() && a.column() == b.column() && a.file_name() == b.file_name();
}

struct Machine {
  // the launch
  const char* kernel;
  Grid grid;
  void (*body)(void*);
  void* arguments;
  bool failed;
  char error[4096];
  unsigned alive;  // threads of the resident blocks
  uint64_t idle_spins;

  volatile bool switching;  // between two stacks: a signal must not leave the kernel now
  volatile bool timed_out;

  // the order
  Order order;
  uint64_t seed, random_state;

  // ready to run: a ring, and on top of it the lanes of warp operations that are just complete
  Fibre* running;  // null: the scheduler
  Fibre** ring;
  unsigned ring_size, ring_head, ring_count;
  Fibre** stack;
  unsigned stack_count;

  char start_edge, end_edge;  // the launch happens before its threads, and they before its return
};
extern Machine machine;

// scheduler.cpp
void make_ready(Fibre* f);
void make_next(Fibre* f);
void wait(const char* what, const Location& where);  // until somebody makes this fibre ready
void switch_to_next();
unsigned random_below(unsigned n);
[[noreturn]] void end_kernel();  // leaves the running fibre for good

// fibre.cpp
Fibre* fibres_for(size_t count);  // at least so many, with stacks
void prepare(Fibre& f, void (*entry)());
void note_host_stack();
void switch_to(Fibre* to);  // null: the scheduler
void arrived_on_fibre();    // first thing on a fresh stack
void abandon_fibres();      // after an error: they are stuck in the middle of a kernel

// sync.cpp
void leave_warp(Fibre& f);

// shared.cpp
char* arenas_for(unsigned blocks);
inline constexpr size_t kArenaBytes = size_t{512} << 10;
void check_redzones(const Block& b);
void clear_shared(Block& b);
char* fresh_edges();

// banks.cpp
void end_shared_accesses(Block& b, bool counted);  // of instructions that some lanes stayed away from

// The edges of a block: of its barriers, of the meetings of its warps, of its mbarriers.
inline constexpr unsigned kMeetingEdges = 64, kMaxMbarriers = 64;
inline constexpr size_t kMbarrierEdges = (kNumBarriers * 2 + kMaxWarps * kMeetingEdges) * 8;

// hopper.cpp
void clear_hopper(Block& b);
void clear_hopper(Fibre& f);
void check_hopper_done(const Block& b);
void check_hopper_done(const Fibre& f);
void note_cp_async(const AsyncCopy& copy, Fibre* writer);  // it has arrived

// async_copy.cpp
void clear_copies(CopyQueue& q);
void check_copies_done(const Fibre& f);

// faults.cpp
void end_if_timed_out();
struct FaultGuard {  // while a kernel runs: a crash or a hang becomes an Error
  FaultGuard();
  ~FaultGuard();
};

// report.cpp
void report(const Location* where, const char* format, ...) __attribute__((format(printf, 2, 3)));
void report_deadlock(const Block* blocks, unsigned count);

}  // namespace sysgen::emulator
