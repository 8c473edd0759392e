// What this machine can do: reading memory, multiply-adds on registers, and products as an executor computes them.
#pragma once
#include <string>

#include "kernels/kernel_table.h"

namespace qwench {

// GB/s of reading a buffer of this size, the fastest of a few ways. Throws std::invalid_argument.
double measure_read_gbps(const std::string& variant, int num_threads, int megabytes);

// 10^9 operations/s; `kind` is fp32, bf16 or int8. Throws std::invalid_argument.
double measure_peak_gops(const std::string& variant, const std::string& kind, int num_threads);

// 10^9 operations/s of one thread multiplying 48 rows with a matrix that lies in its caches, groups of 128.
double measure_product_gops(const std::string& variant, WeightKind weights, ActivationKind activations);

}  // namespace qwench
