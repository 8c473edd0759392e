// The kernels for one instruction set: the shared sources on this set's vectors.
#include "simd/avx2.h"

#include "kernels/kernel_table.h"
#include "kernels/tile.h"

namespace qwench::avx2 {

#include "kernels/math.inl"
#include "kernels/tile.inl"
#include "kernels/tile_rows.inl"
#include "kernels/rows.inl"
#include "kernels/linear.inl"
#include "kernels/attention.inl"
#include "kernels/pack.inl"
#include "kernels/peak.inl"

const KernelTable kTable = {"avx2",     linear,       attention, merge_attention, rms_norm,   quantize, rope,
                            write_keys, write_values, embed,     pack_panel, peak};

}  // namespace qwench::avx2

const qwench::KernelTable& qwench::avx2_kernels() { return avx2::kTable; }
