// What a tile is given: up to 6 rows of activations times a chunk of K of one panel of 64 columns, added to sums in
// memory. tile.inl, tile_avx2.inl and tile_avx512.inl define `int_tile<Codes, kMinima, R, Lines>` and
// `float_tile<Values, R, Lines>` on it; for every two dwords of activations they prefetch `Lines` lines of 64 bytes of
// what comes next.
//
// A sum takes its products in the order of k, whatever the tile and the chunk: no bit depends on them.
#pragma once
#include "kernels/kernel_table.h"

namespace qwench {

constexpr int kColumnBytes = 4;  // a column of a panel row: 4 codes, 8 nibbles, 2 bf16 or 1 fp32
constexpr int kPanelRowBytes = kPanelColumns * kColumnBytes;

// How the codes of a group lie: bytes (+128), two nibbles a byte, nibbles unpacked to bytes (+8, or as they are beside
// minima), or words: signed 16 bits, two in a dword, as x then is.
enum class Codes { kBytes, kNibbles, kUnpacked, kWords };
// How weights of a float tile lie: [k][64] fp32, or [k / 2][64] pairs of bf16, the first in the high half; kPairs: x
// lies in pairs as well, and num_k is even.
enum class Values { kFp32, kBf16, kPairs };

// One group: sums[r] += x_scales[r] * w_scales * (x[r] @ codes), the product in exact integers, then with kMinima
// sums[r] -= x_scales[r] * sum(x[r]) * w_minima. Codes carry a bias that makes them unsigned; integer sums start at
// bias * starts[r], which takes it off.
struct IntTile {
  const int8_t* x;  // row r at r * x_stride bytes
  size_t x_stride;
  const int32_t* starts;  // [rows] minus the sum of the row's codes, where they have a bias
  const float* x_scales;  // [rows]
  const uint8_t* codes;
  const float* w_scales;            // [64]
  int group_size;                   // bytes of a row of x
  float* sums;                      // [rows][64]
  const uint8_t* next;              // memory to prefetch, soon to be read; need not be valid
  const float* w_minima = nullptr;  // [64]

  QWENCH_INLINE const int8_t* row(int r) const { return x + r * x_stride; }
  QWENCH_INLINE void advance(int rows, int lines) {
    x += rows * x_stride, starts += rows, x_scales += rows, sums += rows * kPanelColumns;
    next += group_size / 8 * lines * 64;
  }
};

// What is added to a code where it is stored.
constexpr int code_bias(Codes codes, bool has_minima) {
  return codes == Codes::kBytes ? 128 : codes == Codes::kWords || has_minima ? 0 : 8;
}

// Where an integer sum starts; in unsigned arithmetic, since the codes that stand for NaN may give any start.
QWENCH_INLINE int32_t first_sum(int bias, int32_t start) { return int32_t(uint32_t(bias) * uint32_t(start)); }

// sums[r] += x[r] @ w over num_k values.
struct FloatTile {
  const void* x;  // row r at r * x_stride bytes
  size_t x_stride;
  const uint8_t* w;
  int num_k;
  float* sums;  // [rows][64]
  const uint8_t* next;

  QWENCH_INLINE const uint8_t* row(int r) const { return static_cast<const uint8_t*>(x) + r * x_stride; }
  QWENCH_INLINE float value(int r, int k) const { return reinterpret_cast<const float*>(row(r))[k]; }
  QWENCH_INLINE int32_t pair(int r, int k) const {
    int32_t dword;
    __builtin_memcpy(&dword, row(r) + k * 2, 4);
    return dword;
  }
  QWENCH_INLINE void advance(int rows, int lines) {
    x = row(rows), sums += rows * kPanelColumns, next += num_k / 2 * lines * 64;
  }
};

}  // namespace qwench
