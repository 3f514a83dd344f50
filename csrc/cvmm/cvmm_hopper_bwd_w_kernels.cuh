// cvmm_bwd_w for sm_90a: the tiles and segments of cvmm_bwd_w_kernels.cuh, by the roles of
// cvmm_hopper_kernels.cuh. Rows of both operands are routes, so both are gathered, and both lie mn-major in
// shared memory. Gates are multiplied into x, which then reaches wgmma through registers.
#pragma once
#include "cvmm/cvmm_bwd_w_kernels.cuh"
#include "cvmm/cvmm_hopper_ring.cuh"

namespace sysgen {

template <class T_, bool GATED_>
struct CvmmHopperGradientTile {
  using T = T_;
  static constexpr bool GATED = GATED_;
  static constexpr int BM = 128, BN = 128, BK = 64, STAGES = 6, THREADS = RING_THREADS;
  struct Stages {  // 64 routes of 64 columns, twice
    T a[STAGES][2][BK][64];
    T b[STAGES][2][BK][64];
  };
  using Gates = float[STAGES][BK];
  using Barriers = RingBarriers<STAGES>;
  static constexpr u32 SHARED =
      sizeof(Stages) + 1024 - 128 + sizeof(Gates) + (sizeof(Barriers) + 127) / 128 * 128;
};

template <class T_>
struct CvmmHopperGradient : WgmmaProduct<128> {
  using T = T_;
  static constexpr int BM = 128, BN = 128;
  using WgmmaProduct::WgmmaProduct;
};

// Tile `index` of the list of CvmmBwdWTiles: no steps and not whole if there is none, no steps and whole for
// zeros.
template <class P>
__device__ __forceinline__ CvmmBwdWTile cvmm_hopper_gradient_tile(const CvmmBwdWKernelArgs<typename P::T>& a,
                                                                  i64 index) {
  CvmmBwdWTile tile{};
  const i64 tiles = i64(a.m_tiles) * a.n_tiles, segment = index / tiles;
  tile.expert =
      warp_search(a.num_experts, [&](i64 e) { return segment_base(a.offsets, e, a.segment); }, segment);
  const i64 begin = a.offsets[tile.expert], routes = a.offsets[tile.expert + 1] - begin;
  tile.index = segment - segment_base(a.offsets, tile.expert, a.segment);
  const i64 left = routes - tile.index * a.segment;
  if (tile.index > 0 && left <= 0) return tile;
  const int place = index % tiles;
  tile.m_tile = place / a.n_tiles;
  tile.n_tile = place % a.n_tiles;
  tile.row0 = begin + tile.index * a.segment;
  tile.rows = left < a.segment ? left : a.segment;
  tile.steps = (tile.rows + P::BK - 1) / P::BK;
  tile.whole = routes <= a.segment;
  return tile;
}
template <class T>
__device__ __forceinline__ i64 cvmm_hopper_gradient_tiles(const CvmmBwdWKernelArgs<T>& a) {
  return segment_base(a.offsets, a.num_experts, a.segment) * a.m_tiles * a.n_tiles;
}

template <class P>
__device__ __forceinline__ void cvmm_hopper_gradient_produce(const CvmmBwdWKernelArgs<typename P::T>& a,
                                                             typename P::Stages& stages,
                                                             typename P::Gates& gates,
                                                             typename P::Barriers& barriers) {
  // 16 lanes copy the 128 columns of a row, a warp 2 rows at once, all warps 8; lane i knows the route of row
  // i % 2 of the warp's i / 2-th turn.
  constexpr int TURNS = P::BK / 8;
  auto& full = barriers[0];
  auto& empty = barriers[1];
  const int lane = lane_id(), warp = warp_id();
  const int chunk = lane % 16, box = chunk / 8;
  const int own_row = warp * 2 + lane % 2 + lane / 2 % TURNS * 8;
  RingPlace<P::STAGES> at{0, 1};
  const i64 end = cvmm_hopper_gradient_tiles(a);
  for (i64 index = blockIdx.x; index < end; index += gridDim.x) {
    const CvmmBwdWTile tile = cvmm_hopper_gradient_tile<P>(a, index);
    const i64 m0 = i64(tile.m_tile) * P::BM + chunk * 8, n0 = i64(tile.n_tile) * P::BN + chunk * 8;
    const auto route_of = [&](int row) { return row < tile.rows ? a.order[tile.row0 + row] : 0; };
    int ahead = route_of(own_row), gate_ahead = P::GATED ? route_of(threadIdx.x) : 0;
    for (int step = 0; step < tile.steps; ++step, at.advance()) {
      const int x_row = ahead / a.x.divisor, dy_row = ahead / a.dy.divisor, gate_route = gate_ahead;
      const int row0 = step * P::BK, left = tile.rows - row0;
      ahead = route_of(row0 + P::BK + own_row);
      if (P::GATED) gate_ahead = route_of(row0 + P::BK + threadIdx.x);
      mbarrier_wait(empty[at.stage], at.parity);
#pragma unroll 4  // all at once would need more addresses than a producer has registers
      for (int turn = 0; turn < TURNS; ++turn) {
        const int holder = turn * 2 + lane / 16, row = warp * 2 + lane / 16 + turn * 8;
        const int place = ((chunk ^ row) % 8) * 8;
        const i64 x_at = __shfl_sync(~0u, x_row, holder) * a.x.stride + m0,
                  dy_at = __shfl_sync(~0u, dy_row, holder) * a.dy.stride + n0;
        const bool x_valid = row < left && m0 < a.d, dy_valid = row < left && n0 < a.h;
        cp_async<16>(&stages.a[at.stage][box][row][place], a.x.data + (x_valid ? x_at : 0), x_valid);
        cp_async<16>(&stages.b[at.stage][box][row][place], a.dy.data + (dy_valid ? dy_at : 0), dy_valid);
      }
      if (P::GATED && threadIdx.x < P::BK)
        cp_async<4>(&gates[at.stage][threadIdx.x], a.gate + gate_route, int(threadIdx.x) < left);
      cp_async_arrive(full[at.stage]);
    }
  }
  for (int s = 0; s < P::STAGES; ++s, at.advance())
    mbarrier_wait(empty[at.stage], at.parity);  // all has arrived
}

// One step of 64 routes. x as fragments of 16 rows of dw by 16 routes, times the gates.
template <class P>
__device__ __forceinline__ void cvmm_hopper_gated_step(CvmmHopperGradient<typename P::T>& product,
                                                       const typename P::T (&x)[P::BK][64],
                                                       const float (&gates)[P::BK], u64 dy, bool accumulate) {
  using T = typename P::T;
  const int lane = product.lane, m_chunk = product.first_row % 64 / 8 + lane / 8 % 2;
  u32 fragments[P::BK / 16][4];
#pragma unroll
  for (int k = 0; k < P::BK / 16; ++k) {
    const int row = k * 16 + lane % 8 + lane / 16 * 8, q = k * 16 + lane % 4 * 2;
    ldmatrix_x4_trans(fragments[k], &x[row][(m_chunk ^ row % 8) * 8]);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      float lo, hi;
      unpack2<T>(fragments[k][r], lo, hi);
      fragments[k][r] = pack2<T>(lo * gates[q + r / 2 * 8], hi * gates[q + r / 2 * 8 + 1]);
    }
  }
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < P::BK / 16; ++k)
    wgmma<T, true>(product.acc, fragments[k], advanced(dy, k * 2048), accumulate || k > 0);
  wgmma_commit();
  wgmma_wait<0>(product.acc);  // the fragments' registers are needed again
}

