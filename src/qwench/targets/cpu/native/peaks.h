// The machine's measured ceilings: memory read bandwidth and arithmetic.
#pragma once
#include <string>

namespace qwench {

// GB/s at which `num_threads` threads together read `megabytes` MB of memory, best of a few passes.
double measure_read_gbps(int num_threads, int megabytes);

// 10^9 operations per second (a multiply-add counts two) of `kind`: "fp32" or "int8", with the variant's own
// instructions. Throws std::invalid_argument for an unknown kind.
double measure_peak_gops(const std::string& variant, const std::string& kind, int num_threads);

}  // namespace qwench
