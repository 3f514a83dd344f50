// One step of a sample's memory, from the interface to the reads, by one block. The state before may lie
// where the state after it does.
#pragma once
#include "ntm/ntm_problem.cuh"

namespace sysgen {

// Where one sample's step reads and writes. It lies in shared memory: too many pointers for registers.
template <class A>
struct NtmStep {
  NtmCells<A> prev, next;
  NtmTape<A> tape;
  NtmWork<A> work;

  // Before the write of pair i; behind the last one for i = pairs.
  __device__ __forceinline__ A* memory(const NtmProblem<A>& p, int i) const {
    if (i == 0) return prev.memory;
    return i < p.common.reads && tape.between ? tape.between + (i - 1) * p.cells() * p.width() : next.memory;
  }
};

// Calls f(cell, side) for all cells of both heads of a pair.
template <class A, class F>
__device__ __forceinline__ void both_heads(const NtmProblem<A>& p, const F& f) {
  const int n = p.common.cells;
  for (int at = threadIdx.x; at < 2 * n; at += kDncThreads) f(at % n, at / n);
}
// Calls f(cell, lane, there) with eight lanes for each cell; all lanes of a warp arrive.
template <class A, class F>
__device__ __forceinline__ void cell_octets(const NtmProblem<A>& p, const F& f) {
  const int octet = threadIdx.x / kDncLanes, lane = threadIdx.x % kDncLanes;
  for (int i = 0; i < p.common.cells; i += kDncThreads / kDncLanes)
    f(i + octet, lane, i + octet < p.common.cells);
}
// Calls f(place of the tile's share of word w, w, first cell, last cell) for all tiles of cells.
template <class A, class F>
__device__ __forceinline__ void word_tiles(const NtmProblem<A>& p, const F& f) {
  const int width = p.width(), tiles = static_cast<int>(dnc_tiles(p.cells(), kNtmTile));
  for (int at = threadIdx.x; at < tiles * width; at += kDncThreads) {
    const int tile = at / width;
    f(tile, at % width, tile * kNtmTile, min(p.common.cells, (tile + 1) * kNtmTile));
  }
}

// Cell i of a ring turned by at most `shifts` cells.
__device__ __forceinline__ int turned(int i, int by, int cells) {
  const int j = (i + by) % cells;
  return j < 0 ? j + cells : j;
}

template <class A>
__device__ __forceinline__ A ntm_softplus(A x) {  // with torch's threshold
  return x > A(20) ? x : (x > A(0) ? x : A(0)) + log1p_of(exp_of(x > A(0) ? -x : x));
}
template <class A>
__device__ __forceinline__ A ntm_activate(const NtmInterfaceMap& at, int j, A x) {
  if (j < at.erase || (j >= at.add && j < at.strength) || j >= at.shift) return x;
  if (j < at.add || (j >= at.gate && j < at.sharpness)) return dnc_sigmoid(x);
  return ntm_softplus(x) + (j < at.gate ? A(0) : A(1));
}
// The gradient of xi[j] from that of its activation.
template <class A>
__device__ __forceinline__ A ntm_activate_bwd(const NtmInterfaceMap& at, int j, A x, A grad) {
  if (j < at.erase || (j >= at.add && j < at.strength) || j >= at.shift) return grad;
  const A y = dnc_sigmoid(x);
  if (j < at.add || (j >= at.gate && j < at.sharpness)) return grad * y * (A(1) - y);
  return x > A(20) ? grad : grad * y;
}

template <class A>
__device__ __forceinline__ void interface_fwd(const NtmProblem<A>& p, const DncGroup& g, const A* h,
                                              const A* weight, const A* bias, const NtmTape<A>& tape) {
  product(g, h, p.common.hidden, weight, p.at.size, [&](int j, A sum) {
    const A xi = sum + bias[j];
    tape.xi[j] = xi;
    tape.act[j] = ntm_activate(p.at, j, xi);
  });
}

// Norms of the keys, and the shifts' softmaxes; a warp takes a head.
template <class A>
__device__ __forceinline__ void prepare_heads(const NtmProblem<A>& p, const NtmTape<A>& tape) {
  for (int head = warp_id(); head < 2 * p.common.reads; head += kDncWarps) {
    const A* const key = tape.act + head * p.width();
    const A square = warp_total<A>(p.width(), [&](int w) { return key[w] * key[w]; });
    if (lane_id() == 0) tape.key_norm[head] = sqrt_of(square);
    A* const shift = tape.act + p.at.shift + head * p.shifts;
    const DncSoftmax<A> softmax = softmax_of(shift, p.shifts);
    __syncwarp();
    for (int k = lane_id(); k < p.shifts; k += 32) shift[k] = softmax(shift[k]);
  }
}

// Where both heads of a pair look: content, interpolation, shift, sharpening.
template <class A>
__device__ __forceinline__ void place_heads(const NtmProblem<A>& p, const NtmStep<A>& s, int pair) {
  const int n = p.common.cells;
  const i64 rows = i64(2 * pair) * n;  // of the pair's heads in the tape
  const NtmTape<A>& tape = s.tape;
  const A *const memory = s.memory(p, pair), *const act = tape.act + 2 * pair;
  const A* const keys = tape.act + 2 * pair * p.width();
  cell_octets(p, [&](int i, int lane, bool there) {
    A dots[2] = {}, norm = 0;
    if (there) {
      for (int w = lane; w < p.width(); w += kDncLanes) {
        const A m = memory[i64(i) * p.width() + w];
        dots[0] += m * keys[w];
        dots[1] += m * keys[p.width() + w];
        norm += m * m;
      }
    }
    dots[0] = octet_sum(dots[0]);
    dots[1] = octet_sum(dots[1]);
    norm = sqrt_of(octet_sum(norm));
    if (!there || lane > 1) return;
    const A dot = lane ? dots[1] : dots[0];
    tape.dot[rows + lane * n + i] = dot;
    s.work.z[lane * n + i] =
        act[p.at.strength + lane] * (dot / (norm * tape.key_norm[2 * pair + lane] + p.common.eps));
    if (lane == 0) tape.norm[i64(pair) * n + i] = norm;
  });
  __syncthreads();
  {
    const DncSoftmax<A> softmax[2] = {softmax_of(s.work.z, n), softmax_of(s.work.z + n, n)};
    both_heads(p, [&](int i, int side) {
      const i64 at = rows + side * n + i;
      const A content = (side ? softmax[1] : softmax[0])(s.work.z[side * n + i]),
              gate = act[p.at.gate + side];
      tape.content[at] = content;
      tape.mixed[at] = gate * content + (A(1) - gate) * s.prev.weights[side][i64(pair) * n + i];
    });
  }
  __syncthreads();
  both_heads(p, [&](int i, int side) {
    const A* const shift = tape.act + p.at.shift + (2 * pair + side) * p.shifts;
    const A* const mixed = tape.mixed + rows + side * n;
    A sum = 0;
    for (int k = 0; k < p.shifts; ++k) sum += shift[k] * mixed[turned(i, k - p.reach, n)];
    tape.shifted[rows + side * n + i] = sum;
    s.work.z[side * n + i] = sum <= A(0) ? A(0) : act[p.at.sharpness + side] * log_of(sum);
  });
  __syncthreads();
  for (int side = 0; side < 2; ++side) {
    const A *const shifted = tape.shifted + rows + side * n, *const z = s.work.z + side * n;
    A largest = A(-3e38);
    for (int i = lane_id(); i < n; i += 32)
      if (!(shifted[i] <= A(0))) largest = z[i] > largest ? z[i] : largest;
    largest = over_warp<Largest>(largest);
    const auto power = [&](int i) { return shifted[i] <= A(0) ? A(0) : exp_of(z[i] - largest); };
    const A sum = warp_total<A>(n, power), scale = sum == A(0) ? A(0) : A(1) / sum;
    for (int i = threadIdx.x; i < n; i += kDncThreads)
      s.next.weights[side][i64(pair) * n + i] = power(i) * scale;
  }
  __syncthreads();
}

// reads [P, W] of this pair <- r M, and M' = M (1 - w e) + w a.
template <class A>
__device__ __forceinline__ void read_and_write(const NtmProblem<A>& p, const NtmStep<A>& s, int pair,
                                               A* reads) {
  const i64 row = i64(pair) * p.common.cells;
  const A *const reading = s.next.weights[0] + row, *const writing = s.next.weights[1] + row;
  const A *const erase = s.tape.act + p.at.erase + pair * p.width(),
                 *const add = s.tape.act + p.at.add + pair * p.width(), *const memory = s.memory(p, pair);
  A* const written = s.memory(p, pair + 1);
  word_tiles(p, [&](int tile, int w, int first, int last) {
    A sum = 0;
    for (int i = first; i < last; ++i) {
      const i64 at = i64(i) * p.width() + w;
      const A m = memory[at], weight = writing[i];
      sum += m * reading[i];
      written[at] = m * (A(1) - weight * erase[w]) + weight * add[w];
    }
    s.work.parts[tile * p.width() + w] = sum;
  });
  __syncthreads();
  const int tiles = static_cast<int>(dnc_tiles(p.cells(), kNtmTile));
  for (int w = threadIdx.x; w < p.width(); w += kDncThreads) {
    A sum = 0;
    for (int tile = 0; tile < tiles; ++tile) sum += s.work.parts[tile * p.width() + w];
    reads[pair * p.width() + w] = sum;
  }
}

// From the interface to reads [P, W]; begins and ends behind a barrier.
template <class A>
__device__ __forceinline__ void memory_fwd(const NtmProblem<A>& p, const NtmStep<A>& s, A* reads) {
  prepare_heads(p, s.tape);
  __syncthreads();
  for (int pair = 0; pair < p.common.reads; ++pair) {
    place_heads(p, s, pair);
    read_and_write(p, s, pair, reads);
  }
  __syncthreads();
}

}  // namespace sysgen
