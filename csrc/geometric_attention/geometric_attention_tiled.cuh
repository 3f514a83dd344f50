// What the tiled kernels of geometric attention share. A block owns ROWS queries and walks over the keys in
// tiles of W, from its rows outwards, the right and the left side at once:
//
//   key(right, x) = p0 + near + x          key(left, x) = p0 + ROWS - 1 - near - x        x = 0, 1, 2, ...
//
// with p0 the position of its first row and `near` the distance of the nearest key where p0 lies outside the
// keys. Row r meets offset x at distance near + x - shift, shift = r on the right, ROWS - 1 - r on the left:
// a tile is a plain matrix, and the distances of one row are consecutive in it. The scores lie in a ring of
// LAG + 1 tiles a side, LAG W >= ROWS: as soon as tile n + LAG is there, all rows know both sides at the
// distances of window n, [n W, (n + 1) W), and when window n is finished, so is tile n.
//
// Warps come in pairs, one a side, for 16 rows: both compute the scores of their side, scan their rows
// together (4 lanes a row), and multiply the weights of their side.
#pragma once
#include "geometric_attention/geometric_attention_scores.cuh"

namespace sysgen {

// ---- where a row block is
struct GeometricWalk {
  struct Side {
    i64 first;       // key at offset 0
    int begin, end;  // offsets of the keys that exist
  } right, left;
  i64 near;     // distance at offset 0 of a row with shift 0
  int rows;     // that exist
  int windows;  // tiles, and windows of distances, until no key is left

  __device__ __forceinline__ i64 key(int side, int x) const {
    return side ? left.first - x : right.first + x;
  }
};

__device__ __forceinline__ i64 clamped(i64 v, i64 low, i64 high) {
  return v < low ? low : v > high ? high : v;
}

template <class P>
__device__ __forceinline__ GeometricWalk geometric_walk(const GeometricScores<typename P::A>& s, i64 row0) {
  GeometricWalk w;
  const i64 p0 = row0 + s.q_offset;
  w.rows = int(s.queries - row0 < P::ROWS ? s.queries - row0 : P::ROWS);
  const i64 beyond = p0 - (s.keys - 1), before = -(p0 + w.rows - 1);
  w.near = beyond > 0 ? beyond : before > 0 ? before : 0;
  const i64 most = s.keys + P::ROWS, right = p0 + w.near, left = p0 + P::ROWS - 1 - w.near;
  w.right = {right, int(clamped(-right, 0, most)), s.causal ? 0 : int(clamped(s.keys - right, 0, most))};
  w.left = {left, int(clamped(left - (s.keys - 1), 0, most)), int(clamped(left + 1, 0, most))};
  const int last = w.right.end > w.left.end ? w.right.end : w.left.end;
  w.windows = s.keys > 0 ? (last + P::W - 1) / P::W : 0;
  return w;
}

// Whether any key exists in tiles [t, t + count).
template <class P>
__device__ __forceinline__ bool has_keys(const GeometricWalk& w, int side, int t, int count) {
  const int begin = side ? w.left.begin : w.right.begin, end = side ? w.left.end : w.right.end;
  return t >= 0 && t * P::W < end && (t + count) * P::W > begin;
}

// ---- operands of the products: rows in shared memory, or in global memory where unreadable ones are null
template <class T, int PITCH>
struct GeometricStagedRows {
  static constexpr bool WHOLE = true;  // padded with zeros to the width of the product
  const T (*tile)[PITCH];
  __device__ __forceinline__ const T* row(int i) const { return tile[i]; }
};

template <class T>
struct GeometricGlobalRows {
  static constexpr bool WHOLE = false;
  const T* data;
  i64 stride, first, count;  // row i is first + i, or first - i; it exists in [0, count)
  bool down;
  const unsigned char* key_mask;
  __device__ __forceinline__ const T* row(int i) const {
    const i64 at = down ? first - i : first + i;
    return at >= 0 && geometric_key_readable(key_mask, at, count) ? data + at * stride : nullptr;
  }
};

template <class T, int PITCH, bool STAGED>
struct GeometricRowsOf {
  using type = GeometricStagedRows<T, PITCH>;
};
template <class T, int PITCH>
struct GeometricRowsOf<T, PITCH, false> {
  using type = GeometricGlobalRows<T>;
};

template <int ROWS_, int W_>
struct GeometricTiling {
  static constexpr int ROWS = ROWS_, W = W_, GROUPS = ROWS / 16, THREADS = 64 * GROUPS;
  static constexpr int LAG = (ROWS + W - 1) / W, SLOTS = LAG + 1, CAPACITY = SLOTS * W;
  // 8 or 24 banks between rows: fragments of 4 rows and skewed columns of 8 rows meet no bank twice.
  static constexpr int PITCH = (CAPACITY + 7) / 16 * 16 + 8;
  static constexpr int NT = W / 8, CHUNK = W / 4;  // distances of one lane in a scan
  static_assert(ROWS % 16 == 0 && GROUPS <= 15 && W % 8 == 0 && W <= 32);
};

// The accumulators of a warp are fragments of mma: acc[j][2 h + l] is row lane / 4 + 8 h, column
// 8 j + 2 (lane % 4) + l.
__device__ __forceinline__ int fragment_row(int h) { return lane_id() / 4 + 8 * h; }
__device__ __forceinline__ int fragment_col(int j) { return 8 * j + lane_id() % 4 * 2; }

// bf16 and f16: mma, with both operands in shared memory, D <= DIM. A block makes COLUMNS columns of the
// results.
template <class T_, int DIM_, int COLUMNS_, int ROWS, int W, int MIN_BLOCKS_>
struct GeometricHalfProduct : GeometricTiling<ROWS, W> {
  using T = T_;
  using A = float;
  static constexpr bool STAGED = true;
  static constexpr int DIM = DIM_, COLUMNS = COLUMNS_, DT = COLUMNS / 8, PAD = DIM + 8;
  static constexpr int MIN_BLOCKS = MIN_BLOCKS_;
  static_assert(W % 16 == 0 && DIM % COLUMNS == 0 && COLUMNS % 16 == 0);
  using Rows = GeometricStagedRows<T, PAD>;

