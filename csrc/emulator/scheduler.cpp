// Runs a grid: blocks in waves, threads from one synchronisation point to the next.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>

#include "common/check.h"
#include "emulator/sanitizer.h"
#include "emulator/state.h"

namespace sysgen::emulator {

Machine machine{};
Counters counters{};

namespace {

constexpr size_t kSharedLimit = size_t{227} << 10;  // of a block, sm_90
constexpr size_t kSharedWithoutOptIn = size_t{48} << 10;
// Under ThreadSanitizer neighbouring blocks run on different fibres, so that races between blocks show: three
// of them, or two where they are large, as a fibre costs ThreadSanitizer a millisecond and each of its
// synchronisations a step for every fibre that there is.
unsigned fibre_sets(unsigned threads) { return !has_tsan() ? 1 : threads <= 256 ? 3 : 2; }

std::mutex one_launch_at_a_time;
thread_local bool launching = false;

Block* blocks = nullptr;
unsigned num_blocks = 0;
uint64_t num_waves = 0;

std::string text_of(const dim3& d) { return cat("(", d.x, ", ", d.y, ", ", d.z, ")"); }

void check_launch(const Grid& g) {
  const uint64_t threads = uint64_t{g.block.x} * g.block.y * g.block.z;
  if (threads == 0 || threads > kMaxThreads || g.block.z > 64)
    throw Error(cat(machine.kernel, ": a block has 1 to ", kMaxThreads, " threads and at most 64 in z, got ",
                    text_of(g.block)));
  if (g.grid.x == 0 || g.grid.y == 0 || g.grid.z == 0 || g.grid.x > 0x7fffffffu || g.grid.y > 65535 ||
      g.grid.z > 65535)
    throw Error(cat(machine.kernel, ": a grid has 1 to 2^31 - 1 blocks in x and 1 to 65535 in y and z, got ",
                    text_of(g.grid)));
  if (g.shared_bytes > kSharedLimit)
    throw Error(cat(machine.kernel, ": ", g.shared_bytes, " bytes of dynamic shared memory, a GPU has ",
                    kSharedLimit));
}

// xorshift; the state is never zero
uint64_t random_bits() {
  uint64_t& s = machine.random_state;
  s ^= s << 13;
  s ^= s >> 7;
  s ^= s << 17;
  return s;
}

void run_thread() {
  arrived_on_fibre();
  hb_acquire(&machine.start_edge);
  try {
    machine.body(machine.arguments);
  } catch (const std::exception& e) {
    fail(Location(), "the kernel threw an exception: %s", e.what());
  } catch (...) {
    fail(Location(), "the kernel threw an exception");
  }
  Fibre& f = *machine.running;
  check_copies_done(f);
  check_hopper_done(f);
  Block& b = *f.block;
  if (const Barrier& barrier = b.barriers[0]; barrier.arrived)
    fail(barrier.where, "this thread has left the kernel while %u others wait at %s", barrier.arrived,
         barrier.name);
  leave_warp(f);
  hb_release(&machine.end_edge);
  f.done = true;
  --machine.alive;
  progress();
  if (--b.alive == 0) {
    check_redzones(b);
    end_shared_accesses(b, true);
    check_hopper_done(b);
  }
  switch_to_next();
  std::abort();  // a fibre that is done is never run again
}

void start_thread(Block& b, unsigned t) {
  const dim3& size = machine.grid.block;
  Fibre& f = b.fibres[t];
  f.context.threadIdx = {t % size.x, t / size.x % size.y, t / size.x / size.y};
  f.context.blockIdx = b.index;
  f.context.blockDim = size;
  f.context.gridDim = machine.grid.grid;
  f.context.linear = t;
  f.context.lane = t % 32;
  f.context.warp = t / 32;
  f.block = &b;
  f.warp = &b.warps[t / 32];
  f.where = Location();
  f.done = f.fenced = false;
  f.num_carved = f.num_relaxed = 0;
  clear_copies(f.queue);
  clear_hopper(f);
  prepare(f, run_thread);
  make_ready(&f);
}

void start_block(Block& b, unsigned id, Fibre* fibres, unsigned threads) {
  const dim3& size = machine.grid.grid;
  b.index = {id % size.x, id / size.x % size.y, id / size.x / size.y};
  b.threads = b.alive = threads;
  b.fibres = fibres;
  b.edges = fresh_edges();
  clear_shared(b);
  end_shared_accesses(b, false);  // left by a kernel that failed
  clear_hopper(b);
  for (unsigned w = 0; w * 32 < threads; ++w) {
    b.warps[w].alive = threads - w * 32 >= 32 ? ~0u : (1u << threads % 32) - 1;
    b.warps[w].num_meetings = 0;
  }
  for (Barrier& barrier : b.barriers) barrier.arrived = 0;
  for (unsigned i = 0; i < threads; ++i)
    start_thread(b, machine.order == Order::reverse ? threads - 1 - i : i);
  ++counters.blocks;
  counters.threads += threads;
}

// Runs `count` resident blocks to their end.
void run_wave(const unsigned* ids, unsigned count, Fibre* fibres) {
  const unsigned threads = machine.grid.block.x * machine.grid.block.y * machine.grid.block.z;
  char* arenas = arenas_for(count);
  hb_release(&machine.start_edge);
  machine.alive = count * threads;
  machine.ring_head = machine.ring_count = machine.stack_count = 0;
  for (unsigned i = 0; i < count; ++i) {
    blocks[i].arena = arenas + i * kArenaBytes;
    start_block(blocks[i], ids[i], fibres + size_t{i} * threads, threads);
  }
  switch_to_next();  // comes back when nothing can run
  if (!machine.failed && machine.alive) report_deadlock(blocks, count);
}

void reserve(unsigned resident, unsigned threads) {
  if (resident > num_blocks) {
    Block* const more = static_cast<Block*>(std::calloc(resident, sizeof(Block)));
    for (unsigned i = 0; more && i < num_blocks; ++i)
      more[i].accesses = blocks[i].accesses, more[i].hopper = blocks[i].hopper;
    std::free(blocks);
    blocks = more;
    num_blocks = resident;
  }
  const unsigned slots = resident * threads;
  if (slots > machine.ring_size) {
    std::free(machine.ring);
    std::free(machine.stack);
    machine.ring = static_cast<Fibre**>(std::calloc(slots, sizeof(Fibre*)));
    machine.stack = static_cast<Fibre**>(std::calloc(slots, sizeof(Fibre*)));
    machine.ring_size = slots;
  }
  if (!blocks || !machine.ring || !machine.stack) throw std::bad_alloc();
}

void read_environment() {
  static bool done = false;
  if (done) return;
  if (const char* order = std::getenv("SYSGEN_EMULATOR_ORDER")) set_order(order);
  if (const char* seconds = std::getenv("SYSGEN_EMULATOR_TIMEOUT")) set_timeout(std::atof(seconds));
  done = true;
}

struct LaunchScope {
  LaunchScope() { launching = true; }
  ~LaunchScope() { launching = false; }
};

}  // namespace

void set_order(const char* text) {
  const std::string order = text;
  if (order == "forward" || order == "reverse") {
    machine.order = order == "forward" ? Order::forward : Order::reverse;
    return;
  }
  char* end = nullptr;
  if (order.rfind("random:", 0) == 0 && order.size() > 7 && order[7] >= '0' && order[7] <= '9') {
    machine.seed = std::strtoull(text + 7, &end, 10);
    machine.order = Order::random;
  }
  if (!end || *end)
    throw Error(
        cat("SYSGEN_EMULATOR_ORDER: forward, reverse or random:<seed> was expected, got '", text, "'"));
}

void run_grid(const char* kernel, const Grid& grid, void (*body)(void*), void* arguments) {
  if (launching)
    throw Error(cat(kernel, ": a kernel was launched by a kernel; the emulator does not do that"));
  const std::lock_guard lock(one_launch_at_a_time);
  const LaunchScope scope;
  machine.kernel = kernel;
  read_environment();
  check_launch(grid);
  machine.grid = grid;
  machine.body = body;
  machine.arguments = arguments;
  machine.failed = false;
  machine.idle_spins = 0;
  machine.random_state = machine.seed * 0x9e3779b97f4a7c15u | 1;

  const size_t total = size_t{grid.grid.x} * grid.grid.y * grid.grid.z;
  const unsigned threads = grid.block.x * grid.block.y * grid.block.z;
  const size_t resident = grid.cooperative ? total : 1;
  const unsigned sets = grid.cooperative ? 1 : fibre_sets(threads);
  Fibre* fibres = fibres_for(resident * threads * sets);
  reserve(static_cast<unsigned>(resident), threads);
  note_host_stack();

  const auto ids = std::make_unique<unsigned[]>(total);
  for (size_t i = 0; i < total; ++i)
    ids[i] = static_cast<unsigned>(machine.order == Order::reverse ? total - 1 - i : i);
  if (machine.order == Order::random)
    for (size_t i = total; i > 1; --i) std::swap(ids[i - 1], ids[random_bits() % i]);

  ++counters.launches;
  {
    const FaultGuard guard;
    for (size_t i = 0; i < total && !machine.failed; i += resident)
      run_wave(&ids[i], static_cast<unsigned>(resident), fibres + num_waves++ % sets * (resident * threads));
  }
  hb_acquire(&machine.end_edge);
  if (machine.failed) {
    abandon_fibres();
    throw Error(machine.error);
  }
}

// ---- who runs next

unsigned random_below(unsigned n) { return static_cast<unsigned>(random_bits() % n); }

void make_ready(Fibre* f) {
  f->waiting = nullptr;
  unsigned slot = machine.ring_head + machine.ring_count++;
  if (slot >= machine.ring_size) slot -= machine.ring_size;
  machine.ring[slot] = f;
}

void make_next(Fibre* f) {
  f->waiting = nullptr;
  machine.stack[machine.stack_count++] = f;
}

void switch_to_next() {
  Machine& m = machine;
  if (m.stack_count) return switch_to(m.stack[--m.stack_count]);
  if (!m.ring_count) return switch_to(nullptr);
  if (m.order == Order::random)
    std::swap(m.ring[m.ring_head], m.ring[(m.ring_head + random_below(m.ring_count)) % m.ring_size]);
  Fibre* f = m.ring[m.ring_head];
  if (++m.ring_head == m.ring_size) m.ring_head = 0;
  --m.ring_count;
  switch_to(f);
}

void wait(const char* what, const Location& where) {
  machine.running->waiting = what;
  machine.running->where = where;
  switch_to_next();
}

void progress() { machine.idle_spins = 0; }

void spin(const Location& where) {
  constexpr uint64_t kHopeless = 1'000'000;
  if (++machine.idle_spins > kHopeless + 200 * uint64_t{machine.alive})
    fail(where,
         "a spin loop waits for what never comes: every thread that can run spins (a store is missing, or "
         "it waits for a block that is not resident: launch with cooperative = true)");
  Fibre* f = machine.running;
  f->where = where;
  if (!machine.ring_count && !machine.stack_count) return;
  make_ready(f);
  switch_to_next();
}

void end_kernel() {
  hb_release(&machine.end_edge);  // the host reads the report
  switch_to(nullptr);
  std::abort();  // nobody goes back to a kernel that failed
}

}  // namespace sysgen::emulator
