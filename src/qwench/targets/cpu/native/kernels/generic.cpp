// The kernels for one instruction set: the shared sources on this set's vectors.
#include "simd/generic.h"

#include "kernels/kernel_table.h"
#include "kernels/tile.h"

namespace qwench::generic {

#include "kernels/math.inl"
#include "kernels/tile.inl"
#include "kernels/tile_rows.inl"
#include "kernels/rows.inl"
#include "kernels/linear.inl"
#include "kernels/attention.inl"
#include "kernels/pack.inl"
#include "kernels/peak.inl"

const KernelTable kTable = {"generic",  linear,       attention, merge_attention, rms_norm,   quantize, rope,
                            write_keys, write_values, embed,     pack_panel, peak};

}  // namespace qwench::generic

const qwench::KernelTable& qwench::generic_kernels() { return generic::kTable; }
