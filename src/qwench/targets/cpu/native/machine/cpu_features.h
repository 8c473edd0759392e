// Which kernel tables this processor can run.
#pragma once
#include <string>
#include <vector>

#include "kernels/kernel_table.h"

namespace qwench {

// Instruction sets that are compiled in and supported here, best first; the last is always "generic".
std::vector<std::string> supported_variants();

// The table called `name`. Throws std::invalid_argument when this processor can't run it.
const KernelTable& kernels_for(const std::string& name);

}  // namespace qwench
