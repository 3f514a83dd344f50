// Backward of one step of a sample's memory (dnc_memory.cuh): `grad` holds the gradients of the state after
// the step on entry, and of the one before it at the end.
#pragma once
#include "dnc/dnc_memory.cuh"

namespace sysgen {

template <class A>
struct DncStepBwd {
  DncStep<A> s;
  DncCells<A> grad;
  A* dinterface;    // [I]
  const A* dreads;  // [R, W]

  // Statistics of the step, in s.own.stats.
  A* by_mode;  // [R, 3]: <dread_w, part of the mix>
  A* slope;    // [1 + R]: of |key|
  A* left;     // 1 - sum of write_w
  A* along;    // <dprecedence, precedence before>

  __device__ __forceinline__ void put(const DncProblem<A>& p, int j, A gradient) const {
    dinterface[j] = dnc_activate_bwd(p, j, s.tape.xi[j], gradient);
  }
};

// Gradient of the read weights by the reads.
template <class A>
__device__ __forceinline__ void reads_bwd(const DncProblem<A>& p, const DncGroup& g, const DncStepBwd<A>& b) {
  const DncStep<A>& s = b.s;
  constexpr int HEADS = 4;
  for (int first = 0; first < p.reads; first += HEADS) {
    own_octets(g, [&](int i, int lane, bool there) {
      A sums[HEADS] = {};
      if (there) {
        for (int w = lane; w < p.width; w += kDncLanes) {
          const A m = s.next.memory[i64(i) * p.width + w];
#pragma unroll
          for (int h = 0; h < HEADS; ++h) {
            if (first + h >= p.reads) break;
            sums[h] += m * b.dreads[(first + h) * p.width + w];
          }
        }
      }
      A sum = 0;
#pragma unroll
      for (int h = 0; h < HEADS; ++h) {
        if (first + h >= p.reads) break;
        const A total = octet_sum(sums[h]);
        sum = lane == h ? total : sum;
      }
      if (there && lane < HEADS && first + lane < p.reads) b.grad.read_w[row_of(p, first + lane) + i] += sum;
    });
  }
}

// Backward of a cosine and its softmax: from the gradient z of the softmax's argument over strength.
template <class A>
__device__ __forceinline__ void cosine_bwd(const DncProblem<A>& p, const DncStep<A>& s, int head, int i,
                                           A strength, A z) {
  const i64 at = row_of(p, head) + i;
  const A norm = s.tape.norm[at], key_norm = s.tape.key_norm[head], dot = s.tape.dot[at],
          scale = A(1) / (norm * key_norm + p.eps), ddot = z * strength * scale;
  s.work.ddot[at] = ddot;
  s.work.dnorm[at] = norm > A(0) ? -ddot * (dot * scale) * key_norm / norm : A(0);
}

// One projection's gradient from that of its weight in the mix, dw.
template <class A>
__device__ __forceinline__ A sharpen_bwd(const DncProblem<A>& p, A d, A weight, A strength, A dw, A mean) {
  if (!p.sharpen) return dw;
  return d < A(0) ? A(0) : strength * (weight * (dw - mean)) / (d + p.eps);
}

// Of the mix, the sharpening and the read content, and the memory: all that its write hands on but its share
// of the write content.
template <class A>
__device__ __forceinline__ void read_mix_bwd(const DncProblem<A>& p, const DncGroup& g,
                                             const DncStepBwd<A>& b) {
  const DncStep<A>& s = b.s;
  const A* const act = s.tape.act;
  for (int unit = warp_id(); unit < 3 * p.reads + 2; unit += kDncWarps) {
    const i64 row = row_of(p, unit / 3);
    const A *x = b.grad.read_w + row, *y;
    if (unit >= 3 * p.reads) {
      x = unit == 3 * p.reads ? nullptr : b.grad.precedence;
      y = x ? s.prev.precedence : s.next.write_w;
    } else {
      const int part = unit % 3;
      y = part == 0 ? s.tape.backward_w + row
                    : (part == 1 ? s.tape.weight + row + p.cells : s.tape.forward_w + row);
    }
    const A total = warp_total<A>(p.cells, [&](int i) { return x ? x[i] * y[i] : y[i]; });
    if (lane_id() != 0) continue;
    if (unit < 3 * p.reads) {
      b.by_mode[unit] = total;
    } else {
      *(x ? b.along : b.left) = x ? total : A(1) - total;
    }
  }
  __syncthreads();
  own_cells(g, p.reads, [&](int i, int r) {
    const i64 at = row_of(p, r) + i;
    const DncMode<A> mode = dnc_mode(p, s.tape, r);
    const A* const mean = b.by_mode + 3 * r;
    const A d = b.grad.read_w[at];
    s.work.dbackward[at] = sharpen_bwd(p, s.tape.backward_d[at], s.tape.backward_w[at],
                                       p.sharpen ? act[p.at.sharp_backward + r] : A(0), mode.backward * d,
                                       mode.backward * mean[0]);
    s.work.dforward[at] =
        sharpen_bwd(p, s.tape.forward_d[at], s.tape.forward_w[at],
                    p.sharpen ? act[p.at.sharp_forward + r] : A(0), mode.forward * d, mode.forward * mean[2]);
    cosine_bwd(p, s, 1 + r, i, act[p.at.read_strength + r],
               s.tape.weight[row_of(p, 1 + r) + i] * (mode.content * (d - mean[1])));
  });
  __syncthreads();

  // The gradient of the memory after the step, complete; what the write takes of it for each cell.
  own_octets(g, [&](int i, int lane, bool there) {
    A dretention = 0, dwrite = 0;
    if (there) {
      const A weight = s.next.write_w[i], kept = p.dealloc ? s.tape.retention[i] : A(1);
      for (int w = lane; w < p.width; w += kDncLanes) {
        const i64 at = i64(i) * p.width + w;
        const A before = s.prev.memory[at], after = s.next.memory[at], erase = act[p.at.erase + w];
        A d = b.grad.memory[at];
        for (int r = 0; r < p.reads; ++r) {
          const DncKey<A> key = dnc_key(p, s.tape, 1 + r);
          const i64 cell = row_of(p, r) + i, head = cell + p.cells;
          const A q = key.square(w);
          d += s.next.read_w[cell] * b.dreads[r * p.width + w] + s.work.ddot[head] * (q * key.key[w]) +
               s.work.dnorm[head] * after * q;
        }
        b.grad.memory[at] = d;
        const A dm = d * before;
        dretention += dm * (A(1) - weight * erase);
        dwrite += d * act[p.at.value + w] - dm * kept * erase;
      }
    }
    dretention = octet_sum(dretention);
    dwrite = octet_sum(dwrite);
    if (!there || lane) return;
    s.work.dretention[i] = p.dealloc ? dretention : A(0);
    s.work.dwrite[i] = dwrite;
  });
  __syncthreads();

  // Sums over the cells of a tile, and the memory's gradient before the write.
  const int begin = g.first / kDncTile, heads = 1 + p.reads,
            tiles = static_cast<int>(dnc_tiles(g.last - g.first, kDncTile));
  for (int unit = threadIdx.x; unit < tiles * heads * p.width; unit += kDncThreads) {
    const int w = unit % p.width, head = unit / p.width % heads, tile = begin + unit / p.width / heads,
              last = min(p.cells, (tile + 1) * kDncTile);
    A first_sum = 0, second_sum = 0;
    if (head == 0) {
      const A erase = act[p.at.erase + w];
      for (int i = tile * kDncTile; i < last; ++i) {
        const i64 at = i64(i) * p.width + w;
        const A d = b.grad.memory[at], weight = s.next.write_w[i],
                kept = p.dealloc ? s.tape.retention[i] : A(1);
        first_sum -= d * s.prev.memory[at] * kept * weight;
        second_sum += d * weight;
        b.grad.memory[at] = d * kept * (A(1) - weight * erase);
      }
      s.work.erase_part[i64(tile) * p.width + w] = first_sum;
      s.work.value_part[i64(tile) * p.width + w] = second_sum;
    } else {
      for (int i = tile * kDncTile; i < last; ++i) {
        const A m = s.next.memory[i64(i) * p.width + w];
        first_sum += s.work.ddot[row_of(p, head) + i] * m;
        second_sum += s.work.dnorm[row_of(p, head) + i] * m * m;
      }
      s.work.dot_part[(i64(tile) * heads + head) * p.width + w] = first_sum;
      s.work.norm_part[(i64(tile) * heads + head) * p.width + w] = second_sum;
    }
  }
}

// Entries of the interface that come from sums over all cells, as soon as those are known: modes, sharpness,
// read strengths.
template <class A>
__device__ __forceinline__ void read_scalars_bwd(const DncProblem<A>& p, const DncGroup& g,
                                                 const DncStepBwd<A>& b) {
  const DncStep<A>& s = b.s;
  for (int unit = g.warp(); unit < (p.sharpen ? 4 : 2) * p.reads; unit += g.warps()) {
    const int kind = unit / p.reads, r = unit % p.reads;
    const DncMode<A> mode = dnc_mode(p, s.tape, r);
    const A* const mean = b.by_mode + 3 * r;
    if (kind == 0) {
      const A part[3] = {mode.backward, mode.content, mode.forward},
              all = mean[0] * part[0] + mean[1] * part[1] + mean[2] * part[2];
#pragma unroll
      for (int k = 0; k < 3; ++k)
        if (static_cast<int>(lane_id()) == k) b.put(p, p.at.mode + 3 * r + k, part[k] * (mean[k] - all));
    } else if (kind == 1) {
      const i64 row = row_of(p, 1 + r);
      const A total =
          warp_total<A>(p.cells, [&](int i) { return s.work.ddot[row + i] * s.tape.dot[row + i]; });
      const int j = p.at.read_strength + r;
      if (lane_id() == 0) b.put(p, j, total / s.tape.act[j]);
    } else {
      const bool forward = kind == 2;
      const A *const d = (forward ? s.tape.forward_d : s.tape.backward_d) + row_of(p, r),
                     *const weight = (forward ? s.tape.forward_w : s.tape.backward_w) + row_of(p, r);
      const A share = forward ? mode.forward : mode.backward, middle = mean[forward ? 2 : 0];
      const A total = warp_total<A>(p.cells, [&](int i) {
        const A gradient = weight[i] * (share * (b.grad.read_w[row_of(p, r) + i] - middle));
        return gradient * log_of((d[i] < A(0) ? A(0) : d[i]) + p.eps);
      });
      if (lane_id() == 0) b.put(p, (forward ? p.at.sharp_forward : p.at.sharp_backward) + r, total);
    }
  }
}

// What the links hand on to each cell.
template <class A>
__device__ __forceinline__ void link_sums_bwd(const DncProblem<A>& p, const DncGroup& g,
                                              const DncStepBwd<A>& b) {
  const DncStep<A>& s = b.s;
  const i64 across = dnc_tiles(p.cells, 32 * kDncLinkColumns<A>), down = dnc_tiles(p.cells, kDncLinkRows);
  const auto row_sum = [&](int row, int i) {
    return tile_sum(s.work.row_part, across, p.reads + 1, row, p.cells, i);
  };
  const auto column_sum = [&](int row, int i) {
    return tile_sum(s.work.column_part, down, p.reads + 2, row, p.cells, i);
  };
  own_cells(g, p.reads + 1, [&](int i, int r) {
    if (r < p.reads) {
      b.grad.read_w[row_of(p, r) + i] = row_sum(r, i) + column_sum(r, i);
      return;
    }
    const A dp = b.grad.precedence[i];
    s.work.dwrite[i] += b.grad.write_w[i] + dp - *b.along + row_sum(r, i) + column_sum(r, i);
    b.grad.precedence[i] = *b.left * dp + column_sum(r + 1, i);
  });
}

// dallocation of the block's cells <- gradient of the usage, by one warp: an affine recurrence from the last
// of the order to the first, of which every lane takes a part. No division: exact at usage 0 and 1.
template <class A>
__device__ __forceinline__ void allocation_bwd(const DncProblem<A>& p, const DncGroup& g, const DncStep<A>& s,
                                               A scale) {
  const int each = (p.cells + 31) / 32, lane = lane_id();
  const int begin = min(p.cells, lane * each), end = min(p.cells, begin + each);
  const auto cell = [&](int k, A& u, A& da) {
    const int i = s.tape.order[k];
    u = rescaled_usage(s.next.usage[i], p.eps);
    da = s.work.dwrite[i] * scale;
    return i;
  };
  // What the product before a part is worth, from what the one behind it is: shift + factor x.
  A shift = 0, factor = 1, u, da;
  for (int k = end - 1; k >= begin; --k) {
    cell(k, u, da);
    shift = da * (A(1) - u) + u * shift;
    factor *= u;
  }
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const A behind_shift = __shfl_down_sync(~0u, shift, step), behind = __shfl_down_sync(~0u, factor, step);
    if (lane + step < 32) {
      shift += factor * behind_shift;
      factor *= behind;
    }
  }
  A behind = __shfl_down_sync(~0u, shift, 1);
  if (lane == 31) behind = 0;
  for (int k = end - 1; k >= begin; --k) {
    const int i = cell(k, u, da);
    if (i >= g.first && i < g.last) s.work.dallocation[i] = s.tape.before[i] * (behind - da) * (A(1) - p.eps);
    behind = da * (A(1) - u) + u * behind;
  }
}

