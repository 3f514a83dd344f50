// What the emulated device functions ask of the runtime (the .cpp files of this folder).
//
// Every CUDA thread is a fibre. It runs until its next synchronisation point; then the scheduler picks
// another. The device functions that touch a kernel's memory are inline in the headers, so that the
// sanitizers see the access as the kernel's; the runtime itself is never instrumented.
#pragma once
#include <cstddef>
#include <cstdint>
#include <source_location>
#include <stdexcept>

#include "emulator/types.h"

namespace sysgen::emulator {

using Location = std::source_location;

// Any mistake that the emulator reports. The message names the kernel, and where they are known the file, the
// line, the block and the thread.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// ---- tests

// What the launches of this process have done since the counters were last set to zero.
struct Counters {
  uint64_t launches, blocks, threads;
  uint64_t switches;            // from one fibre to another
  uint64_t barriers;            // completed phases of __syncthreads and named barriers
  uint64_t warp_operations;     // completed shuffles, votes, __syncwarp, ldmatrix, mma
  uint64_t mma;                 // warp-wide mma instructions
  uint64_t ldmatrix_phases;     // 8-row reads of ldmatrix
  uint64_t ldmatrix_conflicts;  // further reads that bank conflicts cost
  uint64_t cp_async_bytes;
  uint64_t bulk_bytes;        // of TMA
  uint64_t wgmma;             // of a warpgroup
  uint64_t shared_phases;     // of load_shared, store_shared and cp.async: at most 128 bytes each
  uint64_t shared_conflicts;  // further ones that bank conflicts cost
};
extern Counters counters;

// The order in which blocks and threads run. The default comes from SYSGEN_EMULATOR_ORDER, which is forward,
// reverse or random:<seed>.
void set_order(const char* order);
// The CPU time that a launch may take; default 120 s, or SYSGEN_EMULATOR_TIMEOUT.
void set_timeout(double seconds);

// ---- launches

struct Grid {
  dim3 grid, block;
  size_t shared_bytes = 0;
  bool cooperative = false;  // all blocks are resident at once
};
void run_grid(const char* kernel, const Grid& grid, void (*body)(void*), void* arguments);

// ---- the calling CUDA thread

struct ThreadContext {
  uint3 threadIdx, blockIdx;
  dim3 blockDim, gridDim;
  unsigned linear, lane, warp;  // within the block; within the warp; of the warp
};
extern ThreadContext* current;  // null on the host

// Ends the kernel; the launch throws Error.
[[noreturn]] void fail(const Location& where, const char* format, ...) __attribute__((format(printf, 2, 3)));

// ---- synchronisation

enum class Reduce { none, count, all, any };
// All threads of the block, or `threads` of them, meet; the result is the reduction over their `value`.
int barrier(unsigned id, unsigned threads, const char* name, const Location& where, int value = 0,
            Reduce reduce = Reduce::none);
void spin(const Location& where);  // this thread waits for others in a loop: let them run
void progress();                   // what others spin on may have changed
void fence();
void atomic_before(const void* p);  // around every relaxed atomic, for the fences
void atomic_after(const void* p);

// ---- warp operations

// All lanes of the mask meet; the last to arrive computes every lane's result. Each lane gives a pointer to
// its operands, in a type that belongs to the operation.
struct WarpOperation {
  const char* name;
  void (*compute)(unsigned mask, void* const* lane_operands);
  bool orders_memory;  // __syncwarp alone
  bool aligned;        // every lane must come from the same place of the program
};
void warp_operation(const WarpOperation& operation, unsigned mask, void* operands, const Location& where);

struct Shuffle {
  uint64_t value, result;
  int argument, width;
};
struct Vote {
  uint64_t value, result;
};
struct MatrixLoad {
  const void* row;  // null where the lane gives no address
  uint32_t data[4], result[4];
  int count;
  bool transposed;
};
struct MatrixProduct {
  uint32_t a[4], b[2];
  float c[4], d[4];
};
extern const WarpOperation shfl, shfl_up, shfl_down, shfl_xor, ballot, match_any, reduce_add, reduce_min,
    reduce_max, reduce_min_signed, reduce_max_signed, reduce_and, reduce_or, reduce_xor, syncwarp, ldmatrix,
    mma_m16n8k16_bf16, mma_m16n8k16_f16, mma_m16n8k8_tf32;

// ---- shared memory

void* static_shared(const void* key, size_t bytes, const char* name, const Location& where);
void* dynamic_shared(unsigned index, size_t bytes, size_t alignment, const Location& where);
bool in_shared(const void* p, size_t bytes);
void note_shared_access(const void* p, unsigned bytes, const Location& where);  // counts bank conflicts
void poison(const void* p, size_t bytes);  // for AddressSanitizer, where it is linked
void unpoison(const void* p, size_t bytes);

// ---- asynchronous copies: the runtime keeps the queue

struct AsyncCopy {
  unsigned char* destination;
  unsigned bytes;
  Location where;
  alignas(16) unsigned char data[16];
};
AsyncCopy& async_issue(unsigned bytes, const Location& where);
void async_commit(const Location& where);
AsyncCopy* async_arrived(
    unsigned pending_groups);  // oldest copy not yet written of the groups that must be; or null

}  // namespace sysgen::emulator