template <class P>
__device__ __forceinline__ void cvmm_hopper_gradient_consume(const CvmmBwdWKernelArgs<typename P::T>& a,
                                                             typename P::Stages& stages,
                                                             typename P::Gates& gates,
                                                             typename P::Barriers& barriers) {
  using T = typename P::T;
  constexpr u32 BOX = sizeof(stages.b[0][0]), STAGE = sizeof(stages.b[0]);
  auto& full = barriers[0];
  auto& empty = barriers[1];
  const int warp = warp_id() - RING_PRODUCERS / 32, group = warp / 4;
  const u64 x_start = mn_major_descriptor(shared_address(&stages.a[0][group]), BOX),
            dy_start = mn_major_descriptor(shared_address(&stages.b[0]), BOX);
  const auto release = [&](int stage) {
    if (lane_id() == 0) mbarrier_arrive(empty[stage]);
  };
  RingPlace<P::STAGES> at{0, 0};
  const i64 end = cvmm_hopper_gradient_tiles(a);
  for (i64 index = blockIdx.x; index < end; index += gridDim.x) {
    const CvmmBwdWTile tile = cvmm_hopper_gradient_tile<P>(a, index);
    if (tile.steps == 0 && !tile.whole) continue;
    CvmmHopperGradient<T> product(warp);
    if (tile.steps == 0)  // an expert without routes
#pragma unroll
      for (float& v : product.acc) v = 0;
    int before = -1;
    for (int step = 0; step < tile.steps; ++step, at.advance()) {
      mbarrier_wait(full[at.stage], at.parity);
      fence_proxy_async();  // cp.async wrote what wgmma reads
      const u64 dy = advanced(dy_start, at.stage * STAGE);
      if constexpr (P::GATED) {
        cvmm_hopper_gated_step<P>(product, stages.a[at.stage][group], gates[at.stage], dy, step > 0);
        __syncwarp();  // all lanes have read x and the gates
        release(at.stage);
      } else {
        const u64 x = advanced(x_start, at.stage * STAGE);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < P::BK / 16; ++k)
          wgmma<T, true, true>(product.acc, advanced(x, k * 2048), advanced(dy, k * 2048), step > 0 || k > 0);
        wgmma_commit();
        wgmma_wait<1>(product.acc);
        if (before >= 0) release(before);
        before = at.stage;
      }
    }
    if constexpr (!P::GATED) {
      wgmma_wait<0>(product.acc);
      if (before >= 0) release(before);
    }
    store_weight_gradient(a, product, tile);
  }
}

template <class P>
__global__ void __launch_bounds__(P::THREADS, 1)
    cvmm_hopper_bwd_w_kernel(const CvmmBwdWKernelArgs<typename P::T> a) {
  Smem smem;
  auto& stages = smem.array<typename P::Stages, 1024>();
  auto& gates = smem.array<typename P::Gates>();
  auto& barriers = smem.array<typename P::Barriers>();
  start_ring<P>(barriers, RING_PRODUCERS);
  if (warp_id() < RING_PRODUCERS / 32) {
    registers_decrease<RING_PRODUCER_REGISTERS>();
    cvmm_hopper_gradient_produce<P>(a, stages, gates, barriers);
  } else {
    registers_increase<RING_CONSUMER_REGISTERS>();
    cvmm_hopper_gradient_consume<P>(a, stages, gates, barriers);
  }
}

}  // namespace sysgen
