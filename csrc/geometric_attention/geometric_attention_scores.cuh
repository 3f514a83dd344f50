// What every geometric attention kernel computes alike, see geometric_attention.h: which keys take part, the
// score of a query and a key, the logarithms and probabilities that belong to a score, and which rows of
// memory may be read.
#pragma once
#include "common/kernel_math.cuh"
#include "cvmm/cvmm_tiles.cuh"

namespace sysgen {

template <class T>
struct GeometricRows {  // [B, H, N, D] with an inner stride of 1
  T* data;
  i64 stride_b, stride_h, stride_n;
  int vec;  // bytes of one copy that every row allows: 16, 8 or 4, or 1 for element by element

  __device__ __forceinline__ T* head(i64 b, i64 h) const { return data + b * stride_b + h * stride_h; }
};

template <class A>
struct GeometricScores {
  i64 heads, queries, keys, width;
  const A* bias;  // or null
  i64 bias_stride_b, bias_stride_h, bias_stride_l;
  const unsigned char* key_mask;  // or null
  i64 key_mask_stride_b;
  const A* added;               // the additive mask, or null
  const unsigned char* hidden;  // the boolean mask, or null; the strides are those of the one that is there
  i64 mask_stride_b, mask_stride_h, mask_stride_l, mask_stride_s;
  i64 q_offset;
  A scale, eps;
  bool normalize, include_self, causal, early_stop;
};

// The pointers of one (b, h).
template <class A>
struct GeometricHead {
  const A* bias;
  const unsigned char* key_mask;
  const A* added;
  const unsigned char* hidden;
};

template <class A>
__device__ __forceinline__ GeometricHead<A> geometric_head(const GeometricScores<A>& g, i64 b, i64 h) {
  const i64 mask = b * g.mask_stride_b + h * g.mask_stride_h;
  return {g.bias ? g.bias + b * g.bias_stride_b + h * g.bias_stride_h : nullptr,
          g.key_mask ? g.key_mask + b * g.key_mask_stride_b : nullptr, g.added ? g.added + mask : nullptr,
          g.hidden ? g.hidden + mask : nullptr};
}

// What all keys of query i share. Index: an integer that holds every distance.
template <class A, class Index_ = i64>
struct GeometricQuery {
  using Index = Index_;
  Index position;  // of the query among the keys; may lie outside
  A left, right;
};

template <class A>
__device__ __forceinline__ GeometricQuery<A> geometric_query(const GeometricScores<A>& g,
                                                             const GeometricHead<A>& head, i64 i) {
  const A* bias = head.bias ? head.bias + i * g.bias_stride_l : nullptr;
  return {i + g.q_offset, bias ? bias[0] : A(0), bias ? bias[1] : A(0)};
}

// The same with int for fewer than 2^30 keys: outside them all positions of one side are alike.
template <class A>
__device__ __forceinline__ GeometricQuery<A, int> nearby(const GeometricQuery<A>& query, i64 keys) {
  const i64 p = query.position;
  return {static_cast<int>(p < 0 ? -1 : p < keys ? p : keys), query.left, query.right};
}

// False for a key outside the matrix and for one that is masked as a whole: its k and v must not be read,
// they may be anything. Kernels put zeros in their place.
__device__ __forceinline__ bool geometric_key_readable(const unsigned char* key_mask, i64 j, i64 keys) {
  return j < keys && !(key_mask && key_mask[j]);
}

// s[i, j] from the inner product of query i and key j (both inside), or -infinity if j takes no part.
template <class A, class Query>
__device__ __forceinline__ A geometric_score(const GeometricScores<A>& g, const GeometricHead<A>& head,
                                             const Query& query, typename Query::Index i,
                                             typename Query::Index j, A product) {
  const A none = minus_infinity<A>();
  const auto d = j - query.position;
  if ((d > 0 && g.causal) || (d == 0 && !g.include_self)) return none;
  if (head.key_mask && head.key_mask[j]) return none;
  A s = g.scale * product + (d < 0 ? query.left : d > 0 ? query.right : A(0));
  if (head.hidden && head.hidden[i * g.mask_stride_l + j * g.mask_stride_s]) return none;
  if (head.added) {
    const A added = head.added[i * g.mask_stride_l + j * g.mask_stride_s];
    s = added == none ? none : s + added;  // also where s is +infinity
  }
  return s;
}

// FAST: exponentials and quotients of the special function unit, off by 2^-22 and 2^-22 |x| of their value.
// In logarithms of probabilities, which are off by 2^-24 of their sum anyway, that is no more than a
// rounding.
template <bool FAST, class A>
__device__ __forceinline__ A exp_of(A x) {
  if constexpr (FAST) {
    return __expf(x);
  } else {
    return exp_of(x);
  }
}

// match = log P and miss = log(1 - P) of P = sigmoid(s), exact to a few roundings of each for every s.
// s = -infinity (takes no part): -infinity and 0. s = +infinity: 0 and -infinity.
template <class A>
struct GeometricLogs {
  A match, miss;
};

template <class A, bool FAST = false>
__device__ __forceinline__ GeometricLogs<A> geometric_logs(A s) {
  const A small = exp_of<FAST>(s < 0 ? s : -s);
  A rest;
  if constexpr (FAST) {  // log(1 + e) = 2 atanh(z); what its series leaves out is below 2^-26 of it
    const A z = __fdividef(small, 2 + small), y = z * z;
    rest =
        2 * z * (1 + y * (1.f / 3 + y * (1.f / 5 + y * (1.f / 7 + y * (1.f / 9 + y * (1.f / 11 + y / 13))))));
  } else {
    rest = log1p_of(small);
  }
  return {(s < 0 ? s : A(0)) - rest, (s < 0 ? A(0) : -s) - rest};
}

// P and 1 - P, neither by a subtraction.
template <class A>
struct GeometricChances {
  A match, miss;
};

template <class A, bool FAST = false>
__device__ __forceinline__ GeometricChances<A> geometric_chances(A s) {
  const A small = exp_of<FAST>(s < 0 ? s : -s);
  A large;
  if constexpr (FAST) {
    large = __fdividef(1, 1 + small);
  } else {
    large = A(1) / (A(1) + small);
  }
  return {s < 0 ? small * large : large, s < 0 ? large : small * large};
}

}  // namespace sysgen
