// The DNC's recurrence as plain loops over numbers that carry a derivative along (forward mode): what the
// kernels are compared with. The equations are those of sysgen/reference/dnc.py.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "dnc/dnc.h"

namespace sysgen::test {

struct Dual {
  double v = 0, d = 0;
  Dual(double value = 0, double derivative = 0) : v(value), d(derivative) {}
};
inline Dual operator+(Dual a, Dual b) { return {a.v + b.v, a.d + b.d}; }
inline Dual operator-(Dual a, Dual b) { return {a.v - b.v, a.d - b.d}; }
inline Dual operator*(Dual a, Dual b) { return {a.v * b.v, a.d * b.v + a.v * b.d}; }
inline Dual operator/(Dual a, Dual b) { return {a.v / b.v, (a.d - a.v / b.v * b.d) / b.v}; }
inline Dual exp(Dual a) { return {std::exp(a.v), std::exp(a.v) * a.d}; }
inline Dual log(Dual a) { return {std::log(a.v), a.d / a.v}; }
inline Dual tanh(Dual a) { return {std::tanh(a.v), (1 - std::tanh(a.v) * std::tanh(a.v)) * a.d}; }
inline Dual sqrt(Dual a) { return {std::sqrt(a.v), a.v > 0 ? a.d / (2 * std::sqrt(a.v)) : 0}; }
inline Dual sigmoid(Dual a) { return Dual(1) / (Dual(1) + exp(Dual(0) - a)); }
inline Dual oneplus(Dual a) { return a.v > 20 ? Dual(1) + a : Dual(1) + log(Dual(1) + exp(a)); }
inline Dual positive(Dual a) { return a.v < 0 ? Dual(0) : a; }

using Duals = std::vector<Dual>;

struct OracleState {  // of one sample
  Duals h, c, memory, usage, link, precedence, write_w, read_w, reads;
};

struct Oracle {
  DncSizes s;
  std::vector<double> w_hidden, w_reads, w_interface;
  Duals b_interface;

  static Duals softmax(const Duals& z) {
    const double largest = std::max_element(z.begin(), z.end(), [](Dual a, Dual b) { return a.v < b.v; })->v;
    Duals y;
    Dual sum = 0;
    for (const Dual a : z) y.push_back(exp(a - largest)), sum = sum + y.back();
    for (Dual& a : y) a = a / sum;
    return y;
  }
  static Dual product(const std::vector<double>& w, int64_t row, const Duals& x) {
    Dual sum = 0;
    for (size_t k = 0; k < x.size(); ++k) sum = sum + Dual(w[row * x.size() + k]) * x[k];
    return sum;
  }
  Duals content(const Duals& memory, const Dual* key, const Dual* mask, Dual strength) const {
    Duals z;
    for (int64_t i = 0; i < s.cells; ++i) {
      Dual dot = 0, norm = 0, key_norm = 0;
      for (int64_t w = 0; w < s.width; ++w) {
        const Dual q = mask ? mask[w] * mask[w] : Dual(1), m = memory[i * s.width + w];
        dot = dot + q * key[w] * m;
        norm = norm + q * m * m;
        key_norm = key_norm + q * key[w] * key[w];
      }
      z.push_back(strength * dot / (sqrt(norm) * sqrt(key_norm) + Dual(s.eps)));
    }
    return softmax(z);
  }
  Duals sharpened(const Duals& d, Dual strength) const {
    Duals z;
    for (const Dual a : d) z.push_back(strength * log(positive(a) + Dual(s.eps)));
    return softmax(z);
  }

