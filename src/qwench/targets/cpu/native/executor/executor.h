// Runs one step of a Program: the lowered ops in order, one parallel region, no allocation, nothing between ops but a
// barrier. Knows the ops' arguments, not where they came from; targets/cpu/executor.py lowers a Program to calls of
// add_*.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/kernel_table.h"
#include "executor/kv_cache.h"
#include "ranks/link.h"
#include "ranks/team.h"
#include "machine/thread_pool.h"

namespace qwench {

// All of a step, those asked for, or one for each token and expert that it chose.
enum class Rows : int { kTokens, kLogits, kHidden, kRouted };

// An activation buffer in the arena, [rows, width] as kernels/kernel_table.h says of its kind; bf16 takes the place
// planned for fp32 or half of it. A result lies in the caller's memory: the logits, or the hidden state that `offset`
// others come after.
struct Buffer {
  size_t offset;
  int width;
  ActivationKind kind;
  int group_size;  // of integers; 0: none
  Rows rows;
  bool is_result;

  int parts() const { return kind == ActivationKind::kInt16 ? 2 : 1; }
};

// One step's work; the arrays are those of targets/target.py's StepBatch.
struct Batch {
  int num_tokens, num_seqs, num_logits, num_hidden, num_embeddings, num_groups, max_blocks;
  const int32_t *token_ids, *query_start, *seq_lens, *block_tables, *logit_rows, *hidden_rows;
  const int32_t* adapters;    // null: none
  const int32_t* top_groups;  // null: all
  const float* embeddings;
  const int32_t* block_table(int seq, int group) const {
    return block_tables + (size_t(seq) * num_groups + group) * max_blocks;
  }
};

// Gains [head_dim] of the norms of each head's query and key; null: there are none.
struct HeadNorms {
  const float *q_gain = nullptr, *k_gain = nullptr;
  float eps = 0;
};

// Where a layer's keys and values lie: in the blocks of which group's table, and in which place of each block.
struct CachePlace {
  int group, place;
};

// [first, last)
struct Span {
  int first, last;
  bool contains(int i) const { return i >= first && i < last; }
};

// Where the caller wants a step's results: logits [num_logits, num_outputs], and the last `num_states` hidden states,
// each [num_hidden, width] and `state_stride` floats after the one before.
struct Results {
  float* logits;
  float* maxima;  // [num_logits, ceil(num_outputs / 64)], the largest of every 64 neighbouring logits; null: not wanted
  float* states;
  int num_states;
  size_t state_stride;
};

// Which rows have which adapter: of_row [rows], -1 for none, and for each adapter that some have its rows.
struct AdapterRows {
  struct Group {
    int adapter;
    std::vector<int32_t> rows;
  };
  std::vector<int32_t> of_row;
  std::vector<Group> groups;  // the first num_groups of them
  int num_groups = 0;

  void clear();
  void add(int adapter);  // that of the next row
};

// Whose the routed rows of a layer are: those of expert e are [first[e], first[e + 1]), of tokens in order.
struct ExpertRows {
  std::vector<int32_t> first;   // [num_experts + 1]
  std::vector<int32_t> chosen;  // the experts that have some, in order
  std::vector<int32_t> tokens;  // [rows]
  std::vector<float> weights;   // [rows]

  void reserve(int num_experts, int num_rows);
  // From routes [num_tokens, width]: of each token top_k experts, then their weights. Allocates nothing.
  void sort(const float* routes, int width, int top_k, int num_tokens);
};

// What one step's ops share; made once per step.
struct StepContext {
  struct SequenceItem {
    int seq;
    AttentionItem item;
    int group;  // of the items that share an output, each with one partition; -1: alone
  };
  struct PartitionGroup {
    AttentionItem whole;
    const float* partials;
    std::unique_ptr<std::atomic<int>> num_left;
  };
  Batch batch;
  std::vector<int32_t> positions;  // [num_tokens]
  std::vector<int32_t> sequence;   // [num_tokens] index of the token's sequence
  std::vector<SequenceItem> attention;
  std::vector<PartitionGroup> groups;  // the first num_groups of them
  int num_groups;
  AdapterRows adapters, logit_adapters;  // of all tokens, and of those whose logits are wanted
  Results results;

  const AdapterRows& adapters_of(Rows rows) const { return rows == Rows::kLogits ? logit_adapters : adapters; }
};

class Executor;

// One adapter's part in one product, as kernels/kernel_table.h's LoraMatrix has it, with what it points to.
struct LoraWeights {
  struct alignas(64) Line {  // of the cache
    uint16_t values[32];
  };
  std::vector<Line> a, b;
  std::vector<float> scales;
  std::vector<int32_t> first_rank;
  int num_ranks = 0, k = 0, depth = 0;

