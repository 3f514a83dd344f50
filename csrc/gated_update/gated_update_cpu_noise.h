// Random factors as a function of (seed, stream, position): splitmix64 (Steele et al. 2014) of a counter, 16
// bits for each element. The same on every instruction set and for any number of threads.
#pragma once
#include "common/cpu.h"
#include "dnc/dnc_cpu_math.h"
#include "gated_update/gated_update.h"

namespace sysgen::SYSGEN_ISA {
namespace {

inline uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

template <int L>
struct BitsOf {
  typedef uint16_t type __attribute__((vector_size(2 * L)));
};

// Factors of rows of a matrix, drawn row by row.
template <class A>
class RowNoise {
 public:
  static constexpr int L = kLanes<A>;
  using Integer = decltype(Vector<A>{} < Vector<A>{});

  const bool on;  // is the rate above 0?

  RowNoise(const Noise& noise, NoiseStream stream, int64_t width, uint16_t* scratch)
      : on(noise.rate > 0),
        key(mix(noise.seed + static_cast<uint64_t>(stream))),
        dropped(static_cast<uint32_t>(noise.rate * 65536 + 0.5)),
        factor(dropped < 65536 ? A(65536) / A(65536 - dropped) : A(0)),
        words((width + 3) / 4),
        bits(scratch) {}

  // Room for the bits of a row, read in whole vectors.
  static int64_t scratch_bytes(int64_t width) { return 2 * (width + 4 + L); }

  void draw(int64_t row) const {
    if (!on) return;
    const uint64_t first = static_cast<uint64_t>(row * words);
    for (int64_t i = 0; i < words; ++i) {
      const uint64_t z = mix(key + (first + i) * 0x9e3779b97f4a7c15ull);
      __builtin_memcpy(bits + 4 * i, &z, sizeof z);
    }
  }

  // Lanes that are set: elements of [d, d + L) that are dropped, where the rate is not 0.
  Integer drops(int64_t d) const {
    const auto drawn = __builtin_convertvector(load_as<typename BitsOf<L>::type>(bits + d), Integer);
    return drawn < static_cast<int>(dropped);
  }

  // v times the factors of elements [d, d + L) of the row; what is dropped becomes 0 whatever it was.
  Vector<A> operator()(Vector<A> v, int64_t d) const {
    if (!on) return v;
    return drops(d) ? Vector<A>{} : v * factor;
  }

  // Is the row kept, if the matrix has one column?
  bool keeps(int64_t row) const {
    return !on || (mix(key + static_cast<uint64_t>(row) * 0x9e3779b97f4a7c15ull) & 0xffff) >= dropped;
  }

 private:
  const uint64_t key;
  const uint32_t dropped;

 public:
  const A factor;  // of what is kept

 private:
  const int64_t words;
  uint16_t* const bits;
};

}  // namespace
}  // namespace sysgen::SYSGEN_ISA
