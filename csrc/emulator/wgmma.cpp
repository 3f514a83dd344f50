// wgmma: who meets, what a descriptor means, and the product.
#include <bit>

#include "emulator/half.h"
#include "emulator/hopper_state.h"
#include "emulator/sanitizer.h"

// No loop here may become a call of memset or memcpy, which ThreadSanitizer would take for the running
// thread's.
#pragma GCC optimize("no-tree-loop-distribute-patterns")

namespace sysgen::emulator {

namespace {

// All 128 threads of the warpgroup, at the same place of the program. The last one calls compute.
void meet(const char* name, WgmmaOperands* operands, void (*compute)(Warpgroup&), const Location& at) {
  Fibre* f = machine.running;
  Block& b = *f->block;
  const unsigned group = f->context.linear / 128, thread = f->context.linear % 128;
  if (group * 128 + 128 > b.threads) fail(at, "%s: the block has no whole warpgroup here", name);
  Warpgroup& g = hopper(b).groups[group];
  f->where = at;
  if (!g.arrived) {
    g.name = name;
    g.where = at;
  } else if (!same_place(g.where, at)) {
    fail(at, "threads of a warpgroup are at different places: %s here, %s at line %u", name, g.name,
         static_cast<unsigned>(g.where.line()));
  }
  g.threads[thread] = f;
  g.operands[thread] = operands;
  if (++g.arrived < 128) return wait(name, at);
  if (compute) compute(g);
  g.arrived = 0;
  progress();
  for (unsigned i = 0; i < 128; ++i)
    if (Fibre* other = g.threads[machine.order == Order::reverse ? 127 - i : i]; other != f)
      make_ready(other);
}

float value_of(const OperandChunk& c, unsigned i, bool half) {
  const uint32_t bits = c.data[i / 2] >> (i % 2 * 16) & 0xffffu;
  return half ? __half2float({static_cast<uint16_t>(bits)}) : std::bit_cast<float>(bits << 16);
}
float value_of(uint32_t v, unsigned i, bool half) { return value_of(OperandChunk{nullptr, {v}}, i, half); }

void product(Warpgroup& g) {
  static float a[64][16], b[16][128];
  const WgmmaOperands& first = *g.operands[0];
  const int columns = first.columns;
  for (unsigned t = 0; t < 128; ++t) {
    const WgmmaOperands& o = *g.operands[t];
    unsigned next = 0;
    if (o.a_registers) {  // as mma m16n8k16
      for (unsigned r = 0; r < 4; ++r)
        for (unsigned i = 0; i < 2; ++i)
          a[t / 32 * 16 + t % 32 / 4 + r % 2 * 8][t % 4 * 2 + r / 2 * 8 + i] =
              value_of(o.registers[r], i, o.half);
    } else {
      const OperandChunk& c = o.chunks[next++];
      for (unsigned i = 0; i < 8; ++i) {
        float& to = o.a_mn ? a[t % 8 * 8 + i][t / 8] : a[t / 2][t % 2 * 8 + i];
        to = value_of(c, i, o.half);
      }
    }
    const unsigned row_chunks = static_cast<unsigned>(columns) / 8;
    for (unsigned c = t; next < o.num_chunks; ++next, c += 128)
      for (unsigned i = 0; i < 8; ++i) {
        float& to = o.b_mn ? b[c / row_chunks][c % row_chunks * 8 + i] : b[c % 2 * 8 + i][c / 2];
        to = value_of(o.chunks[next], i, o.half);
      }
  }
  static float sum[64][128];
  for (int m = 0; m < 64; ++m) {
    for (int n = 0; n < columns; ++n) sum[m][n] = 0;
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < columns; ++n) sum[m][n] += a[m][k] * b[k][n];
  }
  for (unsigned t = 0; t < 128; ++t) {
    WgmmaOperands& o = *g.operands[t];
    for (unsigned i = 0; i < static_cast<unsigned>(columns) / 2; ++i) {
      const unsigned row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + t % 4 * 2 + i % 2;
      o.values[i] = sum[row][column] + (o.accumulate ? o.values[i] : 0);
    }
  }
  ++counters.wgmma;
}

// The ring's entry of the newest wgmma on d before number `before` that has not been delivered.
const WgmmaOperands* running_on(const HopperThread& h, const float* d, unsigned before) {
  for (unsigned i = before; i != h.delivered; --i)
    if (const WgmmaOperands& o = h.running[(i - 1) % kMaxRunning].operands; o.d == d) return &o;
  return nullptr;
}

unsigned end_of_complete(const HopperThread& h, unsigned pending) {
  const unsigned groups = h.committed - h.complete > pending ? h.committed - pending : h.complete;
  return groups ? h.group_end[(groups - 1) % kMaxRunning] : 0;
}

// It orders memory as __syncwarp does: what the hardware has read for the warp, it has read by then.
const WarpOperation waited{"wgmma_wait", nullptr, true, true};
const WarpOperation fenced{"wgmma_fence", nullptr, false, true};
const WarpOperation committed{"wgmma_commit", nullptr, false, true};

}  // namespace

