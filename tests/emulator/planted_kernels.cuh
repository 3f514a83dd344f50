// Small kernels in the style of the real ones, each right for Bug::none and wrong in one way for every other
// value that it looks at. The names of the bugs say what was done; the table in tests/test_emulator.py says
// who must see it.
#pragma once
#include "device/device.cuh"

enum class Bug {
  none,
  // product_f32
  shared_overrun,         // writes past the end of the last stage of a shared tile
  inner_index,            // an index leaves its dimension, but not the array
  misaligned_copy,        // cp.async<16> to an address that is aligned to 4 bytes
  no_sync_after_wait,     // reads what other threads' copies have brought
  refill_too_early,       // overwrites a stage that others still read
  one_group_too_few,      // waits for one cp.async group too few
  no_wait,                // does not wait for cp.async at all
  unguarded_load,         // rows past the end are read
  unguarded_store,        // rows of the next tile are written
  uninitialised_sum,      //
  short_launch,           // the launch asks for too little shared memory
  copies_not_waited_for,  // the thread ends with copies in flight
  // product_bf16
  mma_no_sync,
  mma_one_group_too_few,
  swapped_fragments,
  divergent_mma,  // some lanes skip an mma
  no_padding,     // right, but with bank conflicts
  // row_scan
  shuffle_in_branch,      // some lanes skip a shuffle
  no_sync_before_read,    // reads sums that other warps write
  too_many_lanes,         // 32 lanes write an array of 2
  no_sync_after_read,     // the next call overwrites what slow threads still read
  threads_skip_function,  // some threads skip a function with barriers
  early_exit,             // some threads leave before a barrier
  // histogram_offsets
  no_sync_after_zero,
  lost_update,      // += where an atomic is needed
  no_fence_before,  // the ticket, so that a block's counts may come after it
  no_fence_after,   // the ticket, so that older counts may be read
  fence_too_early,  // before the counts are written
  // persistent_smooth
  no_sync_after_grid_barrier,
  skipped_grid_barrier,
  not_resident,  // spins for blocks that have not started
  // warp_transpose
  no_syncwarp,
  // paired_warps
  barrier_count,  // a named barrier for more threads than come
  // mixed
  misaligned_load,  // of a float4
  index_overflow,   // of 32 bits
  two_barriers,     // the halves of the block meet at different __syncthreads
  // ring_product
  released_too_early,      // a stage, before the wgmma that reads it has ended
  full_stage_overwritten,  // the producers do not wait for the consumers
  one_lane_waits,          // for a full stage, the others go on
  no_proxy_fence,          // between cp.async and wgmma
  no_wgmma_fence,
  wrong_k_step,         // the descriptor of an mn-major operand goes on as if it were k-major
  too_few_bytes,        // are announced to a barrier
  arrival_not_counted,  // one too few in mbarrier_init
  wgmma_not_waited_for,
  divergent_wgmma,         // a warp of the warpgroup skips it
  barriers_not_published,  // no __syncthreads after mbarrier_init
  not_swizzled,            // gathered rows
  last,
};