  // acc[16, 8 N] += rows[16, DIM] cols[8 N, DIM]^T
  template <int N>
  static __device__ __forceinline__ void scores(A (&acc)[N][4], const Rows& rows, int row0, const Rows& cols,
                                                i64) {
    const int lane = lane_id();
#pragma unroll
    for (int k = 0; k < DIM; k += 16) {
      u32 a[4];
      ldmatrix_x4(a, &rows.tile[row0 + lane % 16][k + lane / 16 * 8]);
#pragma unroll
      for (int j = 0; j < N; j += 2) {
        u32 b[4];
        ldmatrix_x4(b, &cols.tile[j * 8 + lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 8]);
        mma_m16n8k16(acc[j], a, {b[0], b[1]}, acc[j], T());
        mma_m16n8k16(acc[j + 1], a, {b[2], b[3]}, acc[j + 1], T());
      }
    }
  }

  // acc[16, 8 N] += a[16, K] cols[K, col0 + 8 N]; weight(m, k) gives elements (m, k) and (m, k + 1) of a
  template <int K, int N, class Weight>
  static __device__ __forceinline__ void weighted(A (&acc)[N][4], Weight weight, const Rows& cols, int col0,
                                                  i64) {
    const int lane = lane_id();
#pragma unroll
    for (int k = 0; k < K; k += 16) {
      u32 a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Vec<float, 2> pair = weight(lane / 4 + i % 2 * 8, k + lane % 4 * 2 + i / 2 * 8);
        a[i] = pack2<T>(pair.v[0], pair.v[1]);
      }
#pragma unroll
      for (int j = 0; j < N; j += 2) {
        u32 b[4];
        ldmatrix_x4_trans(b, &cols.tile[k + lane % 16][col0 + j * 8 + lane / 16 * 8]);
        mma_m16n8k16(acc[j], a, {b[0], b[1]}, acc[j], T());
        mma_m16n8k16(acc[j + 1], a, {b[2], b[3]}, acc[j + 1], T());
      }
    }
  }
};

