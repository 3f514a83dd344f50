// What emulator/hopper.h asks of the runtime.
#pragma once
#include <cstdint>

#include "emulator/runtime.h"

namespace sysgen::emulator {

// ---- mbarriers and copies (hopper.cpp)

void mbarrier_start(const void* barrier, unsigned arrivals, const Location& at);
void mbarrier_announce(const void* barrier, unsigned bytes, const Location& at);
void mbarrier_arrival(const void* barrier, const char* name, const Location& at);
void mbarrier_wait_for(const void* barrier, unsigned parity, const Location& at);
// Arrives when the cp.async of this thread have.
void mbarrier_after_copies(const void* barrier, const Location& at);
void proxy_fence();

// What device/tensor_map.h puts into a TensorMap.
struct TensorBox {
  uint64_t magic;
  const unsigned char* data;
  uint64_t size[3];    // of the tensor, innermost first
  uint64_t stride[2];  // bytes between neighbours in dimensions 1 and 2
  uint32_t box[3], element_bytes, swizzle;
};
inline constexpr uint64_t kTensorMagic = 0x7465'6e73'6f72'6d61;

// Room for a box that arrives at `destination` later; the barrier's phase waits for it. It begins as zeros;
// bulk_fill sets bytes of it, in the tensor's order: swizzled it will be on arrival.
struct Pending;
Pending* bulk_issue(void* destination, unsigned bytes, unsigned swizzle, const void* barrier,
                    const Location& at);
void bulk_fill(Pending* copy, unsigned offset, const unsigned char* data, unsigned bytes);
void bulk_issued(const void* barrier, const Location& at);  // the destination is lost, the data complete

uint32_t shared_address_of(const void* p);

// ---- wgmma (wgmma.cpp)

struct OperandChunk {  // 16 bytes of an operand, read by the thread that is responsible for them
  const unsigned char* address;
  uint32_t data[4];
};
struct WgmmaOperands {
  float* d;
  float values[64];       // of d before, and after the product
  uint32_t registers[4];  // A, if it is there
  OperandChunk chunks[3];
  unsigned num_chunks;
  int columns;
  bool half, a_registers, a_mn, b_mn, accumulate;
  uint64_t a, b;
};
// Where the 16-byte chunk `chunk` of the operand's row `row` is: rows are m or n and chunks 8 k, or mn_major,
// rows are k and chunks 8 m or n.
const unsigned char* descriptor_chunk(uint64_t descriptor, bool mn_major, unsigned row, unsigned chunk,
                                      const Location& at);
void wgmma_issue(const WgmmaOperands& operands, const Location& at);
void warpgroup_meets(const char* name, const Location& at);
void wgmma_fenced(const Location& at);
void wgmma_committed(const Location& at);
struct WgmmaResult {
  float* d;
  const float* values;
  int count;
};
const OperandChunk* wgmma_operand(unsigned pending);  // the next that must still be as it was, or null
void wgmma_changed();                                 // it is not
const WgmmaResult* wgmma_result(unsigned pending);    // the next accumulator that is complete, or null
void wgmma_waited(unsigned pending, const Location& at);

}  // namespace sysgen::emulator
