// The tiles of a persistent block as one stream of steps: the first loads of a tile are in flight while the
// one before it is still multiplied and stored.
#pragma once
#include "cvmm/cvmm_tiles.cuh"

namespace sysgen {

// Descriptions of tiles that are alive at once: of the one that is multiplied, of those that the loads ahead
// of it are in, each at least one step long, and of the next one.
template <int STAGES>
inline constexpr int kStreamSlots = STAGES + 1;

// Slots take turns at describing the tiles, in shared memory:
//   find(slot)              looks for the block's next tile and describes it, with 0 steps if there is none
//   publish(slot)           adds what find left in registers, so that its loads had time to arrive
//   steps(slot)             steps of the tile, at least 1
//   load(stage, slot, step) starts the copies of a step; multiply(stage, slot) consumes them
//   finish(slot)            the tile is multiplied
// They are called by all threads. Barriers make a description visible before it is used.
template <int STAGES, class Find, class Publish, class Steps, class Load, class Multiply, class Finish>
__device__ __forceinline__ void stream_tiles(Find find, Publish publish, Steps steps, Load load,
                                             Multiply multiply, Finish finish) {
  static_assert(STAGES >= 2, "a description is written one step before it is read");
  const auto after = [](int slot) { return slot + 1 == kStreamSlots<STAGES> ? 0 : slot + 1; };
  find(0);
  publish(0);
  int loading = 0, load_step = 0;
  const auto load_next = [&](int stage) {
    if (const int count = steps(loading)) {
      load(stage, loading, load_step);
      const int next = after(loading);
      if (load_step == 0) find(next);
      if (++load_step == count) {
        publish(next);
        loading = next;
        load_step = 0;
      }
    }
    cp_async_commit();
  };
#pragma unroll 1
  for (int stage = 0; stage < STAGES - 1; ++stage) {
    __syncthreads();
    load_next(stage);
  }
  __syncthreads();
  int stage = 0;
#pragma unroll 1
  for (int slot = 0; const int count = steps(slot); slot = after(slot)) {
#pragma unroll 1
    for (int step = 0; step < count; ++step) {
      cp_async_wait<STAGES - 2>();
      __syncthreads();  // the step has arrived, and everybody is done with the stage that is loaded next
      load_next(stage == 0 ? STAGES - 1 : stage - 1);
      multiply(stage, slot);
      stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    finish(slot);
  }
  cp_async_wait<0>();
}

}  // namespace sysgen
