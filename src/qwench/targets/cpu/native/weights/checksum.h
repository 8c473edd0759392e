// CRC-32C at the speed of memory, and a scan for NaN and infinity.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/kernel_table.h"

namespace qwench {

// CRC-32C (Castagnoli) of the little-endian CRC-32Cs of the 1 MiB chunks of `data`; any single flipped bit changes it.
uint32_t crc32c(const uint8_t* data, size_t num_bytes, int num_threads);

// Whether every value is finite.
bool all_finite(const uint8_t* data, size_t num_bytes, SourceKind kind, int num_threads);

}  // namespace qwench
