// What every wrapper of device/device.cuh, and every intrinsic that kernels may use, gives on inputs whose
// results are exact: no rounding of a sum, no order of threads can show. Compiled by g++ (the emulator) and
// by nvcc (-x cu); a GPU must print conformance.golden byte for byte.
//
// A row is "<case>.<number>" and 32 words, one for each lane of the first warp.
#include "conformance_rows.h"

namespace conformance {

constexpr unsigned kWarps = 2;

// ---- the cases

struct threads {
  static __device__ void run(Rows& rows, const Arguments&) {
    rows.put(linear_tid());
    rows.put(lane_id());
    rows.put(warp_id());
    rows.put(linear_tid(), 1);
    rows.put(warp_id(), 1);
    rows.put(threadIdx.x | threadIdx.y << 8 | threadIdx.z << 16, 1);
    rows.put(blockDim.x | blockDim.y << 8 | blockDim.z << 16);
    rows.put(gridDim.x | blockIdx.x << 8);
  }
};

struct shared_arrays {
  static __device__ void run(Rows& rows, const Arguments&) {
    SYSGEN_SHARED(u32, one, [64]);
    SYSGEN_SHARED(u32, two, [3][64]);
    Smem smem;
    auto& three = smem.array<u32[5][64]>();
    auto& four = smem.array<u32[64]>();
    const u32 t = linear_tid();
    one[t] = mix(t);
    two[2][t] = mix(t + 100);
    three[4][t] = mix(t + 200);
    four[t] = mix(t + 300);
    __syncthreads();
    rows.put(one[63 - t]);
    rows.put(two[2][63 - t]);
    rows.put(three[4][63 - t]);
    rows.put(four[63 - t]);
    const bool aligned =
        (reinterpret_cast<unsigned long long>(one) | reinterpret_cast<unsigned long long>(two) |
         reinterpret_cast<unsigned long long>(three) | reinterpret_cast<unsigned long long>(four)) %
            128 ==
        0;
    rows.put(u32(aligned));
  }
};

struct barriers {
  static __device__ void run(Rows& rows, const Arguments&) {
    SYSGEN_SHARED(u32, values, [64]);
    const u32 t = linear_tid(), lane = lane_id();
    values[t] = mix(t);
    named_barrier(1, 64);
    rows.put(values[t ^ 32]);
    named_barrier(15, 64);
    values[t] = mix(t + 1000);
    named_barrier(2 + warp_id(), 32);
    rows.put(values[t ^ 31]);
    rows.put(__syncthreads_count(mix(t) % 3 == 0));
    rows.put(u32(__syncthreads_or(t == 40) != 0));
    rows.put(u32(__syncthreads_or(t == 64) != 0));
    rows.put(u32(__syncthreads_and(t < 64) != 0));
    rows.put(u32(__syncthreads_and(t < 63) != 0));
    values[t] = mix(t + 2000);
    __syncwarp();
    rows.put(values[warp_id() * 32 + (lane + 5) % 32]);
    if (lane % 2) __syncwarp(0xaaaaaaaau);
    rows.put(values[t]);
  }
};

struct ordered_access {  // warp 1 hands over to warp 0
  static __device__ void run(Rows& rows, const Arguments& a) {
    const u32 t = linear_tid(), lane = lane_id();
    if (warp_id() == 1) {
      a.scratch[64 + lane] = mix(lane);
      __syncwarp();
      if (lane == 0) store_release(a.scratch, 7u);
    }
    u32 flag = 0;
    while (warp_id() == 0 && flag != 7) flag = load_acquire(a.scratch);
    rows.put(flag);
    rows.put(warp_id() == 0 ? a.scratch[64 + lane] : 0);
    const u32 before = atomic_add_acq_rel(a.scratch + 1, t);
    rows.put(u32(before <= 64 * 63 / 2));
    __syncthreads();
    rows.put(a.scratch[1]);
  }
};

struct copies {
  static __device__ void run(Rows& rows, const Arguments& a) {
    SYSGEN_SHARED(u32, tile, [3][32][4]);
    const u32 lane = lane_id();
    for (int i = 0; i < 3 && warp_id() == 0; ++i)
      for (int j = 0; j < 4; ++j) store_shared(tile[i][lane][j], 7u);
    __syncthreads();
    if (warp_id() == 0) {
      cp_async<16>(tile[0][lane], a.in + lane * 4, lane % 3 != 0);
      cp_async_commit();
      cp_async<8>(&tile[1][lane][2], a.in + lane * 4, lane % 5 != 0);
      cp_async_commit();
      cp_async<4>(&tile[2][lane][1], a.in + lane * 4 + 1, lane % 7 != 0);
      cp_async_commit();
      cp_async_wait<2>();
    }
    __syncthreads();
    for (int j = 0; j < 4; ++j) rows.put(tile[0][31 - lane][j]);
    cp_async_wait<1>();
    __syncthreads();
    for (int j = 0; j < 4; ++j) rows.put(load_shared(tile[1][31 - lane][j]));
    cp_async_wait<0>();
    __syncthreads();
    for (int j = 0; j < 4; ++j) rows.put(tile[2][31 - lane][j]);
  }
};

struct wide_stores {
  static __device__ void run(Rows& rows, const Arguments& a) {
    const u32 lane = lane_id();
    const u32 v[4] = {mix(lane * 4), mix(lane * 4 + 1), mix(lane * 4 + 2), mix(lane * 4 + 3)};
    if (warp_id() == 0) store_16(a.scratch + lane * 4, v);
    __syncthreads();
    for (u32 j = 0; j < 4; ++j) rows.put(a.scratch[j * 32 + lane]);
  }
};

struct load_matrices {
  static __device__ void run(Rows& rows, const Arguments&) {
    SYSGEN_SHARED(u32, tile, [32][4]);  // row r holds the 16-bit elements 8 r to 8 r + 7
    const u32 lane = lane_id();
    for (u32 j = 0; j < 4 && warp_id() == 0; ++j) {
      const u32 element = lane * 8 + j * 2;
      tile[lane][j] = element | (element + 1) << 16;
    }
    __syncthreads();
    u32 r[4];
    ldmatrix_x4(r, tile[lane]);
    for (u32 v : r) rows.put(v);
    ldmatrix_x4_trans(r, tile[lane]);
    for (u32 v : r) rows.put(v);
    ldmatrix_x4(r, tile[mix(lane) % 32]);
    for (u32 v : r) rows.put(v);
  }
};

// Fragments of small integers.
template <class T>
__device__ void multiply_half(Rows& rows) {
  const u32 lane = lane_id();
  u32 a[4], b[2];
  float c[4], d[4];
  for (u32 i = 0; i < 4; ++i)
    a[i] = pack2<T>(small_integer(lane * 8 + i * 2, 8), small_integer(lane * 8 + i * 2 + 1, 8));
  for (u32 i = 0; i < 2; ++i)
    b[i] = pack2<T>(small_integer(5000 + lane * 4 + i * 2, 8), small_integer(5000 + lane * 4 + i * 2 + 1, 8));
  for (u32 i = 0; i < 4; ++i) c[i] = small_integer(9000 + lane * 4 + i, 100);
  mma_m16n8k16(d, a, b, c, T());
  for (float v : d) rows.put(v);
  mma_m16n8k16(d, a, b, d, T());  // in place
  for (float v : d) rows.put(v);
}
struct mma_bf16 {
  static __device__ void run(Rows& rows, const Arguments&) { multiply_half<bf16>(rows); }
};
struct mma_f16 {
  static __device__ void run(Rows& rows, const Arguments&) { multiply_half<f16>(rows); }
};
struct mma_tf32 {  // the low 13 bits of an operand do not matter
  static __device__ void run(Rows& rows, const Arguments&) {
    const u32 lane = lane_id();
    u32 a[4], b[2];
    float c[4], d[4];
    for (u32 i = 0; i < 4; ++i) a[i] = to_tf32(small_integer(lane * 4 + i, 32)) | (mix(lane + i) & 0x1fffu);
    for (u32 i = 0; i < 2; ++i)
      b[i] = to_tf32(small_integer(5000 + lane * 2 + i, 32)) | (mix(lane + i) & 0x1fffu);
    for (u32 i = 0; i < 4; ++i) c[i] = small_integer(9000 + lane * 4 + i, 100);
    mma_m16n8k8_tf32(d, a, b, c);
    for (float v : d) rows.put(v);
  }
};

// Bit patterns of floats that are worth a look: anything, halfway between two bfloat16, float16 or tf32,
// subnormal in float16, zero of both signs, largest, infinite.
__device__ inline float special(u32 row, u32 lane) {
  const u32 bits = mix(row * 32 + lane), sign = bits & 0x80000000u;
  switch (row) {
    case 0:
      return __uint_as_float(sign | (0x3f800000u + (bits & 0x7fffffu)));
    case 1:
      return __uint_as_float(sign | (0x38000000u + (bits & 0x0fff0000u)) | 0x8000u);  // ties of bfloat16
    case 2:
      return __uint_as_float(sign | (0x3a000000u + (bits & 0x07ffe000u)) | 0x1000u);  // of float16 and tf32
    case 3:
      return __uint_as_float(sign |
                             (0x33000000u + (bits & 0x05ffffffu)));  // around float16's subnormal numbers
    default: {
      const u32 values[8] = {0x00000000u, 0x7f7fffffu, 0x7f800000u, 0x477fefffu,
                             0x477ff000u, 0x33000000u, 0x33000001u, 0x00ffffffu};
      return __uint_as_float(values[lane % 8] | (lane % 16 < 8 ? 0 : 0x80000000u));
    }
  }
}
struct convert_tf32 {
  static __device__ void run(Rows& rows, const Arguments&) {
    for (u32 i = 0; i < 5; ++i) rows.put(to_tf32(special(i, lane_id())));
  }
};
template <class T>
__device__ void convert(Rows& rows) {
  for (u32 i = 0; i < 5; ++i) {
    const float v = special(i, lane_id()), w = special(i, 31 - lane_id());
    rows.put(to_float(from_float<T>(v)));
    rows.put(pack2<T>(v, w));
    float low, high;
    unpack2<T>(pack2<T>(w, v), low, high);
    rows.put(low);
    rows.put(high);
  }
}
struct convert_bf16 {
  static __device__ void run(Rows& rows, const Arguments&) { convert<bf16>(rows); }
};
struct convert_f16 {
  static __device__ void run(Rows& rows, const Arguments&) { convert<f16>(rows); }
};
struct convert_f32 {
  static __device__ void run(Rows& rows, const Arguments&) {
    rows.put(to_float(from_float<float>(special(0, lane_id()))));
  }
};

struct convert_pairs {
  static __device__ void run(Rows& rows, const Arguments&) {
    for (u32 i = 0; i < 5; ++i) {
      const float v = special(i, lane_id()), w = special(i, 31 - lane_id());
      const __nv_bfloat162 b = __floats2bfloat162_rn(v, w);
      const __half2 h = __floats2half2_rn(v, w);
      rows.put(__bfloat162float(b.x));
      rows.put(__bfloat162float(b.y));
      rows.put(__half2float(h.x));
      rows.put(__half2float(h.y));
      rows.put(__bfloat162float(__float2bfloat16(v)));
      rows.put(__half2float(__float2half(v)));
      rows.put(__bfloat162float(__float2bfloat16_rn(w)));
      rows.put(__half2float(__float2half_rn(w)));
    }
  }
};

struct shuffles {
  static __device__ void run(Rows& rows, const Arguments&) {
    const u32 lane = lane_id(), v = mix(lane);
    for (int width = 4; width <= 32; width *= 2) {
      rows.put(__shfl_sync(~0u, v, static_cast<int>(lane * 3 + 5), width));
      rows.put(__shfl_up_sync(~0u, v, 3u, width));
      rows.put(__shfl_down_sync(~0u, v, 5u, width));
      rows.put(__shfl_xor_sync(~0u, v, 6, width));
    }
    rows.put(__shfl_xor_sync(~0u, __uint_as_float(v & 0x3fffffffu), 17));
    const double d = __shfl_xor_sync(~0u, static_cast<double>(v) + 0.5, 9);
    rows.put(static_cast<u32>(d));
    rows.put(lane < 12 ? __shfl_sync(0xfffu, v, 3) : __shfl_sync(0xfffff000u, v, 20));
  }
};

struct votes {
  static __device__ void run(Rows& rows, const Arguments&) {
    const u32 lane = lane_id(), v = mix(lane);
    rows.put(__ballot_sync(~0u, v & 1));
    rows.put(lane < 12 ? __ballot_sync(0xfffu, v & 1) : __ballot_sync(0xfffff000u, v & 2));
    rows.put(u32(__any_sync(~0u, lane == 31) != 0));
    rows.put(u32(__any_sync(~0u, lane == 32) != 0));
    rows.put(u32(__all_sync(~0u, lane < 32) != 0));
    rows.put(u32(__all_sync(~0u, lane < 31) != 0));
    rows.put(__match_any_sync(~0u, v % 5));
    rows.put(__match_any_sync(~0u, static_cast<unsigned long long>(v % 3) << 32));
  }
};

struct reductions {
  static __device__ void run(Rows& rows, const Arguments&) {
    const u32 lane = lane_id(), v = mix(lane);
    rows.put(__reduce_add_sync(~0u, v));
    rows.put(__reduce_min_sync(~0u, v));
    rows.put(__reduce_max_sync(~0u, v));
    rows.put(__reduce_add_sync(~0u, static_cast<int>(v)));
    rows.put(__reduce_min_sync(~0u, static_cast<int>(v)));
    rows.put(__reduce_max_sync(~0u, static_cast<int>(v)));
    rows.put(__reduce_and_sync(~0u, v | 0x10u));
    rows.put(__reduce_or_sync(~0u, v & 0x11111111u & (1u << lane)));
    rows.put(__reduce_xor_sync(~0u, v));
    rows.put(lane % 2 ? __reduce_add_sync(0xaaaaaaaau, lane) : __reduce_add_sync(0x55555555u, lane));
  }
};

struct atomics {
  static __device__ void run(Rows& rows, const Arguments& a) {
    SYSGEN_SHARED(u32, shared, [4]);
    const u32 t = linear_tid();
    u32* u = a.scratch;
    if (t < 4) shared[t] = 0;
    if (t == 0) u[6] = ~0u;
    __syncthreads();
    int* i = reinterpret_cast<int*>(a.scratch + 16);
    float* f = reinterpret_cast<float*>(a.scratch + 32);
    unsigned long long* w = reinterpret_cast<unsigned long long*>(a.scratch + 48);
    const u32 ticket = atomicAdd(&shared[0], 1u);
    atomicAdd(u, mix(t));
    atomicSub(u + 1, mix(t));
    atomicMin(i, static_cast<int>(mix(t)));
    atomicMax(u + 3, mix(t));
    atomicOr(u + 4, mix(t) & (1u << t % 32));
    atomicXor(u + 5, mix(t));
    atomicAnd(u + 6, mix(t) | 1u << t % 32);
    atomicAdd(f, static_cast<float>(t));
    atomicAdd(w, static_cast<unsigned long long>(mix(t)) << 16);
    const u32 old = atomicExch(&shared[1], t + 1);
    atomicAdd(&shared[2], old);
    const u32 winner = atomicCAS(&shared[3], 0u, 5u);
    __syncthreads();
    rows.put(shared[0]);
    rows.put(u32(ticket < 64));
    for (u32 k = 0; k < 7; ++k)
      if (k != 2) rows.put(u[k]);
    rows.put(i[0]);
    rows.put(f[0]);
    rows.put(static_cast<u32>(w[0]));
    rows.put(static_cast<u32>(w[0] >> 32));
    rows.put(shared[1] + shared[2]);  // every t + 1 once
    rows.put(shared[3]);
    rows.put(__syncthreads_count(winner == 0));
  }
};

struct scalars {
  static __device__ void run(Rows& rows, const Arguments& a) {
    const u32 lane = lane_id(), v = mix(lane);
    rows.put(__popc(v));
    rows.put(__popcll(static_cast<unsigned long long>(v) << 20));
    rows.put(__clz(static_cast<int>(v >> lane)));
    rows.put(__ffs(static_cast<int>(v & ~15u)));
    rows.put(__brev(v));
    rows.put(__float_as_int(__int_as_float(static_cast<int>(v & 0x3fffffffu))));
    rows.put(min(v, 1u << 30));
    rows.put(max(static_cast<int>(v), 5));
    rows.put(__ldg(a.in + lane));
    rows.put(__ldcg(a.in + 32 + lane));
    rows.put(__ldcs(a.in + 64 + lane));
    if (warp_id() == 0) {
      __stcg(a.scratch + 128 + lane, v);
      __stcs(a.scratch + 160 + lane, v + 1);
      __threadfence();
      __threadfence_block();
    }
    __syncthreads();
    rows.put(a.scratch[128 + (lane ^ 1)]);
    rows.put(a.scratch[160 + (lane ^ 1)]);
    rows.put(__fmaf_rn(static_cast<float>(lane), 3.0f, -7.0f));
    rows.put(__frcp_rn(static_cast<float>(1u << lane % 16)));
    const float4 f = make_float4(1, 2, static_cast<float>(lane), 4);
    rows.put(f.x + f.y + f.z + f.w);
  }
};

struct limits {  // approximations, where the manual leaves no room
  static __device__ void run(Rows& rows, const Arguments&) {
    const float infinity = __uint_as_float(0x7f800000u);
    const bool odd = lane_id() % 2;
    rows.put(__expf(odd ? -infinity : 0.0f));
    rows.put(__expf(odd ? infinity : -0.0f));
    rows.put(__logf(odd ? infinity : 0.0f));
    rows.put(rsqrtf(odd ? infinity : 0.0f));
    rows.put(__fdividef(odd ? 5.0f : 0.0f, odd ? infinity : 3.0f));
    rows.put(expf(odd ? -infinity : 0.0f));
    rows.put(expm1f(odd ? -infinity : 0.0f));
    rows.put(log1pf(odd ? -1.0f : 0.0f));
  }
};

// ---- the program

template <class Case>
__global__ void conformance_kernel(const Arguments a) {
  Rows rows{a.out};
  Case::run(rows, a);
}

template <class Case>
void print_rows(const char* name) {
  print_rows(name, [](const Arguments& arguments) {
    const LaunchConfig config{dim3(1), dim3(8, 4, kWarps), 2048};
    SYSGEN_LAUNCH(conformance_kernel<Case>, config, nullptr, arguments);
  });
}

}  // namespace conformance

#define PRINT_ROWS(CASE) print_rows<CASE>(#CASE)

int main() {
  using namespace conformance;
  try {
    PRINT_ROWS(threads);
    PRINT_ROWS(shared_arrays);
    PRINT_ROWS(barriers);
    PRINT_ROWS(ordered_access);
    PRINT_ROWS(copies);
    PRINT_ROWS(wide_stores);
    PRINT_ROWS(load_matrices);
    PRINT_ROWS(mma_bf16);
    PRINT_ROWS(mma_f16);
    PRINT_ROWS(mma_tf32);
    PRINT_ROWS(convert_tf32);
    PRINT_ROWS(convert_bf16);
    PRINT_ROWS(convert_f16);
    PRINT_ROWS(convert_f32);
    PRINT_ROWS(convert_pairs);
    PRINT_ROWS(shuffles);
    PRINT_ROWS(votes);
    PRINT_ROWS(reductions);
    PRINT_ROWS(atomics);
    PRINT_ROWS(scalars);
    PRINT_ROWS(limits);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
