#include "machine/cpu_features.h"

#include <algorithm>
#include <stdexcept>

namespace qwench {

std::vector<std::string> supported_variants() {
  std::vector<std::string> names;
#ifdef QWENCH_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) names.push_back("avx512bf16");
  if (avx512) names.push_back("avx512");
  if (avx2) names.push_back("avx2");
#endif
  names.push_back("generic");
  return names;
}

const KernelTable& kernels_for(const std::string& name) {
  const auto names = supported_variants();
  if (std::find(names.begin(), names.end(), name) == names.end())
    throw std::invalid_argument("this processor can't run the '" + name + "' kernels");
#ifdef QWENCH_X86
  if (name == "avx512bf16") return avx512bf16_kernels();
  if (name == "avx512") return avx512_kernels();
  if (name == "avx2") return avx2_kernels();
#endif
  return generic_kernels();
}

}  // namespace qwench
