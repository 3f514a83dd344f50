// Content addressing, the Neural Turing Machine's addressing, writing and reading by their definitions, in
// float64.
#pragma once
#include <cmath>
#include <vector>

#include "content/content.h"

namespace sysgen::test {

using Numbers = std::vector<double>;

struct ContentSizes {
  int64_t b = 1, n = 1, w = 1, r = 1, shifts = 1;
};

// Softmax of z, and the gradient of its argument.
inline Numbers softmax(const Numbers& z) {
  double largest = z[0], sum = 0;
  for (double x : z) largest = std::max(largest, x);
  Numbers y;
  for (double x : z) y.push_back(std::exp(x - largest)), sum += y.back();
  for (double& x : y) x /= sum;
  return y;
}
inline Numbers softmax_bwd(const Numbers& y, const Numbers& dy) {
  double mean = 0;
  for (size_t i = 0; i < y.size(); ++i) mean += y[i] * dy[i];
  Numbers dz;
  for (size_t i = 0; i < y.size(); ++i) dz.push_back(y[i] * (dy[i] - mean));
  return dz;
}

// One head: its cosines, from which the weights follow, and what they are made of.
struct ContentHead {
  ContentSizes s;
  const double *memory, *key, *mask;  // of the sample and the head; mask: or null
  double strength, eps, key_norm = 0;
  Numbers cosine, norm, weights;

  ContentHead(const ContentSizes& s_, const double* memory_, const double* key_, const double* mask_,
              double strength_, double eps_)
      : s(s_), memory(memory_), key(key_), mask(mask_), strength(strength_), eps(eps_) {
    for (int64_t w = 0; w < s.w; ++w) key_norm += square(w) * key[w] * key[w];
    key_norm = std::sqrt(key_norm);
    Numbers z;
    for (int64_t i = 0; i < s.n; ++i) {
      double dot = 0, norm2 = 0;
      for (int64_t w = 0; w < s.w; ++w) {
        dot += square(w) * key[w] * memory[i * s.w + w];
        norm2 += square(w) * memory[i * s.w + w] * memory[i * s.w + w];
      }
      norm.push_back(std::sqrt(norm2));
      cosine.push_back(dot / (key_norm * norm[i] + eps));
      z.push_back(strength * cosine[i]);
    }
    weights = softmax(z);
  }
  double square(int64_t w) const { return mask ? mask[w] * mask[w] : 1; }

  // Adds to the gradients; dmask: or null.
  void backward(const Numbers& dweights, double* dmemory, double* dkey, double* dstrength,
                double* dmask) const {
    const Numbers dz = softmax_bwd(weights, dweights);
    double dkey_norm = 0;
    const auto add = [&](int64_t w, double dproduct, double dsquare, double dk) {
      dkey[w] += square(w) * dproduct + dk;
      if (dmask) dmask[w] += 2 * mask[w] * (dsquare + key[w] * dproduct);
    };
    for (int64_t i = 0; i < s.n; ++i) {
      const double denominator = key_norm * norm[i] + eps, ddot = strength * dz[i] / denominator;
      *dstrength += dz[i] * cosine[i];
      const double dlengths = -ddot * cosine[i], slope = norm[i] > 0 ? dlengths * key_norm / norm[i] : 0;
      dkey_norm += dlengths * norm[i];
      for (int64_t w = 0; w < s.w; ++w) {
        const double m = memory[i * s.w + w];
        dmemory[i * s.w + w] += ddot * square(w) * key[w] + slope * square(w) * m;
        add(w, ddot * m, slope * m * m / 2, 0);
      }
    }
    const double slope = key_norm > 0 ? dkey_norm / key_norm : 0;
    for (int64_t w = 0; w < s.w; ++w) add(w, 0, slope * key[w] * key[w] / 2, slope * square(w) * key[w]);
  }
};

// One head behind its content weights.
struct NtmHead {
  ContentSizes s;
  const double *shift, *previous;
  double gate, sharpness;
  Numbers interpolated, shifted, weights;

  NtmHead(const ContentSizes& s_, const Numbers& content, double gate_, const double* shift_,
          double sharpness_, const double* previous_)
      : s(s_), shift(shift_), previous(previous_), gate(gate_), sharpness(sharpness_) {
    for (int64_t i = 0; i < s.n; ++i) interpolated.push_back(gate * content[i] + (1 - gate) * previous[i]);
    double total = 0, largest = 0;
    for (int64_t i = 0; i < s.n; ++i) {
      double x = 0;
      for (int64_t k = 0; k < s.shifts; ++k) x += shift[k] * interpolated[moved(i, k)];
      shifted.push_back(x);
      largest = std::max(largest, x);
    }
    for (double x : shifted)
      weights.push_back(x > 0 ? std::pow(x / largest, sharpness) : 0), total += weights.back();
    for (double& x : weights) x = total > 0 ? x / total : 0;
  }
  int64_t moved(int64_t i, int64_t k) const { return ((i + k - s.shifts / 2) % s.n + s.n) % s.n; }

  // Adds to the gradients.
  void backward(const Numbers& dweights, const Numbers& content, Numbers& dcontent, double* dgate,
                double* dshift, double* dsharpness, double* dprevious) const {
    const Numbers g = softmax_bwd(weights, dweights);
    Numbers d(s.n);
    for (int64_t i = 0; i < s.n; ++i) {
      if (!(shifted[i] > 0)) continue;
      *dsharpness += g[i] * std::log(shifted[i]);
      for (int64_t k = 0; k < s.shifts; ++k) {
        d[moved(i, k)] += shift[k] * sharpness * g[i] / shifted[i];
        dshift[k] += sharpness * g[i] / shifted[i] * interpolated[moved(i, k)];
      }
    }
    for (int64_t i = 0; i < s.n; ++i) {
      *dgate += d[i] * (content[i] - previous[i]);
      dcontent[i] += gate * d[i];
      dprevious[i] += (1 - gate) * d[i];
    }
  }
};

}  // namespace sysgen::test