// As "Shared Memory Matrix Layout" of the PTX manual has it, in units of 16 bytes:
//   k-major, swizzled: 8 rows make a block, rows are as far apart as the swizzle is wide, blocks the stride
//   offset k-major, plain:    rows of a block follow one another, its 2 columns are the leading offset apart
//   mn-major, swizzled: as many chunks side by side as the swizzle is wide, 8 k below one another; the next k
//   are the
//                       stride offset away, the next chunks the leading offset
//   mn-major, plain:   one chunk wide; the next k the leading offset away, the next chunk the stride offset
const unsigned char* descriptor_chunk(uint64_t descriptor, bool mn_major, unsigned row, unsigned chunk,
                                      const Location& at) {
  static constexpr uint32_t kWidths[] = {16, 128, 64, 32};
  const uint32_t start = static_cast<uint32_t>(descriptor & 0x3fff) << 4,
                 leading = static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4;
  const uint32_t stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4,
                 width = kWidths[descriptor >> 62];
  if (descriptor & 0x3ffe'c000'c000'c000u)
    fail(at, "wgmma: the descriptor %016llx has reserved bits, or a base offset (which is not emulated)",
         static_cast<unsigned long long>(descriptor));
  uint32_t offset;
  if (!mn_major) {
    offset = row / 8 * stride + row % 8 * width + (width == 16 ? chunk * leading : chunk * 16);
  } else if (width == 16) {
    offset = row / 8 * leading + row % 8 * 16 + chunk * stride;
  } else {
    const uint32_t wide = width / 16;
    offset = row / 8 * stride + row % 8 * width + chunk / wide * leading + chunk % wide * 16;
  }
  uint32_t address = start + offset;
  address ^= (address >> 7 & (width / 16 - 1)) << 4;
  if (!is_shared_address(address))
    fail(at, "wgmma: the descriptor %016llx leads out of shared memory",
         static_cast<unsigned long long>(descriptor));
  const unsigned char* p = shared_at(address);
  if (!proxies_are_fenced(p))
    fail(at, "wgmma reads what cp.async has written, and nobody has called fence_proxy_async in between");
  return p;
}

void warpgroup_meets(const char* name, const Location& at) { meet(name, nullptr, nullptr, at); }

void wgmma_issue(const WgmmaOperands& operands, const Location& at) {
  HopperThread& h = hopper(*machine.running);
  if (!h.wgmma_fenced) fail(at, "wgmma without a wgmma_fence since the last wgmma_commit");
  if (h.issued - h.delivered == kMaxRunning) fail(at, "more than %u wgmma are running", kMaxRunning);
  HopperThread::Running& r = h.running[h.issued++ % kMaxRunning];
  r.operands = operands;
  r.where = at;
  if (const WgmmaOperands* before = running_on(h, operands.d, h.issued - 1))
    for (int i = 0; i < 64; ++i) r.operands.values[i] = before->values[i];
  meet("wgmma", &r.operands, product, at);
}

void wgmma_fenced(const Location& at) {
  warp_operation(fenced, ~0u, nullptr, at);
  hopper(*machine.running).wgmma_fenced = true;
}

void wgmma_committed(const Location& at) {
  warp_operation(committed, ~0u, nullptr, at);
  HopperThread& h = hopper(*machine.running);
  if (h.committed - h.complete == kMaxRunning)
    fail(at, "more than %u groups of wgmma are running", kMaxRunning);
  h.group_end[h.committed++ % kMaxRunning] = h.issued;
  h.wgmma_fenced = false;
}

const OperandChunk* wgmma_operand(unsigned pending) {
  HopperThread& h = hopper(*machine.running);
  for (const unsigned end = end_of_complete(h, pending); h.checked != end;
       ++h.checked, h.checked_chunks = 0) {
    const WgmmaOperands& o = h.running[h.checked % kMaxRunning].operands;
    if (h.checked_chunks < o.num_chunks) return &o.chunks[h.checked_chunks++];
  }
  return nullptr;
}
void wgmma_changed() {
  const HopperThread& h = hopper(*machine.running);
  fail(h.running[h.checked % kMaxRunning].where,
       "an operand in shared memory changed before wgmma_wait; the wgmma is");
}

const WgmmaResult* wgmma_result(unsigned pending) {
  HopperThread& h = hopper(*machine.running);
  for (const unsigned end = end_of_complete(h, pending); h.delivered != end;) {
    const WgmmaOperands& o = h.running[h.delivered++ % kMaxRunning].operands;
    bool last = true;
    for (unsigned i = h.delivered; i != h.issued; ++i)
      last = last && h.running[i % kMaxRunning].operands.d != o.d;
    if (!last) continue;
    h.result = {o.d, o.values, o.columns / 2};
    return &h.result;
  }
  return nullptr;
}

void wgmma_waited(unsigned pending, const Location& at) {
  HopperThread& h = hopper(*machine.running);
  if (h.committed - h.complete > pending) h.complete = h.committed - pending;
  warp_operation(waited, ~0u, nullptr, at);
}

}  // namespace sysgen::emulator
