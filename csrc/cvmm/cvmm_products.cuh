// The inner products of the CVMM kernels: how one block multiplies an [M, K] by a [K, N] tile in shared
// memory. A product holds the accumulators of one thread. Its rows i and runs j of LEN consecutive columns
// lie at tile row row(i) and tile column col(j); the 4 lanes of a quad hold the same rows.
//
//   HalfProduct  mma m16n8k16 of bf16 or f16, B also as float32 that is rounded on the way
//   Tf32Product  mma m16n8k8 of float32 rounded to tf32, or split into two tf32 parts (X3)
//   SimtProduct  float32 and float64 as IEEE has them
//
// Tiles are [M][K] or [K][M] (A_KM) and [N][K] or [K][N] (B_KN). Element (row, col) of one lies at column
// place_a(row, col) or place_b(row, col) of its row, which keeps copies and reads free of bank conflicts.
// Zero-filled padding is only ever multiplied with zero-filled padding, so nothing leaks
// through it.
#pragma once
#include "cvmm/cvmm_tiles.cuh"

namespace sysgen {

// Accumulators of mma fragments, and the place of a warp in the tile.
template <int BM_, int BN_, int WARPS_M_, int WARPS_N_>
struct MmaAccumulators {
  static constexpr int BM = BM_, BN = BN_, WARPS_M = WARPS_M_, WARPS_N = WARPS_N_;
  static constexpr int THREADS = 32 * WARPS_M * WARPS_N;
  static constexpr int MT = BM / WARPS_M / 16, NT = BN / WARPS_N / 8;
  static constexpr int ROWS = 2 * MT, RUNS = NT, LEN = 2, RUN_STRIDE = 8;

  int warp_m, warp_n, lane;
  float acc[MT][NT][4];

  __device__ __forceinline__ MmaAccumulators()
      : warp_m(warp_id() / WARPS_N * (BM / WARPS_M)),
        warp_n(warp_id() % WARPS_N * (BN / WARPS_N)),
        lane(lane_id()) {
#pragma unroll
    for (int i = 0; i < MT; ++i)
#pragma unroll
      for (int j = 0; j < NT; ++j)
#pragma unroll
        for (int l = 0; l < 4; ++l) acc[i][j][l] = 0;
  }
  __device__ __forceinline__ int row(int i) const { return warp_m + i * 8 + lane / 4; }
  __device__ __forceinline__ int col(int j) const { return warp_n + j * RUN_STRIDE + lane % 4 * 2; }
  __device__ __forceinline__ float& at(int i, int j, int l) { return acc[i / 2][j][i % 2 * 2 + l]; }
  __device__ __forceinline__ float at(int i, int j, int l) const { return acc[i / 2][j][i % 2 * 2 + l]; }
};

template <class T_, class W_, int BM, int BN, int WARPS_M, int WARPS_N, bool A_KM_, bool B_KN_, int STAGES_,
          int MIN_BLOCKS_>
struct HalfProduct : MmaAccumulators<BM, BN, WARPS_M, WARPS_N> {
  using Base = MmaAccumulators<BM, BN, WARPS_M, WARPS_N>;
  using T = T_;
  using W = W_;
  static constexpr int BK = 32, STAGES = STAGES_, MIN_BLOCKS = MIN_BLOCKS_;
  static constexpr bool A_KM = A_KM_, B_KN = B_KN_, TRANSPOSES_W = false, CONVERTS = sizeof(W) == 4;
  // Long rows are padded; of short ones a copy writes two at once, which no padding keeps apart.
  static constexpr int A_PAD = A_KM ? 8 : 0, B_PAD = B_KN && !CONVERTS ? 8 : 0;
  struct Shared {
    T a[STAGES][A_KM ? BK : BM][(A_KM ? BM : BK) + A_PAD];
    W b[STAGES][B_KN ? BK : BN][(B_KN ? BN : BK) + B_PAD];
  };
  static __device__ __forceinline__ int place_a(int row, int col) {
    return A_KM ? col : swizzled<T, BK>(row, col);
  }
  static __device__ __forceinline__ int place_b(int row, int col) {
    if constexpr (!CONVERTS) return B_KN ? col : swizzled<T, BK>(row, col);
    return col ^ (B_KN ? (row >> 1 & 3) << 3 : (row & 3) << 3);  // groups of 32 bytes, as load_b reads them
  }

