// geometric_attention_fwd for small sizes: one launch, one group of warps for each (b, h).
#pragma once
#include "geometric_attention/geometric_attention_small.cuh"

namespace sysgen {

template <class T>
struct GeometricSmallFwdArgs {
  GeometricScores<Acc<T>> scores;
  i64 count;  // B * H
  GeometricRows<const T> q, k, v;
  GeometricRows<T> out;
  Acc<T>* rem;  // [B, H, L] or null
};

template <class P>
__global__ void __launch_bounds__(P::THREADS, P::MIN_BLOCKS)
    geometric_attention_small_fwd_kernel(const GeometricSmallFwdArgs<typename P::T> a) {
  using T = typename P::T;
  using A = typename P::A;
  Smem smem;
  auto& matrices = smem.array<typename P::Matrix[P::GROUPS]>();
  const i64 group = P::WARPS == 1 ? warp_id() : 0, bh = i64(blockIdx.x) * P::GROUPS + group;
  if (bh >= a.count) return;
  const auto& g = a.scores;
  const i64 b = bh / g.heads, h = bh % g.heads;
  const int queries = static_cast<int>(g.queries), keys = static_cast<int>(g.keys);
  auto& s = matrices[group];
  GeometricHead<A> head = geometric_head(g, b, h);
  const unsigned char* key_mask = head.key_mask;
  head.key_mask = nullptr;  // the inner products know it
  const InnerShares shares = inner_shares<P>(queries, keys);
  const auto key_rows = [&](const GeometricRows<const T>& x) {
    return geometric_view(x, b, h, keys, g.width, key_mask);
  };

  inner_products<P>(s, shares, geometric_view(a.q, b, h, queries, g.width, nullptr), key_rows(a.k));
  group_barrier<P>();

  for (int round = 0; round < rounds_of<P>(queries); ++round) {
    const int i = row_of_round<P>(round);
    const bool there = i < queries;
    const WeightsOfRow<P> row(g, head, s, shares, i, there);
    if (!there) continue;
#pragma unroll
    for (int n = 0; n < P::STRIPES; ++n)
      if (in_squares<P>(shares, n)) s[i][row.key[n]] = row.weight[n];
    if (a.rem && lane_id() % P::LANES == 0) a.rem[bh * queries + i] = exp_of(row.log_rest);
  }
  group_barrier<P>();

  const auto out = geometric_view(a.out, b, h, queries, g.width, nullptr);
  const int column_tiles = (out.width + P::COLUMNS - 1) / P::COLUMNS;
  for (int unit = group_warp<P>(); unit < shares.rows * column_tiles; unit += P::WARPS)
    combine<P, false>(s, key_rows(a.v), out, A(1), unit / column_tiles * 16,
                      unit % column_tiles * P::COLUMNS);
}

}  // namespace sysgen