// float32 and float64 as IEEE has them. Not STAGED: rows come straight from global memory, for any D; COLUMNS
// is DIM.
template <class T_, int DIM_, int ROWS, int W, bool STAGED_, int MIN_BLOCKS_>
struct GeometricSimtProduct : GeometricTiling<ROWS, W> {
  using T = T_;
  using A = T_;
  static constexpr bool STAGED = STAGED_;
  static constexpr int DIM = DIM_, COLUMNS = DIM, MIN_BLOCKS = MIN_BLOCKS_, DT = COLUMNS / 8;
  static constexpr int V = STAGED ? 16 / sizeof(T) : 1, PAD = DIM + V;
  static_assert(DIM % 16 == 0);
  using Rows = typename GeometricRowsOf<T, PAD, STAGED>::type;

  template <int N>
  static __device__ __forceinline__ void scores(A (&acc)[N][4], const Rows& rows, int row0, const Rows& cols,
                                                i64 width) {
    const T *q[2], *k[N][2];
#pragma unroll
    for (int h = 0; h < 2; ++h) q[h] = rows.row(row0 + fragment_row(h));
#pragma unroll
    for (int j = 0; j < N; ++j)
#pragma unroll
      for (int l = 0; l < 2; ++l) k[j][l] = cols.row(fragment_col(j) + l);
    const i64 end = STAGED ? DIM : width;
#pragma unroll 2
    for (i64 d = 0; d < end; d += V) {
      Vec<T, V> x[2], y[N][2];
#pragma unroll
      for (int h = 0; h < 2; ++h) x[h] = piece(q[h], d);
#pragma unroll
      for (int j = 0; j < N; ++j)
#pragma unroll
        for (int l = 0; l < 2; ++l) y[j][l] = piece(k[j][l], d);
#pragma unroll
      for (int i = 0; i < V; ++i)
#pragma unroll
        for (int j = 0; j < N; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) acc[j][e] += x[e / 2].v[i] * y[j][e % 2].v[i];
    }
  }

  template <int K, int N, class Weight>
  static __device__ __forceinline__ void weighted(A (&acc)[N][4], Weight weight, const Rows& cols, int col0,
                                                  i64 width) {
#pragma unroll 1
    for (int k = 0; k < K; k += 2) {
      Vec<A, 2> a[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) a[h] = weight(fragment_row(h), k);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const T* row = cols.row(k + i);
#pragma unroll
        for (int j = 0; j < N; ++j)
#pragma unroll
          for (int l = 0; l < 2; ++l) {
            const i64 col = col0 + fragment_col(j) + l;
            const T v = STAGED || (row && col < width) ? row[col] : T(0);
            acc[j][l] += a[0].v[i] * v;
            acc[j][2 + l] += a[1].v[i] * v;
          }
      }
    }
  }

 private:
  static __device__ __forceinline__ Vec<T, V> piece(const T* row, i64 d) {
    if constexpr (STAGED) {
      return *reinterpret_cast<const Vec<T, V>*>(row + d);
    } else {
      return {{row ? row[d] : T(0)}};
    }
  }
};

// ---- one warp of a block
template <class P>
struct GeometricWarp {
  int side, group;  // its tiles
  int row, part;    // its lane's row of the block in scans, and quarter of a window

  __device__ __forceinline__ GeometricWarp()
      : side(warp_id() / P::GROUPS),
        group(warp_id() % P::GROUPS),
        row(group * 16 + side * 8 + lane_id() / 4),
        part(lane_id() % 4) {}
  __device__ __forceinline__ void sync_pair() const { named_barrier(1 + group, 64); }
  __device__ __forceinline__ int tile_row(int h) const { return group * 16 + fragment_row(h); }
};