  // acc += A . diag(gates) . B, gates [BK] or null. Where a warp holds all rows of the tile, those from
  // `rows` on are left out, 16 at a time; elsewhere the caller leaves out whole warps.
  __device__ __forceinline__ void multiply(const Shared& s, int stage, const float* gates, int rows = BM) {
    const int lane = this->lane;
#pragma unroll
    for (int k = 0; k < BK; k += 16) {
      u32 a[Base::MT][4], b[Base::NT][2];
#pragma unroll
      for (int i = 0; i < Base::MT; ++i) {
        const int m = this->warp_m + i * 16;
        if (Base::WARPS_M == 1 && i * 16 >= rows) break;
        if constexpr (A_KM) {
          const int row = k + lane % 8 + lane / 16 * 8;
          ldmatrix_x4_trans(a[i], &s.a[stage][row][place_a(row, m + lane / 8 % 2 * 8)]);
        } else {
          const int row = m + lane % 16;
          ldmatrix_x4(a[i], &s.a[stage][row][place_a(row, k ^ lane / 16 * 8)]);
        }
      }
      load_b(s, stage, k, b);
      if (gates) {
        const int q = k + lane % 4 * 2;
        const float g[4] = {load_shared(gates[q]), load_shared(gates[q + 1]), load_shared(gates[q + 8]),
                            load_shared(gates[q + 9])};
#pragma unroll
        for (int j = 0; j < Base::NT; ++j)
#pragma unroll
          for (int l = 0; l < 2; ++l) {
            float lo, hi;
            unpack2<T>(b[j][l], lo, hi);
            b[j][l] = pack2<T>(lo * g[2 * l], hi * g[2 * l + 1]);
          }
      }
#pragma unroll
      for (int i = 0; i < Base::MT; ++i) {
        if (Base::WARPS_M == 1 && i * 16 >= rows) break;
#pragma unroll
        for (int j = 0; j < Base::NT; ++j) mma_m16n8k16(this->acc[i][j], a[i], b[j], this->acc[i][j], T());
      }
    }
  }

 private:
  __device__ __forceinline__ void load_b(const Shared& s, int stage, int k, u32 (&b)[Base::NT][2]) const {
    const int lane = this->lane;
    if constexpr (CONVERTS) {
      const int q = k + lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < Base::NT; ++j)
#pragma unroll
        for (int l = 0; l < 2; ++l) {
          const int n = this->warp_n + j * 8 + lane / 4, kk = q + 8 * l;
          if constexpr (B_KN) {
            b[j][l] = pack2<T>(load_shared(s.b[stage][kk][place_b(kk, n)]),
                               load_shared(s.b[stage][kk + 1][place_b(kk + 1, n)]));
          } else {
            const auto pair =
                load_shared(*reinterpret_cast<const Vec<float, 2>*>(&s.b[stage][n][place_b(n, kk)]));
            b[j][l] = pack2<T>(pair.v[0], pair.v[1]);
          }
        }
    } else {
#pragma unroll
      for (int j = 0; j < Base::NT; j += 2) {
        const int n = this->warp_n + j * 8;
        u32 r[4];
        if constexpr (B_KN) {
          const int row = k + lane % 16;
          ldmatrix_x4_trans(r, &s.b[stage][row][place_b(row, n + lane / 16 * 8)]);
        } else {
          const int row = n + lane / 16 * 8 + lane % 8;
          ldmatrix_x4(r, &s.b[stage][row][place_b(row, k ^ lane / 8 % 2 * 8)]);
        }
        b[j][0] = r[0], b[j][1] = r[1], b[j + 1][0] = r[2], b[j + 1][1] = r[3];
      }
    }
  }
};

template <bool X3, int BM, int BN, int WARPS_M, int WARPS_N, bool A_KM_, int STAGES_, int MIN_BLOCKS_>
struct Tf32Product : MmaAccumulators<BM, BN, WARPS_M, WARPS_N> {
  using Base = MmaAccumulators<BM, BN, WARPS_M, WARPS_N>;
  using T = float;
  using W = float;
  static constexpr int BK = 16, STAGES = STAGES_, MIN_BLOCKS = MIN_BLOCKS_;
  static constexpr bool A_KM = A_KM_, B_KN = true, TRANSPOSES_W = true;
  // Rows of B are padded where a copy writes along them; where it also writes across them (load_transposed),
  // chunks change places.
  static constexpr int PAD = A_KM ? 8 : 0;
  struct Shared {
    float a[STAGES][A_KM ? BK : BM][(A_KM ? BM : BK) + PAD];
    float b[STAGES][BK][BN + PAD];
  };
  static __device__ __forceinline__ int place_a(int row, int col) {
    return A_KM ? col : swizzled<float, BK>(row, col);
  }
  // 8 rows exchange the chunks of 128 bytes in 8 ways, 4 rows in those of 2 chunks at a time: a copy writes 8
  // rows of 4 elements, a fragment has 4 rows of 8.
  static __device__ __forceinline__ int place_b(int row, int col) {
    return A_KM ? col : col ^ ((row & 3) << 3 | (row & 4));
  }

