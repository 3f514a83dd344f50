// Selection of experts, see select_experts.h: a warp takes a token at a time, and expert e belongs to lane e
// % 32.
//
// The chosen experts are found one after the other, each as the first one behind the one before in the order
// of logits and indices, so that nothing has to remember who was taken. Sums over tokens: a warp walks over a
// segment of them and keeps a running log-sum-exp for each expert; select_experts_sum_kernel joins the
// segments.
#pragma once
#include "common/kernel_math.cuh"

namespace sysgen {

// SLOTS logits of a token and as many sums are in registers of each lane. 0: for any number of experts,
// everything stays in global memory.
template <class A_, int SLOTS_>
struct SelectTile {
  using A = A_;
  static constexpr int WARPS = 4, THREADS = WARPS * 32, SLOTS = SLOTS_;
};

template <class A_>
struct SelectSumTile {
  using A = A_;
  static constexpr int WARPS = 32, THREADS = WARPS * 32;
};

enum SelectGate { kGateSigmoid, kGateSoftmax, kGateSoftmaxAfterTopk };

template <class A>
struct SelectExpertsFwdDevice {
  const A* logits;     // [T, E]
  const i64* seed;     // [1]
  i64* experts;        // [T, k]
  A* gate;             // [T, k]
  A* lse;              // [T] or null
  A *partials, *sums;  // scratch [segments, E]; null without sums over tokens, the second one with SLOTS too
  i64 tokens, num_experts, k, segments, segment_tokens;
  u32 dropped;  // experts whose 16 bits are below it
  int selection;
};

// ---- random bits: those of gated_update_cpu_noise.h

__device__ __forceinline__ u64 select_mix(u64 z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

template <class A>
struct SelectNoise {
  u64 key, words;
  u32 dropped;
  __device__ __forceinline__ explicit SelectNoise(const SelectExpertsFwdDevice<A>& a)
      : key(a.dropped ? select_mix(u64(*a.seed) + 4) : 0),
        words((a.num_experts + 3) / 4),
        dropped(a.dropped) {}
  __device__ __forceinline__ bool drops(i64 token, i64 expert) const {
    if (!dropped) return false;
    const u64 z = select_mix(key + (u64(token) * words + u64(expert) / 4) * 0x9e3779b97f4a7c15ull);
    return u32(z >> 16 * (expert % 4) & 0xffff) < dropped;
  }
};

// ---- order

template <class A>
struct SelectKeyOf {
  using type = u32;
};
template <>
struct SelectKeyOf<double> {
  using type = u64;
};
template <class A>
using SelectKey = typename SelectKeyOf<A>::type;

// Unsigned numbers in the order of the logits: NaN above all, -0 and 0 the same, none of them 0.
__device__ __forceinline__ u32 select_key(float z) {
  const u32 bits = __float_as_uint(z + 0.0f);
  return z != z ? ~0u : bits >> 31 ? ~bits : bits | 1u << 31;
}
__device__ __forceinline__ u64 select_key(double z) {
  const u64 bits = u64(__double_as_longlong(z + 0.0));
  return z != z ? ~0ull : bits >> 63 ? ~bits : bits | 1ull << 63;
}
__device__ __forceinline__ u32 select_largest(u32 key) { return __reduce_max_sync(~0u, key); }
__device__ __forceinline__ u64 select_largest(u64 key) { return over_warp<Largest>(key); }

// ---- log(sum of e^x), x after x

template <class A>
struct LogSum {
  A largest, sum;
  __device__ __forceinline__ void clear() { largest = minus_infinity<A>(), sum = 0; }
  __device__ __forceinline__ void add(A x) {
    if (x == minus_infinity<A>()) return;
    const bool larger = x > largest;
    const A e = exp_of(larger ? largest - x : x - largest);
    sum = larger ? sum * e + 1 : sum + e;
    largest = larger ? x : largest;
  }
  __device__ __forceinline__ A value() const { return largest + log_of(sum); }
};

// ---- what a lane has of a token

template <class P>
struct SelectLane {
  using A = typename P::A;
  A values[P::SLOTS ? P::SLOTS : 1];
  LogSum<A> logs[P::SLOTS ? P::SLOTS : 1];
  u32 dropped_slots;
  const A* row;
  i64 num_experts;

  // f(slot, expert) for the experts of this lane.
  template <class F>
  __device__ __forceinline__ void each(const F& f) const {
    if constexpr (P::SLOTS > 0) {
#pragma unroll
      for (int i = 0; i < P::SLOTS; ++i) {
        const i64 e = lane_id() + 32 * i;
        if (e < num_experts) f(i, e);
      }
    } else {
      for (i64 e = lane_id(); e < num_experts; e += 32) f(0, e);
    }
  }
  __device__ __forceinline__ A value(int slot, i64 e) const {
    if constexpr (P::SLOTS > 0) return values[slot];
    return row[e];
  }
  __device__ __forceinline__ void read(const SelectExpertsFwdDevice<A>& a, i64 token,
                                       const SelectNoise<A>& noise) {
    row = a.logits + token * num_experts;
    dropped_slots = 0;
    if constexpr (P::SLOTS > 0)
      each([&](int i, i64 e) {
        values[i] = row[e];
        if (noise.drops(token, e)) dropped_slots |= 1u << i;
      });
  }
  __device__ __forceinline__ SelectKey<A> key(int slot, i64 token, i64 e, const SelectNoise<A>& noise) const {
    bool dropped;
    if constexpr (P::SLOTS > 0)
      dropped = dropped_slots >> slot & 1u;
    else
      dropped = noise.drops(token, e);
    return dropped ? SelectKey<A>(0) : select_key(value(slot, e));
  }
  __device__ __forceinline__ A log_sum_exp() const {
    A top = minus_infinity<A>(), sum = 0;
    each([&](int i, i64 e) { top = Largest()(top, value(i, e)); });
    top = over_warp<Largest>(top);
    each([&](int i, i64 e) { sum += exp_of(value(i, e) - top); });
    return top + log_of(over_warp<Sum>(sum));
  }
};

// Experts and gates of one token. What slot s of it needs is done by lane s % 32.
template <class P>
__device__ __forceinline__ void select_for_token(const SelectExpertsFwdDevice<typename P::A>& a,
                                                 const SelectLane<P>& lane, i64 token,
                                                 const SelectNoise<typename P::A>& noise, typename P::A lse) {
  using A = typename P::A;
  using Key = SelectKey<A>;
  i64* const experts = a.experts + token * a.k;
  A* const gate = a.gate + token * a.k;
  Key before = ~Key(0);
  i64 last = -1;
  A base = lse, total = 0;
  i64 count = 0;
  for (; count < a.k; ++count) {
    Key best = 0;
    i64 at = 0;
    lane.each([&](int i, i64 e) {
      const Key key = lane.key(i, token, e, noise);
      const bool behind = key < before || (key == before && e > last);
      if (behind && key > best) best = key, at = e;
    });
    before = select_largest(best);
    if (before == 0) break;
    last = __reduce_min_sync(~0u, best == before ? u32(at) : ~0u);
    const A z = lane.row[last];
    A g;
    if (a.selection == kGateSigmoid) {
      g = 1 / (1 + exp_of(-z));
    } else {
      if (a.selection == kGateSoftmaxAfterTopk && count == 0) base = z;
      g = exp_of(z - base);
      total += g;
    }
    if (lane_id() == u32(count % 32)) {
      experts[count] = last;
      gate[count] = g;
    }
  }
  for (i64 s = lane_id(); s < a.k; s += 32) {
    if (s >= count) {
      experts[s] = -1;
      gate[s] = 0;
    } else if (a.selection == kGateSoftmaxAfterTopk) {
      gate[s] /= total;
    }
  }
}

template <class P>
__global__ void __launch_bounds__(P::THREADS)
    select_experts_fwd_kernel(const SelectExpertsFwdDevice<typename P::A> a) {
  using A = typename P::A;
  const SelectNoise<A> noise(a);
  SelectLane<P> lane;
  lane.num_experts = a.num_experts;
  const i64 warps = i64(gridDim.x) * P::WARPS;
  for (i64 segment = i64(blockIdx.x) * P::WARPS + warp_id(); segment < a.segments; segment += warps) {
    A* const partials = a.partials + segment * a.num_experts;
    A* const sums = a.sums + segment * a.num_experts;
    if (a.partials)
      lane.each([&](int i, i64 e) {
        lane.logs[i].clear();
        if constexpr (P::SLOTS == 0) partials[e] = lane.logs[0].largest, sums[e] = 0;
      });
    const i64 begin = segment * a.segment_tokens, end = min(begin + a.segment_tokens, a.tokens);
    for (i64 token = begin; token < end; ++token) {
      lane.read(a, token, noise);
      A lse = 0;
      if (a.lse) {
        lse = lane.log_sum_exp();
        if (lane_id() == 0) a.lse[token] = lse;
      }
      if (a.partials)
        lane.each([&](int i, i64 e) {
          if constexpr (P::SLOTS == 0) lane.logs[0] = {partials[e], sums[e]};
          lane.logs[i].add(lane.value(i, e) - lse);
          if constexpr (P::SLOTS == 0) partials[e] = lane.logs[0].largest, sums[e] = lane.logs[0].sum;
        });
      select_for_token<P>(a, lane, token, noise, lse);
    }
    if (a.partials)
      lane.each([&](int i, i64 e) {
        if constexpr (P::SLOTS == 0) lane.logs[0] = {partials[e], sums[e]};
        partials[e] = lane.logs[i].value();
      });
  }
}

template <class A>
struct SelectExpertsSumDevice {
  const A* partials;  // [segments, E]
  A* log_sum;         // [E]
  i64 num_experts, segments;
};

// A block takes 32 experts; its warps share the segments.
template <class P>
__global__ void __launch_bounds__(P::THREADS)
    select_experts_sum_kernel(const SelectExpertsSumDevice<typename P::A> a) {
  using A = typename P::A;
  SYSGEN_SHARED(A, parts, [P::WARPS][32]);
  const i64 e = i64(blockIdx.x) * 32 + lane_id();
  LogSum<A> log;
  log.clear();
  if (e < a.num_experts)
    for (i64 segment = warp_id(); segment < a.segments; segment += P::WARPS)
      log.add(a.partials[segment * a.num_experts + e]);
  parts[warp_id()][lane_id()] = log.value();
  __syncthreads();
  if (warp_id() > 0 || e >= a.num_experts) return;
  log.clear();
  for (int w = 0; w < P::WARPS; ++w) log.add(parts[w][lane_id()]);
  a.log_sum[e] = log.value();
}

template <class A>
struct SelectExpertsBwdDevice {
  const A* logits;      // [T, E]
  const i64* experts;   // [T, k]
  const A *gate, *lse;  // [T, k], [T]
  const A* log_sum;     // [E]
  const A* dgate;       // [T, k] or null
  const A* dlog_sum;    // [E] or null
  A* dlogits;           // [T, E]
  i64 tokens, num_experts, k;
  int selection;
  bool dense;

  // Of the expert's log-sum, by this token's logit.
  __device__ __forceinline__ A of_sum(i64 e, A log_p) const {
    if (!dlog_sum || log_sum[e] == minus_infinity<A>()) return 0;
    return dlog_sum[e] * exp_of(log_p - log_sum[e]);
  }
};

template <class P>
__global__ void __launch_bounds__(P::THREADS)
    select_experts_bwd_kernel(const SelectExpertsBwdDevice<typename P::A> a) {
  using A = typename P::A;
  const i64 warps = i64(gridDim.x) * P::WARPS;
  for (i64 token = i64(blockIdx.x) * P::WARPS + warp_id(); token < a.tokens; token += warps) {
    const A* const z = a.logits + token * a.num_experts;
    A* const dz = a.dlogits + token * a.num_experts;
    const i64* const experts = a.experts + token * a.k;
    const A *const gate = a.gate + token * a.k, *const dgate = a.dgate ? a.dgate + token * a.k : nullptr;
    A inner = 0;  // <dgate, gate>
    if (dgate && a.selection != kGateSigmoid) {
      for (i64 s = lane_id(); s < a.k; s += 32)
        if (experts[s] >= 0) inner += dgate[s] * gate[s];
      inner = over_warp<Sum>(inner);
    }
    const A lse = a.dense ? a.lse[token] : A(0);
    A total = 0;
    if (a.dlog_sum) {
      for (i64 e = lane_id(); e < a.num_experts; e += 32) total += a.of_sum(e, z[e] - lse);
      total = over_warp<Sum>(total);
    }
    if (a.selection == kGateSoftmax) total += inner;
    for (i64 e = lane_id(); e < a.num_experts; e += 32)
      dz[e] = a.dense ? a.of_sum(e, z[e] - lse) - exp_of(z[e] - lse) * total : A(0);
    __syncwarp();
    if (!dgate) continue;
    for (i64 s = lane_id(); s < a.k; s += 32) {
      if (experts[s] < 0) continue;
      A d = dgate[s] * gate[s];  // softmax: `inner` is subtracted from all experts
      if (a.selection == kGateSigmoid) d *= 1 - gate[s];
      if (a.selection == kGateSoftmaxAfterTopk) d = gate[s] * (dgate[s] - inner);
      dz[experts[s]] += d;
    }
  }
}

}  // namespace sysgen
