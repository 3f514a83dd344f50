// The results of shuffles, votes and reductions, computed for all lanes at once.
#include <algorithm>

#include "emulator/runtime.h"

namespace sysgen::emulator {

namespace {

template <class F>
void for_each_lane(unsigned mask, F f) {
  for (unsigned lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) f(lane);
}

// `source` gives the lane to read from: (lane, first lane of the segment, width, argument).
template <class Source>
void shuffle(unsigned mask, void* const* operands, Source source) {
  for_each_lane(mask, [&](unsigned lane) {
    Shuffle& s = *static_cast<Shuffle*>(operands[lane]);
    const int l = static_cast<int>(lane);
    const int from = source(l, l / s.width * s.width, s.width, s.argument);
    // A lane outside the mask gives an undefined value: here all ones, which is NaN and -1.
    s.result = mask >> from & 1 ? static_cast<Shuffle*>(operands[from])->value : ~uint64_t{0};
  });
}
void compute_shfl(unsigned mask, void* const* operands) {
  shuffle(mask, operands, [](int, int first, int width, int i) { return first + (i & (width - 1)); });
}
void compute_shfl_up(unsigned mask, void* const* operands) {
  shuffle(mask, operands, [](int lane, int first, int, int d) { return lane - d < first ? lane : lane - d; });
}
void compute_shfl_down(unsigned mask, void* const* operands) {
  shuffle(mask, operands,
          [](int lane, int first, int width, int d) { return lane + d >= first + width ? lane : lane + d; });
}
void compute_shfl_xor(unsigned mask, void* const* operands) {
  shuffle(mask, operands,
          [](int lane, int first, int width, int x) { return (lane ^ x) < first + width ? lane ^ x : lane; });
}

Vote& vote_of(void* const* operands, unsigned lane) { return *static_cast<Vote*>(operands[lane]); }

void compute_ballot(unsigned mask, void* const* operands) {
  uint64_t result = 0;
  for_each_lane(mask, [&](unsigned l) { result |= (vote_of(operands, l).value & 1) << l; });
  for_each_lane(mask, [&](unsigned l) { vote_of(operands, l).result = result; });
}
void compute_match_any(unsigned mask, void* const* operands) {
  for_each_lane(mask, [&](unsigned l) {
    Vote& v = vote_of(operands, l);
    v.result = 0;
    for_each_lane(mask,
                  [&](unsigned o) { v.result |= uint64_t{vote_of(operands, o).value == v.value} << o; });
  });
}

template <class T, class Combine>
void reduce(unsigned mask, void* const* operands, Combine combine) {
  bool first = true;
  T result{};
  for_each_lane(mask, [&](unsigned l) {
    const T value = static_cast<T>(vote_of(operands, l).value);
    result = first ? value : combine(result, value);
    first = false;
  });
  for_each_lane(mask, [&](unsigned l) { vote_of(operands, l).result = static_cast<uint32_t>(result); });
}
void compute_add(unsigned mask, void* const* operands) {
  reduce<uint32_t>(mask, operands, [](uint32_t a, uint32_t b) { return a + b; });
}
template <class T>
void compute_min(unsigned mask, void* const* operands) {
  reduce<T>(mask, operands, [](T a, T b) { return std::min(a, b); });
}
template <class T>
void compute_max(unsigned mask, void* const* operands) {
  reduce<T>(mask, operands, [](T a, T b) { return std::max(a, b); });
}
void compute_and(unsigned mask, void* const* operands) {
  reduce<uint32_t>(mask, operands, [](uint32_t a, uint32_t b) { return a & b; });
}
void compute_or(unsigned mask, void* const* operands) {
  reduce<uint32_t>(mask, operands, [](uint32_t a, uint32_t b) { return a | b; });
}
void compute_xor(unsigned mask, void* const* operands) {
  reduce<uint32_t>(mask, operands, [](uint32_t a, uint32_t b) { return a ^ b; });
}

}  // namespace

const WarpOperation shfl{"__shfl_sync", compute_shfl, false, false};
const WarpOperation shfl_up{"__shfl_up_sync", compute_shfl_up, false, false};
const WarpOperation shfl_down{"__shfl_down_sync", compute_shfl_down, false, false};
const WarpOperation shfl_xor{"__shfl_xor_sync", compute_shfl_xor, false, false};
const WarpOperation ballot{"__ballot_sync", compute_ballot, false, false};
const WarpOperation match_any{"__match_any_sync", compute_match_any, false, false};
const WarpOperation reduce_add{"__reduce_add_sync", compute_add, false, false};
const WarpOperation reduce_min{"__reduce_min_sync", compute_min<uint32_t>, false, false};
const WarpOperation reduce_max{"__reduce_max_sync", compute_max<uint32_t>, false, false};
const WarpOperation reduce_min_signed{"__reduce_min_sync", compute_min<int32_t>, false, false};
const WarpOperation reduce_max_signed{"__reduce_max_sync", compute_max<int32_t>, false, false};
const WarpOperation reduce_and{"__reduce_and_sync", compute_and, false, false};
const WarpOperation reduce_or{"__reduce_or_sync", compute_or, false, false};
const WarpOperation reduce_xor{"__reduce_xor_sync", compute_xor, false, false};
const WarpOperation syncwarp{"__syncwarp", nullptr, true, false};

}  // namespace sysgen::emulator
