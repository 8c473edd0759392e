// The kernels for any processor: the shared sources on this set's vectors.
#include "simd/generic.h"

#define QWENCH_TILE "kernels/tiles/tile.inl"
#include "kernels/table.inl"

const qwench::KernelTable& qwench::generic_kernels() { return generic::kTable; }
