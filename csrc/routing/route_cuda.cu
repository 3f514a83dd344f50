// Launches the routing sort: as many passes as the expert ids have groups of 11 bits.
#include <algorithm>

#include "device/launch.h"
#include "routing/route.h"
#include "routing/route_kernels.cuh"

namespace sysgen {
namespace {

constexpr int kDigitBits = 11;
static_assert(1 << kDigitBits == RouteTile::MAX_DIGITS);

struct Passes {
  int count;
  int64_t digits, tiles;  // digits: of one pass
  Passes(int64_t num_routes, int64_t num_experts) {
    int bits = 0;
    while (num_experts >> bits) ++bits;  // keys are 0 ... num_experts
    count = std::max(1, (bits + kDigitBits - 1) / kDigitBits);
    digits = count > 1 ? RouteTile::MAX_DIGITS : num_experts + 1;
    tiles = (num_routes + RouteTile::KEYS - 1) / RouteTile::KEYS;
  }
};

int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

// Scratch: bases, histogram, and for several passes two buffers of keys and two of routes.
int64_t route_cuda_scratch_bytes(int64_t num_routes, int64_t num_experts) {
  const Passes passes(num_routes, num_experts);
  return aligned(passes.digits * 4) + aligned(passes.digits * passes.tiles * 4) +
         (passes.count > 1 ? 4 * aligned(num_routes * 4) : 0);
}

void route_fwd_cuda(const RouteArgs& args, int device_index, void* stream) {
  check<NotImplementedError>(args.num_experts < 2147483647,
                             "route: at most 2147483646 experts are supported, got ", args.num_experts);
  const DeviceGuard guard(device_index);
  const Passes passes(args.num_routes, args.num_experts);
  char* scratch = static_cast<char*>(args.scratch);
  const auto take = [&scratch](int64_t count) {
    int* p = reinterpret_cast<int*>(scratch);
    scratch += aligned(count * 4);
    return p;
  };
  RouteArgsDevice a{};
  a.experts = args.experts;
  a.wide = args.experts_dtype == DType::i64;
  a.num_routes = args.num_routes;
  a.num_experts = args.num_experts;
  a.tiles = passes.tiles;
  a.digits = static_cast<int>(passes.digits);
  a.bases = take(passes.digits);
  a.histogram = take(passes.digits * passes.tiles);
  a.inverse = args.inverse;
  a.offsets = args.offsets;
  int* keys[2] = {};
  int* routes[2] = {};
  if (passes.count > 1)
    for (int i = 0; i < 2; ++i) keys[i] = take(args.num_routes), routes[i] = take(args.num_routes);

  const dim3 block(RouteTile::THREADS);
  const LaunchConfig over_tiles{dim3(static_cast<unsigned>(passes.tiles)), block};
  const LaunchConfig over_digits{
      dim3(static_cast<unsigned>((passes.digits + RouteTile::WARPS - 1) / RouteTile::WARPS)), block};
  for (int pass = 0; pass < passes.count; ++pass) {
    a.first = pass == 0;
    a.keys_in = a.keys_out;
    a.routes_in = a.routes_out;
    a.keys_out = keys[pass % 2];
    a.last = pass == passes.count - 1;
    a.routes_out = a.last ? args.order : routes[pass % 2];
    a.shift = pass * kDigitBits;
    if (passes.tiles > 0) SYSGEN_LAUNCH(route_histogram_kernel, over_tiles, stream, a);
    SYSGEN_LAUNCH(route_scan_tiles_kernel, over_digits, stream, a);
    SYSGEN_LAUNCH(route_scan_digits_kernel, (LaunchConfig{dim3(1), block}), stream, a);
    if (passes.tiles > 0) SYSGEN_LAUNCH(route_scatter_kernel, over_tiles, stream, a);
  }
  if (passes.count > 1) {
    const int64_t blocks = std::min<int64_t>(args.num_experts / RouteTile::THREADS + 1, 1024);
    const LaunchConfig over_experts{dim3(static_cast<unsigned>(blocks)), block};
    SYSGEN_LAUNCH(route_offsets_kernel, over_experts, stream, a);
  }
}

}  // namespace sysgen
