// What the CVMM kernels share: which rows a block works on, how tiles get into shared memory, and how
// finished rows get out of it.
#pragma once
#include "device/device.cuh"

namespace sysgen {

template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using Acc = typename AccumulatorOf<T>::type;

template <class T>
__device__ __forceinline__ Acc<T> to_acc(T v) {
  if constexpr (sizeof(T) == 8) {
    return v;
  } else {
    return to_float(v);
  }
}
template <class T>
__device__ __forceinline__ T from_acc(Acc<T> v) {
  if constexpr (sizeof(T) == 8) {
    return v;
  } else {
    return from_float<T>(v);
  }
}

// N elements that move in one instruction.
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  T v[N];
};

// A row operand: route r reads row r / divisor (divisor k: shared by the k routes of a token; 1: routed).
template <class T>
struct RowOperand {
  const T* data;
  i64 stride;
  int divisor;
  int vec;  // bytes of one copy: 16, 8 or 4, or less for element by element
};

// ---- which expert
// Largest e in [0, n) with key(e) <= target, found by the whole warp 32 probes at a time. key ascends, and
// key(0) <= target.
template <class Key>
__device__ __forceinline__ i64 warp_search(i64 n, Key key, i64 target) {
  i64 lo = 0, hi = n;
  while (hi - lo > 1) {
    const i64 step = (hi - lo + 31) / 32, probe = lo + step * lane_id();
    const u32 votes = __ballot_sync(~0u, probe < hi && key(probe) <= target);
    lo += step * (__popc(votes) - 1);
    hi = hi < lo + step ? hi : lo + step;
  }
  return lo;
}

// ---- global to shared memory
// Where element (row, col) of a tile lies in its row of COLS elements: 16-byte chunks change places, so that
// 8 rows of one chunk lie in different banks, and so do 8 chunks behind each other.
template <class T, int COLS>
__device__ __forceinline__ int swizzled(int row, int col) {
  constexpr int N = 16 / sizeof(T), CHUNKS = COLS / N, LINE = CHUNKS < 8 ? 8 / CHUNKS : 1;
  static_assert(CHUNKS >= 2 && (CHUNKS & (CHUNKS - 1)) == 0, "a row is a power of two of 16-byte chunks");
  return col ^ (row / LINE & (8 / LINE - 1)) * N;
}

// One 16-byte chunk: its first n elements from src, zeros for the rest. n and both addresses are multiples of
// `vec` bytes, which is less than 16.
template <class T>
__device__ __forceinline__ void copy_pieces(T* dst, const T* src, i64 n, int vec) {
  constexpr int N = 16 / sizeof(T);
  if (vec == 8 || sizeof(T) == 8) {
    for (int i = 0; i < N; i += N / 2) cp_async<8>(dst + i, src + i, i < n);
  } else if constexpr (sizeof(T) < 8) {
    if (vec == 4 || sizeof(T) == 4) {
      for (int i = 0; i < N; i += N / 4) cp_async<4>(dst + i, src + i, i < n);
    } else {
      for (int i = 0; i < N; ++i) dst[i] = i < n ? src[i] : from_acc<T>(0);
    }
  }
}

// tile[row][place(row, col)] = element (row, c0 + col) of a matrix of `columns` columns whose row starts at
// source(row, valid). Rows that are not valid and columns past the end become zeros.
template <int THREADS, int COLS, class T, int ROWS, int PITCH, class Source, class Place>
__device__ __forceinline__ void load_rows(T (&tile)[ROWS][PITCH], i64 c0, i64 columns, int vec, Source source,
                                          Place place) {
  constexpr int N = 16 / sizeof(T), CHUNKS = COLS / N;
  static_assert(ROWS * CHUNKS % THREADS == 0, "every thread copies the same number of chunks");
  struct Chunk {
    T* dst;
    const T* src;
    i64 count;
  };
  const auto chunk = [&](int i) -> Chunk {
    const int index = threadIdx.x + i * THREADS, row = index / CHUNKS, col = index % CHUNKS * N;
    bool valid;
    const T* src = source(row, valid) + c0 + col;
    return {&tile[row][place(row, col)], src, valid ? columns - c0 - col : 0};
  };
  constexpr int COUNT = ROWS * CHUNKS / THREADS;
  if (vec == 16) {
#pragma unroll 1  // addresses of several copies would not fit beside the accumulators
    for (int i = 0; i < COUNT; ++i) {
      const Chunk c = chunk(i);
      cp_async<16>(c.dst, c.src, c.count > 0);
    }
  } else {
#pragma unroll 1
    for (int i = 0; i < COUNT; ++i) {
      const Chunk c = chunk(i);
      copy_pieces(c.dst, c.src, c.count, vec);
    }
  }
}