namespace planted {

using namespace sysgen;

// ---- out[r, :] = x[gather[r], :] . w[expert of row r], with rows sorted by expert

struct ProductArgs {
  const void* x;       // [*, K]
  const void* w;       // [experts, K, N]
  const int* gather;   // [M]
  const int* offsets;  // [experts + 1]
  float* out;          // [M, N]
  int experts, K, N;
};

struct Tile {
  int expert, row, rows;  // no rows: nothing to do
};
template <int BM>
__device__ __forceinline__ Tile find_tile(const ProductArgs& a, int tile) {
  for (int e = 0; e < a.experts; ++e) {
    const int rows = a.offsets[e + 1] - a.offsets[e], tiles = (rows + BM - 1) / BM;
    if (tile < tiles) return {e, a.offsets[e] + tile * BM, min(BM, rows - tile * BM)};
    tile -= tiles;
  }
  return {0, 0, 0};
}

struct ProductF32 {
  static constexpr int BM = 32, BN = 32, BK = 16, STAGES = 2, THREADS = 64;
  using A = float[STAGES][BM][BK + 4];
  using B = float[STAGES][BK][BN];
  static constexpr unsigned SHARED = sizeof(A) + sizeof(B);
};

template <Bug BUG>
__global__ void __launch_bounds__(ProductF32::THREADS) product_f32(const ProductArgs a) {
  constexpr int BM = ProductF32::BM, BN = ProductF32::BN, BK = ProductF32::BK, STAGES = ProductF32::STAGES;
  Smem smem;
  auto& as = smem.array<ProductF32::A>();
  auto& bs = smem.array<ProductF32::B>();
  const Tile tile = find_tile<BM>(a, blockIdx.y);
  if (tile.rows == 0) return;
  const int tid = threadIdx.x, n0 = blockIdx.x * BN, row = tid / 8 * 4, col = tid % 8 * 4;
  const float* x = static_cast<const float*>(a.x);
  const float* w = static_cast<const float*>(a.w) + i64(tile.expert) * a.K * a.N;

  const auto load = [&](int stage, int k0) {
    for (int i = tid; i < BM * BK / 4; i += ProductF32::THREADS) {
      const int r = i / (BK / 4), c = i % (BK / 4) * 4;
      const bool valid = (r < tile.rows || BUG == Bug::unguarded_load) && k0 + c < a.K;
      const float* src = valid ? x + i64(a.gather[tile.row + r]) * a.K + k0 + c : x;
      float* dst = &as[stage][r][c];
      if (BUG == Bug::shared_overrun && stage == STAGES - 1 && r == BM - 1) dst += BK + 4;
      if (BUG == Bug::misaligned_copy && r == 3) ++dst;
      cp_async<16>(dst, src, valid);
    }
    for (int i = tid; i < BK * BN / 4; i += ProductF32::THREADS) {
      const int r = i / (BN / 4), c = i % (BN / 4) * 4;
      const bool valid = k0 + r < a.K && n0 + c < a.N;
      cp_async<16>(&bs[stage][r][c], valid ? w + i64(k0 + r) * a.N + n0 + c : w, valid);
    }
  };

  float sum[4][4];
  if (BUG != Bug::uninitialised_sum)
    for (auto& s : sum)
      for (float& v : s) v = 0;
  const int steps = (a.K + BK - 1) / BK;
  load(0, 0);
  cp_async_commit();
  for (int s = 0; s < steps; ++s) {
    if (BUG == Bug::one_group_too_few) {
      cp_async_wait<STAGES - 1>();
    } else if (BUG != Bug::no_wait) {
      cp_async_wait<STAGES - 2>();
    }
    if (BUG != Bug::no_sync_after_wait) __syncthreads();
    const int next = s + 1, stage = s % STAGES;
    if (BUG != Bug::refill_too_early) {
      if (next < steps) load(next % STAGES, next * BK);
      cp_async_commit();
    }
    for (int k = 0; k < BK; ++k)
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) {
          const bool outside = BUG == Bug::inner_index && k == BK - 1 && row > 0 && i == 0;
          sum[i][j] += as[stage][row + i][outside ? BK + 4 : k] * bs[stage][k][col + j];
        }
    if (BUG == Bug::refill_too_early && next < steps) {
      load(stage, next * BK);
      cp_async_commit();
      cp_async_wait<0>();
      __syncthreads();
      load(next % STAGES, next * BK);
      cp_async_commit();
    }
  }
  if (BUG != Bug::copies_not_waited_for) cp_async_wait<0>();
  if (BUG == Bug::copies_not_waited_for) {
    __syncthreads();
    load(0, 0);
  }
  for (int i = 0; i < 4; ++i) {
    const int r = tile.row + row + i;
    if (BUG == Bug::unguarded_store ? r >= a.offsets[a.experts] : row + i >= tile.rows) continue;
    for (int j = 0; j < 4; ++j)
      if (n0 + col + j < a.N) a.out[i64(r) * a.N + n0 + col + j] = sum[i][j];
  }
}

template <Bug BUG>
struct ProductBf16 {
  static constexpr int BM = 32, BN = 32, BK = 32, STAGES = 3, THREADS = 64,
                       PAD = BUG == Bug::no_padding ? 0 : 8;
  using A = bf16[STAGES][BM][BK + PAD];
  using B = bf16[STAGES][BK][BN + PAD];
  static constexpr unsigned SHARED = sizeof(A) + sizeof(B);
};