  LoraMatrix view() const {
    return {a.data()->values, b.data()->values, scales.data(), first_rank.data(), num_ranks, k, depth};
  }
};

using PieceVisitor = std::function<void(void* piece, size_t num_bytes)>;
enum class Gathered { kNever, kByAll, kByHost0 };  // what hosts computed, behind an op
// Items that are handed out one by one should be so many, so that no thread waits long for the last of them.
constexpr int kItemsPerThread = 4;

// One lowered op; the kinds are in phases.cpp. `run` is called by every thread; a barrier follows.
class Phase {
 public:
  virtual ~Phase() = default;
  virtual void run(Executor& e, const StepContext& step, int thread) = 0;
  virtual bool is_idle(const Executor&, const StepContext&) const { return false; }  // nobody asked for its rows
  virtual const char* kind() const = 0;
  virtual void prepare(const StepContext&) { next_item.store(0, std::memory_order_relaxed); }  // for the next step
  // The memory that a host's ranks wrote and other hosts read, piece by piece in one order on all hosts.
  virtual void for_pieces(const Executor&, const StepContext&, int /*host*/, const PieceVisitor&) const {}
  virtual Gathered gathered(const Executor&) const { return Gathered::kNever; }
  std::atomic<int> next_item{0};  // for phases whose items are handed out one by one
  // Spent so far as thread 0 sees it: waiting for other threads and ranks included; and gathering from hosts, apart.
  double seconds = 0, gather_seconds = 0;
};

struct ExecutorConfig {
  std::string variant;
  int num_threads, max_tokens, num_heads, num_kv_heads, vocab_size, num_outputs;
  Span heads;                    // those of attention that this executor computes: all but in a team
  std::vector<Span> host_heads;  // that the ranks of each host compute
  int host;                      // this one
  size_t arena_bytes;
  size_t mail_bytes;                     // of a team's mailbox
  int scratch_width;                     // floats per token of working space between the halves of a fused op
  int experts_per_token;                 // rows that a routed buffer has for each token
  bool rounds_queries;                   // to bf16, and probabilities
  int partition_len;                     // cache positions whose attention may be computed apart, at absolute multiples
  std::vector<CachePlace> cache_places;  // by layer
};

class Executor {
 public:
  // team: the ranks of this host that compute together, this one among them; null: it computes alone. link: of the
  // first of them, to the other hosts; null: there are none. All ranks' configurations must be alike but for heads,
  // threads and panels; `cache` has the kv heads of `heads`.
  Executor(const ExecutorConfig& config, const KVCache::Shape& cache, std::unique_ptr<Team> team = nullptr,
           std::unique_ptr<Link> link = nullptr);

  void add_embed(PackedMatrix weight, Buffer out);
  void add_norm(Buffer in, const float* gain, float eps, Buffer out, const float* order);
  // Into `out`, int8 for kSiluMul alone. `residual` for kAdd. panels: that this rank computes. host_panels: that the
  // ranks of each host do.
  void add_linear(Buffer in, PackedMatrix weight, const float* bias, Epilogue epilogue, Buffer residual, Buffer out,
                  Span panels, std::vector<Span> host_panels);
  void add_qkv_rope_write(Buffer in, PackedMatrix weight, const float* bias, HeadNorms norms, int layer, Buffer q);
  void add_attention(Buffer q, int layer, int window, bool is_causal, float scale, Buffer out, const float* order);
  void add_relu(Buffer in, Buffer out);
  void add_take_rows(Buffer in, Buffer out);
  // Of a mixture of experts. routes: of each token its experts, their weights, and the shared expert's if there is one.
  // A residual without width is none. `experts` are alike but for their formats.
  void add_route(Buffer in, PackedMatrix router, int num_experts, bool normalizes, Buffer routes);
  void add_shared_linear_add(Buffer in, Buffer routes, PackedMatrix weight, Buffer residual, Buffer out, Span panels,
                             std::vector<Span> host_panels);
  void add_dispatch(Buffer in, Buffer routes, int num_experts, Buffer out);
  void add_expert_gate_up_silu(Buffer in, std::vector<PackedMatrix> experts, Buffer out, Span panels,
                               std::vector<Span> host_panels);
  void add_expert_linear_add(Buffer in, std::vector<PackedMatrix> experts, Buffer residual, Buffer out, Span panels,
                             std::vector<Span> host_panels);

  // Computes with the threads of `other` from now on, which never steps at the same time: two pools would wait for
  // each other's spinning. Throws std::invalid_argument unless both have as many.
  void share_threads(const Executor& other);

  // How many products the ops have so far; they are numbered in order.
  int num_products() const { return int(products_.size()); }
  // What adapter number `adapter` adds to a product from now on. Throws std::invalid_argument where shapes differ.
  void set_lora(int product, int adapter, LoraWeights weights);
  // Adds nothing any more, and gives its memory back.
  void drop_lora(int adapter);

