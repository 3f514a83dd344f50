// Bank conflicts of ordinary accesses to shared memory. The lanes of a warp do not meet at one, they run one
// after the other; so each lane's n-th visit of a place in the program is taken for one instruction with the
// n-th visits of the other lanes. Lanes that stay away from it count as inactive.
#include <sys/mman.h>

#include <algorithm>

#include "emulator/state.h"

namespace sysgen::emulator {

namespace {

constexpr unsigned kPlaces = 32;   // of a kernel, further ones share the last
constexpr unsigned kVisits = 128;  // by which a lane may be ahead of another of its warp

struct Instruction {
  unsigned mask, bytes;  // active lanes; what each of them moves
  unsigned address[32];  // in the arena
};

struct Place {
  Location where;
  unsigned visits[32];  // of each lane
  Instruction instructions[kVisits];
};

// Cycles that some of the lanes take: each bank gives one word of 4 bytes in a cycle, to all who want it.
unsigned cycles(const Instruction& in, unsigned first, unsigned count) {
  unsigned words[128], num_words = 0, in_bank[32] = {}, most = 0;
  for (unsigned lane = first; lane < first + count; ++lane) {
    if (!(in.mask >> lane & 1)) continue;
    for (unsigned word = in.address[lane] / 4; word <= (in.address[lane] + in.bytes - 1) / 4; ++word) {
      if (std::find(words, words + num_words, word) != words + num_words) continue;
      words[num_words++] = word;
      most = std::max(most, ++in_bank[word % 32]);
    }
  }
  return most;
}

// At most 128 bytes move at once: all lanes' words, half of them with 8 bytes, a quarter with 16.
void count(Instruction& in) {
  const unsigned lanes = in.bytes <= 4 ? 32 : 128 / in.bytes;
  for (unsigned first = 0; first < 32; first += lanes)
    if (const unsigned c = cycles(in, first, lanes)) {
      ++counters.shared_phases;
      counters.shared_conflicts += c - 1;
    }
  in.mask = 0;
}

}  // namespace

struct AccessLog {
  unsigned num_places[kMaxWarps];
  Place places[kMaxWarps][kPlaces];
};

void note_shared_access(const void* p, unsigned bytes, const Location& where) {
  const Fibre& f = *machine.running;
  Block& b = *f.block;
  if (!b.accesses) {  // reserved; what is not used costs nothing
    void* memory = mmap(nullptr, sizeof(AccessLog), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail(where, "no address space left for the count of bank conflicts");
    b.accesses = static_cast<AccessLog*>(memory);
  }
  AccessLog& log = *b.accesses;
  const unsigned warp = f.context.warp, lane = f.context.lane;
  Place* places = log.places[warp];
  unsigned i = 0, &n = log.num_places[warp];
  while (i < n && !(same_place(places[i].where, where))) ++i;
  if (i == n) {
    if (n < kPlaces)
      places[n++].where = where;
    else
      --i;
  }
  Place& place = places[i];
  Instruction& in = place.instructions[place.visits[lane]++ % kVisits];
  if (in.mask >> lane & 1 || in.bytes != bytes) count(in);  // lanes that stayed away
  in.bytes = bytes;
  in.address[lane] = static_cast<unsigned>(static_cast<const char*>(p) - b.arena);
  in.mask |= 1u << lane;
  if (in.mask == f.warp->alive) count(in);
}

void end_shared_accesses(Block& b, bool counted) {
  if (!b.accesses) return;
  for (unsigned w = 0; w < kMaxWarps; ++w) {
    unsigned& n = b.accesses->num_places[w];
    for (unsigned i = 0; i < n; ++i) {
      Place& place = b.accesses->places[w][i];
      for (unsigned& v : place.visits) v = 0;
      for (Instruction& in : place.instructions) counted ? count(in) : void(in.mask = 0);
    }
    n = 0;
  }
}

}  // namespace sysgen::emulator