// The product of 1 - free read_w over the other heads, times the gradient of the retention.
template <class A>
__device__ __forceinline__ A other_heads(const DncProblem<A>& p, const DncStep<A>& s, int r, int i) {
  A others = s.work.dretention[i];
  for (int q = 0; q < p.reads; ++q)
    if (q != r) others *= A(1) - s.tape.act[p.at.free + q] * s.prev.read_w[row_of(p, q) + i];
  return others;
}

// From the write weights to everything before them.
template <class A>
__device__ __forceinline__ void write_bwd(const DncProblem<A>& p, const DncGroup& g, const DncStepBwd<A>& b) {
  const DncStep<A>& s = b.s;
  const A* const act = s.tape.act;
  const A allocation_gate = act[p.at.allocation_gate], write_gate = act[p.at.write_gate],
          content_gate = write_gate * (A(1) - allocation_gate);
  if (warp_id() == kDncWarps - 1) allocation_bwd(p, g, s, write_gate * allocation_gate);
  const A by_allocation =
      warp_total<A>(p.cells, [&](int i) { return s.work.dwrite[i] * s.tape.allocation[i]; });
  const A by_content = warp_total<A>(p.cells, [&](int i) { return s.work.dwrite[i] * s.tape.weight[i]; });
  if (g.block == 0 && threadIdx.x == 0) {
    b.put(p, p.at.allocation_gate, (by_allocation - by_content) * write_gate);
    b.put(p, p.at.write_gate, allocation_gate * by_allocation + (A(1) - allocation_gate) * by_content);
  }
  __syncthreads();
  own_cells(g, 1, [&](int i, int) {
    cosine_bwd(p, s, 0, i, act[p.at.write_strength],
               s.tape.weight[i] * (content_gate * (s.work.dwrite[i] - by_content)));
    const A u = s.prev.usage[i], w = s.prev.write_w[i], d = b.grad.usage[i] + s.work.dallocation[i],
            through = d * s.tape.retention[i];
    s.work.dretention[i] += d * (u + w * (A(1) - u));
    b.grad.usage[i] = through * (A(1) - w);
    b.grad.write_w[i] = p.detach_write ? A(0) : through * (A(1) - u);
  });
  __syncthreads();
  own_cells(g, p.reads, [&](int i, int r) {
    b.grad.read_w[row_of(p, r) + i] -= other_heads(p, s, r, i) * act[p.at.free + r];
  });
  const DncKey<A> key = dnc_key(p, s.tape, 0);
  const int begin = g.first / kDncTile, tiles = static_cast<int>(dnc_tiles(g.last - g.first, kDncTile));
  for (int unit = threadIdx.x; unit < tiles * p.width; unit += kDncThreads) {
    const int w = unit % p.width, tile = begin + unit / p.width, last = min(p.cells, (tile + 1) * kDncTile);
    const A q = key.square(w), k = q * key.key[w];
    A dots = 0, norms = 0;
    for (int i = tile * kDncTile; i < last; ++i) {
      const i64 at = i64(i) * p.width + w;
      const A m = s.prev.memory[at], ddot = s.work.ddot[i], dnorm = s.work.dnorm[i] * m;
      b.grad.memory[at] += ddot * k + dnorm * q;
      dots += ddot * m;
      norms += dnorm * m;
    }
    s.work.dot_part[i64(tile) * (1 + p.reads) * p.width + w] = dots;
    s.work.norm_part[i64(tile) * (1 + p.reads) * p.width + w] = norms;
  }
}

