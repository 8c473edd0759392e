#include "executor/executor.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

#include "machine/cpu_features.h"
#include "machine/floating_point.h"

namespace qwench {
namespace {

constexpr size_t kHugePage = size_t(2) << 20;

// What fills a few huge pages begins on one, where the system has them: activations are walked in long strides.
void* allocate(size_t num_bytes) {
  const size_t alignment = num_bytes >= 2 * kHugePage ? kHugePage : 64;
  void* p = std::aligned_alloc(alignment, (num_bytes + 64 + alignment - 1) / alignment * alignment);
  if (!p) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (alignment == kHugePage) madvise(p, num_bytes, MADV_HUGEPAGE);
#endif
  return p;
}

constexpr int kStep = 1;  // the kind of a message

struct StepMail {
  Batch batch;  // counts alone
  int num_states;
  bool has_adapters, has_top_groups, wants_maxima;
};

// The arrays of a batch behind its StepMail, one after another: `visit` gets each with its length.
template <class Visit>
void for_arrays(Batch& b, const StepMail& head, int hidden_width, Visit visit) {
  visit(b.token_ids, b.num_tokens);
  visit(b.query_start, b.num_seqs + 1);
  visit(b.seq_lens, b.num_seqs);
  visit(b.block_tables, size_t(b.num_seqs) * b.num_groups * b.max_blocks);
  visit(b.logit_rows, b.num_logits);
  visit(b.hidden_rows, b.num_hidden);
  visit(b.adapters, head.has_adapters ? b.num_seqs : 0);
  visit(b.top_groups, head.has_top_groups ? b.num_logits : 0);
  visit(b.embeddings, size_t(b.num_embeddings) * hidden_width);
}

}  // namespace

void Executor::Free::operator()(void* p) const { std::free(p); }

Executor::Executor(const ExecutorConfig& config, const KVCache::Shape& cache, std::unique_ptr<Team> team,
                   std::unique_ptr<Link> link)
    : config_(config),
      kernels_(kernels_for(config.variant)),
      cache_(cache),
      pool_(std::make_shared<ThreadPool>(config.num_threads)),
      team_(std::move(team)),
      link_(std::move(link)),
      has_results_(!team_ || (team_->rank() == 0 && (!link_ || link_->host() == 0))) {
  if (num_hosts() > 1 && !team_) throw std::invalid_argument("hosts are of a team, if it is one of one rank");
  const size_t work_bytes = size_t(config.scratch_width) * config.max_tokens * sizeof(float);
  own_scratch_.reset(static_cast<float*>(allocate(work_bytes)));
  own_work_ = work_ = own_scratch_.get();
  if (team_) {
    const size_t panels = (config.num_outputs + kPanelColumns - 1) / kPanelColumns, rows = config.max_tokens;
    arena_ = team_->take(config.arena_bytes);
    work_ = reinterpret_cast<float*>(team_->take(work_bytes));
    team_logits_ = reinterpret_cast<float*>(team_->take(rows * config.num_outputs * sizeof(float)));
    team_maxima_ = reinterpret_cast<float*>(team_->take(rows * panels * sizeof(float)));
  } else {
    own_arena_.reset(static_cast<uint8_t*>(allocate(config.arena_bytes)));
    arena_ = own_arena_.get();
  }
  reserve_thread_scratch(attention_scratch_floats(cache.head_dim, cache.padded_dim()));
  unpacked_panels_.reset(static_cast<uint8_t*>(allocate(kUnpackedPanelBytes * num_threads())));
  for (const CachePlace& at : config.cache_places) {
    if (at.group < 0 || at.place < 0 || at.place >= cache.num_places)
      throw std::invalid_argument("a layer's place is outside the cache");
    num_cache_groups_ = std::max(num_cache_groups_, at.group + 1);
  }
  const size_t near_bytes = size_t(kScoreTile) * cache.head_dim * sizeof(float);
  near_rope_rows_.reset(static_cast<float*>(allocate(near_bytes)));
  near_rope_panel_.reset(static_cast<float*>(allocate(near_bytes)));
  if (team_) team_->set_mailbox(team_->take(config.mail_bytes), config.mail_bytes);
  key_bias_.resize(config.cache_places.size());
  exchanged_bytes_.resize(num_hosts());
  step_.positions.resize(config.max_tokens);
  step_.sequence.resize(config.max_tokens);
}

void Executor::share_threads(const Executor& other) {
  if (team_ || other.team_ || other.num_threads() != num_threads())
    throw std::invalid_argument("only executors of equally many threads, and of one process, can share them");
  pool_ = other.pool_;
}

void Executor::set_rope_table(const float* table, int num_positions) {
  rope_table_ = table, rope_positions_ = num_positions;
  const int dim = cache_.shape().head_dim;
  far_rope_.clear();
  for (int p = 0; p < num_positions; p += kScoreTile)
    far_rope_.insert(far_rope_.end(), table + size_t(p) * dim, table + size_t(p + 1) * dim);
  const float factor = num_positions ? table[0] : 1.0f;  // cos 0, times the factor
  for (int p = 0; p < kScoreTile; ++p)
    for (int d = 0; d < dim; ++d) {
      const float v = p < num_positions ? table[size_t(p) * dim + d] / factor : 0.0f;
      near_rope_rows_[size_t(p) * dim + d] = near_rope_panel_[size_t(d) * kScoreTile + p] = v;
    }
}

void Executor::reserve_thread_scratch(size_t num_floats) {
  if (num_floats <= thread_scratch_floats_) return;
  thread_scratch_floats_ = (num_floats + 31) / 32 * 32;
  thread_scratch_.reset(static_cast<float*>(allocate(thread_scratch_floats_ * sizeof(float) * num_threads())));
}

QuantizedRows Executor::quantized_rows(const Buffer& b) const {
  const int padded = (b.width + b.group_size - 1) / b.group_size * b.group_size, groups = padded / b.group_size;
  const size_t tokens = size_t(config_.max_tokens) * (b.rows == Rows::kRouted ? config_.experts_per_token : 1);
  const size_t rows = tokens * b.parts();
  uint8_t* base = arena_ + b.offset;
  auto* scales = reinterpret_cast<float*>(base + rows * padded);
  auto* starts = reinterpret_cast<int32_t*>(scales + rows * groups);
  return {{reinterpret_cast<int8_t*>(base), scales, starts, rows, padded, b.parts()}, b.group_size};
}

Activation Executor::activation(const Buffer& b) const {
  if (b.group_size == 0) {
    const bool in_pairs = b.kind == ActivationKind::kBf16 && kernels_.bf16_pairs;
    return {b.kind, arena_ + b.offset, bf16_row_bytes(in_pairs, b.width), nullptr, nullptr, nullptr, 0, 1};
  }
  const QuantizedRow first = quantized_rows(b).first;
  return {b.kind, nullptr, 0, first.codes, first.scales, first.starts, first.group_stride, b.parts()};
}

void Executor::check(const Batch& b) const {
  auto require = [](bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(std::string("batch: ") + what);
  };
  const KVCache::Shape& shape = cache_.shape();
  require(b.num_tokens >= 1 && b.num_tokens <= config_.max_tokens, "the number of tokens is out of bounds");
  require(b.num_logits <= b.num_tokens, "more logit rows than tokens");
  require(b.num_hidden <= b.num_tokens, "more hidden rows than tokens");
  for (int s = 0; b.adapters && s < b.num_seqs; ++s)
    require(b.adapters[s] >= -1 && b.adapters[s] < num_adapters_, "there is no adapter of that number");
  require(b.query_start[0] == 0 && b.query_start[b.num_seqs] == b.num_tokens, "query_start doesn't span the tokens");
  for (int t = 0; t < b.num_tokens; ++t)
    require(b.token_ids[t] >= -b.num_embeddings && b.token_ids[t] < config_.vocab_size,
            "a token id is outside the vocabulary and the embeddings");
  for (int i = 0; i < b.num_logits; ++i)
    require(b.logit_rows[i] >= 0 && b.logit_rows[i] < b.num_tokens, "a logit row is out of bounds");
  for (int i = 0; b.top_groups && i < b.num_logits; ++i)
    require(b.top_groups[i] >= 0, "a row's number of groups is negative");
  for (int i = 0; i < b.num_hidden; ++i)
    require(b.hidden_rows[i] >= 0 && b.hidden_rows[i] < b.num_tokens, "a hidden row is out of bounds");
  for (int s = 0; s < b.num_seqs; ++s) {
    const int count = b.query_start[s + 1] - b.query_start[s], length = b.seq_lens[s];
    require(count >= 1 && length >= count, "a sequence is shorter than its tokens");
    require(is_causal_ || length == count, "bidirectional attention sees a sequence whole, in one step");
    require(length <= rope_positions_, "a position is beyond the RoPE table");
    const int blocks = (length + shape.block_size - 1) / shape.block_size;
    require(blocks <= b.max_blocks, "a block table is too short");
    for (int group = 0; group < b.num_groups; ++group)
      for (int i = 0; i < blocks; ++i) {
        const int32_t block = b.block_table(s, group)[i];
        require(block >= 0 && block < shape.num_blocks, "a block is outside the cache");
      }
  }
}

void Executor::plan(const Batch& b) {
  const int share = heads_per_kv_head();
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
      for (int head = config_.heads.first; head < config_.heads.last;) {
        const int of_kv_head = std::min((head / share + 1) * share, config_.heads.last) - head;
        const int num_heads = std::min(heads_per_item, of_kv_head), num_tokens = std::min(tokens_per_item, count - i);
        const int end = is_causal_ ? start + i + num_tokens : b.seq_lens[s];
        AttentionItem item{head, num_heads, first + i, start + i, num_tokens, end, 0, 0, nullptr};
        item.last_partition = (end + config_.partition_len - 1) / config_.partition_len;
        step_.attention.push_back({s, item, -1});
        head += num_heads;
      }
  }
  split_attention();
  plan_adapters();
}

