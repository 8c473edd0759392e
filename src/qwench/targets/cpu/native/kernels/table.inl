// Everything that an instruction set's unit holds, and its table. Included after the simd header and its tiles' name.
#include "kernels/kernel_table.h"
#include "kernels/tiles/tile.h"

namespace qwench::QWENCH_SIMD {

#include "kernels/math.inl"
#include "kernels/scales.inl"
#include QWENCH_TILE
#include "kernels/tiles/tile_rows.inl"
#include "kernels/rows.inl"
#include "kernels/attention/cache.inl"
#include "kernels/lora.inl"
#include "kernels/linear.inl"
#include "kernels/attention/attention.inl"
#include "kernels/pack.inl"
#include "kernels/peak.inl"

const KernelTable kTable = {kBf16Pairs, linear,        lora_shrink, attention, merge_attention, rms_norm,
                            quantize,   round_to_bf16, route,       rope,      write_keys,      write_values,
                            embed,      pack_panel,    peak,        read};

}  // namespace qwench::QWENCH_SIMD
