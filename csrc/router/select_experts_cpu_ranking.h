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

template <class A>
inline Integers<A> lane_indices() {
  Integers<A> n = {};
  for (int i = 0; i < kLanes<A>; ++i) n[i] = i;
  return n;
}

// Integers in the order of the numbers: NaN above all, -0 and 0 the same.
template <class A>
inline Integers<A> keys_of(Vector<A> x) {
  const Integers<A> bits = bits_as<Integers<A>>(x + A(0));
  const Integers<A> ordered = bits ^ ((bits >> (8 * static_cast<int>(sizeof(A)) - 1)) & kLargestKey<A>);
  return x == x ? ordered : Integers<A>{} + kLargestKey<A>;
}

// The largest keys of up to L rows of n numbers.
//
// Few of few: a lane takes a row, and inserts number after number into a sorted list in registers. Otherwise
// row after row: each chunk of it knows its largest key, so that behind a taken one only its chunk is
// searched again.
template <class A>
class Ranking {
 public:
  static constexpr int64_t L = kLanes<A>, kChunk = 4 * L;

  static int64_t scratch_bytes(int64_t n) {
    return chunks_of(n) *
           (L * kChunk * static_cast<int64_t>(sizeof(Key<A>)) + static_cast<int64_t>(sizeof(Best)));
  }
  Ranking(int64_t n, void* scratch)
      : chunks(chunks_of(n)),
        width(chunks * kChunk),
        used((n + L - 1) / L * L),
        keys(static_cast<Key<A>*>(scratch)),
        best(reinterpret_cast<Best*>(keys + L * width)) {
    for (int64_t i = 0; i < L * width; ++i) keys[i] = kAbsent<A>;
  }

  // The keys of numbers [i, i + L) of a row.
  void set(int64_t row, int64_t i, Integers<A> v) const {
    __builtin_memcpy(keys + row * width + i, &v, sizeof v);
  }

  // chosen [rows, k]: indices of the k largest keys of each row, equal ones by index; -1 where they are
  // absent.
  void take(int64_t rows, int64_t k, int64_t* chosen) const {
    if (k <= 8 && used <= 1024) {
      if (k == 1) return by_lane<1>(rows, k, chosen);
      if (k == 2) return by_lane<2>(rows, k, chosen);
      if (k <= 4) return by_lane<4>(rows, k, chosen);
      return by_lane<8>(rows, k, chosen);
    }
    for (int64_t r = 0; r < rows; ++r) by_chunk(keys + r * width, k, chosen + r * k);
  }

 private:
  struct Best {
    int64_t index;
    Key<A> key;
  };
  static int64_t chunks_of(int64_t n) { return (n + kChunk - 1) / kChunk; }

  template <int K>
  void by_lane(int64_t rows, int64_t k, int64_t* chosen) const {
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
      for (int64_t r = 0; r < rows; ++r) chosen[r * k + s] = index[s][r];
  }

  void by_chunk(Key<A>* row, int64_t k, int64_t* chosen) const {
    for (int64_t c = 0; c < chunks; ++c) best[c] = search(row, c);
    int64_t s = 0;
    for (; s < k; ++s) {
      int64_t top = 0;
      for (int64_t c = 1; c < chunks; ++c) top = best[c].key > best[top].key ? c : top;
      if (best[top].key == kAbsent<A>) break;
      chosen[s] = best[top].index;
      row[best[top].index] = kAbsent<A>;
      if (s + 1 < k) best[top] = search(row, top);
    }
    for (; s < k; ++s) chosen[s] = -1;
  }

  Best search(const Key<A>* row, int64_t chunk) const {
    const int64_t first = chunk * kChunk;
    Integers<A> key = load_as<Integers<A>>(row + first), at = {};
    for (int i = 1; i < kChunk / L; ++i) {
      const Integers<A> next = load_as<Integers<A>>(row + first + i * L), larger = next > key;
      key = larger ? next : key;
      at = larger ? Integers<A>{} + static_cast<Key<A>>(i * L) : at;
    }
    at += lane_indices<A>();
    Key<A> most = key[0], where = at[0];
    for (int i = 1; i < L; ++i) {
      const bool before = key[i] > most || (key[i] == most && at[i] < where);
      most = before ? key[i] : most;
      where = before ? at[i] : where;
    }
    return {first + where, most};
  }

  const int64_t chunks, width, used;
  Key<A>* const keys;  // [L, width]
  Best* const best;    // [chunks]
};

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
