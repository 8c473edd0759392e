#include "sampling/chain.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "sampling/sampling.h"

namespace qwench {
namespace {

constexpr int kFewGroups = 16;  // of logits: the second likeliest is often in the group of the likeliest

struct Likeliest {
  int token;
  double margin;  // NaN: there are logits that are no finite numbers
};

Likeliest find_likeliest(const float* logits, const float* maxima, int num_logits) {
  const int token = likeliest(logits, num_logits, maxima);
  if (token < 0) return {0, std::numeric_limits<double>::quiet_NaN()};
  const int num_groups = (num_logits + int(kLogitGroup) - 1) / int(kLogitGroup), best = token / int(kLogitGroup);
  float second = -std::numeric_limits<float>::infinity();
  if (num_groups > kFewGroups) {
    for (int g = 0; g < num_groups; ++g)
      if (g != best) second = std::max(second, maxima[g]);
  } else {
    for (int i = 0; i < num_logits; ++i)
      if (i != token) second = std::max(second, logits[i]);
  }
  return {token, double(logits[token]) - double(second)};
}

}  // namespace

Chain follow_likeliest(Executor& executor, Batch batch, const Results& results, const ChainRule& rule) {
  Chain chain;
  int32_t token = batch.token_ids[0], length = batch.seq_lens[0];
  batch.token_ids = &token, batch.seq_lens = &length;
  double product = rule.product;
  while (true) {
    executor.step(batch, results);
    ++chain.num_steps;
    const Likeliest found = find_likeliest(results.logits, results.maxima, executor.num_outputs());
    const double margin = found.margin / rule.temperature;
    const double* end = rule.margins + rule.num_margins;
    const int confidence = int(std::upper_bound(rule.margins, end, margin) - rule.margins);
    if (std::isnan(margin) || confidence < rule.least_confidence || found.token >= rule.vocab_size) return chain;
    chain.tokens.push_back(found.token);
    chain.confidences.push_back(confidence);
    product *= rule.odds[confidence];
    chain.has_ended = product < rule.least || int(chain.tokens.size()) == rule.most;
    if (chain.has_ended) return chain;
    token = found.token, ++length;
  }
}

}  // namespace qwench
