#include <algorithm>
#include <cstring>

#include "common/check.h"
#include "common/cpu.h"
#include "routing/route.h"

namespace sysgen {
namespace {

// Below this a second thread costs more than it brings (about 20 us of work).
constexpr int64_t kSerialRoutes = 16384;

template <class Id>
[[noreturn]] void throw_out_of_range(const Id* ids, int64_t position, int64_t num_experts) {
  const std::string allowed = num_experts > 0 ? cat("0 to ", num_experts - 1, ", or -1") : "-1";
  throw ValueError(cat("route: expert id ", static_cast<int64_t>(ids[position]), " at position ", position,
                       " is out of range for ", num_experts, " experts (allowed: ", allowed,
                       " to drop the route)"));
}

// An id in [-1, E) plus one, as an unsigned number: everything else is larger than E.
template <class Id>
uint64_t shifted(Id id) {
  return static_cast<uint64_t>(static_cast<int64_t>(id)) + 1;
}

// `offsets` is first the histogram, then the cursors of the scatter: no scratch, whatever E is.
template <class Id>
void route_serial(const Id* ids, const RouteArgs& a) {
  const int64_t R = a.num_routes, E = a.num_experts;
  std::fill(a.offsets, a.offsets + E + 1, 0);
  int32_t* const counts = a.offsets;  // counts[s] of shifted id s; counts[0]: dropped
  for (int64_t r = 0; r < R; ++r) {
    const uint64_t s = shifted(ids[r]);
    if (s > static_cast<uint64_t>(E)) throw_out_of_range(ids, r, E);
    ++counts[s];
  }
  const int32_t dropped = counts[0];
  int32_t begin = 0, tail = static_cast<int32_t>(R) - dropped;
  for (int64_t s = 1; s <= E; ++s) {
    const int32_t n = counts[s];
    counts[s] = begin;  // start of expert s - 1; after the scatter its end, the start of expert s
    begin += n;
  }
  for (int64_t r = 0; r < R; ++r) {
    const uint64_t s = shifted(ids[r]);
    const int32_t place = s ? counts[s]++ : tail++;
    a.order[place] = static_cast<int32_t>(r);
    a.inverse[r] = s ? place : -1;
  }
  counts[0] = 0;
}

// Each chunk of the routes has its own histogram; prefix sums over (expert, chunk) give each its cursors.
template <class Id>
void route_parallel(const Id* ids, const RouteArgs& a, int num_chunks) {
  const int64_t R = a.num_routes, E = a.num_experts, width = E + 1;
  int32_t* const cursors = static_cast<int32_t*>(thread_scratch(0, sizeof(int32_t) * num_chunks * width));
  int64_t* const bad = static_cast<int64_t*>(thread_scratch(1, sizeof(int64_t) * num_chunks));
  const auto first = [&](int64_t chunk) { return R * chunk / num_chunks; };

#pragma omp parallel for num_threads(num_chunks) schedule(static, 1)
  for (int c = 0; c < num_chunks; ++c) {
    int32_t* const counts = cursors + c * width;
    std::memset(counts, 0, sizeof(int32_t) * width);
    bad[c] = -1;
    const int64_t end = first(c + 1);  // outside the loop: a division takes longer than a route
    for (int64_t r = first(c); r < end; ++r) {
      const uint64_t s = shifted(ids[r]);
      if (s > static_cast<uint64_t>(E)) {
        bad[c] = r;
        break;
      }
      ++counts[s];
    }
  }
  for (int c = 0; c < num_chunks; ++c)
    if (bad[c] >= 0) throw_out_of_range(ids, bad[c], E);

  int32_t place = 0;
  for (int64_t s = 1; s <= width; ++s) {  // the dropped ones, s = 0, come last
    if (s <= E) a.offsets[s - 1] = place;
    if (s == width) a.offsets[E] = place;
    for (int c = 0; c < num_chunks; ++c) {
      int32_t& cursor = cursors[c * width + (s <= E ? s : 0)];
      const int32_t n = cursor;
      cursor = place;
      place += n;
    }
  }

#pragma omp parallel for num_threads(num_chunks) schedule(static, 1)
  for (int c = 0; c < num_chunks; ++c) {
    int32_t* const cursor = cursors + c * width;
    const int64_t end = first(c + 1);
    for (int64_t r = first(c); r < end; ++r) {
      const uint64_t s = shifted(ids[r]);
      const int32_t to = cursor[s]++;
      a.order[to] = static_cast<int32_t>(r);
      a.inverse[r] = s ? to : -1;
    }
  }
}

template <class Id>
void route(const RouteArgs& a, int num_threads) {
  const Id* ids = static_cast<const Id*>(a.experts);
  const int64_t chunks = std::min<int64_t>(num_threads, a.num_routes / kSerialRoutes);
  // Histograms larger than the routes themselves would cost more than they save.
  if (chunks > 1 && chunks * (a.num_experts + 1) <= a.num_routes)
    route_parallel(ids, a, static_cast<int>(chunks));
  else
    route_serial(ids, a);
}

}  // namespace

void route_fwd_cpu(const RouteArgs& args, int num_threads) {
  if (args.experts_dtype == DType::i32) return route<int32_t>(args, num_threads);
  check<TypeError>(args.experts_dtype == DType::i64, "route: experts must be int32 or int64, got ",
                   name_of(args.experts_dtype));
  route<int64_t>(args, num_threads);
}

}  // namespace sysgen
