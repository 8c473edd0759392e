// The kernels for any processor, multiplying bf16 pairs: slow, but the specification of those that are fast: the shared
// sources on this set's vectors.
#define QWENCH_BF16_DOTS
#include "simd/generic.h"

#define QWENCH_TILE "kernels/tile.inl"
#include "kernels/table.inl"

const qwench::KernelTable& qwench::generic_bf16_kernels() { return generic_bf16::kTable; }
