// The largest numbers of a row, in a defined order.
#pragma once
#include "cvmm/cvmm_cpu_lanes.h"
#include "dnc/dnc_cpu_rows.h"

namespace sysgen::SYSGEN_ISA {
namespace {

template <class A>
using Key = typename IntegerOf<A>::type;
template <class A>
inline constexpr Key<A> kLargestKey = __is_same(A, double) ? static_cast<Key<A>>(INT64_MAX) : INT32_MAX;
template <class A>
inline constexpr Key<A> kAbsent = -kLargestKey<A> - 1;  // below the key of any number

// Integers in the order of the numbers: NaN above all, -0 and 0 the same.
template <class A>
inline Integers<A> keys_of(Vector<A> x) {
  const Integers<A> bits = bits_as<Integers<A>>(x + A(0));
  const Integers<A> ordered = bits ^ ((bits >> (8 * static_cast<int>(sizeof(A)) - 1)) & kLargestKey<A>);
  return x == x ? ordered : Integers<A>{} + kLargestKey<A>;
}

// The k largest keys of each of `rows` rows of n numbers.
//
// Few of few: a lane takes a row, and inserts number after number into a sorted list in registers. Otherwise
// one row at a time: each chunk of it knows its largest key, so that behind a taken one only its chunk is
// searched again.
template <class A>
class Ranking {
 public:
  static constexpr int64_t L = kLanes<A>, kChunk = 4 * L > 32 ? 4 * L : 32;
  const int64_t rows;  // L or 1

  Ranking(int64_t n, int64_t k_, int slot)
      : rows(k_ <= 8 && n <= 1024 ? L : 1),
        k(k_),
        chunks((n + kChunk - 1) / kChunk),
        width(chunks * kChunk),
        used(padded<A>(n)) {
    const int64_t bytes = rows * width * static_cast<int64_t>(sizeof(Key<A>));
    keys = static_cast<Key<A>*>(
        thread_scratch(slot, static_cast<size_t>(bytes + chunks * static_cast<int64_t>(sizeof(Best)))));
    best = reinterpret_cast<Best*>(keys + rows * width);
    for (int64_t i = 0; i < rows * width; ++i) keys[i] = kAbsent<A>;
  }

  // The keys of numbers [i, i + L) of a row.
  void set(int64_t row, int64_t i, Integers<A> v) const {
    __builtin_memcpy(keys + row * width + i, &v, sizeof v);
  }

  // chosen [count, k]: indices of the largest keys of the first rows, equal ones by index; -1 where only
  // absent ones are left. The keys are then used up.
  void take(int64_t count, int64_t* chosen) const {
    if (rows == 1) return by_chunk(chosen);
    if (k == 1) return by_lane<1>(count, chosen);
    if (k == 2) return by_lane<2>(count, chosen);
    k <= 4 ? by_lane<4>(count, chosen) : by_lane<8>(count, chosen);
  }

 private:
  struct Best {
    int64_t index;
    Key<A> key;
  };

  template <int K>
  void by_lane(int64_t count, int64_t* chosen) const {
    Integers<A> key[K], index[K];
    for (int j = 0; j < K; ++j) key[j] = Integers<A>{} + kAbsent<A>, index[j] = Integers<A>{} - 1;
    for (int64_t i = 0; i < used; i += L) {
      Vector<A> tile[L];  // their bits are keys
      for (int r = 0; r < L; ++r) tile[r] = load_as<Vector<A>>(keys + r * width + i);
      transpose<A>(tile);
      for (int e = 0; e < L; ++e) {
        const Integers<A> number = bits_as<Integers<A>>(tile[e]);
        Integers<A> moved = number, moved_at = Integers<A>{} + static_cast<Key<A>>(i + e);
#pragma GCC unroll 8
        for (int j = 0; j < K; ++j) {  // from the first smaller one on, all move by one place
          const Integers<A> larger = number > key[j], old = key[j], old_at = index[j];
          key[j] = larger ? moved : old;
          index[j] = larger ? moved_at : old_at;
          moved = larger ? old : moved;
          moved_at = larger ? old_at : moved_at;
        }
      }
    }
    for (int64_t s = 0; s < k; ++s)
      for (int64_t r = 0; r < count; ++r) chosen[r * k + s] = index[s][r];
  }

  void by_chunk(int64_t* chosen) const {
    for (int64_t c = 0; c < chunks; ++c) best[c] = search(c);
    int64_t s = 0;
    for (; s < k; ++s) {
      int64_t top = 0;
      for (int64_t c = 1; c < chunks; ++c) top = best[c].key > best[top].key ? c : top;
      if (best[top].key == kAbsent<A>) break;
      chosen[s] = best[top].index;
      keys[best[top].index] = kAbsent<A>;
      if (s + 1 < k) best[top] = search(top);
    }
    for (; s < k; ++s) chosen[s] = -1;
  }

  // Each lane gets the better one of itself and the lane H away, then of those H / 2 away ...
  template <int H>
  static void join_lanes(Integers<A>& key, Integers<A>& at) {
    Integers<A> away = lane_numbers<A>() ^ static_cast<Key<A>>(H);
    const Integers<A> other = __builtin_shuffle(key, away), other_at = __builtin_shuffle(at, away);
    const Integers<A> better = (other > key) | ((other == key) & (other_at < at));
    key = better ? other : key;
    at = better ? other_at : at;
    if constexpr (H > 1) join_lanes<H / 2>(key, at);
  }

  Best search(int64_t chunk) const {
    const int64_t first = chunk * kChunk;
    Integers<A> key = load_as<Integers<A>>(keys + first), at = {};
    for (int i = 1; i < kChunk / L; ++i) {
      const Integers<A> next = load_as<Integers<A>>(keys + first + i * L), larger = next > key;
      key = larger ? next : key;
      at = larger ? Integers<A>{} + static_cast<Key<A>>(i * L) : at;
    }
    at += lane_numbers<A>();
    join_lanes<static_cast<int>(L) / 2>(key, at);
    return {first + at[0], key[0]};
  }

  const int64_t k, chunks, width, used;
  Key<A>* keys;  // [rows, width]
  Best* best;    // [chunks]
};

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
