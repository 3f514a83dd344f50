// What the kernels for small sizes are made of. A group of warps owns one (b, h): all queries and all keys,
// with the matrix of scores in shared memory. Three kinds of steps follow each other, a barrier between them:
//
//   inner products   s = x . y^T
//   rows             s -> weights, gradients; the lanes take the keys of a row in the order of closeness
//   combinations     z = s . y  or  s^T . y
//
// Rows x, y of q, k, v, dout go from global memory to registers where they are needed: those of a group fit
// in the L1 cache, and shared memory would serve no more reads per clock. Half types are multiplied by mma
// m16n8k16, whose fragments want two neighbours of the contraction in one register. The contraction and the
// columns of z therefore run in an order in which each lane reads and writes 16 bytes at once.
#pragma once
#include "geometric_attention/geometric_attention_scores.cuh"

namespace sysgen {

// WARPS warps own a (b, h) of at most TILE queries and keys; GROUPS of them make a block.
template <class T_, int TILE_, int WARPS_, int GROUPS_>
struct GeometricSmall {
  using T = T_;
  using A = Acc<T>;
  static constexpr bool FAST = sizeof(T) == 2;  // the rounding of T hides that of faster functions
  static constexpr int TILE = TILE_, WARPS = WARPS_, GROUPS = GROUPS_, THREADS = 32 * WARPS * GROUPS;
  static constexpr int MIN_BLOCKS = sizeof(T) == 8 || GROUPS > 1 ? 3 : 512 / THREADS;  // or registers spill
  static constexpr int LANES = TILE < 32 ? 16 : 32, STRIPES = TILE / LANES;            // of a row
  static constexpr int ROWS = 32 / LANES;                                              // of a warp at a time
  static constexpr int COLUMNS = 64;                                                   // of a combination
  static constexpr int HEIGHT = TILE > 64 ? TILE : 16 * WARPS, PITCH = TILE + 8;
  static_assert(PITCH % 16 == 8, "8 rows of a float32 fragment lie in different banks");
  static_assert(HEIGHT >= TILE && HEIGHT % 16 == 0, "parts of inner products lie in the matrix too");
  static_assert(WARPS == 1 || GROUPS == 1, "several groups synchronise warp by warp");
  using Matrix = A[HEIGHT][PITCH];
};

template <class P>
__device__ __forceinline__ void group_barrier() {
  if constexpr (P::WARPS == 1) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}
template <class P>
__device__ __forceinline__ int group_warp() {
  return P::WARPS == 1 ? 0 : warp_id();
}

// ---- rows in global memory

template <class T>
struct GeometricView {  // of one (b, h)
  T* data;
  i64 stride;
  int rows, width;
  const unsigned char* key_mask;  // of the rows, or null
  bool vec;                       // 16 bytes at a time

  __device__ __forceinline__ T* at(int row, int col) const { return data + row * stride + col; }
};

template <class T>
__device__ __forceinline__ GeometricView<T> geometric_view(const GeometricRows<T>& x, i64 b, i64 h, i64 rows,
                                                           i64 width, const unsigned char* key_mask) {
  return {x.head(b, h), x.stride_n, static_cast<int>(rows), static_cast<int>(width), key_mask, x.vec == 16};
}

// 16 bytes of a row. Two halves share a register, the first in its lower half.
template <class T>
struct PieceOf {
  using type = Vec<u32, 4>;
};
template <>
struct PieceOf<float> {
  using type = Vec<float, 4>;
};
template <>
struct PieceOf<double> {
  using type = Vec<double, 2>;
};
template <class T>
using Piece = typename PieceOf<T>::type;

template <class T>
__device__ __forceinline__ Piece<T> piece_of(const T (&x)[16 / sizeof(T)]) {
  Piece<T> r;
#pragma unroll
  for (int i = 0; i < int(16 / sizeof(T)); ++i) {
    if constexpr (sizeof(T) > 2) {
      r.v[i] = x[i];
    } else if (i % 2 == 0) {
      r.v[i / 2] = pack2<T>(to_float(x[i]), to_float(x[i + 1]));
    }
  }
  return r;
}

// r[i] = the piece that begins at place(i).row, place(i).col; zeros where that is outside, and for masked
// keys. All reads are on their way before the first is waited for.
struct Place {
  int row, col;
};
template <class T, int COUNT, class PlaceOf>
__device__ __forceinline__ void read_pieces(Piece<T> (&r)[COUNT], const GeometricView<const T>& x,
                                            PlaceOf place) {
  constexpr int N = 16 / sizeof(T);
  const auto inside = [&](Place p) { return p.row < x.rows && p.col < x.width; };
  if (x.vec) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const Place p = place(i);
      r[i] = Piece<T>{};
      if (inside(p)) r[i] = *reinterpret_cast<const Piece<T>*>(x.at(p.row, p.col));
    }
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const Place p = place(i);
      T element[N];
#pragma unroll
      for (int n = 0; n < N; ++n)
        element[n] = inside({p.row, p.col + n}) ? *x.at(p.row, p.col + n) : from_acc<T>(0);
      r[i] = piece_of<T>(element);
    }
  }
  if (x.key_mask) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const int row = place(i).row;
      if (!geometric_key_readable(x.key_mask, row, x.rows)) r[i] = Piece<T>{};
    }
  }
}