  __device__ __forceinline__ void multiply(const Shared& s, int stage, const float* gates, int = BM) {
    const int lane = this->lane;
#pragma unroll
    for (int k = 0; k < BK; k += 8) {
      u32 a[Base::MT][4], a_low[Base::MT][4];
#pragma unroll
      for (int i = 0; i < Base::MT; ++i)
#pragma unroll
        for (int l = 0; l < 4; ++l) {
          const int m = this->warp_m + i * 16 + l % 2 * 8 + lane / 4, kk = k + l / 2 * 4 + lane % 4;
          const int row = A_KM ? kk : m, col = A_KM ? m : kk;
          split(load_shared(s.a[stage][row][place_a(row, col)]), a[i][l], a_low[i][l]);
        }
#pragma unroll
      for (int j = 0; j < Base::NT; ++j) {
        u32 b[2], b_low[2];
#pragma unroll
        for (int l = 0; l < 2; ++l) {
          const int kk = k + l * 4 + lane % 4;
          const float v = load_shared(s.b[stage][kk][place_b(kk, this->warp_n + j * 8 + lane / 4)]);
          split(gates ? v * load_shared(gates[kk]) : v, b[l], b_low[l]);
        }
#pragma unroll
        for (int i = 0; i < Base::MT; ++i) {
          auto& c = this->acc[i][j];
          if constexpr (X3) {  // small terms first
            mma_m16n8k8_tf32(c, a_low[i], b, c);
            mma_m16n8k8_tf32(c, a[i], b_low, c);
          }
          mma_m16n8k8_tf32(c, a[i], b, c);
        }
      }
    }
  }

 private:
  // v = high + low up to 2^-22; an infinity keeps to itself.
  static __device__ __forceinline__ void split(float v, u32& high, u32& low) {
    high = to_tf32(v);
    if constexpr (X3) {
      const float rest = v - __uint_as_float(high);
      low = rest - rest == 0 ? to_tf32(rest) : 0;
    }
  }
};

// THREADS threads in warps side by side along N; a warp's lanes are 8 (M) by 4 (N).
template <class T_, int MI, int NJ, int WARPS_N_, int BK_, int STAGES_, int MIN_BLOCKS_>
struct SimtProduct {
  using T = T_;
  using W = T_;
  static constexpr int V = 16 / sizeof(T);  // elements of one shared-memory read
  static constexpr int BM = 8 * V * MI, BN = 4 * V * NJ * WARPS_N_, BK = BK_, STAGES = STAGES_;
  static constexpr int WARPS_N = WARPS_N_, THREADS = 32 * WARPS_N, MIN_BLOCKS = MIN_BLOCKS_;
  static constexpr int ROWS = V * MI, RUNS = NJ, LEN = V, RUN_STRIDE = 4 * V;
  static constexpr bool A_KM = true, B_KN = true, TRANSPOSES_W = true;
  struct Shared {
    T a[STAGES][BK][BM + V];
    T b[STAGES][BK][BN + V];
  };
  static __device__ __forceinline__ int place_a(int, int col) { return col; }
  static __device__ __forceinline__ int place_b(int, int col) { return col; }

  int warp_m, warp_n, lane;
  T acc[ROWS][RUNS][LEN];

  __device__ __forceinline__ SimtProduct() : warp_m(0), warp_n(warp_id() * (BN / WARPS_N)), lane(lane_id()) {
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
#pragma unroll
      for (int j = 0; j < RUNS; ++j)
#pragma unroll
        for (int l = 0; l < LEN; ++l) acc[i][j][l] = 0;
  }
  __device__ __forceinline__ int row(int i) const { return i / V * (8 * V) + lane / 4 * V + i % V; }
  __device__ __forceinline__ int col(int j) const { return warp_n + j * RUN_STRIDE + lane % 4 * V; }
  __device__ __forceinline__ T& at(int i, int j, int l) { return acc[i][j][l]; }
  __device__ __forceinline__ T at(int i, int j, int l) const { return acc[i][j][l]; }

  __device__ __forceinline__ void multiply(const Shared& s, int stage, const T* gates, int = BM) {
#pragma unroll
    for (int k = 0; k < BK; ++k) {
      Vec<T, V> a[MI], b[NJ];
#pragma unroll
      for (int i = 0; i < MI; ++i) a[i] = load_chunk(s.a[stage][k][place_a(k, row(i * V))]);
#pragma unroll
      for (int j = 0; j < NJ; ++j) b[j] = load_chunk(s.b[stage][k][place_b(k, col(j))]);
      if (gates) {
        const T g = load_shared(gates[k]);
#pragma unroll
        for (int j = 0; j < NJ; ++j)
#pragma unroll
          for (int l = 0; l < V; ++l) b[j].v[l] *= g;
      }
#pragma unroll
      for (int i = 0; i < ROWS; ++i)
#pragma unroll
        for (int j = 0; j < NJ; ++j)
#pragma unroll
          for (int l = 0; l < V; ++l) acc[i][j][l] += a[i / V].v[i % V] * b[j].v[l];
    }
  }

 private:
  static __device__ __forceinline__ Vec<T, V> load_chunk(const T& first) {
    return load_shared(*reinterpret_cast<const Vec<T, V>*>(&first));
  }
};

}  // namespace sysgen
