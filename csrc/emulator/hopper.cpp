// mbarriers, and the copies that arrive at them.
#include <sys/mman.h>

#include "emulator/hopper_state.h"
#include "emulator/sanitizer.h"

// No loop here may become a call of memset or memcpy, which ThreadSanitizer would take for the running
// thread's.
#pragma GCC optimize("no-tree-loop-distribute-patterns")

namespace sysgen::emulator {

namespace {

constexpr size_t kFirstAddress = 1024;  // of shared memory, so that 0 is none
uint64_t now = 1;                       // counts copies and fences

template <class T>
T* reserve_zeros() {
  void* p =
      mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) fail(Location(), "no address space left for what mbarriers and wgmma need");
  return static_cast<T*>(p);
}

Block& block() { return *machine.running->block; }

MbarrierState& barrier_at(const void* address, const char* name, const Location& at) {
  HopperBlock& h = hopper(block());
  for (unsigned i = 0; i < h.num_barriers; ++i)
    if (h.barriers[i].address == address) return h.barriers[i];
  fail(at, "%s: there is no mbarrier at %p: mbarrier_init it first", name, address);
}

const char* edge(const MbarrierState& m, unsigned phase) {
  const size_t index = static_cast<size_t>(&m - hopper(block()).barriers) * 2 + phase % 2;
  return block().edges + kMbarrierEdges + index * 8;
}

void end_phase_if_complete(MbarrierState& m) {
  if (m.missing || m.bytes) return;
  m.missing = m.arrivals;
  ++m.phase;
  progress();
  for (unsigned t = 0; t < kMaxThreads; ++t) {
    const unsigned i = machine.order == Order::reverse ? kMaxThreads - 1 - t : t;
    if (m.waiting[i / 64] >> i % 64 & 1) make_ready(&block().fibres[i]);
  }
  for (uint64_t& w : m.waiting) w = 0;
}

void arrive(MbarrierState& m, const char* name, const Location& at) {
  if (!m.missing)
    fail(at, "%s: all %u arrivals of this phase are there already; the phase waits for %lld more bytes", name,
         m.arrivals, static_cast<long long>(m.bytes));
  --m.missing;
  end_phase_if_complete(m);
}

void write(unsigned char* to, const unsigned char* from, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) to[i] = from[i];
}

void deliver(const Pending& p) {
  HopperBlock& h = hopper(block());
  if (p.thread) {
    CopyQueue& q = p.thread->queue;
    while (static_cast<int>(p.copies - q.arrived) > 0) {
      const AsyncCopy& copy = q.copies[q.arrived++ % kMaxCopies];
      unpoison(copy.destination, copy.bytes);
      write(copy.destination, copy.data, copy.bytes);
      note_cp_async(copy, p.thread);
    }
    return;
  }
  unpoison(p.destination, p.bytes);
  for (unsigned i = 0; i < p.bytes; i += 16) {
    uintptr_t to = reinterpret_cast<uintptr_t>(p.destination) + i;
    to ^= (to >> 7 & (p.swizzle / 16 ? p.swizzle / 16 - 1 : 0)) << 4;
    write(reinterpret_cast<unsigned char*>(to), h.bulk[p.bulk] + i, 16);
  }
  h.bulk_used[p.bulk] = false;
}

// One of the copies that m waits for; false if there is none.
bool deliver_one(MbarrierState& m) {
  HopperBlock& h = hopper(block());
  unsigned found[kMaxPending], count = 0;
  for (unsigned i = 0; i < h.num_pending; ++i)
    if (h.pending[i].barrier == &m) found[count++] = i;
  if (!count) return false;
  const unsigned chosen = found[machine.order == Order::random    ? random_below(count)
                                : machine.order == Order::reverse ? count - 1
                                                                  : 0];
  const Pending p = h.pending[chosen];
  for (unsigned i = chosen + 1; i < h.num_pending; ++i) h.pending[i - 1] = h.pending[i];
  --h.num_pending;
  deliver(p);
  if (p.thread) {
    arrive(m, "cp_async_arrive", p.where);
  } else {
    m.bytes -= p.bytes;
    end_phase_if_complete(m);
  }
  return true;
}

Pending& add_pending(MbarrierState& m, const Location& at) {
  HopperBlock& h = hopper(block());
  if (h.num_pending == kMaxPending) fail(at, "more than %u copies of a block are on their way", kMaxPending);
  Pending& p = h.pending[h.num_pending++];
  p = {};
  p.barrier = &m;
  p.where = at;
  return p;
}

// Threads that wait have something to look at.
void stir(MbarrierState& m) {
  progress();
  for (unsigned i = 0; i < kMaxThreads; ++i)
    if (m.waiting[i / 64] >> i % 64 & 1) {
      make_ready(&block().fibres[i]);
      m.waiting[i / 64] &= ~(uint64_t{1} << i % 64);
      return;  // one is enough to fetch it
    }
}

}  // namespace

HopperBlock& hopper(Block& b) {
  if (!b.hopper) b.hopper = reserve_zeros<HopperBlock>();
  return *b.hopper;
}
HopperThread& hopper(Fibre& f) {
  if (!f.hopper) f.hopper = reserve_zeros<HopperThread>();
  return *f.hopper;
}

