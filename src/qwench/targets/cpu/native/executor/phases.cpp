// The lowered ops: what each one does with its share of a step, and how a Program's ops become them. Those of mixtures
// of experts are in experts.cpp.
#include "executor/phases.h"

#include <cstring>
#include <limits>
#include <stdexcept>

#include "executor/top_groups.h"

namespace qwench {
namespace {

// The places that a row's values are taken from to be in another order; none: they stay. See set_orders in passes.py.
using Order = std::vector<int32_t>;

Order order_of(const float* order, int width) {
  Order result;
  for (int i = 0; order && i < width; ++i) {
    if (!(order[i] >= 0 && order[i] < float(width)))
      throw std::invalid_argument("an order names values beyond the row");
    result.push_back(int32_t(order[i]));
  }
  return result;
}

// A row [width] in another order, in this thread's scratch beside it.
const float* ordered(const float* x, const Order& order, float* scratch) {
  if (order.empty()) return x;
  for (size_t i = 0; i < order.size(); ++i) scratch[i] = x[order[i]];
  return scratch;
}

struct Embed final : Phase {
  const char* kind() const override { return "embed"; }
  PackedMatrix weight;
  Buffer out;
  void run(Executor& e, const StepContext& step, int thread) override {
    for_rows(e, step.batch.num_tokens, thread, [&](int row) {
      const int32_t token = step.batch.token_ids[row];
      float* x = e.values(out) + size_t(row) * out.width;
      if (token >= 0)
        e.kernels().embed(weight, token, x);
      else
        std::memcpy(x, step.batch.embeddings + size_t(~token) * out.width, size_t(out.width) * sizeof(float));
    });
  }
};

struct Norm final : Phase {
  const char* kind() const override { return "norm"; }
  Buffer in, out;
  const float* gain;
  float eps;
  Order order;
  void run(Executor& e, const StepContext& step, int thread) override {
    for_output_rows(e, step, out, thread, [&](int row) {
      const float* x = e.values(in) + size_t(row) * in.width;
      float* y = is_plain(out) ? e.output(step, out) + size_t(row) * out.width : nullptr;
      float* normed = y && order.empty() ? y : e.thread_scratch(thread);
      e.kernels().rms_norm(x, gain, eps, in.width, normed);
      if (!y)
        encode(e, ordered(normed, order, normed + in.width), out, row, {0, in.width});
      else if (!order.empty())
        ordered(normed, order, y);
    });
  }
  bool is_idle(const Executor& e, const StepContext& step) const override { return e.num_rows(step, out) == 0; }
};

// Columns of the heads that a host computes attention of.
Span head_columns(const Executor& e, int host) {
  const int dim = e.cache().shape().head_dim;
  return {e.host_heads(host).first * dim, e.host_heads(host).last * dim};
}

// Whether hosts can encode what they computed of attention before they send it, a quarter of the bytes: no group of
// another host's columns is needed for it.
bool is_encoded_apart(const Executor& e, const Buffer& out, const Order& order) {
  if (is_plain(out) || !order.empty()) return false;
  const int unit = std::max(out.group_size, 2);
  for (int host = 0; host < e.num_hosts(); ++host)
    if (head_columns(e, host).first % unit) return false;
  return true;
}

// From the working space, fp32, to what a product reads in the arena, in its order.
struct Encode final : Phase {
  const char* kind() const override { return "quantize"; }
  Buffer out;
  Order order;
  void run(Executor& e, const StepContext& step, int thread) override {
    const Span columns = is_encoded_apart(e, out, order) ? head_columns(e, e.host()) : Span{0, out.width};
    for_rows(e, e.num_rows(step, out), thread, [&](int row) {
      const float* x = e.work() + size_t(row) * out.width;
      if (is_plain(out))
        ordered(x, order, e.values(out) + size_t(row) * out.width);
      else
        encode(e, ordered(x, order, e.thread_scratch(thread)), out, row, columns);
    });
  }
  Gathered gathered(const Executor& e) const override {
    return is_encoded_apart(e, out, order) ? Gathered::kByAll : Gathered::kNever;
  }
  void for_pieces(const Executor& e, const StepContext& step, int host, const PieceVisitor& visit) const override {
    const int num_rows = e.num_rows(step, out);
    if (out.kind == ActivationKind::kBf16)
      for_rounded(e, out, head_columns(e, host), num_rows, visit);
    else
      for_codes(e.quantized_rows(out), head_columns(e, host), num_rows, visit);
  }
};

// From the rotated keys of one position, their bias: rotated by the position in its tile, then by the tile's, as
// attention will rotate it. That is not to the last bit what rotating by the position's own angles gives, whose
// rounding is the model's; the difference stays with the keys.
void take_bias_off(const Executor& e, const float* bias, int position, float* scratch, float* keys) {
  const KVCache::Shape& shape = e.cache().shape();
  const int in_tile = position % kScoreTile, size = shape.num_kv_heads * shape.head_dim;
  e.kernels().rope(bias, e.near_rope_row(in_tile), shape.num_kv_heads, shape.head_dim, scratch);
  e.kernels().rope(scratch, e.far_rope_row(position / kScoreTile), shape.num_kv_heads, shape.head_dim, scratch);
  for (int i = 0; i < size; ++i) keys[i] -= scratch[i];
}

// The heads of one row, each by itself, in place.
void norm_heads(const Executor& e, const float* gain, float eps, int num_heads, float* x) {
  const int head_dim = e.cache().shape().head_dim;
  for (int h = 0; h < num_heads; ++h, x += head_dim) e.kernels().rms_norm(x, gain, eps, head_dim, x);
}

// Rows of [q, k, v] in the working space: normalises heads if the model does, rotates q into the arena, rotated k and v
// into the cache.
struct RopeWrite final : Phase {
  const char* kind() const override { return "rope_write"; }
  Buffer q;
  HeadNorms norms;
  int layer;
  CachePlace cached;
  void run(Executor& e, const StepContext& step, int thread) override {
    const KVCache::Shape& shape = e.cache().shape();
    const int kv_size = e.num_kv_heads() * shape.head_dim, width = q.width + 2 * kv_size;
    const int first_q = e.heads().first * shape.head_dim, first_k = q.width + e.first_kv_head() * shape.head_dim;
    const int num_q_heads = e.heads().last - e.heads().first;
    for_own_rows(e, step.batch.num_tokens, thread, [&](int row) {
      float* q_row = e.own_work() + size_t(row) * width + first_q;
      const int position = step.positions[row];
      const float* table = e.rope_row(position);
      float* k = e.own_work() + size_t(row) * width + first_k;
      if (norms.q_gain) {
        norm_heads(e, norms.q_gain, norms.eps, num_q_heads, q_row);
        norm_heads(e, norms.k_gain, norms.eps, shape.num_kv_heads, k);
      }
      e.kernels().rope(q_row, table, num_q_heads, shape.head_dim, e.values(q) + size_t(row) * q.width + first_q);
      e.kernels().rope(k, table, shape.num_kv_heads, shape.head_dim, k);
      if (e.key_bias(layer)) take_bias_off(e, e.key_bias(layer), position, e.thread_scratch(thread), k);
      const int32_t* block_table = step.batch.block_table(step.sequence[row], cached.group);
      const size_t block = block_table[position / shape.block_size] * e.cache().block_stride();
      const int offset = position % shape.block_size;
      for (int h = 0; h < shape.num_kv_heads; ++h) {
        const size_t at = block + h * e.cache().head_stride();
        e.kernels().write_keys(k + h * shape.head_dim, shape.head_dim, shape.padded_dim(), offset, shape.block_size,
                               shape.kind, e.cache().keys(cached.place) + at);
        e.kernels().write_values(k + kv_size + h * shape.head_dim, shape.head_dim, shape.padded_dim(), offset,
                                 shape.block_size, shape.kind, e.cache().values(cached.place) + at);
      }
    });
  }
};

struct Attention final : Phase {
  const char* kind() const override { return "attention"; }
  Buffer q, out;
  int layer, window;
  CachePlace cached;
  float scale;
  bool is_encoded;  // afterwards, from the working space
  bool is_sent_encoded = false;
  float* output(const Executor& e) const { return is_encoded ? e.work() : e.values(out); }
  Gathered gathered(const Executor&) const override { return is_sent_encoded ? Gathered::kNever : Gathered::kByAll; }
  void for_pieces(const Executor& e, const StepContext& step, int host, const PieceVisitor& visit) const override {
    for_floats(output(e), out.width, head_columns(e, host), step.batch.num_tokens, visit);
  }
  void run(Executor& e, const StepContext& step, int thread) override {
    const KVCache& cache = e.cache();
    const KVCache::Shape& shape = cache.shape();
    AttentionArgs args;
    args.q = e.values(q);
    args.out = output(e);
    args.keys = cache.keys(cached.place);
    args.values = cache.values(cached.place);
    args.block_stride = cache.block_stride();
    args.head_stride = cache.head_stride();
    args.cache = shape.kind;
    args.rounds = e.rounds_queries();
    args.block_size = shape.block_size;
    args.num_heads = e.num_heads();
    args.num_kv_heads = e.num_kv_heads();
    args.first_kv_head = e.first_kv_head();
    args.head_dim = shape.head_dim;
    args.padded_dim = shape.padded_dim();
    args.window = window;
    args.is_causal = e.is_causal();
    args.partition_len = e.partition_len();
    args.scale = scale;
    args.scratch = e.thread_scratch(thread);
    args.key_bias = e.key_bias(layer);
    args.far_rope = e.far_rope_row(0);
    args.near_rope = e.near_rope_panel();
    for (int i; (i = next_item.fetch_add(1, std::memory_order_relaxed)) < int(step.attention.size());) {
      const auto& [seq, item, group] = step.attention[i];
      args.block_table = step.batch.block_table(seq, cached.group);
      e.kernels().attention(args, item);
      if (group < 0) continue;
      const auto& whole = step.groups[group];
      if (whole.num_left->fetch_sub(1, std::memory_order_acq_rel) > 1) continue;
      const int num_partitions = whole.whole.last_partition;
      whole.num_left->store(num_partitions, std::memory_order_relaxed);  // for the next layer
      e.kernels().merge_attention(args, whole.whole, whole.partials, num_partitions);
    }
  }
};

// From fp32 to what the next product reads; NaN stays.
struct Relu final : Phase {
  const char* kind() const override { return "relu"; }
  Buffer in, out;
  void run(Executor& e, const StepContext& step, int thread) override {
    for_rows(e, e.num_rows(step, out), thread, [&](int row) {
      const float* x = e.values(in) + size_t(row) * in.width;
      float* y = is_plain(out) ? e.values(out) + size_t(row) * out.width : e.thread_scratch(thread);
      for (int i = 0; i < in.width; ++i) y[i] = x[i] < 0.0f ? 0.0f : x[i];
      if (!is_plain(out)) encode(e, y, out, row, {0, out.width});
    });
  }
  bool is_idle(const Executor& e, const StepContext& step) const override { return e.num_rows(step, out) == 0; }
};

struct TakeRows final : Phase {
  const char* kind() const override { return "take_rows"; }
  Buffer in, out;
  void run(Executor& e, const StepContext& step, int thread) override {
    const int32_t* taken = out.rows == Rows::kLogits ? step.batch.logit_rows : step.batch.hidden_rows;
    float* y = e.output(step, out);
    for_output_rows(e, step, out, thread, [&](int row) {
      std::memcpy(y + size_t(row) * out.width, e.values(in) + size_t(taken[row]) * in.width,
                  size_t(in.width) * sizeof(float));
    });
  }
  bool is_idle(const Executor& e, const StepContext& step) const override { return e.num_rows(step, out) == 0; }
};

// On host 0, of other hosts' logits those that are looked at, once all maxima are there, and -inf for the others. A
// host sends the groups that are largest among its own: those of all hosts together are some of them.
struct LogitsOfHosts final : Phase {
  const char* kind() const override { return "logits_of_hosts"; }
  int width;
  std::vector<Span> host_panels;

