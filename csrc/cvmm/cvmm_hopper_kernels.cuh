// cvmm_fwd for sm_90a: the same tiles, sums and epilogue as cvmm_fwd_kernels.cuh, by warpgroups with
// different roles. One gathers rows of x by cp.async and has TMA bring the weights; two multiply 64 rows each
// by wgmma. They meet at the stages of a ring: `full` when both operands are there, `empty` when both
// multipliers are done. Blocks stay and walk over the tiles, so that the next tile's operands arrive during
// the epilogue.
#pragma once
#include "cvmm/cvmm_fwd_kernels.cuh"
#include "cvmm/cvmm_hopper_ring.cuh"

namespace sysgen {

template <class T, class W = T>
struct CvmmHopperArgs {
  TensorMap w;  // [E, d, h] or, if rows of w run along d, [E, h, d]; boxes as the tile has them
  CvmmFwdKernelArgs<T, W> fwd;  // n_tiles for tiles of BN columns; x may be read 16 bytes at a time
};

// KN: rows of w in memory run along h. A box is then 64 k of 64 columns, else BN columns of 64 k.
template <class T_, int BN_, bool KN_>
struct CvmmHopperTile {
  using T = T_;
  using W = T_;
  static constexpr bool KN = KN_;
  static constexpr int BM = 128, BN = BN_, BK = 64, STAGES = BN == 64 ? 8 : 6;
  static constexpr int PRODUCERS = RING_PRODUCERS, CONSUMERS = RING_CONSUMERS, THREADS = RING_THREADS;
  static constexpr int BOX_ROWS = KN ? BK : BN, BOX = BOX_ROWS * 64, BOXES = BN * BK / BOX;
  static constexpr u32 B_BYTES = sizeof(T) * BN * BK;
  struct Stages {
    T a[STAGES][BM][BK];
    T b[STAGES][BOXES][BOX];
  };
  using Barriers = RingBarriers<STAGES>;
  static constexpr u32 SHARED = sizeof(Stages) + 1024 - 128 + (sizeof(Barriers) + 127) / 128 * 128;
};

struct CvmmHopperWork {
  i64 expert, row0, n0;
  int rows, n_tile;  // no rows: nothing to do
};
// Tiles lie as in CvmmFwdTiles, the column tiles of a row of tiles behind each other.
template <class P, class Args>
__device__ __forceinline__ i64 cvmm_hopper_tiles(const Args& a) {
  return tile_base<P::BM>(a.offsets, a.num_experts) * a.n_tiles;
}
template <class P, class Args>
__device__ __forceinline__ CvmmHopperWork cvmm_hopper_work(const Args& a, i64 index) {
  const i64 tile = index / a.n_tiles;
  const int n_tile = index % a.n_tiles;
  const i64 e = warp_search(a.num_experts, [&](i64 i) { return tile_base<P::BM>(a.offsets, i); }, tile);
  const i64 m0 = (tile - tile_base<P::BM>(a.offsets, e)) * P::BM;
  const i64 left = a.offsets[e + 1] - a.offsets[e] - m0;
  return {e, (a.begins ? a.begins[e] : a.offsets[e]) + m0, i64(n_tile) * P::BN,
          left < 0       ? 0
          : left < P::BM ? int(left)
                         : P::BM,
          n_tile};
}

template <class P>
__device__ __forceinline__ void cvmm_hopper_produce(const CvmmHopperArgs<typename P::T, typename P::W>& args,
                                                    typename P::Stages& stages,
                                                    typename P::Barriers& barriers) {
  using T = typename P::T;
  constexpr int CHUNKS = P::BK / 8, EACH = P::BM * CHUNKS / P::PRODUCERS, STEP = P::PRODUCERS / CHUNKS;
  constexpr int BOX_COLUMNS = 128 / sizeof(typename P::W),
                UNITS = sizeof(typename P::W) / 2;  // TMA counts halves
  const CvmmFwdKernelArgs<T, typename P::W>& a = args.fwd;
  auto& full = barriers[0];
  auto& empty = barriers[1];
  const int chunk = threadIdx.x % CHUNKS, first = threadIdx.x / CHUNKS;
  const int place = (chunk ^ (first % 8)) * 8;  // swizzled; STEP rows further on it is the same
  static_assert(STEP % 8 == 0, "a thread's chunks are all at one place of their rows");
  RingPlace<P::STAGES> at{0, 1};
  const i64 end = cvmm_hopper_tiles<P>(a);
  for (i64 index = blockIdx.x; index < end; index += gridDim.x) {
    const CvmmHopperWork work = cvmm_hopper_work<P>(a, index);
    if (work.rows == 0) continue;
    const T* source[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      const int m = first + i * STEP;
      const i64 row = m < work.rows ? a.order[work.row0 + m] / a.x.divisor : 0;
      source[i] = a.x.data + row * a.x.stride + chunk * 8;
    }
    for (i64 k0 = 0; k0 < a.d; k0 += P::BK, at.advance()) {
      mbarrier_wait(empty[at.stage], at.parity);
      if (threadIdx.x == 0) {
        mbarrier_arrive_expect(full[at.stage], P::B_BYTES);
#pragma unroll
        for (int box = 0; box < P::BOXES; ++box) {
          const int n = int(work.n0), k = int(k0), along = box * BOX_COLUMNS;
          tma_load_3d(stages.b[at.stage][box], args.w, ((P::KN ? n : k) + along) * UNITS, P::KN ? k : n,
                      int(work.expert), full[at.stage]);
        }
      }
      const bool inside = k0 + chunk * 8 < a.d;
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        const int m = first + i * STEP;
        const bool valid = inside && m < work.rows;
        cp_async<16>(&stages.a[at.stage][m][place], valid ? source[i] + k0 : a.x.data, valid);
      }
      cp_async_arrive(full[at.stage]);
    }
  }
  for (int s = 0; s < P::STAGES; ++s, at.advance())
    mbarrier_wait(empty[at.stage], at.parity);  // all has arrived
}