template <Bug BUG>
__global__ void __launch_bounds__(ProductBf16<BUG>::THREADS) product_bf16(const ProductArgs a) {
  using P = ProductBf16<BUG>;
  constexpr int BM = P::BM, BN = P::BN, BK = P::BK, STAGES = P::STAGES;
  Smem smem;
  auto& as = smem.array<typename P::A>();
  auto& bs = smem.array<typename P::B>();
  const Tile tile = find_tile<BM>(a, blockIdx.y);
  if (tile.rows == 0) return;
  const int tid = threadIdx.x, n0 = blockIdx.x * BN, lane = lane_id(), row = warp_id() * 16;
  const bf16* x = static_cast<const bf16*>(a.x);
  const bf16* w = static_cast<const bf16*>(a.w) + i64(tile.expert) * a.K * a.N;

  const auto load = [&](int stage, int k0) {
    for (int i = tid; i < BM * BK / 8; i += P::THREADS) {
      const int r = i / (BK / 8), c = i % (BK / 8) * 8;
      const bool valid = r < tile.rows && k0 + c < a.K;
      cp_async<16>(&as[stage][r][c], valid ? x + i64(a.gather[tile.row + r]) * a.K + k0 + c : x, valid);
    }
    for (int i = tid; i < BK * BN / 8; i += P::THREADS) {
      const int r = i / (BN / 8), c = i % (BN / 8) * 8;
      const bool valid = k0 + r < a.K && n0 + c < a.N;
      cp_async<16>(&bs[stage][r][c], valid ? w + i64(k0 + r) * a.N + n0 + c : w, valid);
    }
  };

  float sum[4][4] = {};
  const int steps = (a.K + BK - 1) / BK;
  for (int s = 0; s < STAGES - 1; ++s) {
    if (s < steps) load(s, s * BK);
    cp_async_commit();
  }
  for (int s = 0; s < steps; ++s) {
    cp_async_wait<BUG == Bug::mma_one_group_too_few ? STAGES - 1 : STAGES - 2>();
    if (BUG != Bug::mma_no_sync) __syncthreads();
    const int next = s + STAGES - 1, stage = s % STAGES;
    if (next < steps) load(next % STAGES, next * BK);
    cp_async_commit();
    for (int k = 0; k < BK; k += 16) {
      u32 fa[4], fb[4][2];
      ldmatrix_x4(fa, &as[stage][row + lane % 16][k + lane / 16 * 8]);
      for (int j = 0; j < 4; j += 2) {
        u32 r[4];
        ldmatrix_x4_trans(r, &bs[stage][k + lane % 16][j * 8 + lane / 16 * 8]);
        const int swap = BUG == Bug::swapped_fragments ? 2 : 0;
        for (int i = 0; i < 2; ++i) {
          fb[j][i] = r[i ^ swap];
          fb[j + 1][i] = r[(i + 2) ^ swap];
        }
      }
      for (int j = 0; j < 4; ++j)
        if (BUG != Bug::divergent_mma || lane < 28 || j == 0) mma_m16n8k16(sum[j], fa, fb[j], sum[j], bf16());
    }
  }
  cp_async_wait<0>();
  for (int j = 0; j < 4; ++j)
    for (int i = 0; i < 4; ++i) {
      const int r = row + lane / 4 + i / 2 * 8, c = n0 + j * 8 + lane % 4 * 2 + i % 2;
      if (r < tile.rows && c < a.N) a.out[i64(tile.row + r) * a.N + c] = sum[j][i];
    }
}

// ---- exclusive sums of rows, one block a row

struct ScanArgs {
  const int* in;  // [rows, n]
  int* out;
  int n;
};

constexpr int kScanThreads = 64, kScanWarps = kScanThreads / 32;

template <Bug BUG>
__device__ __forceinline__ int block_scan(int value, int& total) {
  SYSGEN_SHARED(int, sums, [kScanWarps]);
  const int lane = lane_id(), warp = warp_id();
  int sum = value;
  for (int d = 1; d < 32; d *= 2) {
    if (BUG == Bug::shuffle_in_branch) {
      if (lane >= d) sum += __shfl_up_sync(~0u, sum, d);
    } else {
      const int below = __shfl_up_sync(~0u, sum, d);
      if (lane >= d) sum += below;
    }
  }
  if (lane == 31) sums[warp] = sum;
  if (BUG == Bug::too_many_lanes && warp == 0) sums[lane] = lane == 0 ? sum : 0;
  if (BUG != Bug::no_sync_before_read) __syncthreads();
  int base = 0;
  total = 0;
  for (int w = 0; w < kScanWarps; ++w) {
    if (w < warp) base += sums[w];
    total += sums[w];
  }
  if (BUG != Bug::no_sync_after_read) __syncthreads();
  return base + sum - value;
}

template <Bug BUG>
__global__ void __launch_bounds__(kScanThreads) row_scan(const ScanArgs a) {
  const int* in = a.in + i64(blockIdx.x) * a.n;
  int* out = a.out + i64(blockIdx.x) * a.n;
  int carry = 0;
  for (int first = 0; first < a.n; first += kScanThreads) {
    const int i = first + threadIdx.x;
    if (BUG == Bug::threads_skip_function && i >= a.n) break;
    if (BUG == Bug::early_exit && i >= a.n) return;
    int total;
    const int before = block_scan<BUG>(i < a.n ? in[i] : 0, total);
    if (i < a.n) out[i] = carry + before;
    carry += total;
  }
  if (BUG == Bug::threads_skip_function) __syncthreads();
}

// ---- a histogram whose last block turns counts into offsets

struct HistogramArgs {
  const unsigned* keys;  // [n]
  int n;
  int* partial;      // [blocks, kBins]
  int* offsets;      // [kBins]
  unsigned* ticket;  // 0
};

constexpr int kBins = kScanThreads;

