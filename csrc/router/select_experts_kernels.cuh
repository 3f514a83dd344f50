// Selection of experts, see select_experts.h: a warp takes a token at a time, and expert e belongs to lane
// e % 32.
//
// The chosen experts are found one after the other, each as the first one behind the one before in the order
// of logits and indices, so that nothing has to remember who was taken. Sums over tokens: a warp walks over a
// segment of them and adds up the probabilities of each expert; select_experts_sum_kernel joins the segments.
#pragma once
#include "common/kernel_math.cuh"

namespace sysgen {

// A lane has SLOTS logits of a token, and as many sums, in registers. 0: for any number of experts, all stay
// in global memory.
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
  const A* logits;  // [T, E]
  const i64* seed;  // [1]
  i64* experts;     // [T, k]
  A* gate;          // [T, k]
  A* lse;           // [T, 2] or null
  A* partials;      // scratch [segments, E], or null: logarithms of the sums over tokens
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
  static constexpr u64 STREAM = 4;  // NoiseStream::experts
  u64 key, words;
  u32 dropped;
  __device__ __forceinline__ explicit SelectNoise(const SelectExpertsFwdDevice<A>& a)
      : key(a.dropped ? select_mix(u64(*a.seed) + STREAM) : 0),
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
  static constexpr bool WIDE = P::SLOTS == 0;
  static constexpr int SLOTS = WIDE ? 1 : P::SLOTS;
  // What underflows in a sum of probabilities as large as this does not show.
  static constexpr A SAFE_SUM = A(0x1p-60);
  A values[SLOTS], sums[SLOTS];
  SelectKey<A> keys[SLOTS];
  const A* row;
  i64 token;
  A top, rest;  // the log-sum-exp
  const SelectExpertsFwdDevice<A>& a;
  const SelectNoise<A> noise;

  __device__ __forceinline__ explicit SelectLane(const SelectExpertsFwdDevice<A>& a_) : a(a_), noise(a_) {}

  // f(slot, expert) for the experts of this lane.
  template <class F>
  __device__ __forceinline__ void each(const F& f) const {
    if constexpr (WIDE) {
#pragma unroll 1  // several at once need more registers than there are around a division
      for (i64 e = lane_id(); e < a.num_experts; e += 32) f(0, e);
    } else {
#pragma unroll
      for (int i = 0; i < SLOTS; ++i) {
        const i64 e = lane_id() + 32 * i;
        if (e < a.num_experts) f(i, e);
      }
    }
  }
  __device__ __forceinline__ SelectKey<A> make_key(i64 e, A z) const {
    return noise.drops(token, e) ? SelectKey<A>(0) : select_key(z);
  }
  __device__ __forceinline__ SelectKey<A> key(int slot, i64 e) const {
    if constexpr (WIDE)
      return make_key(e, row[e]);
    else
      return keys[slot];
  }
  __device__ __forceinline__ void read(i64 token_) {
    token = token_;
    row = a.logits + token * a.num_experts;
    if constexpr (!WIDE)
      each([&](int i, i64 e) {
        values[i] = row[e];
        keys[i] = make_key(e, values[i]);
      });
  }

  // The token's log-sum-exp; adds its probabilities to the sums. The values are then used up.
  __device__ __forceinline__ void normalise(A* segment_sums) {
    A total = 0;
    top = minus_infinity<A>();
    each([&](int i, i64 e) { top = Largest()(top, WIDE ? row[e] : values[i]); });
    top = over_warp<Largest>(top);
    each([&](int i, i64 e) {
      const A x = exp_of((WIDE ? row[e] : values[i]) - top);
      if constexpr (!WIDE) values[i] = x;
      total += x;
    });
    total = over_warp<Sum>(total);
    rest = log_of(total);
    if (lane_id() == 0) a.lse[2 * token] = top, a.lse[2 * token + 1] = rest;
    if (!segment_sums) return;
    const A scale = 1 / total;
    each([&](int i, i64 e) {
      if constexpr (WIDE)
        segment_sums[e] += exp_of(row[e] - top) * scale;
      else
        sums[i] += values[i] * scale;
    });
  }

  __device__ __forceinline__ void clear_sums(A* segment_sums) {
    each([&](int i, i64 e) {
      if constexpr (WIDE)
        segment_sums[e] = 0;
      else
        sums[i] = 0;
    });
  }
  // Logarithms of the sums; those that may have underflowed are taken again, from logarithms.
  __device__ __forceinline__ void finish_sums(i64 begin, i64 end, A* segment_sums) const {
    __syncwarp();  // lse is read by other lanes than the one that wrote it
    each([&](int i, i64 e) {
      const A sum = WIDE ? segment_sums[e] : sums[i];
      A y = log_of(sum);
      if (sum < SAFE_SUM) {
        LogSum<A> log;
        log.clear();
        for (i64 t = begin; t < end; ++t)
          log.add(a.logits[t * a.num_experts + e] - a.lse[2 * t] - a.lse[2 * t + 1]);
        y = log.value();
      }
      segment_sums[e] = y;
    });
  }
};

// Experts and gates of one token. What slot s of it needs is done by lane s % 32.
template <class P>
__device__ __forceinline__ void select_for_token(const SelectExpertsFwdDevice<typename P::A>& a,
                                                 const SelectLane<P>& lane) {
  using A = typename P::A;
  using Key = SelectKey<A>;
  i64* const experts = a.experts + lane.token * a.k;
  A* const gate = a.gate + lane.token * a.k;
  Key before = ~Key(0);
  i64 last = -1;
  A base = lane.top, rest = a.selection == kGateSoftmax ? lane.rest : A(0), total = 0;
  i64 count = 0;
  for (; count < a.k; ++count) {
    Key best = 0;
    i64 at = 0;
    lane.each([&](int i, i64 e) {
      const Key key = lane.key(i, e);
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
      g = exp_of(z - base - rest);
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
  SelectLane<P> lane(a);
  lane.top = lane.rest = 0;
  const i64 warps = i64(gridDim.x) * P::WARPS;
  for (i64 segment = i64(blockIdx.x) * P::WARPS + warp_id(); segment < a.segments; segment += warps) {
    auto* const sums = a.partials ? a.partials + segment * a.num_experts : nullptr;
    if (sums) lane.clear_sums(sums);
    const i64 begin = segment * a.segment_tokens, end = min(begin + a.segment_tokens, a.tokens);
    for (i64 token = begin; token < end; ++token) {
      lane.read(token);
      if (a.lse) lane.normalise(sums);
      select_for_token<P>(a, lane);
    }
    if (sums) lane.finish_sums(begin, end, sums);
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
  const A *gate, *lse;  // [T, k], [T, 2]
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
    const A top = a.dense ? a.lse[2 * token] : A(0), rest = a.dense ? a.lse[2 * token + 1] : A(0);
    const auto log_p = [&](i64 e) { return z[e] - top - rest; };
    A total = 0;
    if (a.dlog_sum) {
      for (i64 e = lane_id(); e < a.num_experts; e += 32) total += a.of_sum(e, log_p(e));
      total = over_warp<Sum>(total);
    }
    if (a.selection == kGateSoftmax) total += inner;
    for (i64 e = lane_id(); e < a.num_experts; e += 32)
      dz[e] = a.dense ? a.of_sum(e, log_p(e)) - exp_of(log_p(e)) * total : A(0);
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