void Executor::plan_adapters() {
  const Batch& b = step_.batch;
  step_.adapters.clear();
  step_.logit_adapters.clear();
  if (!b.adapters || std::all_of(b.adapters, b.adapters + b.num_seqs, [](int32_t a) { return a < 0; })) return;
  for (int row = 0; row < b.num_tokens; ++row) step_.adapters.add(b.adapters[step_.sequence[row]]);
  for (int i = 0; i < b.num_logits; ++i) step_.logit_adapters.add(step_.adapters.of_row[b.logit_rows[i]]);
}

void AdapterRows::clear() {
  of_row.clear();
  num_groups = 0;
}

void AdapterRows::add(int adapter) {
  const int row = int(of_row.size());
  of_row.push_back(adapter);
  if (adapter < 0) return;
  int g = 0;
  while (g < num_groups && groups[g].adapter != adapter) ++g;
  if (g == num_groups) {
    if (int(groups.size()) == g) groups.emplace_back();
    groups[g].adapter = adapter;
    groups[g].rows.clear();
    ++num_groups;
  }
  groups[g].rows.push_back(row);
}

void Executor::set_lora(int product, int adapter, LoraWeights weights) {
  auto require = [](bool ok) {
    if (!ok) throw std::invalid_argument("an adapter has the wrong shape");
  };
  require(product >= 0 && product < num_products() && adapter >= 0);
  Product& p = products_[product];
  const size_t panels = p.weight.num_panels();
  require(weights.k == p.weight.k && weights.num_ranks > 0 && weights.num_ranks % kLoraBlock == 0);
  require(weights.depth > 0 && weights.depth <= weights.num_ranks);
  require(weights.a.size() * 32 == size_t(weights.num_ranks) * lora_padded_k(weights.k));
  require(weights.b.size() * 32 == panels * weights.depth * kPanelColumns);
  require(weights.scales.size() == size_t(weights.num_ranks));
  require(weights.first_rank.size() == panels * (kPanelColumns / kLoraBlock));
  for (int32_t first : weights.first_rank) require(first >= 0 && first <= weights.num_ranks - weights.depth);
  if (size_t(weights.num_ranks) > lora_stride_) {
    lora_stride_ = weights.num_ranks;
    shrunk_.reset(static_cast<float*>(allocate(lora_stride_ * config_.max_tokens * sizeof(float))));
  }
  num_adapters_ = std::max(num_adapters_, adapter + 1);
  for (Product& each : products_) {
    each.lora.resize(num_adapters_);
    each.views.resize(num_adapters_);
  }
  p.lora[adapter] = std::move(weights);
  p.views[adapter] = p.lora[adapter].view();
}