// The distance, from `near`, at which row r meets offset x.
template <class P>
__device__ __forceinline__ int distance_at(int side, int r, int x) {
  return x - (side ? P::ROWS - 1 - r : r);
}
// Where in the ring row r has distance i of window n.
template <class P>
__device__ __forceinline__ int ring_place(int side, int r, int n, int i) {
  const int at = n % P::SLOTS * P::W + i + (side ? P::ROWS - 1 - r : r);
  return at < P::CAPACITY ? at : at - P::CAPACITY;
}

template <class P>
using GeometricRing = typename P::A[2][P::ROWS][P::PITCH];

// Bit c: the key at offset c of tile t exists and is not masked as a whole.
template <class P>
__device__ __forceinline__ u32 readable_keys(const GeometricWalk& w, const GeometricScores<typename P::A>& s,
                                             const GeometricHead<typename P::A>& head, int side, int t) {
  const int c = lane_id();
  const i64 j = w.key(side, t * P::W + c);
  return __ballot_sync(~0u, c < P::W && j >= 0 && geometric_key_readable(head.key_mask, j, s.keys));
}

// Puts a warp's part of tile t into the ring: finish(h, value).
template <class P, class Finish>
__device__ __forceinline__ void store_tile(const GeometricWarp<P>& warp, GeometricRing<P>& ring, int t,
                                           const typename P::A (&acc)[P::NT][4], Finish finish) {
  using A = typename P::A;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    A* const row = &ring[warp.side][warp.tile_row(h)][t % P::SLOTS * P::W];
#pragma unroll
    for (int j = 0; j < P::NT; ++j)
      *reinterpret_cast<Vec<A, 2>*>(row + fragment_col(j)) = {
          {finish(h, acc[j][2 * h]), finish(h, acc[j][2 * h + 1])}};
  }
}

// Whether the scans visit all of tile t. They do not visit distances of the other side, nor those from window
// `windows` on.
template <class P>
__device__ __forceinline__ bool is_scanned(int t, int windows) {
  return t * P::W >= P::ROWS && t < windows;
}

// Goes over a warp's part of tile t once more: entry(row, column, value), or zero where no scan comes.
template <class P, class Entry>
__device__ __forceinline__ void revise_tile(const GeometricWarp<P>& warp, GeometricRing<P>& ring, int t,
                                            int windows, Entry entry) {
  using A = typename P::A;
  __syncwarp();
#pragma unroll 1
  for (int i = lane_id(); i < 16 * P::W; i += 32) {
    const int r = warp.group * 16 + i / P::W, c = i % P::W;
    const int distance = distance_at<P>(warp.side, r, t * P::W + c);
    A& place = ring[warp.side][r][t % P::SLOTS * P::W + c];
    place = distance >= 0 && distance < windows * P::W ? entry(r, c, place) : A(0);
  }
}

// s[i, j] of a warp's part of tile t, -infinity where a key takes no part. bias: of its rows, for this side.
template <class P>
__device__ __forceinline__ void store_scores(const GeometricWarp<P>& warp, const GeometricWalk& w,
                                             const GeometricScores<typename P::A>& s,
                                             const GeometricHead<typename P::A>& head, i64 row0, int t,
                                             int windows, const typename P::A (&bias)[2],
                                             const typename P::A (&acc)[P::NT][4], GeometricRing<P>& ring) {
  using A = typename P::A;
  const u32 keys = readable_keys<P>(w, s, head, warp.side, t);
  if (is_scanned<P>(t, windows) && keys == ~0u >> (32 - P::W) && !head.added && !head.hidden)
    return store_tile<P>(warp, ring, t, acc, [&](int h, A product) { return s.scale * product + bias[h]; });
  store_tile<P>(warp, ring, t, acc, [](int, A product) { return product; });
  revise_tile<P>(warp, ring, t, windows, [&](int r, int c, A product) {
    const i64 i = row0 + r, j = w.key(warp.side, t * P::W + c);
    // the key at distance 0 belongs to the left side
    if (!(keys >> c & 1) || r >= w.rows || (warp.side == 0 && j == i + s.q_offset))
      return minus_infinity<A>();
    return geometric_score(s, head, geometric_query(s, head, i), i, j, product);
  });
}

