// A draft's guesses one after another without the caller between them: steps of one token of one sequence, each of
// which is the likeliest behind the one before. For small models, whose step takes no longer than a caller's work.
#pragma once
#include <cstdint>
#include <vector>

#include "executor/executor.h"

namespace qwench {

// Where a chain ends; ChainRule of targets/target.py says what for.
struct ChainRule {
  int most;
  const double* margins;  // [num_margins], increasing: what divides the confidences
  int num_margins;
  const double* odds;  // [num_margins + 1]
  double product, least;
  double temperature;  // that margins are measured in
  int least_confidence;
  int vocab_size;  // tokens from here on are padding
};

struct Chain {
  std::vector<int32_t> tokens, confidences;
  int num_steps = 0;
  bool has_ended = false;  // by the rule; else the caller chooses from the last row of logits
};

// batch: one token of one sequence, whose tables have blocks for all that follow, with a row of logits. Throws what
// Executor::step does.
Chain follow_likeliest(Executor& executor, Batch batch, const Results& results, const ChainRule& rule);

}  // namespace qwench