  // One step of one sample; gates [4 H]: in the projections of the input, out the activated gates.
  void step(OracleState& a, Dual* gates) const {
    const int64_t H = s.hidden, N = s.cells, W = s.width, R = s.reads;
    Duals before = a.h;
    for (int64_t k = 0; k < 4 * H; ++k) {
      const Dual x = gates[k] + product(w_hidden, k, before) + product(w_reads, k, a.reads);
      gates[k] = k / H == 2 ? tanh(x) : sigmoid(x);
    }
    for (int64_t k = 0; k < H; ++k) {
      a.c[k] = gates[H + k] * a.c[k] + gates[k] * gates[2 * H + k];
      a.h[k] = gates[3 * H + k] * tanh(a.c[k]);
    }
    Duals xi;
    for (int64_t j = 0; j < s.interface(); ++j) {
      const Dual x = b_interface[j] + product(w_interface, j, a.h);
      xi.push_back(x.v > s.clip ? Dual(s.clip) : x.v < -s.clip ? Dual(-s.clip) : x);
    }
    const Dual* at = xi.data();
    const auto take = [&](int64_t count, auto f) {
      Duals part;
      for (int64_t k = 0; k < count; ++k) part.push_back(f(*at++));
      return part;
    };
    const auto same = [](Dual x) { return x; };
    const auto mask = [this](Dual x) { return sigmoid(x) * Dual(1 - s.mask_min) + Dual(s.mask_min); };
    const Duals write_mask = take(s.masked ? W : 0, mask), write_key = take(W, same),
                erase = take(W, sigmoid), value = take(W, same), free = take(R, sigmoid),
                write_strength = take(1, oneplus), gate = take(2, sigmoid),
                read_mask = take(s.masked ? R * W : 0, mask), read_key = take(R * W, same),
                read_strength = take(R, oneplus), mode = take(3 * R, same),
                sharp = take(s.sharpen ? 2 * R : 0, oneplus);

    const Duals content_w =
        content(a.memory, write_key.data(), s.masked ? write_mask.data() : nullptr, write_strength[0]);
    Duals kept(N, Dual(1));
    std::vector<int64_t> order;
    for (int64_t i = 0; i < N; ++i) {
      for (int64_t r = 0; r < R; ++r) kept[i] = kept[i] * (Dual(1) - free[r] * a.read_w[r * N + i]);
      const Dual w = s.detach_write ? Dual(a.write_w[i].v) : a.write_w[i];
      a.usage[i] = (a.usage[i] + w * (Dual(1) - a.usage[i])) * kept[i];
      order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t i, int64_t j) { return a.usage[i].v < a.usage[j].v; });
    Dual used = 1, total = 0;
    for (const int64_t i : order) {
      const Dual u = a.usage[i] * Dual(1 - s.eps) + Dual(s.eps), allocated = (Dual(1) - u) * used;
      used = used * u;
      a.write_w[i] = gate[1] * (gate[0] * allocated + (Dual(1) - gate[0]) * content_w[i]);
    }
    for (int64_t i = 0; i < N; ++i) {
      total = total + a.write_w[i];
      for (int64_t w = 0; w < W; ++w) {
        Dual& m = a.memory[i * W + w];
        m = m * (s.dealloc ? kept[i] : Dual(1)) * (Dual(1) - a.write_w[i] * erase[w]) +
            a.write_w[i] * value[w];
      }
      for (int64_t j = 0; j < N; ++j) {
        Dual& l = a.link[i * N + j];
        l = i == j ? Dual(0) : (Dual(1) - a.write_w[i] - a.write_w[j]) * l + a.write_w[i] * a.precedence[j];
      }
    }
    for (int64_t i = 0; i < N; ++i) a.precedence[i] = (Dual(1) - total) * a.precedence[i] + a.write_w[i];

    a.reads.assign(R * W, Dual(0));
    for (int64_t r = 0; r < R; ++r) {
      Duals forward(N), backward(N);
      for (int64_t i = 0; i < N; ++i)
        for (int64_t j = 0; j < N; ++j) {
          forward[i] = forward[i] + a.link[i * N + j] * a.read_w[r * N + j];
          backward[j] = backward[j] + a.link[i * N + j] * a.read_w[r * N + i];
        }
      if (s.sharpen) {
        forward = sharpened(forward, sharp[r]);
        backward = sharpened(backward, sharp[R + r]);
      }
      const Duals found = content(a.memory, &read_key[r * W], s.masked ? &read_mask[r * W] : nullptr,
                                  read_strength[r]),
                  mix = softmax({mode[3 * r], mode[3 * r + 1], mode[3 * r + 2]});
      for (int64_t i = 0; i < N; ++i) {
        a.read_w[r * N + i] = mix[0] * backward[i] + mix[1] * found[i] + mix[2] * forward[i];
        for (int64_t w = 0; w < W; ++w)
          a.reads[r * W + w] = a.reads[r * W + w] + a.read_w[r * N + i] * a.memory[i * W + w];
      }
    }
  }
};

}  // namespace sysgen::test