// ---- the scan
// The sides on which a window has keys. What lies in the ring on the other side is never used.
struct BothSides {
  static constexpr int COUNT = 2;
  __device__ __forceinline__ int at(int i) const { return i; }
};
struct OneSide {
  static constexpr int COUNT = 1;
  int side;
  __device__ __forceinline__ int at(int) const { return side; }
};
template <class P, class Scan>
__device__ __forceinline__ void with_sides(const GeometricWalk& w, int n, Scan scan) {
  const bool right = has_keys<P>(w, 0, n, P::SLOTS), left = has_keys<P>(w, 1, n, P::SLOTS);
  if (right == left) {
    scan(BothSides());
  } else {
    scan(OneSide{left ? 1 : 0});
  }
}

template <class A>
struct GeometricTerms {  // log P, log(1 - P), P and 1 - P
  A match, miss, chance, other;
};

// Of a score. For half types exp and division are the fast ones, exact to a few roundings as well:
// log(1 + e) = 2 atanh(z), z = e / (2 + e) <= 1/3, by its series up to z^13, is good to 2e-8.
template <class T>
__device__ __forceinline__ GeometricTerms<Acc<T>> geometric_terms(Acc<T> s) {
  if constexpr (sizeof(T) == 2) {
    const float small = __expf(s < 0 ? s : -s), z = __fdividef(small, 2 + small), y = z * z;
    const float series =
        1 + y * (1.f / 3 + y * (1.f / 5 + y * (1.f / 7 + y * (1.f / 9 + y * (1.f / 11 + y * (1.f / 13))))));
    const float rest = 2 * z * series, large = __fdividef(1.f, 1 + small);
    return {(s < 0 ? s : 0) - rest, (s < 0 ? 0 : -s) - rest, s < 0 ? small * large : large,
            s < 0 ? large : small * large};
  } else {
    const auto logs = geometric_logs(s);
    const auto chances = geometric_chances(s);
    return {logs.match, logs.miss, chances.match, chances.miss};
  }
}
template <class T>
__device__ __forceinline__ Acc<T> geometric_exp(Acc<T> x) {
  if constexpr (sizeof(T) == 2) {
    return __expf(x);
  } else {
    return exp_of(x);
  }
}

// exp(x) is 0 in the accumulator type for x below this, with some room for the rounding of x.
template <class A>
__device__ __forceinline__ A geometric_zero_below() {
  return sizeof(A) == 8 ? A(-750) : A(-105);
}

// Sum over the lanes before this one of each 4 (DOWN: after it), and over all 4.
template <class A>
struct GeometricPrefix {
  A before, all;
};
template <class A, bool DOWN = false>
__device__ __forceinline__ GeometricPrefix<A> quad_prefix(A v, int part) {
  const int rank = DOWN ? 3 - part : part;
  const auto from = [](A x, int step) {
    return DOWN ? __shfl_down_sync(~0u, x, step, 4) : __shfl_up_sync(~0u, x, step, 4);
  };
  A sum = v;
#pragma unroll
  for (int step = 1; step < 4; step *= 2) {
    const A other = from(sum, step);
    if (rank >= step) sum += other;
  }
  const A before = from(sum, 1);
  return {rank ? before : A(0), __shfl_sync(~0u, sum, DOWN ? 0 : 3, 4)};
}

// ---- global to shared memory
// 16 bytes: the first n elements, zeros for the rest.
template <class T>
__device__ __forceinline__ void load_chunk(T* dst, const T* src, i64 n, int vec) {
  if (vec == 16) {
    cp_async<16>(dst, src, n > 0);
  } else {
    copy_pieces(dst, src, n, vec);
  }
}

