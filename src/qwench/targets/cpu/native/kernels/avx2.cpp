// The kernels for AVX2 and FMA: the shared sources on this set's vectors.
#include "simd/avx2.h"

#define QWENCH_TILE "kernels/tiles/tile_avx2.inl"
#include "kernels/table.inl"

const qwench::KernelTable& qwench::avx2_kernels() { return avx2::kTable; }
