// geometric_attention_bwd for small sizes: one launch that computes the scores again. A group of warps owns
// all rows of its (b, h), so that every sum has one owner and one order.
#pragma once
#include "geometric_attention/geometric_attention_small.cuh"

namespace sysgen {

template <class T>
struct GeometricSmallBwdArgs {
  GeometricScores<Acc<T>> scores;
  i64 count;  // B * H
  GeometricRows<const T> q, k, v, dout;
  GeometricRows<T> dq, dk, dv;
  const Acc<T>* drem;  // [B, H, L] or null
  Acc<T>* dbias;       // [B, H, L, 2] or null
  Acc<T>* dmask;       // [B, H, L, S] or null
};

template <class P>
__global__ void __launch_bounds__(P::THREADS, P::MIN_BLOCKS)
    geometric_attention_small_bwd_kernel(const GeometricSmallBwdArgs<typename P::T> a) {
  using T = typename P::T;
  using A = typename P::A;
  Smem smem;
  auto& matrices = smem.array<typename P::Matrix[P::GROUPS][2]>();
  const i64 group = P::WARPS == 1 ? warp_id() : 0, bh = i64(blockIdx.x) * P::GROUPS + group;
  if (bh >= a.count) return;
  const auto& g = a.scores;
  const i64 b = bh / g.heads, h = bh % g.heads;
  const int queries = static_cast<int>(g.queries), keys = static_cast<int>(g.keys);
  auto& weights = matrices[group][0];    // s, then W
  auto& gradients = matrices[group][1];  // dout . v^T, then ds
  GeometricHead<A> head = geometric_head(g, b, h);
  const unsigned char* key_mask = head.key_mask;
  head.key_mask = nullptr;  // the inner products know it
  const InnerShares shares = inner_shares<P>(queries, keys);
  const auto query_rows = [&](const auto& x) { return geometric_view(x, b, h, queries, g.width, nullptr); };
  const auto key_rows = [&](const GeometricRows<const T>& x) {
    return geometric_view(x, b, h, keys, g.width, key_mask);
  };

  inner_products<P>(weights, shares, query_rows(a.q), key_rows(a.k));
  inner_products<P>(gradients, shares, query_rows(a.dout), key_rows(a.v));
  group_barrier<P>();

  // Also the rows behind the last query, up to a multiple of 16: dk and dv sum over zeros there.
  for (int round = 0; round < rounds_of<P>(16 * shares.rows); ++round) {
    const int i = row_of_round<P>(round);
    const bool there = i < queries;
    const WeightsOfRow<P> row(g, head, weights, shares, i, there);
    A by_weight[P::STRIPES], mean = 0;  // derivatives by the weights, and their weighted sum
#pragma unroll
    for (int n = 0; n < P::STRIPES; ++n) {
      by_weight[n] =
          row.score[n] == minus_infinity<A>() ? A(0) : inner_product<P>(gradients, shares, i, row.key[n]);
      mean += row.weight[n] * by_weight[n];
    }
    if (g.normalize) mean = sum_of<P::LANES>(mean);
    if (!(row.sum > g.eps)) mean = 0;  // also without normalize
    const i64 index = bh * queries + i;
    A farther = there && a.drem ? exp_of(row.log_rest) * a.drem[index] : A(0), left = 0, right = 0;
#pragma unroll
    for (int n = P::STRIPES - 1; n >= 0; --n) {
      A ds = 0;
      if (n * P::LANES < keys) {
        const A share = row.weight[n] * (by_weight[n] - mean);
        A all;
        const A behind = farther + sum_behind<P::LANES>(share, all);
        farther += all;
        const GeometricChances<A> chances = geometric_chances<A, P::FAST>(row.score[n]);
        if (row.score[n] != minus_infinity<A>()) ds = chances.miss * share - chances.match * behind;
        left += row.key[n] < row.query.position ? ds : A(0);
        right += row.key[n] > row.query.position ? ds : A(0);
        if (a.dmask && there && row.key[n] < keys) a.dmask[index * keys + row.key[n]] = ds;
      }
      if (in_squares<P>(shares, n)) {
        weights[i][row.key[n]] = row.weight[n];
        gradients[i][row.key[n]] = ds;
      }
    }
    if (a.dbias) {
      left = sum_of<P::LANES>(left);
      right = sum_of<P::LANES>(right);
      if (there && lane_id() % P::LANES == 0) {
        a.dbias[2 * index] = left;
        a.dbias[2 * index + 1] = right;
      }
    }
  }
  group_barrier<P>();

  const int tiles = static_cast<int>((g.width + P::COLUMNS - 1) / P::COLUMNS);
  const int for_query = shares.rows * tiles, for_key = shares.columns * tiles;
  for (int unit = group_warp<P>(); unit < for_query + 2 * for_key; unit += P::WARPS) {
    const int m0 = unit / tiles, c0 = unit % tiles * P::COLUMNS;
    if (unit < for_query) {
      combine<P, false>(gradients, key_rows(a.k), query_rows(a.dq), g.scale, m0 * 16, c0);
    } else {
      const bool of_key = unit < for_query + for_key;
      combine<P, true>(matrices[group][of_key], query_rows(of_key ? a.q : a.dout),
                       geometric_view(of_key ? a.dk : a.dv, b, h, keys, g.width, nullptr),
                       of_key ? g.scale : A(1), (m0 - shares.rows - (of_key ? 0 : shares.columns)) * 16, c0);
    }
  }
}

}  // namespace sysgen