void Executor::drop_lora(int adapter) {
  if (adapter < 0 || adapter >= num_adapters_) return;
  for (Product& p : products_) {
    p.lora[adapter] = {};
    p.views[adapter] = {};
  }
}

// When there are too few items to keep the threads busy, as when one user's answer is generated after a long prompt,
// the partitions of an item become items. The result is the same to the bit.
void Executor::split_attention() {
  step_.num_groups = 0;
  if (num_threads() == 1 || int(step_.attention.size()) >= kItemsPerThread * num_threads()) return;
  const std::vector<StepContext::SequenceItem> whole(step_.attention);
  auto state_floats = [&](const AttentionItem& item) {
    return attention_state_floats(item.num_tokens * item.num_heads, cache_.shape().padded_dim());
  };
  size_t num_floats = 0;
  for (const auto& w : whole) num_floats += w.item.last_partition * state_floats(w.item);
  if (partials_.size() < num_floats) partials_.resize(2 * num_floats);
  step_.attention.clear();
  float* partial = partials_.data();
  for (const auto& w : whole) {
    const int count = w.item.last_partition;
    if (count == 1) {
      step_.attention.push_back(w);
      continue;
    }
    const int group = step_.num_groups++;
    if (int(step_.groups.size()) == group) step_.groups.push_back({{}, nullptr, std::make_unique<std::atomic<int>>()});
    step_.groups[group].whole = w.item;
    step_.groups[group].partials = partial;
    step_.groups[group].num_left->store(count, std::memory_order_relaxed);
    for (int p = 0; p < count; ++p) {
      AttentionItem item = w.item;
      item.first_partition = p, item.last_partition = p + 1, item.partial = partial;
      step_.attention.push_back({w.seq, item, group});
      partial += state_floats(item);
    }
  }
}

