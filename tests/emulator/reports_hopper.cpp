// What the emulator refuses of mbarriers, TMA and wgmma, and how it says so: as reports.cpp.
#include "device/tensor_map.h"
#include "reports.h"

namespace {

struct HopperArguments {
  int mode;
  TensorMap map;
};
__global__ void hopper_kernel(const __grid_constant__ HopperArguments a) {
  Smem smem;
  auto& tile = smem.array<u32[2][256], 1024>();
  auto& barriers = smem.array<Mbarrier[65]>();
  const u32 tid = threadIdx.x;
  const auto init = [&](u32 arrivals) {
    if (tid == 0) mbarrier_init(barriers[0], arrivals);
    __syncthreads();
  };
  float d[32] = {};
  switch (a.mode) {
    case 0:
      mbarrier_arrive(barriers[0]);
      break;
    case 1:
      init(0);
      break;
    case 2:
      if (tid == 0)
        for (Mbarrier& b : barriers) mbarrier_init(b, 1);
      break;
    case 3:
      init(1);
      init(1);
      break;
    case 4:  // the phase waits for bytes
      init(1);
      if (tid == 0) mbarrier_arrive_expect(barriers[0], 16);
      if (tid == 0) mbarrier_arrive(barriers[0]);
      break;
    case 5:
      init(1);
      mbarrier_wait(barriers[0], 2);
      break;
    case 6:
      init(1);
      mbarrier_wait(barriers[0], 0);
      break;
    case 7:
      init(1);
      if (tid == 0) tma_load_3d(tile[0], a.map, 0, 0, 0, barriers[0]);
      break;
    case 8:
      init(1);
      if (tid == 0) tma_load_3d(&tile[0][32], a.map, 0, 0, 0, barriers[0]);
      break;
    case 9:
      init(1);
      if (tid == 0) tma_load_3d(tile[0], TensorMap{}, 0, 0, 0, barriers[0]);
      break;
    case 10:
      wgmma_fence();
      wgmma<bf16, false, false>(d, k_major_descriptor(0), k_major_descriptor(shared_address(tile)), false);
      break;
    case 11:
      wgmma_fence();
      wgmma<bf16, false, false>(d, u64{1} << 49, k_major_descriptor(shared_address(tile)), false);
      break;
    case 12:
      if (tid < 64) {
        registers_increase<64>();
      } else {
        registers_increase<64>();
      }
      break;
    case 13:
      registers_increase<64>();
      break;
  }
}

}  // namespace

int main() {
  const std::vector<unsigned short> values(64 * 64);
  const MatrixStack good{values.data(), 64, 64, 1, 128, 8192, 8};
  TensorMap map{};
  check_that(encode_tensor_map(map, good), "a tensor map");
  const auto unreadable = [&](const char* what, auto change) {
    MatrixStack m = good;
    change(m);
    check_that(!tma_can_read(m) && !encode_tensor_map(map, m), cat("TMA cannot read ", what));
  };
  unreadable("from an address between 16 bytes",
             [](MatrixStack& m) { m.data = static_cast<const char*>(m.data) + 8; });
  unreadable("rows that are not multiples of 16 bytes apart", [](MatrixStack& m) { m.row_bytes = 136; });
  unreadable("an expanded tensor", [](MatrixStack& m) { m.matrix_bytes = 0; });
  unreadable("nothing", [](MatrixStack& m) { m.rows = 0; });
  unreadable("boxes of 257 rows", [](MatrixStack& m) { m.box_rows = 257; });

  const auto fails = [&](const char* what, int mode, std::initializer_list<const char*> parts,
                         unsigned threads = 128) {
    refused(what, parts, [&] {
      SYSGEN_LAUNCH(hopper_kernel, (LaunchConfig{1, threads, 4096}), nullptr, (HopperArguments{mode, map}));
    });
  };
  fails("no mbarrier", 0, {"mbarrier_arrive: there is no mbarrier at", "reports_hopper.cpp:"});
  fails("no arrivals", 1, {"mbarrier_init: 1 to 2^20 - 1 arrivals, got 0"});
  fails("65 mbarriers", 2, {"more than 64 mbarriers"});
  fails("mbarrier_init twice", 3, {"mbarrier_init: this one was initialised before"});
  fails("too many arrivals", 4, {"mbarrier_arrive: all 1 arrivals", "16 more bytes"});
  fails("parity 2", 5, {"mbarrier_wait: the parity is 0 or 1, got 2"});
  fails("a phase that never ends", 6,
        {"deadlock: 128 threads", "wait in mbarrier_wait at tests/emulator/reports"});
  fails("a copy that nobody waits for", 7, {"the block ended before anybody waited for this copy"});
  fails("a box at half an atom", 8, {"tma_load_3d: the destination", "not aligned to 1024 bytes"});
  fails("an empty tensor map", 9, {"was not made by encode_tensor_map"});
  fails("a descriptor of nothing", 10, {"wgmma: the descriptor", "leads out of shared memory"});
  fails("a base offset", 11, {"wgmma: the descriptor 0002000000000000 has reserved bits"});
  fails("halves of a warpgroup", 12, {"threads of a warpgroup are at different places: registers_increase"});
  fails("less than a warpgroup", 13, {"registers_increase: the block has no whole warpgroup here"}, 96);
  std::printf("%d failed\n", failures);
  return failures ? 1 : 0;
}
