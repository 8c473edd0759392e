// Draws tokens from rows of logits: temperature, top-k, top-p, min-p and one random number a token, with sums in a
// fixed order. Between its two calls the caller takes the exponentials, so that NumPy's decide the bits wherever they
// are taken.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace qwench {

constexpr size_t kLogitGroup = 64;  // neighbouring logits whose largest a step gives

// How the tokens of one sample are chosen. key: of its random numbers.
struct Sampling {
  float temperature;
  size_t top_k;  // 0: all
  double top_p;
  float min_p;
  uint64_t key[2];
};

// The first index of the largest logit, or -1 where that is none that is finite. maxima: of each kLogitGroup of them.
int likeliest(const float* row, size_t vocab_size, const float* maxima);

// The largest of each kLogitGroup of a row, NaN where one of them is NaN or infinite.
void group_maxima(const float* row, size_t vocab_size, float* maxima);

// Of tokens seen in prompt or answer; SamplingParams says what for.
struct Penalties {
  float repetition, presence, frequency;
};

// Takes them off a row's logits at `ids`, which occurred in the answer as often as `counts` says.
void penalize(float* row, const int64_t* ids, const float* counts, size_t num_ids, const Penalties& penalties);

// Of a row, by chunks of a fixed size, in double precision over these.
double sum_of_weights(const float* weights, size_t n);

// The candidates of some rows, from `gather` to `draw`.
class Draws {
 public:
  void clear();

  // Adds what top-k leaves of a row whose largest logit is finite. maxima: of each kLogitGroup of them, or null.
  void gather(const float* row, size_t vocab_size, const float* maxima, const Sampling& sampling);

  // Of all candidates of all rows, (logit - largest of the row) / temperature; `draw` wants their exponentials.
  std::vector<float>& weights() { return weights_; }
  size_t num_rows() const { return rows_.size(); }

  // The ids of the k largest values, largest first, the lowest id first among equals; valid until the next call.
  const std::vector<int>& largest(const float* values, size_t n, size_t k);

  // The token of row r: the inverse of the cumulative distribution at the uniform of this counter, by order of ids.
  int draw(size_t r, uint64_t counter, uint64_t attempt);

 private:
  struct Row {
    Sampling sampling;
    size_t start, end;  // of its weights
    size_t ids_start;   // of its candidates' ids
    bool is_whole;      // the candidates are all tokens, and have no ids
  };

  void find_likeliest(const float* values, size_t n, const float* maxima, size_t k);
  void sort_found(const float* values);
  void keep_top_p(const float* weights, size_t n, double top_p);

  std::vector<Row> rows_;
  std::vector<float> weights_, scratch_, kept_weights_, group_maxima_;
  std::vector<int> ids_, found_, kept_;
};

}  // namespace qwench
