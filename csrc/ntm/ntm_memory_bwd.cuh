// Backward of one step of a sample's memory (ntm_memory.cuh): `grad` holds the gradients of the state after
// the step on entry, and of the one before it at the end.
#pragma once
#include "ntm/ntm_memory.cuh"

namespace sysgen {

template <class A>
struct NtmStepBwd {
  NtmStep<A> s;
  NtmCells<A> grad;
  A* dinterface;  // [I]

  __device__ __forceinline__ void put(const NtmProblem<A>& p, int j, A gradient) const {
    dinterface[j] = ntm_activate_bwd(p.at, j, s.tape.xi[j], gradient);
  }
};

// Read and write: gradients of both weights, and the memory's but for what the content hands on.
template <class A>
__device__ __forceinline__ void read_and_write_bwd(const NtmProblem<A>& p, const NtmStepBwd<A>& b, int pair) {
  const NtmStep<A>& s = b.s;
  const int n = p.common.cells, width = p.width();
  const i64 row = i64(pair) * n;
  const A *const erase = s.tape.act + p.at.erase + pair * width,
                 *const add = s.tape.act + p.at.add + pair * width,
                 *const dreads = s.work.reads + pair * width, *const memory = s.memory(p, pair);
  cell_octets(p, [&](int i, int lane, bool there) {
    A dreading = 0, dwriting = 0;
    if (there) {
      for (int w = lane; w < width; w += kDncLanes) {
        const i64 at = i64(i) * width + w;
        const A m = memory[at];
        dreading += m * dreads[w];
        dwriting += b.grad.memory[at] * (add[w] - m * erase[w]);
      }
    }
    dreading = octet_sum(dreading);
    dwriting = octet_sum(dwriting);
    if (there && lane < 2)
      s.work.dweights[lane * n + i] = b.grad.weights[lane][row + i] + (lane ? dwriting : dreading);
  });
  __syncthreads();
  const A *const reading = s.next.weights[0] + row, *const writing = s.next.weights[1] + row;
  word_tiles(p, [&](int tile, int w, int first, int last) {
    A derase = 0, dadd = 0;
    for (int i = first; i < last; ++i) {
      const i64 at = i64(i) * width + w;
      const A d = b.grad.memory[at], weight = writing[i];
      derase -= d * memory[at] * weight;
      dadd += d * weight;
      b.grad.memory[at] = d * (A(1) - weight * erase[w]) + reading[i] * dreads[w];
    }
    s.work.write_parts[(2 * tile) * width + w] = derase;
    s.work.write_parts[(2 * tile + 1) * width + w] = dadd;
  });
  for (int side = warp_id(); side < 2; side += kDncWarps) {
    const A* const weight = s.next.weights[side] + row;
    const A mean = warp_total<A>(n, [&](int i) { return weight[i] * s.work.dweights[side * n + i]; });
    if (lane_id() == 0) s.work.stats[side] = mean;
  }
  __syncthreads();
}

// Sharpening, shift and interpolation: from dweights to dmixed and the gradient of the weights before.
template <class A>
__device__ __forceinline__ void turn_bwd(const NtmProblem<A>& p, const NtmStepBwd<A>& b, int pair) {
  const NtmStep<A>& s = b.s;
  const int n = p.common.cells;
  const i64 row = i64(pair) * n, rows = 2 * row;
  const A* const act = s.tape.act + 2 * pair;
  const auto behind_power = [&](int i, int side) {  // gradient of sharpness log shifted
    return s.next.weights[side][row + i] * (s.work.dweights[side * n + i] - s.work.stats[side]);
  };
  both_heads(p, [&](int i, int side) {
    const A x = s.tape.shifted[rows + side * n + i];
    s.work.dshifted[side * n + i] = x <= A(0) ? A(0) : act[p.at.sharpness + side] * behind_power(i, side) / x;
  });
  __syncthreads();
  const auto shift_of = [&](int side) { return s.tape.act + p.at.shift + (2 * pair + side) * p.shifts; };
  both_heads(p, [&](int i, int side) {
    const A* const shift = shift_of(side);
    A d = 0;
    for (int k = 0; k < p.shifts; ++k) d += shift[k] * s.work.dshifted[side * n + turned(i, p.reach - k, n)];
    s.work.dmixed[side * n + i] = d;
    b.grad.weights[side][row + i] = (A(1) - act[p.at.gate + side]) * d;
  });
  for (int unit = warp_id(); unit < 2 * (p.shifts + 1); unit += kDncWarps) {
    const int side = unit % 2, k = unit / 2;
    const A *const mixed = s.tape.mixed + rows + side * n, *const shifted = s.tape.shifted + rows + side * n;
    const A total = warp_total<A>(n, [&](int i) {
      if (k < p.shifts) return s.work.dshifted[side * n + i] * mixed[turned(i, k - p.reach, n)];
      return shifted[i] <= A(0) ? A(0) : behind_power(i, side) * log_of(shifted[i]);
    });
    if (lane_id() != 0) continue;
    if (k < p.shifts)
      s.work.dshift[side * p.shifts + k] = total;
    else
      b.put(p, p.at.sharpness + 2 * pair + side, total);
  }
  __syncthreads();
  // Softmaxes of the shift and of the content; the gate.
  for (int unit = warp_id(); unit < 6; unit += kDncWarps) {
    const int side = unit % 2;
    const A *const dmixed = s.work.dmixed + side * n, *const content = s.tape.content + rows + side * n;
    if (unit < 2) {
      const A *const shift = shift_of(side), *const dshift = s.work.dshift + side * p.shifts;
      const A mean = warp_total<A>(p.shifts, [&](int k) { return shift[k] * dshift[k]; });
      for (int k = lane_id(); k < p.shifts; k += 32)
        b.put(p, p.at.shift + (2 * pair + side) * p.shifts + k, shift[k] * (dshift[k] - mean));
    } else if (unit < 4) {
      const A* const before = s.prev.weights[side] + row;
      const A total = warp_total<A>(n, [&](int i) { return dmixed[i] * (content[i] - before[i]); });
      if (lane_id() == 0) b.put(p, p.at.gate + 2 * pair + side, total);
    } else {
      const A mean = warp_total<A>(n, [&](int i) { return dmixed[i] * content[i]; });
      if (lane_id() == 0) s.work.stats[2 + side] = mean;
    }
  }
  __syncthreads();
}

// Content: from dmixed to the keys, the strengths and the rest of the memory's gradient.
template <class A>
__device__ __forceinline__ void content_bwd(const NtmProblem<A>& p, const NtmStepBwd<A>& b, int pair) {
  const NtmStep<A>& s = b.s;
  const int n = p.common.cells, width = p.width(), tiles = static_cast<int>(dnc_tiles(p.cells(), kNtmTile));
  const i64 row = i64(pair) * n, rows = 2 * row;
  const A *const act = s.tape.act + 2 * pair, *const keys = s.tape.act + 2 * pair * width,
                 *const memory = s.memory(p, pair), *const norms = s.tape.norm + row;
  const auto scale = [&](int i, int side) {
    return A(1) / (norms[i] * s.tape.key_norm[2 * pair + side] + p.common.eps);
  };
  const auto logit = [&](int i, int side) {  // gradient of strength times cosine
    return s.tape.content[rows + side * n + i] *
           (act[p.at.gate + side] * (s.work.dmixed[side * n + i] - s.work.stats[2 + side]));
  };
  both_heads(p, [&](int i, int side) {
    const A norm = norms[i], by = scale(i, side), ddot = logit(i, side) * act[p.at.strength + side] * by;
    s.work.ddot[side * n + i] = ddot;
    s.work.dnorm[side * n + i] =
        norm > A(0) ? -ddot * (s.tape.dot[rows + side * n + i] * by) * s.tape.key_norm[2 * pair + side] / norm
                    : A(0);
  });
  __syncthreads();
  word_tiles(p, [&](int tile, int w, int first, int last) {
    A dkeys[2] = {};
    for (int i = first; i < last; ++i) {
      const i64 at = i64(i) * width + w;
      const A m = memory[at], d0 = s.work.ddot[i], d1 = s.work.ddot[n + i];
      dkeys[0] += d0 * m;
      dkeys[1] += d1 * m;
      b.grad.memory[at] += d0 * keys[w] + d1 * keys[width + w] + (s.work.dnorm[i] + s.work.dnorm[n + i]) * m;
    }
    s.work.key_parts[2 * tile * width + w] = dkeys[0];
    s.work.key_parts[(2 * tile + 1) * width + w] = dkeys[1];
  });
  for (int unit = warp_id(); unit < 4; unit += kDncWarps) {
    const int side = unit % 2;
    const A* const dots = s.tape.dot + rows + side * n;
    const A total = warp_total<A>(n, [&](int i) {
      const A cosine = dots[i] * scale(i, side);
      return unit < 2 ? logit(i, side) * cosine : s.work.ddot[side * n + i] * cosine * norms[i];
    });
    if (lane_id() != 0) continue;
    const A key_norm = s.tape.key_norm[2 * pair + side];
    if (unit < 2)
      b.put(p, p.at.strength + 2 * pair + side, total);
    else
      s.work.stats[4 + side] = key_norm > A(0) ? -total / key_norm : A(0);
  }
  __syncthreads();
  for (int at = threadIdx.x; at < 4 * width; at += kDncThreads) {
    const int kind = at / width, side = kind % 2, w = at % width;
    const A* const parts = kind < 2 ? s.work.key_parts : s.work.write_parts;
    A sum = 0;
    for (int tile = 0; tile < tiles; ++tile) sum += parts[(2 * tile + side) * width + w];
    if (kind < 2)
      b.put(p, (2 * pair + side) * width + w, sum + s.work.stats[4 + side] * keys[side * width + w]);
    else
      b.put(p, (side ? p.at.add : p.at.erase) + pair * width + w, sum);
  }
  __syncthreads();
}

// From s.work.reads, which holds the gradient of the reads, and grad to dinterface and grad; begins and ends
// behind a barrier.
template <class A>
__device__ __forceinline__ void memory_bwd(const NtmProblem<A>& p, const NtmStepBwd<A>& b) {
  for (int pair = p.common.reads - 1; pair >= 0; --pair) {
    read_and_write_bwd(p, b, pair);
    turn_bwd(p, b, pair);
    content_bwd(p, b, pair);
  }
}

}  // namespace sysgen
