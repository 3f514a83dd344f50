// The kernels of dynamic allocation and of the temporal links against their definitions in float64.
//
// u is the unit roundoff. A sum of n terms or a product of n factors is off by at most about n u of the sum
// of the absolute values of its terms, however it is taken; a bound below is a multiple of u times such a
// sum.
#include "kernel_test.h"
#include "links/links_cuda.cu"

namespace sysgen {
namespace {

using namespace test;

double worst = 0;

struct Case {
  DType dtype = DType::f32;
  int64_t batch = 2, cells = 5, reads = 2;
  bool sharp[2] = {true, true}, given[2] = {true, true};  // given: a gradient arrives
  bool aligned = true, ties = false;
  LinksSizes sizes() const { return {dtype, batch, cells, reads}; }
  double u() const { return unit_roundoff(dtype); }
  std::string name(const char* op) const {
    return cat(op, " ", name_of(dtype), " B=", batch, " N=", cells, " R=", reads, " sharp=", sharp[0],
               sharp[1], " given=", given[0], given[1], aligned ? "" : " offset");
  }
};

Buffer empty(const Case& c, int64_t count) { return Buffer(c.dtype, count, c.aligned ? 0 : 1); }
template <class F>
Buffer filled(const Case& c, int64_t count, F f) {
  Buffer b = empty(c, count);
  for (int64_t i = 0; i < count; ++i) b.set(i, f());
  return b;
}
double uniform(Random& random) { return std::uniform_real_distribution<double>()(random); }
Buffer weights(const Case& c, int64_t count, Random& random) {
  return filled(c, count, [&] { return 2 * uniform(random) / (c.cells + 1); });
}
Buffer gradient(const Case& c, int64_t count, Random& random) {
  return filled(c, count, [&] { return value(random); });
}

// Runs f with scratch of exactly the size that it asks for.
template <class Args>
void start(const Case& c, const char* op, Args& args, int64_t (*scratch_bytes)(const Args&),
           void (*run)(const Args&, int, void*)) {
  const Buffer scratch(c.dtype, scratch_bytes ? (scratch_bytes(args) + 7) / size_of(c.dtype) : 0);
  args.scratch = scratch.data();
  try {
    run(args, 0, nullptr);
  } catch (const std::exception&) {
    std::printf("in %s:\n", c.name(op).c_str());
    throw;
  }
}

class Check : public Comparison {
 public:
  using Comparison::Comparison;
  ~Check() { sysgen::worst = std::max(sysgen::worst, worst()); }
};

void run_retention(const Case& c, Random& random) {
  const int64_t n = c.cells, heads = c.batch * c.reads;
  const Buffer read = filled(c, heads * n, [&] { return uniform(random); });
  const Buffer free = filled(c, heads, [&] { return random() % 4 ? uniform(random) : 1.; });
  const Buffer d = gradient(c, c.batch * n, random), kept = empty(c, c.batch * n),
               dread = empty(c, heads * n), dfree = empty(c, heads);
  RetentionFwdArgs fwd{c.sizes(), read.data(), free.data(), kept.data(), nullptr};
  start(c, "retention_fwd", fwd, {}, &retention_fwd_cuda);
  RetentionBwdArgs bwd{c.sizes(), read.data(), free.data(), d.data(), dread.data(), dfree.data(), nullptr};
  start(c, "retention_bwd", bwd, {}, &retention_bwd_cuda);
  Check check(c.name("retention"));
  const double u = c.u() * (4 * c.reads + 8);
  for (int64_t b = 0; b < c.batch; ++b) {
    std::vector<double> sum(c.reads), size(c.reads);
    for (int64_t i = 0; i < n; ++i) {
      const auto factor = [&](int64_t r) {
        return 1 - free.get(b * c.reads + r) * read.get((b * c.reads + r) * n + i);
      };
      double all = 1;
      for (int64_t r = 0; r < c.reads; ++r) all *= factor(r);
      check.element("retention", b, i, kept.get(b * n + i), all, u);
      for (int64_t r = 0; r < c.reads; ++r) {
        double others = d.get(b * n + i);
        for (int64_t q = 0; q < c.reads; ++q) others *= q == r ? 1 : factor(q);
        const int64_t at = b * c.reads + r;
        check.element("dread", at, i, dread.get(at * n + i), -free.get(at) * others,
                      u * std::abs(d.get(b * n + i)));
        sum[r] -= read.get(at * n + i) * others;
        size[r] += std::abs(d.get(b * n + i));
      }
    }
    for (int64_t r = 0; r < c.reads; ++r)
      check.element("dfree", b, r, dfree.get(b * c.reads + r), sum[r], (u + n * c.u()) * size[r]);
  }
}

void run_usage(const Case& c, Random& random) {
  const int64_t count = c.batch * c.cells;
  const auto some = [&] { return filled(c, count, [&] { return uniform(random); }); };
  const Buffer usage = some(), write = some(), kept = some(), d = gradient(c, count, random),
               out = empty(c, count), du = empty(c, count), dw = empty(c, count), dk = empty(c, count);
  UsageUpdateFwdArgs fwd{c.sizes(), usage.data(), write.data(), kept.data(), out.data(), nullptr};
  start(c, "usage_update_fwd", fwd, {}, &usage_update_fwd_cuda);
  UsageUpdateBwdArgs bwd{c.sizes(), usage.data(), write.data(), kept.data(), d.data(),
                         du.data(), dw.data(),    dk.data(),    nullptr};
  start(c, "usage_update_bwd", bwd, {}, &usage_update_bwd_cuda);
  Check check(c.name("usage_update"));
  for (int64_t i = 0; i < count; ++i) {
    const double x = usage.get(i), w = write.get(i), k = kept.get(i), g = d.get(i), bound = 8 * c.u();
    check.element("updated", i, 0, out.get(i), (x + w - x * w) * k, bound);
    check.element("dusage", i, 0, du.get(i), g * k * (1 - w), bound * std::abs(g));
    check.element("dwrite", i, 0, dw.get(i), g * k * (1 - x), bound * std::abs(g));
    check.element("dretention", i, 0, dk.get(i), g * (x + w - x * w), bound * std::abs(g));
  }
}

void run_allocation(const Case& c, Random& random) {
  const int64_t n = c.cells;
  const double eps = 1e-6;
  const Buffer usage = filled(c, c.batch * n, [&] {
    if (c.ties) return double(random() % 3) / 2;
    return uniform(random);
  });
  const Buffer d = gradient(c, c.batch * n, random), out = empty(c, c.batch * n), du = empty(c, c.batch * n);
  AllocationFwdArgs fwd{c.sizes(), eps, usage.data(), out.data(), nullptr};
  start(c, "allocation_fwd", fwd, {}, &allocation_fwd_cuda);
  AllocationBwdArgs bwd{c.sizes(), eps, usage.data(), d.data(), du.data(), nullptr};
  start(c, "allocation_bwd", bwd, {}, &allocation_bwd_cuda);
  Check check(c.name("allocation"));
  const double bound = c.u() * (6 * n + 16);
  const double least = c.dtype == DType::f64 ? 0x1p-1022 : 0x1p-126;  // products below it lose their bits
  for (int64_t b = 0; b < c.batch; ++b) {
    std::vector<int64_t> order(n);
    std::iota(order.begin(), order.end(), b * n);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t i, int64_t j) { return usage.get(i) < usage.get(j); });
    const auto used = [&](int64_t i) { return usage.get(i) * (1 - eps) + eps; };
    std::vector<double> before(n + 1, 1.);
    for (int64_t k = 0; k < n; ++k) {
      before[k + 1] = before[k] * used(order[k]);
      check.element("allocation", b, order[k] - b * n, out.get(order[k]), (1 - used(order[k])) * before[k],
                    bound * before[k] + least);
    }
    double behind = 0, size = 0;  // and the sum of the absolute values of its terms
    for (int64_t k = n - 1; k >= 0; --k) {
      const int64_t i = order[k];
      check.element("dusage", b, i - b * n, du.get(i), before[k] * (behind - d.get(i)) * (1 - eps),
                    bound * before[k] * (size + std::abs(d.get(i))) + n * least);
      behind = d.get(i) * (1 - used(i)) + used(i) * behind;
      size = std::abs(d.get(i)) + used(i) * size;
    }
  }
}