// ---- inner products

// acc += x[m0 .. m0 + 16] . y[n0 .. n0 + 16]^T over one step of the width, as two fragments of mma: this lane
// has acc[n][2 * i + e] = row m0 + 8 * i + lane / 4, column n0 + 8 * n + lane % 4 * 2 + e.
template <class T>
constexpr int kInnerStep = sizeof(T) == 2 ? 32 : 16 / sizeof(T);

template <class T>
__device__ __forceinline__ void inner_step(Acc<T> (&acc)[2][4], const GeometricView<const T>& x, int m0,
                                           const GeometricView<const T>& y, int n0, int col) {
  const int lane = lane_id(), group = lane / 4, quad = lane % 4;
  Piece<T> xs[2];
  if constexpr (sizeof(T) == 2) {
    Piece<T> ys[2];
    read_pieces<T>(xs, x, [&](int i) { return Place{m0 + 8 * i + group, col + 8 * quad}; });
    read_pieces<T>(ys, y, [&](int n) { return Place{n0 + 8 * n + group, col + 8 * quad}; });
#pragma unroll
    for (int half = 0; half < 4; half += 2) {
      const u32 a[4] = {xs[0].v[half], xs[1].v[half], xs[0].v[half + 1], xs[1].v[half + 1]};
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const u32 b[2] = {ys[n].v[half], ys[n].v[half + 1]};
        mma_m16n8k16(acc[n], a, b, acc[n], T());
      }
    }
  } else {
    Piece<T> ys[4];
    read_pieces<T>(xs, x, [&](int i) { return Place{m0 + 8 * i + group, col}; });
    read_pieces<T>(ys, y, [&](int j) { return Place{n0 + 8 * (j / 2) + 2 * quad + j % 2, col}; });
#pragma unroll
    for (int v = 0; v < int(16 / sizeof(T)); ++v)
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) acc[j / 2][2 * i + j % 2] += xs[i].v[v] * ys[j].v[v];
  }
}

// How the inner products are shared out: squares of 16 by 16, and several warps to a square, each with a part
// of the width, where there are fewer squares than warps. Part p lies p * part_rows further down.
struct InnerShares {
  int rows, columns, parts;  // rows, columns: in squares
  __device__ __forceinline__ int part_rows() const { return 16 * rows; }
};

template <class P>
__device__ __forceinline__ InnerShares inner_shares(int queries, int keys) {
  const int rows = (queries + 15) / 16, columns = (keys + 15) / 16;
  int parts = 1;
  while ((parts + 1) * rows * columns <= P::WARPS && (parts + 1) * 16 * rows <= P::HEIGHT &&
         rows * columns > 0)
    ++parts;
  return {rows, columns, parts};
}

template <class P>
__device__ __forceinline__ void inner_products(typename P::Matrix& s, const InnerShares& shares,
                                               const GeometricView<const typename P::T>& x,
                                               const GeometricView<const typename P::T>& y) {
  using T = typename P::T;
  using A = typename P::A;
  const int lane = lane_id(), part = group_warp<P>() % shares.parts;
  for (int square = group_warp<P>() / shares.parts; square < shares.rows * shares.columns;
       square += P::WARPS / shares.parts) {
    const int m0 = square / shares.columns * 16, n0 = square % shares.columns * 16;
    A acc[2][4] = {};
#pragma unroll 2
    for (int col = part * kInnerStep<T>; col < x.width; col += shares.parts * kInnerStep<T>)
      inner_step<T>(acc, x, m0, y, n0, col);
    if (y.key_mask) {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (!geometric_key_readable(y.key_mask, n0 + 8 * (j / 2) + lane % 4 * 2 + j % 2, y.rows))
          acc[j / 2][j % 2] = acc[j / 2][2 + j % 2] = minus_infinity<A>();
    }
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        A* to = &s[part * shares.part_rows() + m0 + 8 * i + lane / 4][n0 + 8 * n + lane % 4 * 2];
        *reinterpret_cast<Vec<A, 2>*>(to) = {acc[n][2 * i], acc[n][2 * i + 1]};
      }
  }
}

