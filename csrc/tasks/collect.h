// Rejection sampling of expressions: different ones, as many of each depth as are wanted.
//
// Trial t draws from the stream whose key is number t of the data set's stream, and trials are accepted in
// their order, so that the result does not depend on the number of threads.
#pragma once
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "common/check.h"

namespace sysgen::tasks {

// SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), as in sysgen/tasks/_random.py.
inline constexpr uint64_t kGamma = 0x9E3779B97F4A7C15;

inline uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

class Stream {
 public:
  explicit Stream(uint64_t key) : state_(key) {}
  uint64_t next() { return mix(state_ += kGamma); }
  int below(uint32_t n) { return static_cast<int>(((next() >> 32) * n) >> 32); }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

 private:
  uint64_t state_;
};

inline constexpr int kMaxTokens = 255;

struct Expression {
  uint8_t tokens[kMaxTokens];
  int num_tokens;
  uint8_t target, depth, tree_depth;  // depth decides on the bin
};

enum class Side { train, held_out };  // two parts without a common expression, by its hash

struct CollectArgs {
  uint64_t key;
  int min_depth;
  std::vector<int64_t> quota;  // wanted number of expressions of depth min_depth, min_depth + 1, ...
  int64_t num_samples;         // M, at most the sum of quota
  Side side;
  uint8_t* tokens;       // [capacity] out: the expressions one after the other
  int64_t* offsets;      // [M + 1] out: expression i is tokens[offsets[i] : offsets[i + 1]]
  uint8_t* targets;      // [M] out
  uint8_t* depths;       // [M] out
  uint8_t* tree_depths;  // [M] out
  int num_threads;
  int64_t patience;                       // gives up after so many trials without a new sample
  std::function<void(int64_t)> progress;  // number of samples so far; may throw to stop
};

inline uint64_t hash_of(const uint8_t* tokens, int n) {
  uint64_t h = 0xCBF29CE484222325;  // FNV-1a
  for (int i = 0; i < n; ++i) h = (h ^ tokens[i]) * 0x100000001B3;
  return mix(h);
}

inline Side side_of(uint64_t hash) { return (hash >> 60) == 0 ? Side::held_out : Side::train; }

// Set of the expressions that were accepted, with open addressing.
class Known {
 public:
  Known(const CollectArgs& a) : args_(a) {
    size_t size = 16;
    while (size < 2 * static_cast<size_t>(a.num_samples)) size *= 2;
    hashes_.assign(size, 0);
    samples_.assign(size, -1);
  }

  // Whether it is new; then it is remembered as number `sample`, to be written to args.tokens by the caller.
  bool insert(uint64_t hash, const uint8_t* tokens, int n, int64_t sample) {
    const size_t last = samples_.size() - 1;
    size_t at = hash & last;
    for (; samples_[at] >= 0; at = (at + 1) & last) {
      if (hashes_[at] != hash) continue;
      const int64_t begin = args_.offsets[samples_[at]];
      if (args_.offsets[samples_[at] + 1] - begin == n && !std::memcmp(args_.tokens + begin, tokens, n))
        return false;
    }
    hashes_[at] = hash;
    samples_[at] = sample;
    return true;
  }

 private:
  const CollectArgs& args_;
  std::vector<uint64_t> hashes_;
  std::vector<int64_t> samples_;
};

// `make(stream, expression)` draws one expression; false if it is of no use. Returns the number of trials.
template <class Make>
int64_t collect(const CollectArgs& args, const char* op, Make make) {
  constexpr int64_t kChunk = 4096, kChunks = 32;
  struct Found {
    uint64_t hash;
    int64_t begin;
    int num_tokens;
    uint8_t target, depth, tree_depth;
  };
  struct Chunk {
    std::vector<uint8_t> tokens;
    std::vector<Found> found;
  };
  std::vector<Chunk> chunks(kChunks);
  std::vector<int64_t> left = args.quota;
  const auto bin_of = [&](uint8_t depth) { return static_cast<size_t>(depth - args.min_depth); };
  const auto wanted = [&](uint8_t depth) {
    return depth >= args.min_depth && bin_of(depth) < left.size() && left[bin_of(depth)] > 0;
  };
  Known known(args);
  args.offsets[0] = 0;
  int64_t done = 0, trials = 0, last_success = 0;
  while (done < args.num_samples) {
#pragma omp parallel for num_threads(args.num_threads) schedule(dynamic)
    for (int64_t c = 0; c < kChunks; ++c) {
      Chunk& chunk = chunks[c];
      chunk.tokens.clear();
      chunk.found.clear();
      Expression e;
      for (int64_t t = trials + c * kChunk; t < trials + (c + 1) * kChunk; ++t) {
        Stream stream(mix(args.key + (static_cast<uint64_t>(t) + 1) * kGamma));
        if (!make(stream, e) || !wanted(e.depth)) continue;
        const uint64_t hash = hash_of(e.tokens, e.num_tokens);
        if (side_of(hash) != args.side) continue;
        chunk.found.push_back(
            {hash, static_cast<int64_t>(chunk.tokens.size()), e.num_tokens, e.target, e.depth, e.tree_depth});
        chunk.tokens.insert(chunk.tokens.end(), e.tokens, e.tokens + e.num_tokens);
      }
    }
    for (const Chunk& chunk : chunks) {
      for (const Found& f : chunk.found) {
        if (done == args.num_samples) break;
        const uint8_t* tokens = chunk.tokens.data() + f.begin;
        if (!wanted(f.depth) || !known.insert(f.hash, tokens, f.num_tokens, done)) continue;
        --left[bin_of(f.depth)];
        std::memcpy(args.tokens + args.offsets[done], tokens, f.num_tokens);
        args.offsets[done + 1] = args.offsets[done] + f.num_tokens;
        args.targets[done] = f.target;
        args.depths[done] = f.depth;
        args.tree_depths[done] = f.tree_depth;
        ++done;
        last_success = trials + kChunk * kChunks;
      }
    }
    trials += kChunk * kChunks;
    if (args.progress) args.progress(done);
    check(trials - last_success < args.patience, op, ": none of the last ", args.patience,
          " expressions was new and of a wanted depth, after ", done, " of ", args.num_samples,
          " samples; allow a larger max_length or fewer samples");
  }
  return trials;
}

}  // namespace sysgen::tasks
