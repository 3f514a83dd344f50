// The routing sort against a plain stable sort: order, inverse and offsets must be equal.
#include "kernel_test.h"
#include "routing/route_cuda.cu"

namespace sysgen {
namespace {

using namespace test;

template <class Id>
void run(Random& random, int64_t tokens, int64_t k, int64_t experts, Pattern pattern) {
  const Routes expected = make_routes(random, tokens, k, experts, pattern);
  const int64_t n = expected.count();
  std::vector<Id> ids(expected.expert.begin(), expected.expert.end());
  for (Id& id : ids)  // every id outside [0, E) drops its route
    if (id < 0) id = pick(random, {-1, -1, -7, static_cast<int>(experts), static_cast<int>(experts) + 5});
  std::vector<int32_t> order(n, -9), inverse(n, -9), offsets(experts + 1, -9);
  std::vector<char> scratch(route_cuda_scratch_bytes(n, experts), -1);
  RouteArgs a{};
  a.experts = ids.data();
  a.experts_dtype = sizeof(Id) == 8 ? DType::i64 : DType::i32;
  a.num_routes = n;
  a.num_experts = experts;
  a.order = order.data();
  a.inverse = inverse.data();
  a.offsets = offsets.data();
  a.scratch = scratch.data();
  route_fwd_cuda(a, 0, nullptr);
  ++cases;
  if (order == expected.order && inverse == expected.inverse && offsets == expected.offsets) return;
  ++failures;
  std::printf("FAILED route of %lld routes, %lld experts, pattern %d:%s%s%s\n", static_cast<long long>(n),
              static_cast<long long>(experts), static_cast<int>(pattern),
              order == expected.order ? "" : " order", inverse == expected.inverse ? "" : " inverse",
              offsets == expected.offsets ? "" : " offsets");
}

}  // namespace
}  // namespace sysgen

int main(int argc, char** argv) {
  using namespace sysgen;
  const bool few = argc > 1 && std::atoi(argv[1]) < 20;
  const int seed = argc > 2 ? std::atoi(argv[2]) : 1;
  Random random(seed);
  try {
    for (int pattern = 0; pattern < 5; ++pattern)
      for (const auto& [tokens, k, experts] :
           {std::tuple(0, 2, 3), std::tuple(5, 0, 3), std::tuple(5, 2, 0), std::tuple(1, 1, 1),
            std::tuple(131, 3, 7), std::tuple(683, 3, 155), std::tuple(1021, 5, 31), std::tuple(331, 2, 2047),
            std::tuple(331, 2, 2048), std::tuple(2053, 3, 5003), std::tuple(67, 1, 66000)}) {
        const bool large = tokens * k + experts > 1000;
        if (few && large && pattern != 1 + seed % 2) continue;
        if (pattern != 1) run<int32_t>(random, tokens, k, experts, static_cast<Pattern>(pattern));
        if (pattern <= 1) run<int64_t>(random, tokens, k, experts, static_cast<Pattern>(pattern));
      }
    if (!few) run<int64_t>(random, 211, 2, 4200000, Pattern::uniform);  // three passes
  } catch (const std::exception& e) {
    std::printf("FAILED: %s\n", e.what());
    return 1;
  }
  return test::finish("route");
}
