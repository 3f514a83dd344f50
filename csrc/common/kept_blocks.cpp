#include "common/kept_blocks.h"

#include <array>
#include <cstdint>
#include <cstdlib>
#include <mutex>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sysgen {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

struct Block {
  void* data;
  std::size_t size;
};

// The oldest first. Few: each is at least as large as results that come here.
struct Kept {
  std::mutex mutex;
  std::array<Block, 64> blocks;
  std::size_t count = 0, bytes = 0;

  Block remove(std::size_t i) {
    const Block block = blocks[i];
    for (--count; i < count; ++i) blocks[i] = blocks[i + 1];
    bytes -= block.size;
    return block;
  }
};
// Never destroyed: tensors may be freed after the static objects are.
Kept& kept() {
  static Kept* const instance = new Kept;
  return *instance;
}

// Aligned to huge pages.
void* map(std::size_t size) {
#if defined(__linux__)
  void* const all =
      mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (all == MAP_FAILED) return nullptr;
  const std::uintptr_t from = reinterpret_cast<std::uintptr_t>(all);
  const std::uintptr_t begin = (from + kHugePage - 1) / kHugePage * kHugePage;
  if (begin > from) munmap(all, begin - from);
  if (const std::size_t rest = from + kHugePage - begin) munmap(reinterpret_cast<void*>(begin + size), rest);
  void* const block = reinterpret_cast<void*>(begin);
  madvise(block, size, MADV_HUGEPAGE);  // a hint: without effect where the system has none
  return block;
#else
  return std::aligned_alloc(kHugePage, size);
#endif
}
void unmap(const Block& block) {
#if defined(__linux__)
  munmap(block.data, block.size);
#else
  std::free(block.data);
#endif
}

}  // namespace

void* take_block(std::size_t bytes, std::size_t& size) {
  size = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  Kept& k = kept();
  // Whoever finds the pool in use does without: also a child process, whose parent was in it when it forked.
  if (const std::unique_lock lock(k.mutex, std::try_to_lock); lock) {
    std::size_t best = k.count;
    for (std::size_t i = 0; i < k.count; ++i) {
      const std::size_t got = k.blocks[i].size;
      if (got >= size && got <= size + size / 4 && (best == k.count || got < k.blocks[best].size)) best = i;
    }
    if (best < k.count) {
      const Block block = k.remove(best);
      size = block.size;
      return block.data;
    }
  }
  return map(size);
}

void return_block(void* data, std::size_t size) {
  const Block block{data, size};
  Kept& k = kept();
  const std::unique_lock lock(k.mutex, std::try_to_lock);
  if (!lock || size > kMostKept) return unmap(block);
  while (k.count == k.blocks.size() || k.bytes + size > kMostKept) unmap(k.remove(0));
  k.blocks[k.count++] = block;
  k.bytes += size;
}

std::size_t release_kept_blocks() {
  Kept& k = kept();
  const std::lock_guard lock(k.mutex);
  const std::size_t bytes = k.bytes;
  while (k.count) unmap(k.remove(0));
  return bytes;
}

}  // namespace sysgen
