// The same as conformance.cpp for the wrappers of device/hopper.cuh: a GPU of compute capability 9.0 must
// print conformance_hopper.golden byte for byte. On another GPU it says so and leaves with status 77.
#include "conformance_rows.h"
#include "device/tensor_map.h"

namespace conformance {

constexpr int kThreads = 256;
constexpr unsigned kColumns = 100, kRows = 21, kMatrices = 3;  // of the tensor that TMA reads
constexpr unsigned kRowElements = 104;

struct HopperArguments {
  Arguments rows;
  TensorMap map;
};

struct phases {  // three rounds of one barrier: nobody is ahead by more than one
  static __device__ void run(Rows& rows, const HopperArguments&) {
    Smem smem;
    auto& barrier = smem.array<Mbarrier[2]>();
    auto& values = smem.array<u32[kThreads]>();
    const u32 t = linear_tid();
    if (t == 0) {
      mbarrier_init(barrier[0], kThreads);
      mbarrier_init(barrier[1], kThreads / 32);
      fence_mbarrier_init();
    }
    __syncthreads();
    mbarrier_wait(barrier[0], 1);  // the phase before the first is over
    for (u32 round = 0; round < 3; ++round) {
      values[t] = mix(t + 1000 * round);
      mbarrier_arrive(barrier[0]);
      mbarrier_wait(barrier[0], round % 2);
      rows.put(values[t ^ 255]);
      __syncwarp();
      if (t % 32 == 0) mbarrier_arrive(barrier[1]);
      mbarrier_wait(barrier[1], round % 2);
    }
  }
};

struct arriving_copies {  // warp 1 reads what all others have copied
  static __device__ void run(Rows& rows, const HopperArguments& a) {
    Smem smem;
    auto& barrier = smem.array<Mbarrier>();
    auto& tile = smem.array<u32[2][kThreads][4]>();
    const u32 t = linear_tid();
    if (t == 0) mbarrier_init(barrier, kThreads - 32);
    __syncthreads();
    if (warp_id() != 1) {
      cp_async<16>(tile[0][t], a.rows.in + t * 4);
      cp_async<16>(tile[1][t], a.rows.in + t * 4, t % 3 == 0);
      cp_async_arrive(barrier);
    }
    mbarrier_wait(barrier, 0);
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 4; ++j) rows.put(tile[i][64 + (t * 7) % 192][j], 1);
  }
};

struct tensor_boxes {  // inside, over the edge of the rows, of the columns, and outside
  static __device__ void run(Rows& rows, const HopperArguments& a) {
    Smem smem;
    auto& tile = smem.array<u32[4][256], 1024>();
    auto& barrier = smem.array<Mbarrier>();
    const u32 t = linear_tid();
    if (t == 0) {
      mbarrier_init(barrier, 1);
      fence_mbarrier_init();
      prefetch_tensor_map(a.map);
    }
    __syncthreads();
    if (t == 0) {
      mbarrier_arrive_expect(barrier, sizeof tile);
      tma_load_3d(tile[0], a.map, 8, 5, 1, barrier);
      tma_load_3d(tile[1], a.map, 64, 17, 2, barrier);
      tma_load_3d(tile[2], a.map, -8, -2, 0, barrier);
      tma_load_3d(tile[3], a.map, 0, 0, 3, barrier);
    }
    mbarrier_wait(barrier, 0);
    for (int i = 0; i < 4; ++i)
      for (u32 j = 0; j < 8; ++j) rows.put(tile[i][(j * 32 + lane_id())]);
  }
};