template <class P>
__device__ __forceinline__ typename P::A inner_product(const typename P::Matrix& s, const InnerShares& shares,
                                                       int i, int j) {
  typename P::A sum = s[i][j];
  for (int part = 1; part < shares.parts; ++part) sum += s[i + part * shares.part_rows()][j];
  return sum;
}

// ---- rows

// The key at a place in the order of closeness to position p (in [-1, keys]), 0 the closest: p itself, right,
// left, right, .. Places behind the last key stand for columns behind the last key.
__device__ __forceinline__ int key_at(int place, int p, int keys) {
  const int right = keys - 1 - p, both = p < right ? p : right, far = place - both;
  const int key = place > 2 * both ? (p < right ? p + far : p - far)
                  : place % 2      ? p + (place + 1) / 2
                                   : p - place / 2;
  return place < keys ? key : place;
}

// Sums over the lanes of a row: of those before this one, of those behind it, of all.
template <int LANES, class A>
__device__ __forceinline__ A sum_before(A x, A& all) {
  const int lane = lane_id() % LANES;
#pragma unroll
  for (int d = 1; d < LANES; d *= 2) {
    const A y = __shfl_up_sync(~0u, x, d, LANES);
    if (lane >= d) x += y;
  }
  all = __shfl_sync(~0u, x, LANES - 1, LANES);
  const A before = __shfl_up_sync(~0u, x, 1, LANES);
  return lane > 0 ? before : A(0);
}
template <int LANES, class A>
__device__ __forceinline__ A sum_behind(A x, A& all) {
  const int lane = lane_id() % LANES;
#pragma unroll
  for (int d = 1; d < LANES; d *= 2) {
    const A y = __shfl_down_sync(~0u, x, d, LANES);
    if (lane + d < LANES) x += y;
  }
  all = __shfl_sync(~0u, x, 0, LANES);
  const A behind = __shfl_down_sync(~0u, x, 1, LANES);
  return lane < LANES - 1 ? behind : A(0);
}
template <int LANES, class A>
__device__ __forceinline__ A sum_of(A x) {
#pragma unroll
  for (int d = LANES / 2; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d, LANES);
  return x;
}

// The weights of query i, or zeros if it is not there. Lane l has the keys at the places l, l + LANES, ..
template <class P>
struct WeightsOfRow {
  using A = typename P::A;
  GeometricQuery<A, int> query;
  int key[P::STRIPES];
  A score[P::STRIPES], weight[P::STRIPES];
  A log_rest;  // log(1 - sum of A)
  A sum;       // of A, if normalize

  // head: without its key mask, s is -infinity there
  __device__ __forceinline__ WeightsOfRow(const GeometricScores<A>& g, const GeometricHead<A>& head,
                                          const typename P::Matrix& s, const InnerShares& shares, int i,
                                          bool there)
      : query(nearby(geometric_query(g, head, there ? i : 0), g.keys)), log_rest(0), sum(0) {
    const int keys = static_cast<int>(g.keys), lane = lane_id() % P::LANES;
#pragma unroll
    for (int n = 0; n < P::STRIPES; ++n) {
      const int place = n * P::LANES + lane;
      key[n] = place;
      score[n] = minus_infinity<A>();
      weight[n] = 0;
      if (n * P::LANES >= keys) continue;
      key[n] = key_at(place, query.position, keys);
      if (there && place < keys) {
        const A product = inner_product<P>(s, shares, i, key[n]);
        if (product != score[n]) score[n] = geometric_score(g, head, query, i, key[n], product);
      }
      const GeometricLogs<A> logs = geometric_logs<A, P::FAST>(score[n]);
      A all;
      const A before = sum_before<P::LANES>(logs.miss, all);
      weight[n] = exp_of<P::FAST>(logs.match + (log_rest + before));
      log_rest += all;
    }
    if (g.normalize) {
      sum = -expm1_of(log_rest);
      const A by = A(1) / (sum > g.eps ? sum : g.eps);
#pragma unroll
      for (int n = 0; n < P::STRIPES; ++n) weight[n] *= by;
    }
  }
};

// True if the lane's n-th place is a column of the squares; those behind the last key have weight 0.
template <class P>
__device__ __forceinline__ bool in_squares(const InnerShares& shares, int n) {
  return n * P::LANES + int(lane_id()) % P::LANES < 16 * shares.columns;
}

// Row of this lane in round r of its warp, and the rounds that reach `rows` rows. Where a warp has two rows
// at a time, they are two apart: their banks differ.
template <class P>
__device__ __forceinline__ int row_of_round(int r) {
  const int turn = r * P::WARPS + group_warp<P>();
  if constexpr (P::ROWS == 1) return turn;
  return turn / 2 * 4 + turn % 2 + 2 * (lane_id() / P::LANES);
}
template <class P>
__device__ __forceinline__ int rounds_of(int rows) {
  const int turns = P::ROWS == 1 ? rows : (rows + 3) / 4 * 2;
  return (turns + P::WARPS - 1) / P::WARPS;
}

