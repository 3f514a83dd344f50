// ldmatrix and mma.sync: who holds which element, as in the PTX manual.
//
// In a fragment, lane = 4 * group + rest. A register of 16-bit elements holds two neighbours, the lower in
// the low half.
#include <algorithm>
#include <bit>

#include "emulator/half.h"
#include "emulator/runtime.h"

namespace sysgen::emulator {

namespace {

// ---- ldmatrix

// A row covers 4 of the 32 banks; eight different rows are read at once if no two of them share a bank.
unsigned reads_of(MatrixLoad* const* rows) {
  unsigned in_bank[8] = {}, most = 0;
  for (int r = 0; r < 8; ++r) {
    const bool repeated = std::any_of(rows, rows + r, [&](auto* o) { return o->row == rows[r]->row; });
    if (!repeated) most = std::max(most, ++in_bank[reinterpret_cast<uintptr_t>(rows[r]->row) / 16 % 8]);
  }
  return most;
}

uint32_t element(const MatrixLoad& row, int column) {
  return row.data[column / 2] >> (column % 2 * 16) & 0xffffu;
}

void compute_ldmatrix(unsigned, void* const* operands) {
  MatrixLoad* lanes[32];
  for (int l = 0; l < 32; ++l) lanes[l] = static_cast<MatrixLoad*>(operands[l]);
  for (int matrix = 0; matrix < lanes[0]->count; ++matrix) {
    MatrixLoad* const* rows = lanes + 8 * matrix;
    ++counters.ldmatrix_phases;
    counters.ldmatrix_conflicts += reads_of(rows) - 1;
    for (int l = 0; l < 32; ++l) {
      const int group = l / 4, rest = l % 4;
      lanes[l]->result[matrix] =
          lanes[l]->transposed ? element(*rows[2 * rest], group) | element(*rows[2 * rest + 1], group) << 16
                               : rows[group]->data[rest];
    }
  }
}

// ---- mma: D[16][8] = A[16][K] * B[K][8] + C

float low_bf16(uint32_t v) { return std::bit_cast<float>(v << 16); }
float high_bf16(uint32_t v) { return std::bit_cast<float>(v & 0xffff0000u); }
float low_f16(uint32_t v) { return __half2float({static_cast<uint16_t>(v)}); }
float high_f16(uint32_t v) { return __half2float({static_cast<uint16_t>(v >> 16)}); }
float tf32(uint32_t v) { return std::bit_cast<float>(v & ~0x1fffu); }  // the low 13 bits are not looked at

template <int K>
void multiply(const float (&a)[16][K], const float (&b)[K][8], void* const* operands) {
  ++counters.mma;
  float product[16][8] = {};
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < K; ++k)
      for (int j = 0; j < 8; ++j) product[i][j] += a[i][k] * b[k][j];
  for (int l = 0; l < 32; ++l) {
    MatrixProduct& p = *static_cast<MatrixProduct*>(operands[l]);
    const int group = l / 4, rest = l % 4;
    for (int i = 0; i < 4; ++i) p.d[i] = p.c[i] + product[group + i / 2 * 8][2 * rest + i % 2];
  }
}

template <float (*LOW)(uint32_t), float (*HIGH)(uint32_t)>
void compute_m16n8k16(unsigned, void* const* operands) {
  float a[16][16], b[16][8];
  for (int l = 0; l < 32; ++l) {
    const MatrixProduct& p = *static_cast<MatrixProduct*>(operands[l]);
    const int group = l / 4, rest = l % 4;
    for (int r = 0; r < 4; ++r) {
      const int row = group + r % 2 * 8, column = 2 * rest + r / 2 * 8;
      a[row][column] = LOW(p.a[r]);
      a[row][column + 1] = HIGH(p.a[r]);
    }
    for (int r = 0; r < 2; ++r) {
      const int row = 2 * rest + r * 8;
      b[row][group] = LOW(p.b[r]);
      b[row + 1][group] = HIGH(p.b[r]);
    }
  }
  multiply<16>(a, b, operands);
}

void compute_m16n8k8_tf32(unsigned, void* const* operands) {
  float a[16][8], b[8][8];
  for (int l = 0; l < 32; ++l) {
    const MatrixProduct& p = *static_cast<MatrixProduct*>(operands[l]);
    const int group = l / 4, rest = l % 4;
    for (int r = 0; r < 4; ++r) a[group + r % 2 * 8][rest + r / 2 * 4] = tf32(p.a[r]);
    for (int r = 0; r < 2; ++r) b[rest + r * 4][group] = tf32(p.b[r]);
  }
  multiply<8>(a, b, operands);
}

}  // namespace

const WarpOperation ldmatrix{"ldmatrix", compute_ldmatrix, false, true};
const WarpOperation mma_m16n8k16_bf16{"mma.m16n8k16 (bf16)", compute_m16n8k16<low_bf16, high_bf16>, false,
                                      true};
const WarpOperation mma_m16n8k16_f16{"mma.m16n8k16 (f16)", compute_m16n8k16<low_f16, high_f16>, false, true};
const WarpOperation mma_m16n8k8_tf32{"mma.m16n8k8 (tf32)", compute_m16n8k8_tf32, false, true};

}  // namespace sysgen::emulator
