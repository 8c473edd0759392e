// Which logits of a row are looked at, by the largest of each 64 neighbours: the sampler's needs, as StepBatch's
// top_groups has them. Knows nothing of samplers.
#pragma once
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace qwench {

// What a group's maximum must reach to be among the `count` largest of `num_groups`; -inf where all groups matter: if
// count is 0, if there are no more, or if one maximum is NaN. sorted: [num_groups], for the search.
inline float top_group_floor(const float* maxima, int num_groups, int count, float* sorted) {
  const float* end = maxima + num_groups;
  if (count == 0 || count >= num_groups || std::any_of(maxima, end, [](float m) { return std::isnan(m); }))
    return -std::numeric_limits<float>::infinity();
  if (count == 1) return *std::max_element(maxima, end);
  std::copy(maxima, end, sorted);
  std::nth_element(sorted, sorted + count - 1, sorted + num_groups, std::greater<float>());
  return sorted[count - 1];
}

}  // namespace qwench