template <class T, class W, class Product>
__device__ __forceinline__ void cvmm_hopper_finish(const CvmmFwdKernelArgs<T, W>& a,
                                                   const CvmmHopperWork& work, Product& product) {
  const auto route_of = [&](int m) { return m < work.rows ? a.order[work.row0 + m] : -1; };
  add_bias<Product, float>(a, product, work.expert, work.n0);
  finish_rows<T>(a, product, work.row0, work.n0, route_of, [&](int m, float sum) {
    if (m >= work.rows) return;
    if (a.dot) {
      a.dot[route_of(m)] = sum;
    } else {
      a.dot_tiles[work.n_tile * a.num_routes + work.row0 + m] = sum;
    }
  });
}

template <class P>
__device__ __forceinline__ void cvmm_hopper_consume(const CvmmHopperArgs<typename P::T>& args,
                                                    typename P::Stages& stages,
                                                    typename P::Barriers& barriers) {
  using T = typename P::T;
  constexpr u32 A_STAGE = sizeof(stages.a[0]), B_STAGE = P::B_BYTES, BOX_BYTES = sizeof(T) * P::BOX;
  const CvmmFwdKernelArgs<T, T>& a = args.fwd;
  auto& full = barriers[0];
  auto& empty = barriers[1];
  const int warp = warp_id() - P::PRODUCERS / 32, group_row = warp / 4 * 64;
  const u64 a_start = k_major_descriptor(shared_address(&stages.a[0][group_row]));
  const u32 b_address = shared_address(&stages.b[0]);
  const u64 b_start = P::KN ? mn_major_descriptor(b_address, BOX_BYTES) : k_major_descriptor(b_address);
  const auto release = [&](int stage) {
    if (lane_id() == 0) mbarrier_arrive(empty[stage]);
  };
  RingPlace<P::STAGES> at{0, 0};
  const i64 end = cvmm_hopper_tiles<P>(a);
  for (i64 index = blockIdx.x; index < end; index += gridDim.x) {
    const CvmmHopperWork work = cvmm_hopper_work<P>(a, index);
    if (work.rows == 0) continue;
    WgmmaProduct<P::BN> product(warp);
    int before = -1;
    for (i64 k0 = 0; k0 < a.d; k0 += P::BK, at.advance()) {
      mbarrier_wait(full[at.stage], at.parity);
      fence_proxy_async();  // cp.async wrote a; the waits of both, then this, order its reads behind
      const u64 a_stage = advanced(a_start, at.stage * A_STAGE),
                b_stage = advanced(b_start, at.stage * B_STAGE);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < P::BK / 16; ++k)
        wgmma<T, false, P::KN>(product.acc, advanced(a_stage, k * 32),
                               advanced(b_stage, k * (P::KN ? 2048 : 32)), k0 > 0 || k > 0);
      wgmma_commit();
      wgmma_wait<1>(product.acc);
      if (before >= 0) release(before);
      before = at.stage;
    }
    wgmma_wait<0>(product.acc);
    release(before);
    if (group_row < work.rows) cvmm_hopper_finish(a, work, product);
  }
}

template <class P>
__global__ void __launch_bounds__(P::THREADS, 1)
    cvmm_hopper_kernel(const __grid_constant__ CvmmHopperArgs<typename P::T> args) {
  Smem smem;
  auto& stages = smem.array<typename P::Stages, 1024>();
  auto& barriers = smem.array<typename P::Barriers>();
  if (threadIdx.x == 0) prefetch_tensor_map(args.w);
  start_ring<P>(barriers, P::PRODUCERS + 1);  // their copies, and thread 0 for TMA
  if (!args.fwd.begins) clear_dropped(args.fwd);
  if (warp_id() < P::PRODUCERS / 32) {
    registers_decrease<RING_PRODUCER_REGISTERS>();
    cvmm_hopper_produce<P>(args, stages, barriers);
  } else {
    registers_increase<RING_CONSUMER_REGISTERS>();
    cvmm_hopper_consume<P>(args, stages, barriers);
  }
}

}  // namespace sysgen
