// The kernels for AVX-512 with VNNI and BF16: the shared sources on this set's vectors.
#define QWENCH_BF16_PAIRS
#include "simd/avx512.h"

#define QWENCH_TILE "kernels/tiles/tile_avx512.inl"
#include "kernels/table.inl"

const qwench::KernelTable& qwench::avx512bf16_kernels() { return avx512bf16::kTable; }
