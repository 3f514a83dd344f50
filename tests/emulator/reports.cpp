// What the emulator refuses and how it says so, and what it counts. Every check is a line of output, "ok" or
// "FAILED"; after every refusal a right kernel must run. Crashes are part of it only without sanitizers,
// which report them themselves.
#include "reports.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

namespace {

using emulator::counters;

// ---- launches

__global__ void idle_kernel(const Arguments) {}
__global__ void large_static_kernel(const Arguments a) {
  SYSGEN_SHARED(char, first, [40 << 10]);
  first[threadIdx.x] = 0;
  if (a.mode == 0) return;
  SYSGEN_SHARED(char, second, [9 << 10]);
  second[threadIdx.x] = 0;
}
__global__ void carving_kernel(const Arguments a) {
  Smem smem;
  if (a.mode == 0 && threadIdx.x == 5) {
    static_cast<void>(smem.array<float[8]>());
  } else {
    static_cast<void>(smem.array<float[16]>());
  }
  if (a.mode == 1) static_cast<void>(smem.array<float[1]>());
}
__global__ void launching_kernel(const Arguments a) {
  SYSGEN_LAUNCH(idle_kernel, (LaunchConfig{1, 1}), nullptr, a);
}
__global__ void throwing_kernel(const Arguments a) {
  if (threadIdx.x != 3) return;
  if (a.mode == 0) throw std::runtime_error("a message of its own");
  throw a.mode;
}
template <int COUNT>
void declare_arrays() {
  SYSGEN_SHARED(char, one, [1]);
  one[0] = 0;
  if constexpr (COUNT > 1) declare_arrays<COUNT - 1>();
}
__global__ void many_arrays_kernel(const Arguments a) {
  if (a.mode == 0) return declare_arrays<65>();
  Smem smem;
  for (int i = 0; i < 65; ++i) smem.array<char[1]>()[0] = 0;
}

void check_launches() {
  const auto launch_idle = [](LaunchConfig config) {
    SYSGEN_LAUNCH(idle_kernel, config, nullptr, Arguments());
  };
  refused("more than 1024 threads", {"idle_kernel", "1 to 1024 threads", "(32, 33, 1)"},
          [&] { launch_idle({1, dim3(32, 33)}); });
  refused("too many threads in z", {"idle_kernel", "at most 64 in z", "(1, 1, 65)"},
          [&] { launch_idle({1, dim3(1, 1, 65)}); });
  refused("no threads", {"idle_kernel", "(0, 1, 1)"}, [&] { launch_idle({1, 0}); });
  refused("no blocks", {"idle_kernel", "2^31 - 1 blocks", "(3, 0, 1)"},
          [&] { launch_idle({dim3(3, 0), 32}); });
  refused("too many blocks in y", {"65535", "(1, 65536, 1)"}, [&] { launch_idle({dim3(1, 65536), 32}); });
  refused("too much dynamic shared memory", {"idle_kernel", "232449 bytes", "232448"},
          [&] { launch_idle({1, 32, (227 << 10) + 1}); });
  refused("more resident threads than fit", {"idle_kernel", "room for", "20480"},
          [&] { launch_idle({20, 1024, 0, true}); });
  const auto launch_static = [](int mode, size_t shared) {
    SYSGEN_LAUNCH(large_static_kernel, (LaunchConfig{1, 32, shared}), nullptr, Arguments{mode});
  };
  refused("too much static shared memory", {"large_static_kernel", "50176 bytes of static", "reports.cpp:"},
          [&] { launch_static(1, 0); });
  refused("static and dynamic without opt-in",
          {"40960 bytes of static and 16384 of dynamic", "more than 49152"},
          [&] { launch_static(0, 16 << 10); });
  refused("static and dynamic together", {"40960 bytes of static", "limit is 232448 together"},
          [&] { launch_static(0, 200 << 10); });
  const auto launch_carving = [](int mode) {
    SYSGEN_LAUNCH(carving_kernel, (LaunchConfig{1, 32, 128}), nullptr, Arguments{mode});
  };
  refused("threads that carve differently",
          {"carving_kernel", "array 0", "32 bytes here and 64", "thread (5,0,0)"},
          [&] { launch_carving(0); });
  refused("more carved than launched", {"need 256 bytes, the launch asked for 128"},
          [&] { launch_carving(1); });
  refused("a launch by a kernel", {"launched by a kernel"},
          [] { SYSGEN_LAUNCH(launching_kernel, (LaunchConfig{1, 1}), nullptr, Arguments()); });
  refused("an exception of the kernel", {"throwing_kernel", "a message of its own", "thread (3,0,0)"},
          [] { SYSGEN_LAUNCH(throwing_kernel, (LaunchConfig{1, 32}), nullptr, Arguments()); });
  refused("an exception without a message",
          {"throwing_kernel: the kernel threw an exception", "thread (3,0,0)"},
          [] { SYSGEN_LAUNCH(throwing_kernel, (LaunchConfig{1, 32}), nullptr, Arguments{1}); });
  const auto launch_many = [](int mode) {
    SYSGEN_LAUNCH(many_arrays_kernel, (LaunchConfig{1, 1, 65 * 128}), nullptr, Arguments{mode});
  };
  refused("65 static arrays", {"many_arrays_kernel: more than 64 static shared arrays", "reports.cpp:"},
          [&] { launch_many(0); });
  refused("65 dynamic arrays", {"many_arrays_kernel: more than 64 dynamic shared arrays", "reports.cpp:"},
          [&] { launch_many(1); });
  refused("another device", {"device 0 only", "got device 1"}, [] { const DeviceGuard guard(1); });
  for (const char* order : {"sideways", "", "random", "random:", "random:x", "random:1x", "random:-1"})
    refused(cat("order '", order, "'"), {"SYSGEN_EMULATOR_ORDER", order},
            [&] { emulator::set_order(order); });
  refused("a time limit of zero", {"SYSGEN_EMULATOR_TIMEOUT", "got 0"}, [] { emulator::set_timeout(0); });
}

// ---- barriers and warp operations

__global__ void meeting_kernel(const Arguments a) {
  const u32 tid = threadIdx.x;
  switch (a.mode) {
    case 0:  // half of every block waits
      if (tid < 32) __syncthreads();
      if (tid >= 32) named_barrier(1, 64);
      break;
    case 1:
      if (tid % 2) return;
      __syncthreads();
      break;
    case 2:
      __syncthreads();
      named_barrier(16, 32);
      break;
    case 3:
      named_barrier(1, 33);
      break;
    case 4:
      named_barrier(1, 96);
      break;
    case 5:
      named_barrier(1, tid < 32 ? 64 : 32);
      break;
    case 6:
      __shfl_sync(0xfffeu, tid, 0);
      break;
    case 7:
      if (tid % 32 == 31) return;
      __syncwarp();
      break;
    case 8:
      if (tid % 2) {
        __ballot_sync(~0u, 1);
      } else {
        __shfl_sync(~0u, 1, 0);
      }
      break;
    case 9:
      __shfl_sync(~0u, 1, 0, 12);
      break;
    case 10: {
      float d[4];
      const u32 f[4] = {}, g[2] = {};
      const float c[4] = {};
      if (tid % 32 < 16) {
        mma_m16n8k8_tf32(d, f, g, c);
      } else {
        mma_m16n8k8_tf32(d, f, g, c);
      }
      break;
    }
    case 11:
      if (tid % 2) {
        __syncwarp(0x55555555u);
      } else {
        __syncwarp(0x55555555u);
      }
      break;
    case 12:  // a mask for lanes 0 to 15, and one for all: the others wait for them forever
      if (tid % 32 < 16) {
        __syncwarp(0xffffu);
        return;
      }
      __syncwarp();
      break;
    case 13:
      __syncwarp();
      break;
  }
}

void check_meetings() {
  const auto launch_mode = [](int mode, unsigned threads = 64) {
    SYSGEN_LAUNCH(meeting_kernel, (LaunchConfig{2, threads}), nullptr, Arguments{mode});
  };
  const auto fails = [&](const char* what, int mode, std::initializer_list<const char*> parts,
                         unsigned threads = 64) {
    refused(what, parts, [&] { launch_mode(mode, threads); });
  };
  emulator::set_order("forward");
  fails(
      "deadlock", 0,
      {"meeting_kernel: deadlock: 64 threads", "block (0,0,0): 32 threads, the first is thread (0,0,0)",
       "wait in __syncthreads at tests/emulator/reports.cpp:", "thread (32,0,0), wait in named_barrier at"});
  fails("exit before a barrier", 1, {"left the kernel", "__syncthreads", "reports.cpp:"});
  fails("barrier 16", 2, {"id must be at most 15", "got 16 and 32"});
  fails("33 threads at a barrier", 3, {"multiple of 32, got 1 and 33"});
  fails("barrier for more threads than there are", 4, {"named_barrier for 96 threads in a block of 64"});
  fails("barrier with two counts", 5,
        {"named_barrier with 32 threads here and 64 at line", "thread (32,0,0)"});
  fails("lane outside its mask", 6,
        {"__shfl_sync", "lane 0 is not in its own mask 0000fffe", "thread (0,0,0)"});
  fails("mask with a lane that leaves", 7, {"__syncwarp", "left the kernel", "thread (31,0,0)"});
  emulator::set_order("reverse");
  fails("mask with a lane that left", 7, {"__syncwarp", "ffffffff names lanes 80000000", "left the kernel"});
  emulator::set_order("forward");
  fails("mask with lanes that do not exist", 13, {"ffffffff names lanes ffff0000"}, 16);
  fails("two intrinsics under one mask", 8, {"__ballot_sync here, __shfl_sync at line"});
  fails("shuffle width", 9, {"power of two", "got 12"});
  fails("lanes in two mma", 10, {"mma.m16n8k8 (tf32)", "this one and line"});
  fails("odd lanes name the mask of the even ones", 11, {"lane 1 is not in its own mask 55555555"});
  fails("lanes that never come to __syncwarp", 12, {"ffffffff names lanes 0000ffff", "thread (16,0,0)"});
}

// ---- loops without end

__global__ void spinning_kernel(const Arguments a) {
  if (a.mode == 0)
    while (load_acquire(a.data) == 0) {
    }
  if (a.mode == 1)
    while (atomicCAS(a.data, 7u, 8u) != 7u) {
    }
  if (a.mode == 2)
    for (volatile unsigned i = 0;;) i = i + 1;
  if (a.mode == 3)
    for (;;) __syncthreads();
  if (a.mode == 4) {
    __syncthreads();  // the thread that does not end is the one that came last
    if (threadIdx.x == 31)
      for (volatile unsigned i = 0;;) i = i + 1;
  }
}

void check_loops() {
  const auto launch_mode = [](int mode) {
    std::vector<unsigned> data(1);
    SYSGEN_LAUNCH(spinning_kernel, (LaunchConfig{1, 32}), nullptr, (Arguments{mode, data.data()}));
  };
  refused("a flag that nobody sets", {"spinning_kernel: a spin loop", "reports.cpp:"},
          [&] { launch_mode(0); });
  refused("a lock that nobody frees", {"spinning_kernel: a spin loop", "reports.cpp:"},
          [&] { launch_mode(1); });
#if !defined(__SANITIZE_THREAD__)  // there a loop without end ends the process, see hang()
  emulator::set_timeout(0.2);
  refused("a loop without end",
          {"spinning_kernel: no end after 0.2 s", "it has not synchronised yet", "thread (0,0,0)"},
          [&] { launch_mode(2); });
  refused("barriers without end", {"spinning_kernel: no end after 0.2 s", "reports.cpp:"},
          [&] { launch_mode(3); });
  refused("a loop without end after a barrier",
          {"spinning_kernel: no end after 0.2 s", "its last synchronisation was at",
           "reports.cpp:", "thread (31,0,0)"},
          [&] { launch_mode(4); });
  emulator::set_timeout(60);
#endif
}

int hang() {  // "FAILED" or a message, in any case an end
  emulator::set_timeout(0.2);
  try {
    SYSGEN_LAUNCH(spinning_kernel, (LaunchConfig{1, 32}), nullptr, Arguments{2});
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  std::printf("FAILED: a loop without end has ended\n");
  return 2;
}

// ---- copies and matrices

__global__ void copying_kernel(const Arguments a) {
  SYSGEN_SHARED(unsigned, tile, [1024]);
  u32 r[4] = {};
  switch (a.mode) {
    case 0:
      return cp_async<4>(a.data, a.data);
    case 1:
      return cp_async<4>(tile, tile + 8);
    case 2:
      return cp_async<16>(tile, a.data + 1);
    case 3:
      return cp_async<8>(tile + 1, a.data);
    case 4:
      for (int i = 0; i < 513; ++i) cp_async<4>(&tile[i], a.data);
      return;
    case 5:
      for (int i = 0; i < 65; ++i) cp_async_commit();
      return;
    case 6:
      cp_async<4>(tile, a.data);
      cp_async_wait<0>();  // of no group: the copy was not committed
      return;
    case 7:
      return ldmatrix_x4(r, tile + 2);
    case 8:
      return ldmatrix_x4(r, a.data);
    case 9:
      return store_16(a.data + 1, r);
    case 10:
      return store_16(tile, r);
  }
}

void check_copies() {
  const auto fails = [](const char* what, int mode, std::initializer_list<const char*> parts) {
    refused(what, parts, [&] {
      alignas(16) unsigned data[8] = {};
      SYSGEN_LAUNCH(copying_kernel, (LaunchConfig{1, 32}), nullptr, (Arguments{mode, data}));
    });
  };
  fails("cp.async to global memory", 0,
        {"copying_kernel: cp.async: the destination", "not shared memory", ".cpp:"});
  fails("cp.async from shared memory", 1, {"the source", "is shared memory", "reports.cpp:"});
  fails("cp.async from a misaligned address", 2, {"cp.async of 16 bytes: the source", "not aligned"});
  fails("cp.async to a misaligned address", 3, {"cp.async of 8 bytes: the destination", "not aligned"});
  fails("too many copies", 4, {"more than 512 cp.async copies"});
  fails("too many groups", 5, {"more than 64 cp.async groups"});
  fails("a copy that was not committed", 6, {"before its cp.async copies were waited for", "reports.cpp:"});
  fails("ldmatrix from a misaligned row", 7,
        {"ldmatrix: the row", "not aligned to 16 bytes", "reports.cpp:"});
  fails("ldmatrix from global memory", 8, {"ldmatrix: the row", "not shared memory"});
  fails("store_16 to a misaligned address", 9, {"store_16: the address", "not aligned", "reports.cpp:"});
  fails("store_16 to shared memory", 10, {"store_16: the address", "is shared memory", "reports.cpp:"});
}

// ---- crashes

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
int endless_recursion(volatile int* p) {
  if (*p == 1) return 0;
  volatile char local[1024];
  local[0] = static_cast<char>(*p);
  return endless_recursion(p) + local[0];
}
__global__ void crashing_kernel(const Arguments a) {
  volatile int zero = 0;
  if (threadIdx.x != 2) return;
  if (a.mode == 0) *reinterpret_cast<volatile int*>(zero + 64) = 1;
  if (a.mode == 1) zero = 100 / zero;
  if (a.mode == 2) zero = endless_recursion(&zero);
}

void check_crashes() {
  const auto fails = [](const char* what, int mode, std::initializer_list<const char*> parts) {
    refused(what, parts,
            [&] { SYSGEN_LAUNCH(crashing_kernel, (LaunchConfig{1, 32}), nullptr, Arguments{mode}); });
  };
  fails("a wild pointer", 0, {"crashing_kernel: invalid access to address 0x40", "thread (2,0,0)"});
  fails("division by zero", 1, {"crashing_kernel: integer division by zero", "thread (2,0,0)"});
  fails("stack overflow", 2, {"crashing_kernel: the stack of a thread overflowed", "thread (2,0,0)"});
}
#else
void check_crashes() {}
#endif

// ---- counters and orders

__global__ void counted_kernel(const Arguments a) {
  SYSGEN_SHARED(unsigned, rows, [32][36]);    // 144 bytes a row: eight rows lie in different banks
  SYSGEN_SHARED(unsigned, packed, [32][32]);  // 128 bytes a row: eight rows lie in the same banks
  const u32 lane = lane_id();
  u32 r[4], g[2] = {};
  float d[4] = {};
  for (int i = 0; i < 32; ++i) rows[i][lane] = packed[i][lane] = 0;
  __syncthreads();
  ldmatrix_x4(r, rows[lane]);          // 4 phases
  ldmatrix_x4_trans(r, packed[lane]);  // 4 phases, 7 conflicts each
  ldmatrix_x4(r, packed[lane / 8]);    // 4 phases, all lanes of one read the same row
  for (int i = 0; i < 3; ++i) mma_m16n8k8_tf32(d, r, g, d);
  __syncthreads();
  store_shared(packed[lane][0], 0u);                                        // 1 phase, 31 conflicts
  r[0] = load_shared(rows[lane][0]);                                        // 1 phase, 8 banks: 3 conflicts
  load_shared(*reinterpret_cast<const uint4*>(&rows[lane][4]));             // 4 phases of 8 lanes
  for (u32 i = 0; i <= lane % 2; ++i) r[1] = load_shared(packed[i][lane]);  // 1 phase, and 1 of the odd lanes
  __syncthreads();
  cp_async<4>(&rows[0][lane], a.data);               // 1 phase
  cp_async<16>(&packed[lane][0], a.data, lane % 2);  // 4 phases, 7 conflicts each
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
}

void check_counters() {
  alignas(16) unsigned data[4] = {};
  counters = {};
  SYSGEN_LAUNCH(counted_kernel, (LaunchConfig{3, 32}), nullptr, (Arguments{0, data}));
  const auto equal = [](const char* what, uint64_t got, uint64_t expected) {
    check_that(got == expected, cat("counter of ", what), cat(got, ", expected ", expected));
  };
  equal("launches", counters.launches, 1);
  equal("blocks", counters.blocks, 3);
  equal("threads", counters.threads, 3 * 32);
  equal("barriers", counters.barriers, 3 * 4);
  equal("warp operations", counters.warp_operations, 3 * 6);
  equal("mma", counters.mma, 3 * 3);
  equal("ldmatrix phases", counters.ldmatrix_phases, 3 * 12);
  equal("bank conflicts", counters.ldmatrix_conflicts, 3 * 4 * 7);
  equal("cp.async bytes", counters.cp_async_bytes, 3 * 32 * 20);
  equal("accesses to shared memory", counters.shared_phases, 3 * 13);
  equal("their bank conflicts", counters.shared_conflicts, 3 * (31 + 3 + 4 * 7));
}

__global__ void order_kernel(const Arguments a) {
  __syncthreads();
  const unsigned turn = atomicAdd(a.data, 1u);
  a.data[1 + turn] = blockIdx.x * blockDim.x + threadIdx.x;
}
std::vector<unsigned> turns(const char* order) {
  std::vector<unsigned> data(1 + 4 * 64);
  emulator::set_order(order);
  SYSGEN_LAUNCH(order_kernel, (LaunchConfig{4, 64}), nullptr, (Arguments{0, data.data()}));
  emulator::set_order("forward");
  return {data.begin() + 1, data.end()};
}

void check_orders() {
  std::vector<unsigned> expected(4 * 64);
  for (unsigned i = 0; i < expected.size(); ++i) expected[i] = i;
  check_that(turns("forward") == expected, "forward order");
  check_that(turns("reverse") == std::vector<unsigned>(expected.rbegin(), expected.rend()), "reverse order");
  check_that(turns("random:5") == turns("random:5"), "a random order repeats itself");
  check_that(turns("random:5") != turns("random:6"), "two random orders differ");
  check_that(turns("random:5") != expected, "a random order is not the forward one");
}

void check_host_threads() {
  bool right[2] = {true, true};
  const auto work = [](bool& ok) {
    for (int i = 0; i < 20; ++i) ok = ok && right_kernel_works();
  };
  std::thread first(work, std::ref(right[0])), second(work, std::ref(right[1]));
  first.join();
  second.join();
  check_that(right[0] && right[1], "launches from two host threads");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "hang") == 0) return hang();
  check_launches();
  check_meetings();
  check_loops();
  check_copies();
  check_crashes();
  check_counters();
  check_orders();
  check_host_threads();
  std::printf("%d failed\n", failures);
  return failures ? 1 : 0;
}
