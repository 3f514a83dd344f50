// What the launchers of addressing share: arguments of a kernel from those of the host, and the launches that
// its phases need.
#pragma once
#include "content/content_address_kernels.cuh"
#include "content/content_launch.h"

namespace sysgen {

template <class A>
ContentHeads<A> content_heads(const ContentAddressing& c) {
  return {memory_shape(c.s),
          static_cast<const A*>(c.memory),
          static_cast<const A*>(c.key),
          static_cast<const A*>(c.strength),
          static_cast<const A*>(c.mask),
          static_cast<A>(c.eps)};
}

template <class A>
ContentBackward<A> content_backward(const ContentAddressing& c, void* dmemory, void* dkey, void* dstrength,
                                    void* dmask, ScratchPieces& scratch) {
  const MemoryShape s = memory_shape(c.s);
  return {content_heads<A>(c),
          static_cast<A*>(dmemory),
          static_cast<A*>(dkey),
          static_cast<A*>(dstrength),
          static_cast<A*>(dmask),
          scratch.take<A>(s.batch * s.heads * s.cells),
          scratch.take<A>(s.batch * s.heads * s.cells),
          scratch.take<A>(s.batch * s.heads),
          scratch.take<A>(s.batch * s.tiles() * 2 * s.heads * s.width)};
}

// Calls launch(phases, config) once where a block can do a sample, else once for each phase.
template <class P, class F>
void launch_in_phases(const MemoryShape& s, const F& launch) {
  if (one_block_is_enough<P>(s)) return launch({true, true}, content_grid<P>(s.batch, 1));
  launch({true, false}, content_grid_of_units<P>(s.batch, s.tiles() * s.template groups<P>()));
  launch({false, true}, content_grid<P>(s.batch, s.heads));
}

template <class P, class F>
void launch_bwd_in_phases(const MemoryShape& s, const F& launch) {
  if (one_block_is_enough<P>(s)) return launch({true, true, true, true}, content_grid<P>(s.batch, 1));
  launch({true, false, false, false}, content_grid_of_units<P>(s.batch, s.tiles() * s.template groups<P>()));
  launch({false, true, false, false}, content_grid<P>(s.batch, s.heads));
  launch({false, false, true, false}, content_grid_of_units<P>(s.batch, s.tiles() * s.chunks()));
  launch({false, false, false, true}, sums_grid<P>(s, s.heads * s.width));
}

}  // namespace sysgen