// tile[col][place(col, row)] = the same, element by element.
template <int THREADS, int ROWS, class T, int COLS, int PITCH, class Source, class Place>
__device__ __forceinline__ void load_transposed(T (&tile)[COLS][PITCH], i64 c0, i64 columns, Source source,
                                                Place place) {
  static_assert(COLS % 8 == 0 && ROWS * COLS % THREADS == 0, "a warp copies 4 rows of 8 elements");
#pragma unroll 2  // more would keep more addresses than there are registers
  for (int i = 0; i < ROWS * COLS / THREADS; ++i) {
    const int index = threadIdx.x + i * THREADS;
    const int row = index / 8 % ROWS, col = index % 8 + index / (8 * ROWS) * 8;
    bool valid;
    const T* src = source(row, valid);
    cp_async<sizeof(T)>(&tile[col][place(col, row)], src + c0 + col, valid && c0 + col < columns);
  }
}

// Calls load(stage, step) and multiply(stage) for every step, with STAGES - 1 loads in flight.
template <int STAGES, class Load, class Multiply>
__device__ __forceinline__ void pipeline(int steps, Load load, Multiply multiply) {
#pragma unroll
  for (int s = 0; s < STAGES - 1; ++s) {
    if (s < steps) load(s, s);
    cp_async_commit();
  }
  for (int s = 0; s < steps; ++s) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();  // step s has arrived, and everybody is done with the stage that the next load
                      // overwrites
    const int next = s + STAGES - 1;
    if (next < steps) load(next % STAGES, next);
    cp_async_commit();
    multiply(s % STAGES);
  }
  cp_async_wait<0>();
}

// ---- registers to global memory
// Lane q of each 4 consecutive lanes holds r[j] = (row j, column q) of a 4x4 matrix; afterwards r[j] = (row
// q, column j).
__device__ __forceinline__ void transpose_quad(u32 (&r)[4]) {
  const bool odd = lane_id() & 1, upper = lane_id() & 2;
  u32 keep0 = upper ? r[2] : r[0], keep1 = upper ? r[3] : r[1];
  u32 get0 = __shfl_xor_sync(~0u, upper ? r[0] : r[2], 2),
      get1 = __shfl_xor_sync(~0u, upper ? r[1] : r[3], 2);
  const u32 near = __shfl_xor_sync(~0u, odd ? keep0 : keep1, 1),
            far = __shfl_xor_sync(~0u, odd ? get0 : get1, 1);
  keep0 = odd ? keep1 : keep0;  // the words of row q: columns q, q ^ 1 (near), q ^ 2 (get), q ^ 3 (far)
  get0 = odd ? get1 : get0;
  const u32 a0 = odd ? near : keep0, a1 = odd ? keep0 : near, b0 = odd ? far : get0, b1 = odd ? get0 : far;
  r[0] = upper ? b0 : a0;
  r[1] = upper ? b1 : a1;
  r[2] = upper ? a0 : b0;
  r[3] = upper ? a1 : b1;
}

