// Packing a checkpoint matrix into panels, over threads. The layout: kernels/kernel_table.h.
#pragma once
#include <vector>

#include "kernels/kernel_table.h"

namespace qwench {

struct SourceMatrix {  // row-major [num_rows, k]
  const uint8_t* data;
  SourceKind kind;
  int num_rows;
};

// Rows of `sources` stacked, or for `paired` (two sources of equal rows) 32 of the first beside 32 of the second in
// each panel. Fills weight.panel_bytes() * num_panels() bytes at `out`.
void pack_matrix(const std::vector<SourceMatrix>& sources, bool paired, const PackedMatrix& weight, uint8_t* out,
                 const KernelTable& kernels, int num_threads);

// A matrix that is quantised already, row-major: what quantized_matrix.py says, without a part: null.
struct QuantizedSource {
  const int8_t* codes;                       // [num_rows, k]
  const float *scales, *minima;              // [num_rows, groups]
  const int16_t* zero_points;                // likewise
  const float *block_scales, *block_minima;  // [num_rows, blocks]
  int num_rows;
};

// As pack_matrix, code by code. Throws std::invalid_argument for a code, scale or offset that the format doesn't hold.
void pack_codes(const std::vector<QuantizedSource>& sources, bool paired, const PackedMatrix& weight, uint8_t* out,
                int num_threads);

// Packed columns of a stack of sources.
int packed_columns(const std::vector<int>& source_rows, bool paired);

}  // namespace qwench