void clear_hopper(Block& b) {
  if (!b.hopper) return;
  HopperBlock& h = *b.hopper;
  h.num_barriers = h.num_pending = 0;
  for (bool& used : h.bulk_used) used = false;
  for (Warpgroup& g : h.groups) g.arrived = 0;
  h.start = now;
}
void clear_hopper(Fibre& f) {
  if (!f.hopper) return;
  HopperThread& h = *f.hopper;
  h.issued = h.committed = h.complete = h.checked = h.checked_chunks = h.delivered = 0;
  h.wgmma_fenced = false;
}
void check_hopper_done(const Fibre& f) {
  if (const HopperThread* h = f.hopper; h && h->delivered != h->issued)
    fail(h->running[h->delivered % kMaxRunning].where, "the thread ended before its wgmma was waited for");
}
void check_hopper_done(const Block& b) {
  if (b.hopper && b.hopper->num_pending)
    fail(b.hopper->pending[0].where, "the block ended before anybody waited for this copy");
}

uint32_t shared_address_of(const void* p) {
  return static_cast<uint32_t>(static_cast<const char*>(p) - block().arena + kFirstAddress);
}
const unsigned char* shared_at(uint32_t address) {
  return reinterpret_cast<const unsigned char*>(block().arena) + address - kFirstAddress;
}
bool is_shared_address(uint32_t address) {
  return address >= kFirstAddress && address < kFirstAddress + kArenaBytes;
}

void note_cp_async(const AsyncCopy& copy, Fibre* writer) {
  Block& b = *writer->block;
  if (!b.hopper) return;  // nothing of it is used here
  const size_t chunk = static_cast<size_t>(reinterpret_cast<char*>(copy.destination) - b.arena) / 16;
  b.hopper->written[chunk] = ++now;
  b.hopper->writer[chunk] = writer;
}

bool proxies_are_fenced(const void* chunk) {
  const HopperBlock& h = hopper(block());
  const size_t i = static_cast<size_t>(static_cast<const char*>(chunk) - block().arena) / 16;
  if (h.written[i] <= h.start) return true;
  return hopper(*machine.running).fence > h.written[i] || hopper(*h.writer[i]).fence > h.written[i];
}

void proxy_fence() { hopper(*machine.running).fence = ++now; }

void mbarrier_start(const void* barrier, unsigned arrivals, const Location& at) {
  if (reinterpret_cast<uintptr_t>(barrier) % 8 || !in_shared(barrier, 8))
    fail(at, "mbarrier_init: %p is not shared memory of this block, aligned to 8 bytes", barrier);
  if (arrivals == 0 || arrivals >= 1u << 20)
    fail(at, "mbarrier_init: 1 to 2^20 - 1 arrivals, got %u", arrivals);
  HopperBlock& h = hopper(block());
  if (h.num_barriers == kMaxMbarriers) fail(at, "more than %u mbarriers", kMaxMbarriers);
  for (unsigned i = 0; i < h.num_barriers; ++i)
    if (h.barriers[i].address == barrier) fail(at, "mbarrier_init: this one was initialised before");
  MbarrierState& m = h.barriers[h.num_barriers++];
  m = {};
  m.address = barrier;
  m.arrivals = m.missing = arrivals;
}

void mbarrier_announce(const void* barrier, unsigned bytes, const Location& at) {
  MbarrierState& m = barrier_at(barrier, "mbarrier_arrive_expect", at);
  m.bytes += bytes;
  if (m.bytes >= 1 << 20)
    fail(at, "mbarrier_arrive_expect: %lld bytes in one phase", static_cast<long long>(m.bytes));
}

void mbarrier_arrival(const void* barrier, const char* name, const Location& at) {
  MbarrierState& m = barrier_at(barrier, name, at);
  hb_release(edge(m, m.phase));
  arrive(m, name, at);
}

void mbarrier_wait_for(const void* barrier, unsigned parity, const Location& at) {
  MbarrierState& m = barrier_at(barrier, "mbarrier_wait", at);
  if (parity > 1) fail(at, "mbarrier_wait: the parity is 0 or 1, got %u", parity);
  while (m.phase % 2 == parity) {
    if (deliver_one(m)) continue;
    const unsigned i = machine.running->context.linear;
    m.waiting[i / 64] |= uint64_t{1} << i % 64;
    wait("mbarrier_wait", at);
  }
  hb_acquire(edge(m, parity));
}

void mbarrier_after_copies(const void* barrier, const Location& at) {
  MbarrierState& m = barrier_at(barrier, "cp_async_arrive", at);
  hb_release(edge(m, m.phase));
  Pending& p = add_pending(m, at);
  p.thread = machine.running;
  p.copies = machine.running->queue.issued;
  stir(m);
}

Pending* bulk_issue(void* destination, unsigned bytes, unsigned swizzle, const void* barrier,
                    const Location& at) {
  HopperBlock& h = hopper(block());
  Pending& p = add_pending(barrier_at(barrier, "tma_load_3d", at), at);
  p.destination = static_cast<unsigned char*>(destination);
  p.bytes = bytes;
  p.swizzle = swizzle;
  while (p.bulk < kMaxBulk && h.bulk_used[p.bulk]) ++p.bulk;
  if (p.bulk == kMaxBulk) fail(at, "more than %u boxes of a block are on their way", kMaxBulk);
  h.bulk_used[p.bulk] = true;
  for (unsigned char& byte : h.bulk[p.bulk]) byte = 0;
  counters.bulk_bytes += bytes;
  const size_t first = static_cast<size_t>(static_cast<char*>(destination) - block().arena) / 16;
  for (size_t i = first; i < first + bytes / 16; ++i) h.written[i] = 0;  // no longer the generic proxy's
  return &p;
}
void bulk_fill(Pending* copy, unsigned offset, const unsigned char* data, unsigned bytes) {
  write(hopper(block()).bulk[copy->bulk] + offset, data, bytes);
}
void bulk_issued(const void* barrier, const Location& at) {
  MbarrierState& m = barrier_at(barrier, "tma_load_3d", at);
  hb_release(edge(m, m.phase));
  stir(m);
}

}  // namespace sysgen::emulator