// All other entries of the interface.
template <class A>
__device__ __forceinline__ void interface_parts_bwd(const DncProblem<A>& p, const DncGroup& g,
                                                    const DncStepBwd<A>& b) {
  const DncStep<A>& s = b.s;
  const int heads = 1 + p.reads;
  const i64 tiles = dnc_tiles(p.cells, kDncTile);
  for (int head = warp_id(); head < heads; head += kDncWarps) {
    const A key_norm = s.tape.key_norm[head];
    const i64 row = row_of(p, head);
    const A total = warp_total<A>(p.cells, [&](int i) {
      const A norm = s.tape.norm[row + i], dot = s.tape.dot[row + i];
      return s.work.ddot[row + i] * (dot / (norm * key_norm + p.eps)) * norm;
    });
    if (lane_id() == 0) b.slope[head] = key_norm > A(0) ? -total / key_norm : A(0);
  }
  __syncthreads();
  for (int unit = g.thread(); unit < (heads + 1) * p.width; unit += g.threads()) {
    const int head = unit / p.width, w = unit % p.width;
    const auto sum = [&](const A* part, int rows, int row) {
      return tile_sum(part, tiles, rows, row, i64(p.width), w);
    };
    if (head == heads) {
      b.put(p, p.at.erase + w, sum(s.work.erase_part, 1, 0));
      b.put(p, p.at.value + w, sum(s.work.value_part, 1, 0));
      continue;
    }
    const DncKey<A> key = dnc_key(p, s.tape, head);
    const A k = key.key[w], q = key.square(w), slope = b.slope[head],
            dproduct = sum(s.work.dot_part, heads, head);
    b.put(p, (head == 0 ? p.at.write_key : p.at.read_key + (head - 1) * p.width) + w,
          q * (slope * k + dproduct));
    if (p.masked) {
      const A dsquare = sum(s.work.norm_part, heads, head) * A(0.5), m = key.mask[w];
      b.put(p, (head == 0 ? 0 : p.at.read_mask + (head - 1) * p.width) + w,
            slope * k * k * m + 2 * m * (dsquare + k * dproduct));
    }
  }
  for (int unit = g.warp(); unit < heads; unit += g.warps()) {
    const A total = warp_total<A>(p.cells, [&](int i) {
      return unit == p.reads ? s.work.ddot[i] * s.tape.dot[i]
                             : -other_heads(p, s, unit, i) * s.prev.read_w[row_of(p, unit) + i];
    });
    if (lane_id() != 0) continue;
    if (unit == p.reads) {
      b.put(p, p.at.write_strength, total / s.tape.act[p.at.write_strength]);
    } else {
      b.put(p, p.at.free + unit, total);
    }
  }
}

// From dreads and grad to dinterface and grad; begins and ends behind a barrier. dtiles: of the gradient of
// the links if they are held.
template <class A>
__device__ __forceinline__ void memory_bwd(const DncProblem<A>& p, DncGroup& g, const DncStepBwd<A>& b,
                                           DncLinkTile<A>* tiles, DncLinkTile<A>* dtiles) {
  const DncStep<A>& s = b.s;
  A* const dlink = p.held ? nullptr : b.grad.link;
  copy_tiles<A>(s.prev.link, g, p.cells, tiles, p.ahead);
  if (dlink) copy_tiles<A>(dlink, g, p.cells, dtiles, false);
  reads_bwd(p, g, b);
  g.barrier();
  read_mix_bwd(p, g, b);
  g.barrier();
  link_bwd(link_pass(p, s), g, s.work.dforward, s.work.dbackward, tiles, dtiles, p.ahead, dlink);
  read_scalars_bwd(p, g, b);
  g.barrier();
  link_sums_bwd(p, g, b);
  g.barrier();
  write_bwd(p, g, b);
  g.barrier();
  interface_parts_bwd(p, g, b);
  g.barrier();
}

}  // namespace sysgen