template <Bug BUG>
__global__ void __launch_bounds__(kBins) histogram_offsets(const HistogramArgs a) {
  SYSGEN_SHARED(int, counts, [kBins]);
  SYSGEN_SHARED(bool, last, [1]);
  const int tid = threadIdx.x;
  counts[kBins - 1 - tid] = 0;
  if (BUG != Bug::no_sync_after_zero) __syncthreads();
  for (int i = blockIdx.x * kBins + tid; i < a.n; i += gridDim.x * kBins) {
    if (BUG == Bug::lost_update) {
      counts[a.keys[i] % kBins] += 1;
    } else {
      atomicAdd(&counts[a.keys[i] % kBins], 1);
    }
  }
  __syncthreads();
  if (BUG == Bug::fence_too_early && tid == 0) __threadfence();
  if (BUG == Bug::fence_too_early) __syncthreads();
  a.partial[blockIdx.x * kBins + tid] = counts[tid];
  __syncthreads();
  if (tid == 0) {
    if (BUG != Bug::no_fence_before && BUG != Bug::fence_too_early) __threadfence();
    last[0] = atomicAdd(a.ticket, 1u) == gridDim.x - 1;
    if (BUG != Bug::no_fence_after) __threadfence();
  }
  __syncthreads();
  if (!last[0]) return;
  int sum = 0, total;
  for (u32 b = 0; b < gridDim.x; ++b) sum += a.partial[b * kBins + tid];
  a.offsets[tid] = block_scan<Bug::none>(sum, total);
}

// ---- a persistent kernel: one grid barrier a time step

struct SmoothArgs {
  float* a;  // [n] in
  float* b;  // [n] scratch; the result is in a after an even number of steps
  int n, steps;
  unsigned* arrived;  // 0
};

template <Bug BUG>
__device__ __forceinline__ void grid_barrier(unsigned* arrived, unsigned& target) {
  __syncthreads();
  target += gridDim.x;
  if (threadIdx.x == 0) {
    atomic_add_acq_rel(arrived, 1u);
    while (load_acquire(arrived) < target) {
    }
  }
  if (BUG != Bug::no_sync_after_grid_barrier) __syncthreads();
}

template <Bug BUG>
__global__ void __launch_bounds__(64) persistent_smooth(const SmoothArgs args) {
  float *from = args.a, *to = args.b;
  unsigned target = 0;
  for (int step = 0; step < args.steps; ++step) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < args.n; i += gridDim.x * blockDim.x) {
      const int left = i ? i - 1 : args.n - 1, right = i + 1 < args.n ? i + 1 : 0;
      to[i] = from[left] + 2 * from[i] + from[right];
    }
    if (BUG != Bug::skipped_grid_barrier || step % 2 == 0) grid_barrier<BUG>(args.arrived, target);
    float* t = from;
    from = to;
    to = t;
  }
}

// ---- within a warp, between two warps, and the rest

struct FloatArgs {
  const float* in;
  float* out;
  int rows, stride;
};

template <Bug BUG>
__global__ void __launch_bounds__(64) warp_transpose(const FloatArgs a) {  // one 32 x 32 tile a warp
  SYSGEN_SHARED(float, tiles, [2][32][33]);
  const int lane = lane_id(), warp = warp_id();
  const i64 base = (i64(blockIdx.x) * 2 + warp) * 1024;
  for (int r = 0; r < 32; ++r) tiles[warp][r][lane] = a.in[base + r * 32 + lane];
  if (BUG != Bug::no_syncwarp) __syncwarp();
  for (int r = 0; r < 32; ++r) a.out[base + r * 32 + lane] = tiles[warp][lane][r];
}

template <Bug BUG>
__global__ void __launch_bounds__(128)
    paired_warps(const FloatArgs a) {  // two pairs, each with its own barrier
  SYSGEN_SHARED(float, values, [128]);
  const int tid = threadIdx.x, pair = tid / 64;
  for (int i = 0; i <= pair; ++i) {  // the pairs pass different numbers of barriers
    values[tid] = a.in[tid] + i;
    named_barrier(1 + pair, BUG == Bug::barrier_count && pair ? 96 : 64);
    a.out[tid] = values[tid ^ 32];
    named_barrier(1 + pair, BUG == Bug::barrier_count && pair ? 96 : 64);
  }
}

template <Bug BUG>
__global__ void __launch_bounds__(64) mixed(const FloatArgs a) {
  SYSGEN_SHARED(float, values, [64]);
  const int tid = threadIdx.x;
  const float4 v = *reinterpret_cast<const float4*>(a.in + 4 * tid + (BUG == Bug::misaligned_load));
  const i64 place = BUG == Bug::index_overflow ? (a.rows + tid) * a.stride : i64(a.rows + tid) * a.stride;
  values[tid] = v.x + v.y + v.z + v.w + (place < 0);
  if (BUG == Bug::two_barriers && tid < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  a.out[tid] = values[63 - tid];
}

}  // namespace planted
