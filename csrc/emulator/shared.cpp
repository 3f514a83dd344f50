// Shared memory: an arena per block, with typed arrays between red zones.
#include <sys/mman.h>

#include "emulator/sanitizer.h"
#include "emulator/state.h"

namespace sysgen::emulator {

namespace {

constexpr size_t kAlignment = 128, kRedzone = 128;
constexpr size_t kStaticLimit = size_t{48} << 10, kLimit = size_t{227} << 10;
constexpr unsigned char kFill = 0xff;  // NaN; as an index, -1

constexpr size_t kEdgeBytes = 32 << 10, kEdgeBlocks = 512;
static_assert(kEdgeBytes >= kMbarrierEdges + kMaxMbarriers * 2 * 8);

char* arenas = nullptr;
unsigned num_arenas = 0;
char* edges = nullptr;
size_t num_edges_used = kEdgeBlocks;

size_t rounded(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

char* map(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw Error("CUDA emulator: no address space left for shared memory");
  return static_cast<char*>(p);
}

// Not memset, which ThreadSanitizer would take for a write by the running CUDA thread.
void fill(char* p, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) {
    p[i] = static_cast<char>(kFill);
    asm volatile("" ::: "memory");
  }
}

char* allocate(Block& b, size_t bytes, size_t alignment, const Location& where) {
  const size_t at = (b.arena_used + kRedzone + alignment - 1) / alignment * alignment;
  if (at + rounded(bytes) + kRedzone > kArenaBytes)
    fail(where, "the shared arrays do not fit into the arena");
  fill(b.arena + b.arena_used, at + rounded(bytes) + kRedzone - b.arena_used);
  b.arena_used = at + rounded(bytes);
  unpoison(b.arena + at, bytes);  // the rest of the last 128 bytes is red zone too
  return b.arena + at;
}

// Static and dynamic memory count together, and the launch helper asks for more than 48 KiB only if the
// dynamic part alone needs it.
void check_total(const Block& b, const Location& where) {
  const size_t dynamic = machine.grid.shared_bytes, total = b.static_bytes + dynamic;
  if (b.static_bytes > kStaticLimit)
    fail(where, "%zu bytes of static shared memory, the limit is %zu", b.static_bytes, kStaticLimit);
  if (total > kLimit)
    fail(where, "%zu bytes of static and %zu of dynamic shared memory, the limit is %zu together",
         b.static_bytes, dynamic, kLimit);
  if (dynamic <= kStaticLimit && total > kStaticLimit)
    fail(
        where,
        "%zu bytes of static and %zu of dynamic shared memory: more than %zu together need more than that of "
        "dynamic memory, or less of both",
        b.static_bytes, dynamic, kStaticLimit);
}

const SharedArray* damaged(const SharedArray* arrays, unsigned count) {
  for (unsigned i = 0; i < count; ++i) {
    const SharedArray& a = arrays[i];
    for (const char* p = a.data - kRedzone; p < a.data; ++p)
      if (static_cast<unsigned char>(*p) != kFill) return &a;
    for (const char* p = a.data + a.bytes; p < a.data + rounded(a.bytes) + kRedzone; ++p)
      if (static_cast<unsigned char>(*p) != kFill) return &a;
  }
  return nullptr;
}

}  // namespace

void poison(const void* p, size_t bytes) {
  if (has_asan()) __asan_poison_memory_region(p, bytes);
}
void unpoison(const void* p, size_t bytes) {
  if (has_asan()) __asan_unpoison_memory_region(p, bytes);
}

char* arenas_for(unsigned blocks) {
  if (arenas && (has_tsan() || blocks > num_arenas)) {  // ThreadSanitizer forgets what it saw in the old ones
    unpoison(arenas, num_arenas * kArenaBytes);
    munmap(arenas, num_arenas * kArenaBytes);
    arenas = nullptr;
  }
  if (!arenas) {
    arenas = map(blocks * kArenaBytes);
    num_arenas = blocks;
    poison(arenas, blocks * kArenaBytes);
  }
  return arenas;
}

char* fresh_edges() {
  if (!has_tsan()) return nullptr;
  if (num_edges_used == kEdgeBlocks) {
    if (edges) munmap(edges, kEdgeBlocks * kEdgeBytes);
    edges = map(kEdgeBlocks * kEdgeBytes);
    num_edges_used = 0;
  }
  return edges + num_edges_used++ * kEdgeBytes;
}

void clear_shared(Block& b) {
  poison(b.arena, b.arena_used);
  b.arena_used = b.static_bytes = b.dynamic_bytes = 0;
  b.num_statics = b.num_dynamics = 0;
}

void check_redzones(const Block& b) {
  const SharedArray* a = damaged(b.statics, b.num_statics);
  if (!a) a = damaged(b.dynamics, b.num_dynamics);
  if (a)
    fail(a->where,
         "something was written outside a shared array (seen when the last thread of the block ended): %s, "
         "declared",
         a->name);
}

void* static_shared(const void* key, size_t bytes, const char* name, const Location& where) {
  Block& b = *machine.running->block;
  for (unsigned i = 0; i < b.num_statics; ++i)
    if (b.statics[i].key == key) return b.statics[i].data;
  if (b.num_statics == kMaxSharedArrays) fail(where, "more than %u static shared arrays", kMaxSharedArrays);
  b.static_bytes += rounded(bytes);
  check_total(b, where);
  char* data = allocate(b, bytes, kAlignment, where);
  b.statics[b.num_statics++] = {key, name, where, data, bytes};
  return data;
}

void* dynamic_shared(unsigned index, size_t bytes, size_t alignment, const Location& where) {
  Block& b = *machine.running->block;
  if (index < b.num_dynamics) {
    if (b.dynamics[index].bytes != bytes)
      fail(where, "array %u of the dynamic shared memory has %zu bytes here and %zu at line %u", index, bytes,
           b.dynamics[index].bytes, static_cast<unsigned>(b.dynamics[index].where.line()));
    return b.dynamics[index].data;
  }
  if (index == kMaxSharedArrays) fail(where, "more than %u dynamic shared arrays", kMaxSharedArrays);
  b.dynamic_bytes += rounded(bytes) + alignment - kAlignment;  // the device may begin anywhere
  if (b.dynamic_bytes > machine.grid.shared_bytes)
    fail(where, "the dynamic shared arrays need %zu bytes, the launch asked for %zu", b.dynamic_bytes,
         machine.grid.shared_bytes);
  char* data = allocate(b, bytes, alignment, where);
  b.dynamics[b.num_dynamics++] = {nullptr, "of the dynamic shared memory", where, data, bytes};
  return data;
}

bool in_shared(const void* p, size_t bytes) {
  const char* first = static_cast<const char*>(p);
  const char* arena = machine.running->block->arena;
  return first >= arena && first + bytes <= arena + kArenaBytes;
}

}  // namespace sysgen::emulator