  // cos and sin by position, [positions, head_dim] fp32; must outlive the executor or the next call.
  void set_rope_table(const float* table, int num_positions);

  // Computes one step. Throws std::invalid_argument for a batch out of bounds, and std::runtime_error when another
  // thread is in a step.
  void step(const Batch& batch, const Results& results);
  // Ranks above 0: runs steps until rank 0 sends a message that isn't one, whose kind it returns; 0 when a rank or a
  // host was lost.
  int serve();
  // Rank 0: a message of that kind, above 1, to all others: the first `num_bytes` of the mailbox.
  void send(int kind, size_t num_bytes);
  Team* team() const { return team_.get(); }
  int lost_host() const { return link_ ? link_->lost_host() : -1; }
  // Seconds so far that thread 0 waited for other threads, ranks and hosts.
  double waited_seconds() const { return waited_seconds_; }
  // Exchanges with other hosts so far, and bytes that this one sent and received in them.
  std::tuple<uint64_t, uint64_t, uint64_t> exchanged() const { return {num_exchanges_, sent_bytes_, received_bytes_}; }
  // Rows of the embedding matrix, [num_tokens, hidden_width()]. Throws std::invalid_argument for an unknown token.
  void embed(const int32_t* token_ids, int num_tokens, float* rows) const;
  // Blocks of the cache, each cache().block_bytes(). Throw std::invalid_argument for one outside it.
  void copy_block(int source, int destination);
  void read_block(int block, uint8_t* bytes) const;
  void write_block(int block, const uint8_t* bytes);
  // Kind and seconds of every phase since the executor was made, in order; behind one whose output hosts gather the
  // seconds of that.
  std::vector<std::pair<std::string, double>> phase_seconds() const;

  // For phases.
  const KernelTable& kernels() const { return kernels_; }
  const KVCache& cache() const { return cache_; }
  const float* rope_row(int position) const { return rope_table_ + size_t(position) * cache_.shape().head_dim; }
  // Of an int8 cache, the bias of a layer's keys [num_kv_heads, head_dim], which lie there without it; null: none.
  const float* key_bias(int layer) const { return key_bias_[layer]; }
  // The RoPE table in two parts, as rotations add up: of every 64th position; and of positions 0 to 63 over the table's
  // factor, as rows and as a panel [head_dim][64].
  const float* far_rope_row(int i) const { return far_rope_.data() + size_t(i) * cache_.shape().head_dim; }
  const float* near_rope_row(int i) const { return near_rope_rows_.get() + size_t(i) * cache_.shape().head_dim; }
  const float* near_rope_panel() const { return near_rope_panel_.get(); }
  int num_threads() const { return pool_->num_threads(); }
  int num_heads() const { return config_.num_heads; }
  int num_kv_heads() const { return config_.num_kv_heads; }
  Span heads() const { return config_.heads; }
  int heads_per_kv_head() const { return config_.num_heads / config_.num_kv_heads; }
  int first_kv_head() const { return config_.heads.first / heads_per_kv_head(); }
  // A thread's place among those that share the rows of a step, and how many they are: all ranks' where buffers are.
  int row_thread(int thread) const { return team_ ? team_->first_thread() + thread : thread; }
  int num_row_threads() const { return team_ ? team_->num_threads() : num_threads(); }
  bool has_results() const { return has_results_; }  // the caller's: of rank 0 of host 0
  int host() const { return config_.host; }
  int num_hosts() const { return int(config_.host_heads.size()); }
  Span host_heads(int host) const { return config_.host_heads[host]; }
  int partition_len() const { return config_.partition_len; }
  bool is_causal() const { return is_causal_; }  // of all layers
  bool rounds_queries() const { return config_.rounds_queries; }
  int num_outputs() const { return config_.num_outputs; }
  int hidden_width() const { return hidden_width_; }
  int num_states() const { return num_states_; }
  int num_cache_groups() const { return num_cache_groups_; }
  int num_rows(const StepContext& step, const Buffer& b) const {
    if (b.rows == Rows::kTokens) return step.batch.num_tokens;
    if (b.rows == Rows::kLogits) return step.batch.num_logits;
    if (b.rows == Rows::kRouted) return step.batch.num_tokens * config_.experts_per_token;
    return b.is_result && int(b.offset) >= step.results.num_states ? 0 : step.batch.num_hidden;
  }
  float* values(const Buffer& b) const { return reinterpret_cast<float*>(arena_ + b.offset); }
  // Where an op writes its fp32 output.
  float* output(const StepContext& step, const Buffer& b) const {
    if (!b.is_result) return values(b);
    if (b.rows == Rows::kLogits) return step.results.logits;
    return step.results.states + (step.results.num_states - 1 - b.offset) * step.results.state_stride;
  }
  uint8_t* bf16_row(const Buffer& b, int row) const {
    return arena_ + b.offset + row * bf16_row_bytes(kernels_.bf16_pairs, b.width);
  }
  float* work() const { return work_; }
  float* own_work() const { return own_work_; }  // which other ranks don't see
  // What rows are shrunk to by adapters, [max_tokens, lora_stride()].
  float* shrunk() const { return shrunk_.get(); }
  size_t lora_stride() const { return lora_stride_; }
  // By adapter, num_adapters() of them.
  const LoraMatrix* lora(int product) const { return products_[product].views.data(); }
  QuantizedRows quantized_rows(const Buffer& b) const;
  Activation activation(const Buffer& b) const;
  uint8_t* unpacked_panel(int thread) const { return unpacked_panels_.get() + thread * kUnpackedPanelBytes; }
  float* thread_scratch(int thread) const { return thread_scratch_.get() + thread * thread_scratch_floats_; }
  int max_tokens() const { return config_.max_tokens; }
  int experts_per_token() const { return config_.experts_per_token; }
  // Of the layer whose rows were dispatched last.
  ExpertRows& expert_rows() { return expert_rows_; }