  void run(Executor& e, const StepContext& step, int thread) override {
    if (!e.has_results()) return;
    const int own_end = std::min(host_panels[0].last * kPanelColumns, width);
    for_own_rows(e, step.batch.num_logits, thread, [&](int row) {
      float* logits = step.results.logits + size_t(row) * width;
      if (num_groups(step, row)) std::fill(logits + own_end, logits + width, -std::numeric_limits<float>::infinity());
    });
  }
  bool is_idle(const Executor&, const StepContext& step) const override { return step.batch.num_logits == 0; }
  Gathered gathered(const Executor&) const override { return Gathered::kByHost0; }
  void for_pieces(const Executor& e, const StepContext& step, int host, const PieceVisitor& visit) const override {
    for (int row = 0; row < step.batch.num_logits; ++row) for_groups(e, step, host_panels[host], row, visit);
  }

 private:
  static int num_groups(const StepContext& step, int row) {  // 0: all
    return step.results.maxima && step.batch.top_groups ? step.batch.top_groups[row] : 0;
  }
  void for_groups(const Executor& e, const StepContext& step, Span panels, int row, const PieceVisitor& visit) const {
    float* logits = step.results.logits + size_t(row) * width;
    auto visit_panels = [&](int first, int last) {
      const int begin = first * kPanelColumns, end = std::min(last * kPanelColumns, width);
      visit(logits + begin, size_t(end - begin) * sizeof(float));
    };
    const int count = num_groups(step, row), num_panels = (width + kPanelColumns - 1) / kPanelColumns;
    if (panels.first == panels.last) return;
    if (count == 0) return visit_panels(panels.first, panels.last);
    const float* maxima = step.results.maxima + size_t(row) * num_panels;
    const float floor = top_group_floor(maxima + panels.first, panels.last - panels.first, count, e.thread_scratch(0));
    for (int panel = panels.first; panel < panels.last; ++panel)
      if (!(maxima[panel] < floor)) visit_panels(panel, panel + 1);
  }
};

}  // namespace

void Executor::add_embed(PackedMatrix weight, Buffer out) {
  embedding_ = weight, hidden_width_ = out.width;
  auto phase = std::make_unique<Embed>();
  phase->weight = weight;
  phase->out = out;
  add(std::move(phase));
}

void Executor::add_norm(Buffer in, const float* gain, float eps, Buffer out, const float* order) {
  auto phase = std::make_unique<Norm>();
  phase->in = in;
  phase->out = out;
  phase->gain = gain;
  phase->eps = eps;
  phase->order = order_of(order, in.width);
  if (!is_plain(out) || order) reserve_thread_scratch(size_t(in.width) * 2);
  count_state(out);
  add(std::move(phase));
}

void Executor::add_linear(Buffer in, PackedMatrix weight, const float* bias, Epilogue epilogue, Buffer residual,
                          Buffer out, Span panels, std::vector<Span> host_panels) {
  if (int(host_panels.size()) != num_hosts()) throw std::invalid_argument("panels of every host, or of none");
  if (panels.first < 0 || panels.first > panels.last || panels.last > weight.num_panels())
    throw std::invalid_argument("a rank's panels are outside the matrix");
  auto phase = std::make_unique<Linear>();
  phase->product = add_product(weight);
  phase->in = in;
  phase->weight = weight;
  phase->width = out.width;
  phase->epilogue = epilogue;
  phase->bias = bias;
  phase->residual = residual;
  phase->out = out;
  phase->panels = {panels};
  phase->host_panels = host_panels;
  if (out.is_result) {
    logit_panels_ = panels;
    host_logit_panels_ = phase->host_panels[0];
  }
  if (!is_plain(out) && epilogue != Epilogue::kSiluMul) throw std::invalid_argument("only silu_mul encodes its output");
  if (out.group_size && out.group_size < kPanelColumns / 2)
    throw std::invalid_argument("a panel's outputs share a group");
  if (out.group_size) reserve_thread_scratch(size_t(max_tokens()) * out.group_size);
  phase->destination = is_plain(out)    ? Linear::Destination::kBuffer
                       : out.group_size ? Linear::Destination::kCodes
                                        : Linear::Destination::kRounded;
  add(std::move(phase));
  if (out.is_result && num_hosts() > 1) add_logits_of_hosts(out.width, host_panels);
}

void Executor::add_logits_of_hosts(int width, std::vector<Span> host_panels) {
  auto phase = std::make_unique<LogitsOfHosts>();
  phase->width = width;
  phase->host_panels = std::move(host_panels);
  reserve_thread_scratch((width + kPanelColumns - 1) / kPanelColumns);
  add(std::move(phase));
}

void Executor::add_qkv_rope_write(Buffer in, PackedMatrix weight, const float* bias, HeadNorms norms, int layer,
                                  Buffer q) {
  if (bias && norms.q_gain) throw std::invalid_argument("behind a norm, a bias of keys is no bias of cached keys");
  const CachePlace cached = cache_place(layer);
  const KVCache::Shape& shape = cache_.shape();
  const float* key_bias = bias ? bias + q.width + first_kv_head() * shape.head_dim : nullptr;
  const int kv_size = bias ? shape.num_kv_heads * shape.head_dim : 0;
  if (shape.kind == CacheKind::kInt8 && std::any_of(key_bias, key_bias + kv_size, [](float v) { return v != 0; })) {
    key_bias_[layer] = key_bias;
    reserve_thread_scratch(kv_size);
  }
  auto linear = std::make_unique<Linear>();
  linear->product = add_product(weight);
  linear->in = in;
  linear->weight = weight;
  linear->width = weight.n;
  linear->epilogue = Epilogue::kStore;
  linear->bias = bias;
  linear->destination = Linear::Destination::kWork;
  linear->panels = panels_of_heads(q.width);
  add(std::move(linear));
  auto rope = std::make_unique<RopeWrite>();
  rope->q = q;
  rope->norms = norms;
  rope->layer = layer;
  rope->cached = cached;
  add(std::move(rope));
}

void Executor::add_attention(Buffer q, int layer, int window, bool is_causal, float scale, Buffer out,
                             const float* order) {
  if (window < 0 || (window && !is_causal)) throw std::invalid_argument("a window looks back, and is not negative");
  is_causal_ = is_causal;
  auto phase = std::make_unique<Attention>();
  phase->q = q;
  phase->out = out;
  phase->layer = layer;
  phase->cached = cache_place(layer);
  phase->window = window;
  phase->scale = scale;
  phase->is_encoded = !is_plain(out) || order;
  auto encode = std::make_unique<Encode>();
  encode->out = out;
  encode->order = order_of(order, out.width);
  phase->is_sent_encoded = is_encoded_apart(*this, out, encode->order);
  const bool is_encoded = phase->is_encoded;
  add(std::move(phase));
  if (!is_encoded) return;
  reserve_thread_scratch(out.width);
  add(std::move(encode));
}

// Of q, k and v stacked, those that hold this rank's heads, which may be parts of panels.
std::vector<Span> Executor::panels_of_heads(int q_width) const {
  const int dim = cache_.shape().head_dim, kv_width = num_kv_heads() * dim;
  const int first_kv = first_kv_head() * dim, last_kv = first_kv + cache_.shape().num_kv_heads * dim;
  std::vector<Span> spans;
  for (const Span& columns :
       {Span{heads().first * dim, heads().last * dim}, Span{q_width + first_kv, q_width + last_kv},
        Span{q_width + kv_width + first_kv, q_width + kv_width + last_kv}}) {
    const int first = columns.first / kPanelColumns, last = (columns.last + kPanelColumns - 1) / kPanelColumns;
    if (!spans.empty() && first <= spans.back().last)
      spans.back().last = std::max(spans.back().last, last);
    else
      spans.push_back({first, last});
  }
  return spans;
}

CachePlace Executor::cache_place(int layer) const {
  if (layer < 0 || layer >= int(config_.cache_places.size()))
    throw std::invalid_argument("a layer is outside the cache");
  return config_.cache_places[layer];
}

void Executor::add_relu(Buffer in, Buffer out) {
  if (!is_plain(in) || in.width != out.width || in.rows != out.rows || out.is_result)
    throw std::invalid_argument("relu changes neither rows nor width, and is no result");
  reserve_thread_scratch(out.width);
  auto phase = std::make_unique<Relu>();
  phase->in = in;
  phase->out = out;
  add(std::move(phase));
}

void Executor::add_take_rows(Buffer in, Buffer out) {
  auto phase = std::make_unique<TakeRows>();
  if (out.rows == Rows::kTokens) throw std::invalid_argument("take_rows takes those asked for");
  phase->in = in;
  phase->out = out;
  count_state(out);
  add(std::move(phase));
}

}  // namespace qwench