void run_update(const Case& c, Random& random) {
  const int64_t n = c.cells, all = c.batch * n * n;
  const Buffer link = weights(c, all, random), p = weights(c, c.batch * n, random),
               w = weights(c, c.batch * n, random), dl = gradient(c, all, random),
               dp = gradient(c, c.batch * n, random), link_out = empty(c, all), p_out = empty(c, c.batch * n),
               dlink = empty(c, all), dprecedence = empty(c, c.batch * n), dwrite = empty(c, c.batch * n);
  LinkUpdateFwdArgs fwd{c.sizes(), link.data(), p.data(), w.data(), link_out.data(), p_out.data(), nullptr};
  start(c, "link_update_fwd", fwd, {}, &link_update_fwd_cuda);
  LinkUpdateBwdArgs bwd{c.sizes(),
                        link.data(),
                        p.data(),
                        w.data(),
                        c.given[0] ? dl.data() : nullptr,
                        c.given[1] ? dp.data() : nullptr,
                        dlink.data(),
                        dprecedence.data(),
                        dwrite.data(),
                        nullptr};
  start(c, "link_update_bwd", bwd, &link_update_bwd_cuda_scratch_bytes, &link_update_bwd_cuda);
  Check check(c.name("link_update"));
  const double bound = c.u() * (2 * n + 16);
  for (int64_t b = 0; b < c.batch; ++b) {
    const auto at = [&](const Buffer& x, int64_t i) { return x.get(b * n + i); };
    const auto d = [&](int64_t i) { return c.given[1] ? at(dp, i) : 0.; };
    double total = 0, along = 0, along_size = 0;
    for (int64_t i = 0; i < n; ++i) {
      total += at(w, i);
      along += d(i) * at(p, i);
      along_size += std::abs(d(i) * at(p, i));
    }
    std::vector<double> gw(n), gp(n), gw_size(n), gp_size(n);
    for (int64_t i = 0; i < n; ++i) {
      check.element("precedence", b, i, at(p_out, i), (1 - total) * at(p, i) + at(w, i), bound);
      gw[i] += d(i) - along;
      gw_size[i] += std::abs(d(i)) + along_size;
      gp[i] += (1 - total) * d(i);
      gp_size[i] += 2 * std::abs(d(i));
      for (int64_t j = 0; j < n; ++j) {
        const int64_t e = (b * n + i) * n + j;
        const double l = link.get(e), g = c.given[0] && i != j ? dl.get(e) : 0,
                     factor = 1 - at(w, i) - at(w, j);
        check.element("link", b * n + i, j, link_out.get(e), i == j ? 0 : factor * l + at(w, i) * at(p, j),
                      i == j ? 0 : 8 * c.u());
        check.element("dlink", b * n + i, j, dlink.get(e), g * factor, 8 * c.u() * std::abs(g));
        gw[i] += g * (at(p, j) - l);
        gw[j] -= g * l;
        gp[j] += g * at(w, i);
        gw_size[i] += std::abs(g) * (at(p, j) + l);
        gw_size[j] += std::abs(g) * l;
        gp_size[j] += std::abs(g) * at(w, i);
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      check.element("dwrite", b, i, at(dwrite, i), gw[i], bound * gw_size[i]);
      check.element("dprecedence", b, i, at(dprecedence, i), gp[i], bound * gp_size[i]);
    }
  }
}

// The projections of one head in one direction, what sharpening makes of them, and the gradient back to them.
struct Head {
  std::vector<double> d, y, g, g_bound, dd, dd_bound;
  double y_error = 0, ds = 0, ds_bound = 0;
};

void run_read(const Case& c, Random& random) {
  const int64_t n = c.cells, heads = c.batch * c.reads, all = c.batch * n * n;
  const double eps = 1e-2;  // so large that no projection's error is much of it
  const Buffer link = weights(c, all, random), read = weights(c, heads * n, random);
  const auto numbers = [&] { return empty(c, heads * n); };
  const Buffer s[2] = {filled(c, heads, [&] { return 3 * uniform(random); }),
                       filled(c, heads, [&] { return 3 * uniform(random); })},
               dy[2] = {gradient(c, heads * n, random), gradient(c, heads * n, random)},
               y[2] = {numbers(), numbers()}, d[2] = {numbers(), numbers()},
               ds[2] = {empty(c, heads), empty(c, heads)}, dlink = empty(c, all), dread = numbers();
  LinkReadFwdArgs fwd{};
  LinkReadBwdArgs bwd{};
  fwd.s = bwd.s = c.sizes();
  fwd.eps = bwd.eps = eps;
  fwd.link = bwd.link = link.data();
  fwd.read_weights = bwd.read_weights = read.data();
  for (int k = 0; k < 2; ++k) {
    fwd.weights[k] = y[k].data();
    if (c.sharp[k]) {
      fwd.sharpness[k] = bwd.sharpness[k] = s[k].data();
      fwd.projection[k] = d[k].data();
      bwd.projection[k] = d[k].data();
      bwd.dsharpness[k] = ds[k].data();
    }
    if (c.given[k]) bwd.dweights[k] = dy[k].data();
  }
  bwd.dlink = dlink.data();
  bwd.dread_weights = dread.data();
  start(c, "link_read_fwd", fwd, &link_read_fwd_cuda_scratch_bytes, &link_read_fwd_cuda);
  start(c, "link_read_bwd", bwd, &link_read_bwd_cuda_scratch_bytes, &link_read_bwd_cuda);

  Check check(c.name("link_read"));
  const double u = c.u(), sum_error = u * (n + 8);
  for (int64_t b = 0; b < c.batch; ++b) {
    const auto l = [&](int64_t i, int64_t j) { return link.get((b * n + i) * n + j); };
    std::vector<double> dl(n * n), dl_size(n * n);
    for (int64_t r = 0; r < c.reads; ++r) {
      const int64_t head = b * c.reads + r;
      const auto weight = [&](int64_t i) { return read.get(head * n + i); };
      Head h[2];
      for (int k = 0; k < 2; ++k) {
        Head& x = h[k];
        x.d.resize(n), x.dd.resize(n), x.dd_bound.resize(n);
        for (int64_t i = 0; i < n; ++i)
          for (int64_t j = 0; j < n; ++j) x.d[i] += (k ? l(j, i) : l(i, j)) * weight(j);
        const char* name = k ? "backward" : "forward";
        if (!c.sharp[k]) {
          for (int64_t i = 0; i < n; ++i) {
            check.element(name, head, i, y[k].get(head * n + i), x.d[i], sum_error * x.d[i]);
            x.dd[i] = c.given[k] ? dy[k].get(head * n + i) : 0;
          }
          continue;
        }
        const double strength = s[k].get(head);
        double sum = 0, mean = 0, mean_size = 0, relative = 0;
        x.y.resize(n);
        for (int64_t i = 0; i < n; ++i) {
          check.element("projection", head, i, d[k].get(head * n + i), x.d[i], sum_error * x.d[i]);
          const double log = std::log(x.d[i] + eps);
          sum += x.y[i] = std::exp(strength * log);
          // of exp(s log d): s times the relative error of d + eps, and a few roundings of s log d
          relative = std::max(relative, strength * (sum_error + 2 * u) + 8 * u * strength * std::abs(log));
        }
        x.y_error = 2 * relative + (n + 8) * u;  // relative, of the softmax
        for (int64_t i = 0; i < n; ++i) {
          x.y[i] /= sum;
          check.element(name, head, i, y[k].get(head * n + i), x.y[i], x.y_error * x.y[i]);
          if (!c.given[k]) continue;
          mean += x.y[i] * dy[k].get(head * n + i);
          mean_size += x.y[i] * std::abs(dy[k].get(head * n + i));
        }
        for (int64_t i = 0; i < n; ++i) {
          const double incoming = c.given[k] ? dy[k].get(head * n + i) : 0, log = std::log(x.d[i] + eps);
          const double g = x.y[i] * (incoming - mean);
          const double g_bound = (2 * x.y_error + sum_error) * x.y[i] * (std::abs(incoming) + mean_size);
          x.ds += g * log;
          x.ds_bound +=
              g_bound * std::abs(log) + std::abs(g) * ((n + 4) * u * (std::abs(log) + 1) + sum_error);
          x.dd[i] = strength * g / (x.d[i] + eps);
          x.dd_bound[i] = strength * (g_bound + std::abs(g) * (sum_error + 4 * u)) / (x.d[i] + eps);
        }
        check.element("dsharpness", head, k, ds[k].get(head), x.ds, x.ds_bound);
      }
      for (int64_t i = 0; i < n; ++i) {
        double dr = 0, dr_bound = 0;
        for (int64_t j = 0; j < n; ++j) {
          dr += l(j, i) * h[0].dd[j] + l(i, j) * h[1].dd[j];
          dr_bound += l(j, i) * (h[0].dd_bound[j] + 2 * sum_error * std::abs(h[0].dd[j])) +
                      l(i, j) * (h[1].dd_bound[j] + 2 * sum_error * std::abs(h[1].dd[j]));
          dl[i * n + j] += h[0].dd[i] * weight(j) + weight(i) * h[1].dd[j];
          const double more = (2 * c.reads + 4) * u;
          dl_size[i * n + j] += (h[0].dd_bound[i] + more * std::abs(h[0].dd[i])) * weight(j) +
                                weight(i) * (h[1].dd_bound[j] + more * std::abs(h[1].dd[j]));
        }
        check.element("dread", head, i, dread.get(head * n + i), dr, dr_bound);
      }
    }
    for (int64_t e = 0; e < n * n; ++e)
      check.element("dlink", b * n + e / n, e % n, dlink.get(b * n * n + e), dl[e], dl_size[e]);
  }
}

void run_all(const Case& c, Random& random) {
  run_retention(c, random);
  run_usage(c, random);
  run_allocation(c, random);
  run_update(c, random);
  run_read(c, random);
}

// Every size of the sort, each with ties, and NaN: last, and nowhere else.
void run_allocation_sizes(Random& random, bool large) {
  for (const DType dtype : {DType::f32, DType::f64})
    for (const int n : {1, 2, 63, 64, 65, 512, 513, 1024, 1500, 4096}) {
      if (n > 600 && !large) continue;
      Case c;
      c.dtype = dtype, c.batch = 1, c.cells = n;
      for (const bool ties : {false, true}) c.ties = ties, run_allocation(c, random);
      Buffer usage = filled(c, n, [&] { return 0.5 + uniform(random) / 2; });
      usage.set(n / 2, NAN);
      const Buffer out = empty(c, n), d = gradient(c, n, random), du = empty(c, n);
      AllocationFwdArgs fwd{c.sizes(), 1e-6, usage.data(), out.data(), nullptr};
      start(c, "allocation_fwd", fwd, {}, &allocation_fwd_cuda);
      AllocationBwdArgs bwd{c.sizes(), 1e-6, usage.data(), d.data(), du.data(), nullptr};
      start(c, "allocation_bwd", bwd, {}, &allocation_bwd_cuda);
      Check check(c.name("allocation of NaN"));
      for (int i = 0; i < n; ++i) {
        check.element("is NaN", i, 0, std::isnan(out.get(i)), i == n / 2, 0);
        check.element("gradient is NaN", i, 0, std::isnan(du.get(i)), i != n / 2, 0);
      }
    }
  Case c;
  c.cells = 4097;
  AllocationFwdArgs fwd{c.sizes(), 1e-6, nullptr, nullptr, nullptr};
  Check check("too many cells");
  try {
    allocation_fwd_cuda(fwd, 0, nullptr);
    check.element("refused", 0, 0, 0, 1, 0);
  } catch (const NotImplementedError&) {
  }
}

Case random_case(Random& random, int i) {
  Case c;
  c.dtype = i % 3 ? DType::f32 : DType::f64;
  c.batch = pick(random, {1, 2, 3});
  c.cells = pick(random, {1, 2, 3, 16, 31, 32, 33, 40, 68});
  c.reads = pick(random, {1, 2, 4, 5, 8, 9});
  for (int k = 0; k < 2; ++k) c.sharp[k] = random() % 3 > 0, c.given[k] = random() % 4 > 0;
  c.aligned = random() % 2;
  return c;
}

}  // namespace
}  // namespace sysgen

int main(int argc, char** argv) {
  using namespace sysgen;
  const int count = argc > 1 ? std::atoi(argv[1]) : 100;
  Random random(argc > 2 ? std::atoi(argv[2]) : 1);
  try {
    run_allocation_sizes(random, count >= 20);
    if (count >= 20)
      for (const int n : {132, 136, 137, 0}) {  // more than one stripe of columns; none
        Case c;
        c.cells = n, c.batch = 1, c.reads = n == 0 ? 2 : n % 10;
        run_all(c, random);
      }
    Case none;
    none.reads = 0;
    run_all(none, random);
    for (int i = 0; i < count; ++i) run_all(random_case(random, i), random);
  } catch (const std::exception& e) {
    std::printf("FAILED: %s\n", e.what());
    return 1;
  }
  std::printf("largest error: %.2f of its bound\n", worst);
  return test::finish("links");
}
