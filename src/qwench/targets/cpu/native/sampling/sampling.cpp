#include "sampling/sampling.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

namespace qwench {
namespace {

constexpr size_t kChunk = 256;            // weights are summed in chunks, then over chunks
constexpr size_t kLikely[] = {64, 1024};  // top-p looks among so many before it sorts all

// NumPy's pairwise sum, in whose order the weights were summed from the beginning.
template <class Sum>
Sum pairwise_sum(const float* x, size_t n) {
  if (n < 8) return std::accumulate(x, x + n, Sum(0));
  if (n > 128) {
    const size_t half = n / 2 - n / 2 % 8;
    return pairwise_sum<Sum>(x, half) + pairwise_sum<Sum>(x + half, n - half);
  }
  Sum lanes[8];
  std::copy(x, x + 8, lanes);
  size_t i = 8;
  for (; i + 8 <= n; i += 8) {
    for (size_t lane = 0; lane < 8; ++lane) lanes[lane] += Sum(x[i + lane]);
  }
  Sum sum = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
  for (; i < n; ++i) sum += Sum(x[i]);
  return sum;
}

void chunk_sums(const float* weights, size_t n, std::vector<float>& sums) {
  sums.clear();
  for (size_t start = 0; start < n; start += kChunk) {
    const size_t end = std::min(start + kChunk, n);
    sums.push_back(weights[start] + pairwise_sum<float>(weights + start + 1, end - start - 1));
  }
}

constexpr size_t kLanes = 16;

// std::max_element is not vectorised. No NaN among them.
float largest_of(const float* x, size_t n) {
  float lanes[kLanes], largest = x[0];
  std::fill(lanes, lanes + kLanes, x[0]);
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = std::max(lanes[lane], x[i + lane]);
  for (; i < n; ++i) largest = std::max(largest, x[i]);
  for (float value : lanes) largest = std::max(largest, value);
  return largest;
}

bool are_finite(const float* x, size_t n) {
  float lanes[kLanes] = {}, sum = 0;  // of zeros, and NaN
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += x[i + lane] - x[i + lane];
  for (; i < n; ++i) sum += x[i] - x[i];
  return std::accumulate(lanes, lanes + kLanes, sum) == 0;
}

uint64_t high_half(uint64_t a, uint64_t b) { return uint64_t((static_cast<unsigned __int128>(a) * b) >> 64); }

// The first output of Philox4x64-10 for numpy.random.Philox(key, counter), which counts before it draws.
uint64_t philox(const uint64_t* key, uint64_t counter, uint64_t attempt) {
  uint64_t x[4] = {counter + 1, attempt + (counter + 1 == 0), 0, 0}, k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = 0xD2E7470EE14C6C93, b = 0xCA5A826395121157;
    const uint64_t high0 = high_half(a, x[0]), low0 = a * x[0], high1 = high_half(b, x[2]), low1 = b * x[2];
    x[0] = high1 ^ x[1] ^ k0;
    x[1] = low1;
    x[2] = high0 ^ x[3] ^ k1;
    x[3] = low0;
    k0 += 0x9E3779B97F4A7C15;
    k1 += 0xBB67AE8584CAA73B;
  }
  return x[0];
}

// The first index whose cumulative weight exceeds `uniform` of the sum.
size_t inverse_cumulative(const float* weights, size_t n, double uniform, std::vector<float>& sums) {
  chunk_sums(weights, n, sums);
  const double goal = uniform * std::accumulate(sums.begin(), sums.end(), 0.0);
  double before = 0;
  size_t chunk = 0;
  while (chunk + 1 < sums.size() && before + sums[chunk] <= goal) before += sums[chunk++];
  const size_t start = chunk * kChunk, end = std::min(start + kChunk, n);
  double within = 0;
  size_t last = start;  // that has any weight: the two sums can differ in the last bit
  for (size_t i = start; i < end; ++i) {
    if (within + weights[i] > within) last = i;
    within += weights[i];
    if (within > goal - before) return i;
  }
  return last;
}

}  // namespace

int likeliest(const float* row, size_t vocab_size, const float* maxima) {
  const size_t groups = (vocab_size + kLogitGroup - 1) / kLogitGroup;
  size_t best = 0;
  for (size_t g = 0; g < groups; ++g) {
    if (std::isnan(maxima[g])) return -1;
    if (maxima[g] > maxima[best]) best = g;
  }
  if (!std::isfinite(maxima[best])) return -1;
  const float* start = row + best * kLogitGroup;
  return int(std::max_element(start, row + std::min(vocab_size, (best + 1) * kLogitGroup)) - row);
}

void group_maxima(const float* row, size_t vocab_size, float* maxima) {
  for (size_t start = 0; start < vocab_size; start += kLogitGroup) {
    const size_t n = std::min(vocab_size - start, kLogitGroup);
    const bool is_known = are_finite(row + start, n);
    maxima[start / kLogitGroup] = is_known ? largest_of(row + start, n) : std::numeric_limits<float>::quiet_NaN();
  }
}

void penalize(float* row, const int64_t* ids, const float* counts, size_t num_ids, const Penalties& penalties) {
  for (size_t i = 0; i < num_ids; ++i) {
    float x = row[ids[i]];
    if (penalties.repetition != 1) x = x < 0 ? x * penalties.repetition : x / penalties.repetition;
    row[ids[i]] = x - penalties.frequency * counts[i] - penalties.presence * float(counts[i] > 0);
  }
}

double sum_of_weights(const float* weights, size_t n) {
  std::vector<float> sums;
  chunk_sums(weights, n, sums);
  return pairwise_sum<double>(sums.data(), sums.size());
}