 private:
  struct Free {
    void operator()(void* p) const;
  };
  template <class T>
  using Memory = std::unique_ptr<T[], Free>;

  void check(const Batch& batch) const;
  void run(const Batch& batch, const Results& results);
  bool barrier();
  bool gather(const Phase& phase, int thread);
  bool is_gathered(const Phase& phase) const;
  bool exchange(const Phase& phase, Link::To to);
  // A step by way of the mailbox: the batch as rank 0 writes it and the others read it.
  void send_step(const Batch& batch, const Results& results);
  void receive(Batch& batch, Results& results) const;
  int receive_message();
  void take_logits_of_others(const Results& results) const;
  CachePlace cache_place(int layer) const;
  std::vector<Span> panels_of_heads(int q_width) const;
  void reserve_thread_scratch(size_t num_floats);
  void plan(const Batch& batch);
  void plan_adapters();
  void split_attention();
  void add_logits_of_hosts(int width, std::vector<Span> host_panels);
  void add(std::unique_ptr<Phase> phase) { phases_.push_back(std::move(phase)); }
  int add_product(const PackedMatrix& weight) {
    products_.push_back({weight, {}, {}});
    return num_products() - 1;
  }
  void count_state(const Buffer& out) { num_states_ += out.is_result && out.rows == Rows::kHidden; }

  const ExecutorConfig config_;
  const KernelTable& kernels_;
  KVCache cache_;
  std::shared_ptr<ThreadPool> pool_;
  std::unique_ptr<Team> team_;
  std::unique_ptr<Link> link_;
  const bool has_results_;
  double waited_seconds_ = 0;
  uint64_t num_exchanges_ = 0, sent_bytes_ = 0, received_bytes_ = 0;
  std::vector<size_t> exchanged_bytes_;  // by host, of the op at hand
  // Of a team, the arena, the work and what ranks other than 0 find of results lie in its memory.
  Memory<uint8_t> own_arena_;
  Memory<float> own_scratch_;
  uint8_t* arena_;
  float *work_, *own_work_;
  float *team_logits_ = nullptr, *team_maxima_ = nullptr;
  Span logit_panels_{0, 0}, host_logit_panels_{0, 0};  // that this rank computes, and all of host 0
  Memory<float> thread_scratch_;
  size_t thread_scratch_floats_ = 0;
  Memory<uint8_t> unpacked_panels_;  // of each thread; untouched where there is no int4
  Memory<float> shrunk_;
  size_t lora_stride_ = 0;
  int num_adapters_ = 0;  // the largest number of one, and one
  PackedMatrix embedding_{};
  int hidden_width_ = 0, num_states_ = 0;
  int num_cache_groups_ = 1;
  bool is_causal_ = true;
  const float* rope_table_ = nullptr;
  int rope_positions_ = 0;
  std::vector<float> far_rope_;
  Memory<float> near_rope_rows_, near_rope_panel_;
  std::vector<const float*> key_bias_;
  std::vector<std::unique_ptr<Phase>> phases_;
  struct Product {
    PackedMatrix weight;
    std::vector<LoraWeights> lora;  // by adapter
    std::vector<LoraMatrix> views;
  };
  std::vector<Product> products_;  // those of the phases, in order
  std::vector<float> partials_;    // states of partitions computed apart
  ExpertRows expert_rows_;
  StepContext step_;
  std::atomic_flag busy_;
};

}  // namespace qwench
