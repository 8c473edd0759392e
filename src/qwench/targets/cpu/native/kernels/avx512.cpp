// The kernels for one instruction set: the shared sources on this set's vectors.
#include "simd/avx512.h"

#include "kernels/kernel_table.h"
#include "kernels/tile.h"

namespace qwench::avx512 {

#include "kernels/math.inl"
#include "kernels/tile_avx512.inl"
#include "kernels/tile_rows.inl"
#include "kernels/rows.inl"
#include "kernels/linear.inl"
#include "kernels/attention.inl"
#include "kernels/pack.inl"
#include "kernels/peak.inl"

const KernelTable kTable = {"avx512",   linear,       attention, merge_attention, rms_norm,   quantize, rope,
                            write_keys, write_values, embed,     pack_panel, peak};

}  // namespace qwench::avx512

const qwench::KernelTable& qwench::avx512_kernels() { return avx512::kTable; }