// ---- combinations

// Halves n of a and b in one register, a's in its lower half.
__device__ __forceinline__ u32 pair_of(const Vec<u32, 4>& a, const Vec<u32, 4>& b, int n) {
  const u32 x = a.v[n / 2], y = b.v[n / 2];
  return n % 2 ? x >> 16 | (y & 0xffff0000u) : (x & 0xffffu) | y << 16;
}

// z[m][c] = factor * sum_k w[m][k] y[k][c] for 16 rows from m0 and COLUMNS columns from c0, where w is s, or
// its transpose. s is zero, up to the next multiple of 16, behind the rows of y.
template <class P, bool TRANSPOSED>
__device__ __forceinline__ void combine(const typename P::Matrix& s,
                                        const GeometricView<const typename P::T>& y,
                                        const GeometricView<typename P::T>& z, typename P::A factor, int m0,
                                        int c0) {
  using T = typename P::T;
  using A = typename P::A;
  const int lane = lane_id();
  constexpr int N = 16 / sizeof(T);
  if constexpr (sizeof(T) == 2) {
    // Column c0 + 8 * j + t of y is column j of the fragment acc[t].
    const int group = lane / 4, quad = lane % 4;
    float acc[8][4] = {};
    for (int k0 = 0; k0 < y.rows; k0 += 16) {
      // The order of the contraction that has no bank conflicts here.
      const auto k = [&](int l) { return k0 + (TRANSPOSED ? quad + 4 * l : 2 * quad + l % 2 + l / 2 * 8); };
      Piece<T> ys[4];
      read_pieces<T>(ys, y, [&](int l) { return Place{k(l), c0 + 8 * group}; });
      u32 a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int m = m0 + i % 2 * 8 + group, l = i / 2 * 2;
        if constexpr (TRANSPOSED) {
          a[i] = pack2<T>(s[k(l)][m], s[k(l + 1)][m]);
        } else {
          const auto& w = *reinterpret_cast<const Vec<float, 2>*>(&s[m][k(l)]);
          a[i] = pack2<T>(w.v[0], w.v[1]);
        }
      }
#pragma unroll
      for (int t = 0; t < 8; ++t) {
        const u32 b[2] = {pair_of(ys[0], ys[1], t), pair_of(ys[2], ys[3], t)};
        mma_m16n8k16(acc[t], a, b, acc[t], T());
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int m = m0 + i / 2 * 8 + group, c = c0 + 16 * quad + i % 2 * 8;
      if (m >= z.rows || c >= z.width) continue;
      if (z.vec) {
        u32 packed[4];
#pragma unroll
        for (int t = 0; t < 4; ++t) packed[t] = pack2<T>(factor * acc[2 * t][i], factor * acc[2 * t + 1][i]);
        store_16(z.at(m, c), packed);
      } else {
#pragma unroll
        for (int t = 0; t < 8; ++t)
          if (c + t < z.width) *z.at(m, c + t) = from_float<T>(factor * acc[t][i]);
      }
    }
  } else {
    // This lane has rows lane / 8 + 4 * i, and the pieces lane % 8 + 8 * j of the columns.
    constexpr int PIECES = P::COLUMNS / (8 * N);
    const int row = m0 + lane / 8, col = c0 + lane % 8 * N;
    A acc[4][PIECES][N] = {};
#pragma unroll 2
    for (int k = 0; k < y.rows; ++k) {
      Piece<T> ys[PIECES];
      read_pieces<T>(ys, y, [&](int j) { return Place{k, col + 8 * N * j}; });
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const A w = TRANSPOSED ? s[k][row + 4 * i] : s[row + 4 * i][k];
#pragma unroll
        for (int j = 0; j < PIECES; ++j)
#pragma unroll
          for (int n = 0; n < N; ++n) acc[i][j][n] += w * ys[j].v[n];
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < PIECES; ++j) {
        const int m = row + 4 * i, c = col + 8 * N * j;
        if (m >= z.rows || c >= z.width) continue;
        if (z.vec) {
          Piece<T> piece;
#pragma unroll
          for (int n = 0; n < N; ++n) piece.v[n] = factor * acc[i][j][n];
          *reinterpret_cast<Piece<T>*>(z.at(m, c)) = piece;
        } else {
#pragma unroll
          for (int n = 0; n < N; ++n)
            if (c + n < z.width) *z.at(m, c + n) = factor * acc[i][j][n];
        }
      }
  }
}

}  // namespace sysgen