void Executor::embed(const int32_t* token_ids, int num_tokens, float* rows) const {
  const KernelFloatingPoint mode;
  for (int t = 0; t < num_tokens; ++t) {
    if (token_ids[t] < 0 || token_ids[t] >= config_.vocab_size)
      throw std::invalid_argument("embed: a token id is outside the vocabulary");
    kernels_.embed(embedding_, token_ids[t], rows + size_t(t) * hidden_width_);
  }
}

void Executor::step(const Batch& batch, const Results& results) {
  if (busy_.test_and_set(std::memory_order_acquire))
    throw std::runtime_error("two threads run one executor at the same time; take turns");
  struct Release {
    std::atomic_flag& flag;
    ~Release() { flag.clear(std::memory_order_release); }
  } release{busy_};
  check(batch);
  if (team_) send_step(batch, results);
  run(batch, results);
  if (team_) take_logits_of_others(results);
}

void Executor::run(const Batch& batch, const Results& results) {
  plan(batch);
  step_.results = results;
  for (auto& phase : phases_) phase->prepare(step_);
  pool_->run([this](int thread) {
    for (auto& phase : phases_) {
      if (phase->is_idle(*this, step_)) continue;
      const auto start = std::chrono::steady_clock::now();
      phase->run(*this, step_, thread);
      const auto own_end = std::chrono::steady_clock::now();
      if (!barrier()) return;
      const auto end = std::chrono::steady_clock::now();
      if (!gather(*phase, thread)) return;
      if (thread > 0) continue;
      const std::chrono::duration<double> own = end - start, gathered = std::chrono::steady_clock::now() - end;
      phase->seconds += own.count();
      phase->gather_seconds += gathered.count();
      waited_seconds_ += std::chrono::duration<double>(end - own_end).count() + gathered.count();
    }
  });
  if (team_ && team_->lost_rank() >= 0)
    throw std::runtime_error("rank " + std::to_string(team_->lost_rank()) + " was lost");
}

bool Executor::barrier() {
  if (team_) return team_->barrier();
  pool_->barrier();
  return true;
}

// What other hosts computed of an op's output, and they what this one did, once all ranks here are through with it.
bool Executor::gather(const Phase& phase, int thread) {
  if (!is_gathered(phase)) return true;
  const Link::To to = phase.gathered(*this) == Gathered::kByAll ? Link::To::kAll : Link::To::kHost0;
  if (thread == 0 && link_ && !exchange(phase, to)) team_->lose(team_->rank());
  return barrier();
}

bool Executor::is_gathered(const Phase& phase) const {
  return num_hosts() > 1 && phase.gathered(*this) != Gathered::kNever;
}

bool Executor::exchange(const Phase& phase, Link::To to) {
  const bool receives = to == Link::To::kAll || host() == 0;
  std::vector<size_t>& sizes = exchanged_bytes_;
  for (int from = 0; from < num_hosts(); ++from) {
    sizes[from] = 0;
    if (!receives && from != host()) continue;
    phase.for_pieces(*this, step_, from, [&](void*, size_t num_bytes) { sizes[from] += num_bytes; });
  }
  uint8_t* out = link_->outgoing(sizes[host()]);
  phase.for_pieces(*this, step_, host(), [&](void* piece, size_t num_bytes) {
    std::memcpy(out, piece, num_bytes);
    out += num_bytes;
  });
  const int num_targets = to == Link::To::kAll ? num_hosts() - 1 : host() > 0;
  ++num_exchanges_;
  sent_bytes_ += sizes[host()] * num_targets;
  if (!link_->exchange(sizes, to)) return false;
  for (int from = 0; from < num_hosts(); ++from) {
    if (from == host() || !receives) continue;
    received_bytes_ += sizes[from];
    const uint8_t* in = link_->incoming(from, sizes[from]);
    phase.for_pieces(*this, step_, from, [&](void* piece, size_t num_bytes) {
      std::memcpy(piece, in, num_bytes);
      in += num_bytes;
    });
  }
  return true;
}

