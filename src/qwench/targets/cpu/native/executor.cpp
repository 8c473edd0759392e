#include "executor.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <new>
#include <stdexcept>

#include "cpu_features.h"

namespace qwench {
namespace {

void* allocate(size_t num_bytes) {
  void* p = std::aligned_alloc(64, (num_bytes + 63) / 64 * 64 + 64);
  if (!p) throw std::bad_alloc();
  return p;
}

}  // namespace

void Executor::Free::operator()(void* p) const { std::free(p); }

Executor::Executor(const ExecutorConfig& config, const KVCache::Shape& cache)
    : config_(config), kernels_(kernels_for(config.variant)), cache_(cache), pool_(config.num_threads) {
  arena_.reset(static_cast<uint8_t*>(allocate(config.arena_bytes)));
  scratch_.reset(static_cast<float*>(allocate(size_t(config.scratch_width) * config.max_tokens * sizeof(float))));
  thread_scratch_floats_ = (attention_scratch_floats(cache.padded_dim()) + 31) / 32 * 32;
  thread_scratch_.reset(static_cast<float*>(allocate(thread_scratch_floats_ * sizeof(float) * config.num_threads)));
  step_.positions.resize(config.max_tokens);
  step_.sequence.resize(config.max_tokens);
}

QuantizedRow Executor::quantized_row(const Buffer& b, int row) const {
  const int padded = (b.width + b.group_size - 1) / b.group_size * b.group_size, groups = padded / b.group_size;
  uint8_t* base = arena_.get() + b.offset;
  auto* scales = reinterpret_cast<float*>(base + size_t(config_.max_tokens) * padded);
  auto* sums = reinterpret_cast<int32_t*>(scales + size_t(config_.max_tokens) * groups);
  return {reinterpret_cast<int8_t*>(base) + size_t(row) * padded, scales + size_t(row) * groups,
          sums + size_t(row) * groups};
}

Activation Executor::activation(const Buffer& b) const {
  if (b.group_size == 0) return {values(b), nullptr, nullptr, nullptr, b.width};
  const QuantizedRow first = quantized_row(b, 0);
  return {nullptr, first.codes, first.scales, first.sums, b.width};
}
void Executor::check(const Batch& b) const {
  auto require = [](bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(std::string("batch: ") + what);
  };
  const KVCache::Shape& shape = cache_.shape();
  require(b.num_tokens >= 1 && b.num_tokens <= config_.max_tokens, "the number of tokens is out of bounds");
  require(b.num_logits <= b.num_tokens, "more logit rows than tokens");
  require(b.query_start[0] == 0 && b.query_start[b.num_seqs] == b.num_tokens, "query_start doesn't span the tokens");
  for (int t = 0; t < b.num_tokens; ++t)
    require(b.token_ids[t] >= 0 && b.token_ids[t] < config_.vocab_size, "a token id is outside the vocabulary");
  for (int i = 0; i < b.num_logits; ++i)
    require(b.logit_rows[i] >= 0 && b.logit_rows[i] < b.num_tokens, "a logit row is out of bounds");
  for (int s = 0; s < b.num_seqs; ++s) {
    const int count = b.query_start[s + 1] - b.query_start[s], length = b.seq_lens[s];
    require(count >= 1 && length >= count, "a sequence is shorter than its tokens");
    require(length <= rope_positions_, "a position is beyond the RoPE table");
    const int blocks = (length + shape.block_size - 1) / shape.block_size;
    require(blocks <= b.max_blocks, "a block table is too short");
    for (int i = 0; i < blocks; ++i) {
      const int32_t block = b.block_tables[size_t(s) * b.max_blocks + i];
      require(block >= 0 && block < shape.num_blocks, "a block is outside the cache");
    }
  }
}

void Executor::plan(const Batch& b) {
  const int share = config_.num_heads / cache_.shape().num_kv_heads;
  const int heads_per_item = std::min(share, kMaxAttentionRows);
  const int tokens_per_item = std::max(1, kMaxAttentionRows / heads_per_item);
  step_.batch = b;
  step_.attention.clear();
  for (int s = 0; s < b.num_seqs; ++s) {
    const int first = b.query_start[s], count = b.query_start[s + 1] - first, start = b.seq_lens[s] - count;
    for (int i = 0; i < count; ++i) {
      step_.positions[first + i] = start + i;
      step_.sequence[first + i] = s;
    }
    // The last tokens of a prompt see the most positions: they go first, so that no thread ends with a long one.
    for (int i = (count - 1) / tokens_per_item * tokens_per_item; i >= 0; i -= tokens_per_item)
      for (int kv = 0; kv < cache_.shape().num_kv_heads; ++kv)
        for (int h = 0; h < share; h += heads_per_item)
          step_.attention.push_back({s, kv * share + h, std::min(heads_per_item, share - h), first + i, start + i,
                                     std::min(tokens_per_item, count - i)});
  }
}

void Executor::step(const Batch& batch, float* logits) {
  if (busy_.test_and_set(std::memory_order_acquire))
    throw std::runtime_error("two threads run one executor at the same time; take turns");
  struct Release {
    std::atomic_flag& flag;
    ~Release() { flag.clear(std::memory_order_release); }
  } release{busy_};
  check(batch);
  plan(batch);
  step_.logits = logits;
  for (auto& phase : phases_) phase->next_item.store(0, std::memory_order_relaxed);
  pool_.run([this](int thread) {
    for (auto& phase : phases_) {
      if (phase->is_logit_rows() && step_.batch.num_logits == 0) continue;
      const auto start = std::chrono::steady_clock::now();
      phase->run(*this, step_, thread);
      pool_.barrier();
      if (thread == 0)
        phase->seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
  });
}

std::vector<std::pair<std::string, double>> Executor::phase_seconds() const {
  std::vector<std::pair<std::string, double>> result;
  for (const auto& phase : phases_) result.emplace_back(phase->kind(), phase->seconds);
  return result;
}

void Executor::copy_block(int source, int destination) {
  const int n = cache_.shape().num_blocks;
  if (source < 0 || source >= n || destination < 0 || destination >= n)
    throw std::invalid_argument("copy_block: a block is outside the cache");
  cache_.copy_block(source, destination);
}

}  // namespace qwench