// tile[side][c] = the key or value at offset c of tile t, zeros where it must not be read.
template <class P>
__device__ __forceinline__ void load_tile(typename P::T (&tile)[2][P::W][P::PAD], const typename P::T* data,
                                          i64 stride, int vec, const GeometricWalk& w,
                                          const GeometricScores<typename P::A>& s,
                                          const unsigned char* key_mask, int t) {
  constexpr int N = 16 / sizeof(typename P::T), CHUNKS = P::DIM / N;
#pragma unroll 1
  for (int index = threadIdx.x; index < 2 * P::W * CHUNKS; index += P::THREADS) {
    const int side = index / (P::W * CHUNKS), c = index / CHUNKS % P::W, col = index % CHUNKS * N;
    if (!has_keys<P>(w, side, t, 1)) continue;
    const i64 j = w.key(side, t * P::W + c);
    const bool valid = j >= 0 && geometric_key_readable(key_mask, j, s.keys);
    load_chunk(&tile[side][c][col], data + (valid ? j * stride : 0) + col, valid ? s.width - col : 0, vec);
  }
}
template <class P>
__device__ __forceinline__ void load_queries(typename P::T (&tile)[P::ROWS][P::PAD],
                                             const typename P::T* data, i64 stride, int vec,
                                             const GeometricWalk& w, i64 row0, i64 width) {
  constexpr int N = 16 / sizeof(typename P::T), CHUNKS = P::DIM / N;
#pragma unroll 1
  for (int index = threadIdx.x; index < P::ROWS * CHUNKS; index += P::THREADS) {
    const int r = index / CHUNKS, col = index % CHUNKS * N;
    const bool valid = r < w.rows;
    load_chunk(&tile[r][col], data + (valid ? (row0 + r) * stride : 0) + col, valid ? width - col : 0, vec);
  }
}

// ---- registers to global memory
// Sums the two sides' accumulators, through the ring, and hands the left half of every pair of columns to
// store(row of the block, column, first, second). All warps call it; the ring is free before and after.
template <class P, class Store>
__device__ __forceinline__ void store_sides(const GeometricWarp<P>& warp, GeometricRing<P>& ring,
                                            const typename P::A (&acc)[P::DT][4], Store store) {
  using A = typename P::A;
  constexpr int COUNT = P::CAPACITY / 8;
#pragma unroll
  for (int j0 = 0; j0 < P::DT; j0 += COUNT) {
#pragma unroll
    for (int j = j0; j < j0 + COUNT && j < P::DT; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        if (warp.side == 1)
          *reinterpret_cast<Vec<A, 2>*>(&ring[1][warp.tile_row(h)][fragment_col(j - j0)]) = {
              {acc[j][2 * h], acc[j][2 * h + 1]}};
    warp.sync_pair();
#pragma unroll
    for (int j = j0; j < j0 + COUNT && j < P::DT; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        if (warp.side == 0) {
          const auto& other =
              *reinterpret_cast<const Vec<A, 2>*>(&ring[1][warp.tile_row(h)][fragment_col(j - j0)]);
          store(h, fragment_col(j), acc[j][2 * h] + other.v[0], acc[j][2 * h + 1] + other.v[1]);
        }
    warp.sync_pair();
  }
}

// Columns col and col + 1 of a row of `width`.
template <class T>
__device__ __forceinline__ void store_pair(T* row, i64 col, i64 width, int vec, Acc<T> first, Acc<T> second) {
  if constexpr (sizeof(T) == 2) {
    if (vec >= 4) {
      if (col < width) *reinterpret_cast<u32*>(row + col) = pack2<T>(first, second);
      return;
    }
  }
  if (col < width) row[col] = from_acc<T>(first);
  if (col + 1 < width) row[col + 1] = from_acc<T>(second);
}

}  // namespace sysgen