void Executor::send_step(const Batch& batch, const Results& results) {
  const StepMail head{batch, results.num_states, batch.adapters != nullptr, batch.top_groups != nullptr,
                      results.maxima != nullptr};
  std::memcpy(team_->mail(), &head, sizeof head);
  uint8_t* to = team_->mail() + sizeof head;
  Batch from = batch;
  size_t num_bytes = sizeof head;
  for_arrays(from, head, hidden_width_, [&](const auto*& array, size_t count) { num_bytes += count * sizeof *array; });
  if (num_bytes > team_->mail_bytes()) throw std::invalid_argument("batch: its block tables are too long for ranks");
  for_arrays(from, head, hidden_width_, [&](const auto*& array, size_t count) {
    if (count) std::memcpy(to, array, count * sizeof *array);
    to += count * sizeof *array;
  });
  send(kStep, to - team_->mail());
}

void Executor::send(int kind, size_t num_bytes) {
  if (link_ && !link_->send(kind, team_->mail(), num_bytes)) team_->lose(team_->rank());
  team_->send(kind);
}

// On the first rank of another host: a message of host 0, passed on to the ranks here.
int Executor::receive_message() {
  if (!link_) return team_->receive();
  const int kind = link_->receive(team_->mail(), [&] { return team_->lost_rank() >= 0; });
  if (kind) team_->send(kind);
  return kind;
}

void Executor::receive(Batch& batch, Results& results) const {
  StepMail head;
  std::memcpy(&head, team_->mail(), sizeof head);
  batch = head.batch;
  const uint8_t* from = team_->mail() + sizeof head;
  for_arrays(batch, head, hidden_width_, [&]<class T>(const T*& array, size_t count) {
    array = reinterpret_cast<const T*>(from);
    from += count * sizeof(T);
  });
  if (!head.has_adapters) batch.adapters = nullptr;
  if (!head.has_top_groups) batch.top_groups = nullptr;
  results = {team_logits_, head.wants_maxima ? team_maxima_ : nullptr, nullptr, head.num_states, 0};
}

int Executor::serve() {
  while (true) {
    const int kind = receive_message();
    if (kind != kStep) return kind;
    Batch batch;
    Results results;
    receive(batch, results);
    try {
      run(batch, results);
    } catch (const std::runtime_error&) {
      return 0;  // a rank or a host was lost
    }
  }
}

// What other ranks of this host computed of the logits lies in the team's memory.
void Executor::take_logits_of_others(const Results& results) const {
  const Span mine = logit_panels_, host = host_logit_panels_;
  const int panels = (config_.num_outputs + kPanelColumns - 1) / kPanelColumns;
  auto take = [&](const float* from, float* to, int width, int first, int last) {
    for (int row = 0; first < last && row < step_.batch.num_logits; ++row)
      std::memcpy(to + size_t(row) * width + first, from + size_t(row) * width + first, (last - first) * sizeof(float));
  };
  const int end = std::min(host.last * kPanelColumns, config_.num_outputs);
  take(team_logits_, results.logits, config_.num_outputs, host.first * kPanelColumns, mine.first * kPanelColumns);
  take(team_logits_, results.logits, config_.num_outputs, mine.last * kPanelColumns, end);
  if (!results.maxima) return;
  take(team_maxima_, results.maxima, panels, host.first, mine.first);
  take(team_maxima_, results.maxima, panels, mine.last, host.last);
}

std::vector<std::pair<std::string, double>> Executor::phase_seconds() const {
  std::vector<std::pair<std::string, double>> result;
  for (const auto& phase : phases_) {
    result.emplace_back(phase->kind(), phase->seconds);
    if (is_gathered(*phase)) result.emplace_back("gather", phase->gather_seconds);
  }
  return result;
}

static void require_block(const KVCache& cache, int block) {
  if (block < 0 || block >= cache.shape().num_blocks) throw std::invalid_argument("a block is outside the cache");
}

void Executor::copy_block(int source, int destination) {
  require_block(cache_, source);
  require_block(cache_, destination);
  cache_.copy_block(source, destination);
}

void Executor::read_block(int block, uint8_t* bytes) const {
  require_block(cache_, block);
  cache_.read_block(block, bytes);
}

void Executor::write_block(int block, const uint8_t* bytes) {
  require_block(cache_, block);
  cache_.write_block(block, bytes);
}

}  // namespace qwench