void Draws::clear() {
  rows_.clear();
  weights_.clear();
  ids_.clear();
}

void Draws::gather(const float* row, size_t vocab_size, const float* maxima, const Sampling& sampling) {
  const bool is_whole = sampling.top_k == 0 || sampling.top_k >= vocab_size;
  const size_t start = weights_.size(), groups = (vocab_size + kLogitGroup - 1) / kLogitGroup;
  // NaN stands for a group with an infinite logit, too.
  if (maxima && std::any_of(maxima, maxima + groups, [](float x) { return std::isnan(x); })) maxima = nullptr;
  const float top = maxima ? largest_of(maxima, groups) : largest_of(row, vocab_size);
  if (is_whole) {
    weights_.insert(weights_.end(), row, row + vocab_size);
  } else {
    find_likeliest(row, vocab_size, maxima, sampling.top_k);
    for (int id : found_) weights_.push_back(row[id]);
  }
  if (std::isinf(top)) {  // a penalty can overflow
    for (size_t i = start; i < weights_.size(); ++i) weights_[i] = weights_[i] == top ? 0.0f : -top;
  } else {
    for (size_t i = start; i < weights_.size(); ++i) weights_[i] = (weights_[i] - top) / sampling.temperature;
  }
  rows_.push_back({sampling, start, weights_.size(), ids_.size(), is_whole});
  if (!is_whole) ids_.insert(ids_.end(), found_.begin(), found_.end());
}

int Draws::draw(size_t r, uint64_t counter, uint64_t attempt) {
  const Row& row = rows_[r];
  const float* weights = weights_.data() + row.start;
  size_t n = row.end - row.start;
  kept_.clear();
  if (row.sampling.top_p < 1) {
    keep_top_p(weights, n, row.sampling.top_p);
  } else if (row.sampling.min_p > 0) {
    kept_.resize(n);
    std::iota(kept_.begin(), kept_.end(), 0);
  }
  const bool is_filtered = !kept_.empty();
  if (is_filtered) {
    std::erase_if(kept_, [&](int i) { return weights[i] < row.sampling.min_p; });
    kept_weights_.clear();
    for (int i : kept_) kept_weights_.push_back(weights[i]);
    weights = kept_weights_.data();
    n = kept_.size();
  }
  const double uniform = double(philox(row.sampling.key, counter, attempt) >> 11) * 0x1p-53;
  size_t choice = inverse_cumulative(weights, n, uniform, scratch_);
  if (is_filtered) choice = size_t(kept_[choice]);
  return row.is_whole ? int(choice) : ids_[row.ids_start + choice];
}

// Into found_ the indices, increasing, of all values not below the k-th largest. The k-th largest of some groups'
// maxima is at most the k-th largest value: only groups that reach it matter.
void Draws::find_likeliest(const float* values, size_t n, const float* maxima, size_t k) {
  const auto kth_largest = [&] {
    std::nth_element(scratch_.begin(), scratch_.begin() + (k - 1), scratch_.end(), std::greater<float>());
    return scratch_[k - 1];
  };
  const size_t groups = (n + kLogitGroup - 1) / kLogitGroup;
  if (k > groups) {
    found_.resize(n);
    std::iota(found_.begin(), found_.end(), 0);
  } else {
    if (!maxima) {
      group_maxima_.resize(groups);
      for (size_t g = 0; g < groups; ++g) {
        const size_t start = g * kLogitGroup;
        group_maxima_[g] = largest_of(values + start, std::min(n - start, kLogitGroup));
      }
      maxima = group_maxima_.data();
    }
    scratch_.assign(maxima, maxima + groups);
    const float bound = kth_largest();
    size_t count = 0;
    for (size_t start = 0; start < n; start += kLogitGroup) {
      if (maxima[start / kLogitGroup] < bound) continue;
      found_.resize(std::max(found_.size(), count + kLogitGroup));
      for (size_t i = start; i < std::min(start + kLogitGroup, n); ++i) {
        found_[count] = int(i);
        count += values[i] >= bound;  // no branch: nobody could foretell it
      }
    }
    found_.resize(count);
  }
  scratch_.clear();
  for (int i : found_) scratch_.push_back(values[i]);
  const float least = kth_largest();
  std::erase_if(found_, [&](int i) { return values[i] < least; });
}

const std::vector<int>& Draws::largest(const float* values, size_t n, size_t k) {
  find_likeliest(values, n, nullptr, k);
  sort_found(values);
  found_.resize(k);
  return found_;
}

void Draws::sort_found(const float* values) {
  std::sort(found_.begin(), found_.end(),
            [&](int a, int b) { return values[a] > values[b] || (values[a] == values[b] && a < b); });
}

// Into kept_ the fewest largest weights that reach `top_p` of their sum, by index; the lowest among equals.
void Draws::keep_top_p(const float* weights, size_t n, double top_p) {
  chunk_sums(weights, n, scratch_);
  const double goal = top_p * pairwise_sum<double>(scratch_.data(), scratch_.size());
  for (size_t size : {kLikely[0], kLikely[1], n}) {
    find_likeliest(weights, n, nullptr, std::min(size, n));
    sort_found(weights);
    double reached = 0;
    size_t count = 0;
    while (count < found_.size() && reached < goal) reached += weights[found_[count++]];
    if (reached < goal && size < n) continue;
    kept_.assign(found_.begin(), found_.begin() + count);
    std::sort(kept_.begin(), kept_.end());
    return;
  }
}

}  // namespace qwench