// Stores row i of a product (see cvmm_products.cuh) as columns [n0, ...) of `row`, those below `columns`. All
// lanes call it; nothing is stored where `row` is null. vec: rows may be written 16 bytes at a time.
template <class Out, class P>
__device__ __forceinline__ void store_row(const P& product, int i, Out* row, i64 n0, i64 columns, bool vec) {
  if constexpr (sizeof(Out) == 2) {
    if (vec) {
      static_assert(P::LEN == 2 && P::RUN_STRIDE == 8 && P::RUNS % 4 == 0, "4 runs make 16 bytes a lane");
#pragma unroll
      for (int j = 0; j < P::RUNS; j += 4) {
        u32 packed[4];
#pragma unroll
        for (int n = 0; n < 4; ++n) packed[n] = pack2<Out>(product.at(i, j + n, 0), product.at(i, j + n, 1));
        transpose_quad(packed);
        const i64 col = n0 + product.col(j) - 2 * (lane_id() & 3) + 8 * (lane_id() & 3);
        if (row && col < columns) store_16(row + col, packed);
      }
      return;
    }
  }
#pragma unroll
  for (int j = 0; j < P::RUNS; ++j) {
    const i64 col = n0 + product.col(j);
    if (sizeof(Out) > 2 && vec) {
      constexpr int PART = P::LEN * sizeof(Out) > 16 ? 16 / sizeof(Out) : P::LEN;
#pragma unroll
      for (int l = 0; l < P::LEN; l += PART) {
        Vec<Out, PART> part;
#pragma unroll
        for (int n = 0; n < PART; ++n) part.v[n] = from_acc<Out>(product.at(i, j, l + n));
        if (row && col + l < columns) *reinterpret_cast<Vec<Out, PART>*>(row + col + l) = part;
      }
    } else {
#pragma unroll
      for (int l = 0; l < P::LEN; ++l)
        if (row && col + l < columns) row[col + l] = from_acc<Out>(product.at(i, j, l));
    }
  }
}

// Elements as registers hold them: two halves in one, or else one of its own.
template <class T, int PER_ = sizeof(T) == 2 ? 2 : 1>
struct Word {
  using type = T;
  static constexpr int PER = PER_;
  static __device__ __forceinline__ type pack(const Acc<T> (&v)[1]) { return from_acc<T>(v[0]); }
  static __device__ __forceinline__ void unpack(type w, Acc<T> (&v)[1]) { v[0] = to_acc(w); }
};
template <class T>
struct Word<T, 2> {
  using type = u32;
  static constexpr int PER = 2;
  static __device__ __forceinline__ type pack(const float (&v)[2]) { return pack2<T>(v[0], v[1]); }
  static __device__ __forceinline__ void unpack(type w, float (&v)[2]) { unpack2<T>(w, v[0], v[1]); }
};

// A row of T in memory as store_row would have written it from a product with runs as those of P.
template <class T, class P>
struct RowWords {
  using W = Word<T>;
  static constexpr int COUNT = P::RUNS * P::LEN / W::PER;
  typename W::type word[COUNT];

  // The columns of a product's row whose first one is `first`; zeros where `row` is null, and from `columns`
  // on. They may be used behind arrive, which all lanes call. vec: rows may be read 16 bytes at a time.
  __device__ __forceinline__ void start(const T* row, i64 first, i64 columns, bool vec) {
    constexpr bool HALF = W::PER == 2;
    constexpr int LEN = P::LEN * sizeof(T) > 16 ? 16 / sizeof(T) : P::LEN;  // in one access
    if (vec && HALF) {
      static_assert(!HALF || COUNT == 4, "4 runs make 16 bytes a lane");
      const i64 col = first + 6 * int(lane_id() & 3);
      load<4>(word, row && col < columns ? row + col : nullptr);
    } else if (vec) {
#pragma unroll
      for (int n = 0; n < COUNT; n += LEN) {
        const i64 col = first + n / P::LEN * P::RUN_STRIDE + n % P::LEN;
        load<LEN>(word + n, row && col < columns ? row + col : nullptr);
      }
    } else {
#pragma unroll
      for (int n = 0; n < COUNT; ++n) {
        Acc<T> v[W::PER];
#pragma unroll
        for (int l = 0; l < W::PER; ++l) {
          const int e = n * W::PER + l;
          const i64 col = first + e / P::LEN * P::RUN_STRIDE + e % P::LEN;
          v[l] = row && col < columns ? to_acc(row[col]) : Acc<T>(0);
        }
        word[n] = W::pack(v);
      }
    }
  }
  __device__ __forceinline__ void arrive(bool vec) {
    if constexpr (W::PER == 2)
      if (vec) transpose_quad(word);
  }

 private:
  template <int N>
  static __device__ __forceinline__ void load(typename W::type* to, const T* from) {
    using Words = Vec<typename W::type, N>;
    Words words{};
    if (from) words = *reinterpret_cast<const Words*>(from);
#pragma unroll
    for (int n = 0; n < N; ++n) to[n] = words.v[n];
  }
};

}  // namespace sysgen