// Operands of 64 k, element (mn, k) where device/hopper.cuh says.
constexpr u32 kColumnBytes = 8192;
__device__ inline u32 k_major_place(u32 mn, u32 k) {
  return mn / 8 * 1024 + mn % 8 * 128 + ((k / 8) ^ (mn % 8)) * 16 + k % 8 * 2;
}
__device__ inline u32 mn_major_place(u32 mn, u32 k) {
  return mn / 64 * kColumnBytes + k / 8 * 1024 + k % 8 * 128 + ((mn % 64 / 8) ^ (k % 8)) * 16 + mn % 8 * 2;
}
template <class T, int N, bool A_MN, bool B_MN, bool A_REGISTERS = false>
struct product {
  static __device__ void run(Rows& rows, const HopperArguments&) {
    Smem smem;
    auto& a = smem.array<unsigned char[64 * 128], 1024>();
    auto& b = smem.array<unsigned char[N * 128], 1024>();
    const u32 t = linear_tid();
    for (u32 i = t; i < 64 * 64; i += kThreads)
      *reinterpret_cast<T*>(a + (A_MN ? mn_major_place(i / 64, i % 64) : k_major_place(i / 64, i % 64))) =
          from_float<T>(small_integer(i, 4));
    for (u32 i = t; i < N * 64; i += kThreads)
      *reinterpret_cast<T*>(b + (B_MN ? mn_major_place(i / 64, i % 64) : k_major_place(i / 64, i % 64))) =
          from_float<T>(small_integer(i + 10000, 4));
    fence_proxy_async();
    __syncthreads();
    float d[N / 2];
    for (int i = 0; i < N / 2; ++i) d[i] = small_integer(20000 + t * 64 + i, 100);
    const u64 at_a = A_MN ? mn_major_descriptor(shared_address(a), kColumnBytes)
                          : k_major_descriptor(shared_address(a)),
              at_b = B_MN ? mn_major_descriptor(shared_address(b), kColumnBytes)
                          : k_major_descriptor(shared_address(b));
    for (int round = 0; round < 2; ++round) {  // with what was in d, and without
      u32 fragments[4][4];
      for (u32 k = 0; k < 4; ++k)
        for (u32 r = 0; r < 4; ++r) {
          const u32 row = warp_id() % 4 * 16 + lane_id() / 4 + r % 2 * 8,
                    column = k * 16 + lane_id() % 4 * 2 + r / 2 * 8;
          fragments[k][r] =
              pack2<T>(small_integer(row * 64 + column, 4), small_integer(row * 64 + column + 1, 4));
        }
      wgmma_fence();
      for (u32 k = 0; k < 4; ++k) {
        const u64 b_k = advanced(at_b, k * (B_MN ? 2048 : 32));
        const bool accumulate = round == 0 || k > 0;
        if constexpr (A_REGISTERS) {
          wgmma<T, B_MN>(d, fragments[k], b_k, accumulate);
        } else {
          wgmma<T, A_MN, B_MN>(d, advanced(at_a, k * (A_MN ? 2048 : 32)), b_k, accumulate);
        }
      }
      wgmma_commit();
      wgmma_wait<0>(d);
      float sum = 0;
      for (int i = 0; i < N / 2; ++i) sum += d[i] * static_cast<float>(i * i % 31 + 1);
      for (u32 w = 0; w < 8; ++w) rows.put(__float_as_uint(sum), w);
    }
  }
};
using wgmma_kk_64 = product<bf16, 64, false, false>;
using wgmma_kn_128 = product<bf16, 128, false, true>;
using wgmma_mk_128 = product<f16, 128, true, false>;
using wgmma_mn_64 = product<f16, 64, true, true>;
using wgmma_rk_128 = product<bf16, 128, false, false, true>;
using wgmma_rn_64 = product<f16, 64, false, true, true>;

struct register_budgets {  // nothing to see but that the warpgroups go on
  static __device__ void run(Rows& rows, const HopperArguments&) {
    if (warp_id() < 4) {
      registers_decrease<40>();
      rows.put(linear_tid());
    } else {
      registers_increase<232>();
      rows.put(linear_tid());
    }
  }
};

template <class Case>
__global__ void __launch_bounds__(kThreads, 1) conformance_kernel(const __grid_constant__ HopperArguments a) {
  Rows rows{a.rows.out};
  Case::run(rows, a);
}

template <class Case>
void print_rows(const char* name) {
  std::vector<unsigned short> tensor(kMatrices * kRows * kRowElements);
  for (u32 i = 0; i < tensor.size(); ++i) tensor[i] = static_cast<unsigned short>(mix(i));
  DeviceArray<unsigned short> on_device(tensor);
  HopperArguments arguments{};
  const MatrixStack stack{on_device.data(),         kColumns, kRows, kMatrices, kRowElements * 2,
                          kRows * kRowElements * 2, 8};
  if (!encode_tensor_map(arguments.map, stack)) throw std::runtime_error("encode_tensor_map failed");
  print_rows(name, [&](const Arguments& rows) {
    arguments.rows = rows;
    SYSGEN_LAUNCH(conformance_kernel<Case>, (LaunchConfig{dim3(1), dim3(kThreads), 28 << 10}), nullptr,
                  arguments);
  });
}

}  // namespace conformance

#define PRINT_ROWS(CASE) print_rows<CASE>(#CASE)

int main() {
  using namespace conformance;
  try {
    if (compute_capability("conformance_hopper") != 90) {
      std::fprintf(stderr, "skipped: this GPU is not of compute capability 9.0\n");
      return 77;
    }
    PRINT_ROWS(phases);
    PRINT_ROWS(arriving_copies);
    PRINT_ROWS(tensor_boxes);
    PRINT_ROWS(wgmma_kk_64);
    PRINT_ROWS(wgmma_kn_128);
    PRINT_ROWS(wgmma_mk_128);
    PRINT_ROWS(wgmma_mn_64);
    PRINT_ROWS(wgmma_rk_128);
    PRINT_ROWS(wgmma_rn_64);
    PRINT_ROWS(register_budgets);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
