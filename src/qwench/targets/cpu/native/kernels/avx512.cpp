// The kernels for AVX-512 with VNNI: the shared sources on this set's vectors.
#include "simd/avx512.h"

#define QWENCH_TILE "kernels/tiles/tile_avx512.inl"
#include "kernels/table.inl"

const qwench::KernelTable& qwench::avx512_kernels() { return avx512::kTable; }
