// One step of a sample's memory, from the activated interface to the read weights and the reads. Between two
// barriers of the group every thread works on its own; the state before may lie where the state after it
// does.
#pragma once
#include "dnc/dnc_interface.cuh"
#include "dnc/dnc_link.cuh"
#include "links/allocation.cuh"

namespace sysgen {

// Where one sample's step reads and writes. It lies in shared memory: some fifty pointers are too many for
// registers.
template <class A>
struct DncStep {
  DncCells<A> prev, next;
  DncTape<A> tape;
  DncWork<A> work;
  DncOwn<A> own;
};

template <class A>
__device__ __forceinline__ i64 row_of(const DncProblem<A>& p, int head) {
  return i64(head) * p.cells;
}

// Norms of the keys; score of the write key with the memory before; retention and usage.
template <class A>
__device__ __forceinline__ void score_write(const DncProblem<A>& p, const DncGroup& g, const DncStep<A>& s) {
  for (int head = g.warp(); head < 1 + p.reads; head += g.warps()) {
    const DncKey<A> key = dnc_key(p, s.tape, head);
    const A square = warp_total<A>(p.width, [&](int w) { return key.square(w) * key.key[w] * key.key[w]; });
    if (lane_id() == 0) s.tape.key_norm[head] = sqrt_of(square);
  }
  const DncKey<A> key = dnc_key(p, s.tape, 0);
  own_octets(g, [&](int i, int lane, bool there) {
    A dot = 0, norm = 0, square = 0;
    if (there) {
      for (int w = lane; w < p.width; w += kDncLanes) {
        const A m = s.prev.memory[i64(i) * p.width + w], q = key.square(w), k = q * key.key[w];
        dot += k * m;
        norm += q * m * m;
        square += k * key.key[w];
      }
    }
    dot = octet_sum(dot);
    norm = sqrt_of(octet_sum(norm));
    square = octet_sum(square);
    if (!there || lane) return;
    s.tape.dot[i] = dot;
    s.tape.norm[i] = norm;
    s.work.content_z[i] = key.strength * (dot / (norm * sqrt_of(square) + p.eps));
  });
  own_cells(g, 1, [&](int i, int) {
    A kept = 1;
    for (int r = 0; r < p.reads; ++r)
      kept *= A(1) - s.tape.act[p.at.free + r] * s.prev.read_w[row_of(p, r) + i];
    const A u = s.prev.usage[i];
    s.tape.retention[i] = kept;
    s.next.usage[i] = (u + s.prev.write_w[i] * (A(1) - u)) * kept;
  });
}

// Allocation by comparing every two cells: no sort, and nothing waits.
template <class A>
__device__ __forceinline__ void write_weights(const DncProblem<A>& p, const DncGroup& g,
                                              const DncStep<A>& s) {
  const DncSoftmax<A> softmax = softmax_of(s.work.content_z, p.cells);
  const A allocation_gate = s.tape.act[p.at.allocation_gate], write_gate = s.tape.act[p.at.write_gate];
  own_octets(g, [&](int i, int lane, bool there) {
    const A usage = there ? s.next.usage[i] : A(0);
    A before = 1;
    int rank = 0;
    if (there) {
      for (int j = lane; j < p.cells; j += kDncLanes) {
        const A other = s.next.usage[j];
        const bool less = used_less(other, j, usage, i);
        before *= less ? rescaled_usage(other, p.eps) : A(1);
        rank += less;
      }
    }
#pragma unroll
    for (int step = kDncLanes / 2; step > 0; step /= 2) before *= __shfl_xor_sync(~0u, before, step);
    rank = octet_sum(rank);
    if (!there || lane) return;
    const A content = softmax(s.work.content_z[i]), a = (A(1) - rescaled_usage(usage, p.eps)) * before;
    s.tape.before[i] = before;
    s.tape.order[rank] = i;
    s.tape.allocation[i] = a;
    s.tape.weight[i] = content;
    s.next.write_w[i] = write_gate * (allocation_gate * a + (A(1) - allocation_gate) * content);
  });
}

// What is written to word w of a cell whose content was m.
template <class A>
__device__ __forceinline__ A written(A m, A kept, A weight, A erase, A value) {
  return m * kept * (A(1) - weight * erase) + weight * value;
}

// The memory after the step, and its scores with the read keys, of at most four heads a pass.
template <class A>
__device__ __forceinline__ void write_memory(const DncProblem<A>& p, const DncGroup& g, const DncStep<A>& s) {
  constexpr int HEADS = 4;
  static_assert(HEADS <= kDncLanes, "a lane finishes one head");
  for (int first = 0; first < p.reads; first += HEADS) {
    own_octets(g, [&](int i, int lane, bool there) {
      A dots[HEADS] = {}, norms[HEADS] = {};
      if (there) {
        const A weight = s.next.write_w[i], kept = p.dealloc ? s.tape.retention[i] : A(1);
        for (int w = lane; w < p.width; w += kDncLanes) {
          const i64 at = i64(i) * p.width + w;
          A m;
          if (first == 0) {
            m = written(s.prev.memory[at], kept, weight, s.tape.act[p.at.erase + w],
                        s.tape.act[p.at.value + w]);
            s.next.memory[at] = m;
          } else {
            m = s.next.memory[at];
          }
#pragma unroll
          for (int h = 0; h < HEADS; ++h) {
            if (first + h >= p.reads) break;
            const DncKey<A> key = dnc_key(p, s.tape, 1 + first + h);
            const A q = key.square(w);
            dots[h] += q * key.key[w] * m;
            norms[h] += q * m * m;
          }
        }
      }
      A dot = 0, norm = 0;
#pragma unroll
      for (int h = 0; h < HEADS; ++h) {
        if (first + h >= p.reads) break;
        const A d = octet_sum(dots[h]), n = octet_sum(norms[h]);
        dot = lane == h ? d : dot;
        norm = lane == h ? n : norm;
      }
      const int head = 1 + first + lane;
      if (!there || lane >= HEADS || head > p.reads) return;
      norm = sqrt_of(norm);
      s.tape.dot[row_of(p, head) + i] = dot;
      s.tape.norm[row_of(p, head) + i] = norm;
      s.work.content_z[row_of(p, head) + i] =
          s.tape.act[p.at.read_strength + head - 1] * (dot / (norm * s.tape.key_norm[head] + p.eps));
    });
  }
}

template <class A>
__device__ __forceinline__ DncLinkPass<A> link_pass(const DncProblem<A>& p, const DncStep<A>& s) {
  return {p.cells,           p.reads,       s.prev.link,     s.next.write_w,
          s.prev.precedence, s.prev.read_w, s.work.row_part, s.work.column_part};
}

// Projections from their parts, what their softmaxes are taken of, and the precedence.
template <class A>
__device__ __forceinline__ void project(const DncProblem<A>& p, const DncGroup& g, const DncStep<A>& s) {
  const i64 across = dnc_tiles(p.cells, 32 * kDncLinkColumns<A>), down = dnc_tiles(p.cells, kDncLinkRows);
  own_cells(g, p.reads, [&](int i, int r) {
    const A f = tile_sum(s.work.row_part, across, p.reads, r, p.cells, i);
    const A b = tile_sum(s.work.column_part, down, p.reads, r, p.cells, i);
    const i64 at = row_of(p, r) + i;
    s.tape.forward_d[at] = f;
    s.tape.backward_d[at] = b;
    if (!p.sharpen) return;
    s.work.forward_z[at] = s.tape.act[p.at.sharp_forward + r] * log_of((f < A(0) ? A(0) : f) + p.eps);
    s.work.backward_z[at] = s.tape.act[p.at.sharp_backward + r] * log_of((b < A(0) ? A(0) : b) + p.eps);
  });
  const A left = A(1) - warp_total<A>(p.cells, [&](int i) { return s.next.write_w[i]; });
  own_cells(g, 1,
            [&](int i, int) { s.next.precedence[i] = left * s.prev.precedence[i] + s.next.write_w[i]; });
}

// Read weights, and each tile's share of the reads.
template <class A>
__device__ __forceinline__ void read_memory(const DncProblem<A>& p, const DncGroup& g, const DncStep<A>& s) {
  A* const stats = s.own.stats;  // [rows, 2]; rows: content of each head, then forward, then backward
  for (int row = warp_id(); row < (p.sharpen ? 3 : 1) * p.reads; row += kDncWarps) {
    const int kind = row / p.reads, r = row % p.reads;
    const A* const z = kind == 0 ? s.work.content_z + row_of(p, 1 + r)
                                 : (kind == 1 ? s.work.forward_z : s.work.backward_z) + row_of(p, r);
    const DncSoftmax<A> softmax = softmax_of(z, p.cells);
    if (lane_id() != 0) continue;
    stats[2 * row] = softmax.largest;
    stats[2 * row + 1] = softmax.scale;
  }
  __syncthreads();
  const auto softmax = [&](int row) { return DncSoftmax<A>{stats[2 * row], stats[2 * row + 1]}; };
  own_cells(g, p.reads, [&](int i, int r) {
    const DncMode<A> mode = dnc_mode(p, s.tape, r);
    const i64 at = row_of(p, r) + i;
    const A content = softmax(r)(s.work.content_z[row_of(p, 1 + r) + i]);
    if (p.sharpen) {
      s.tape.forward_w[at] = softmax(p.reads + r)(s.work.forward_z[at]);
      s.tape.backward_w[at] = softmax(2 * p.reads + r)(s.work.backward_z[at]);
    }
    s.tape.weight[row_of(p, 1 + r) + i] = content;
    s.next.read_w[at] =
        mode.backward * s.tape.backward_w[at] + mode.content * content + mode.forward * s.tape.forward_w[at];
  });
  __syncthreads();
  const int words = p.reads * p.width, begin = g.first / kDncTile,
            tiles = static_cast<int>(dnc_tiles(g.last - g.first, kDncTile));
  for (int unit = threadIdx.x; unit < tiles * words; unit += kDncThreads) {
    const int tile = begin + unit / words, word = unit % words, r = word / p.width, w = word % p.width,
              last = min(p.cells, (tile + 1) * kDncTile);
    A sum = 0;
#pragma unroll 4
    for (int i = tile * kDncTile; i < last; ++i)
      sum += s.next.read_w[row_of(p, r) + i] * s.next.memory[i64(i) * p.width + w];
    s.work.read_part[i64(tile) * words + word] = sum;
  }
}

// From the activated interface to read_part; begins and ends behind a barrier. tiles: of the links before the
// step, and of those after it at the end, if they are held.
template <class A>
__device__ __forceinline__ void memory_fwd(const DncProblem<A>& p, DncGroup& g, const DncStep<A>& s,
                                           DncLinkTile<A>* tiles) {
  if (!p.held) copy_tiles<A>(s.prev.link, g, p.cells, tiles, false);
  score_write(p, g, s);
  g.barrier();
  write_weights(p, g, s);
  g.barrier();
  link_fwd(link_pass(p, s), g, tiles, p.held, s.next.link);
  write_memory(p, g, s);
  g.barrier();
  project(p, g, s);
  g.barrier();
  read_memory(p, g, s);
  g.barrier();
}

}  // namespace sysgen
