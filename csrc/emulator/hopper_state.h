// What the runtime keeps of mbarriers, TMA and wgmma: a part of each block and each thread that uses them.
#pragma once
#include "emulator/hopper_runtime.h"
#include "emulator/state.h"

namespace sysgen::emulator {

inline constexpr unsigned kMaxPending = 4096, kMaxBulk = 128, kMaxBulkBytes = 256 * 128, kMaxRunning = 16,
                          kChunks = kArenaBytes / 16;

struct MbarrierState {
  const void* address;
  unsigned arrivals, missing;  // of a phase; of this one
  int64_t bytes;               // announced and not yet there
  unsigned phase;
  uint64_t waiting[kMaxThreads / 64];  // threads
};

struct Pending {  // a copy that will arrive at a barrier
  MbarrierState* barrier;
  Location where;
  Fibre* thread;  // cp.async: all its copies up to the number `copies`
  unsigned copies;
  unsigned char* destination;  // TMA
  unsigned bytes, swizzle, bulk;
};

struct Warpgroup {  // threads on their way into one operation
  const char* name;
  Location where;
  unsigned arrived;
  Fibre* threads[128];
  WgmmaOperands* operands[128];
};

struct HopperBlock {
  MbarrierState barriers[kMaxMbarriers];
  unsigned num_barriers;
  Pending pending[kMaxPending];
  unsigned num_pending;
  bool bulk_used[kMaxBulk];
  unsigned char bulk[kMaxBulk][kMaxBulkBytes];  // what TMA has read
  Warpgroup groups[kMaxThreads / 128];
  // Chunks of 16 bytes that cp.async has written: when, and by whom. What is older than `start` was another
  // block.
  uint64_t start, written[kChunks];
  Fibre* writer[kChunks];
};

struct HopperThread {
  uint64_t fence;  // when it last fenced the proxies
  bool wgmma_fenced;
  // Running counts: of wgmma, of groups, of groups that were waited for.
  unsigned issued, committed, complete;
  unsigned group_end[kMaxRunning];
  unsigned checked, checked_chunks, delivered;  // wgmma whose operands and results were looked at
  struct Running {
    WgmmaOperands operands;
    Location where;
  } running[kMaxRunning];  // rings, both
  WgmmaResult result;
};

HopperBlock& hopper(Block& b);
HopperThread& hopper(Fibre& f);
const unsigned char* shared_at(uint32_t address);
bool is_shared_address(uint32_t address);
bool proxies_are_fenced(const void* chunk);  // between the cp.async that wrote it and this thread

}  // namespace sysgen::emulator
