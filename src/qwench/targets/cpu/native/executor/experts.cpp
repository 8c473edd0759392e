// The lowered ops of a mixture of experts. The rows that an expert multiplies lie next to each other, so that its
// products are those of any matrix, and a step reads no expert that none of its tokens chose.
#include <cstring>
#include <stdexcept>

#include "executor/phases.h"

namespace qwench {
namespace {

// The scores in the working space, of all rows in each rank, to routes.
struct Route final : Phase {
  const char* kind() const override { return "route"; }
  Buffer routes;
  int num_experts, num_scores;
  bool normalizes;
  void run(Executor& e, const StepContext& step, int thread) override {
    for_rows(e, step.batch.num_tokens, thread, [&](int row) {
      e.kernels().route(e.own_work() + size_t(row) * num_scores, num_experts, e.experts_per_token(), normalizes,
                        num_scores > num_experts, e.values(routes) + size_t(row) * routes.width);
    });
  }
};

// Copies the rows of tokens to those of their experts, in whatever kind they are.
struct Dispatch final : Phase {
  const char* kind() const override { return "dispatch"; }
  Buffer in, routes, out;
  std::atomic<bool> is_sorted{false};

  void prepare(const StepContext& step) override {
    Phase::prepare(step);
    is_sorted.store(false, std::memory_order_relaxed);
  }

  void run(Executor& e, const StepContext& step, int thread) override {
    ExpertRows& rows = e.expert_rows();
    if (thread == 0) {  // of each rank
      rows.sort(e.values(routes), routes.width, e.experts_per_token(), step.batch.num_tokens);
      is_sorted.store(true, std::memory_order_release);
    }
    for (int turn = 0; !is_sorted.load(std::memory_order_acquire); ++turn) take_turn(turn);
    for_rows(e, e.num_rows(step, out), thread, [&](int row) { copy(e, rows.tokens[row], row); });
  }

  void copy(Executor& e, int from_row, int to_row) const {
    if (!in.group_size) {
      const size_t num_bytes = e.activation(in).row_bytes;
      const uint8_t* from = e.activation(in).rows + from_row * num_bytes;
      std::memcpy(reinterpret_cast<uint8_t*>(e.values(out)) + to_row * num_bytes, from, num_bytes);
      return;
    }
    const QuantizedRow from = e.quantized_rows(in).row(from_row), to = e.quantized_rows(out).row(to_row);
    std::memcpy(to.codes, from.codes, size_t(from.padded_k) * from.parts);
    for (int g = 0; g < from.padded_k / in.group_size; ++g)
      for (int part = 0; part < from.parts; ++part) {
        to.scales[g * to.group_stride + part] = from.scales[g * from.group_stride + part];
        to.starts[g * to.group_stride + part] = from.starts[g * from.group_stride + part];
      }
  }
};

// One expert's products, of the rows that are its.
LinearArgs expert_args(const Executor& e, const Buffer& in, const PackedMatrix& weight, const ExpertRows& rows,
                       int expert, int thread) {
  const int first = rows.first[expert];
  LinearArgs args{};
  args.x = e.activation(in).after(first, weight.padded_k());
  args.weight = weight;
  args.num_rows = rows.first[expert + 1] - first;
  args.unpacked = e.unpacked_panel(thread);
  return args;
}

// Experts' gate and up: items are some panels of one expert.
struct ExpertGateUp final : Phase {
  const char* kind() const override { return "expert_linear"; }
  Buffer in, out;
  std::vector<PackedMatrix> experts;
  Span panels;                    // that this rank computes of each
  std::vector<Span> host_panels;  // that each host does

  Gathered gathered(const Executor&) const override { return Gathered::kByAll; }
  void for_pieces(const Executor& e, const StepContext& step, int host, const PieceVisitor& visit) const override {
    constexpr int kPerPanel = kPanelColumns / 2;
    const Span span = host_panels[host];
    const Span columns{span.first * kPerPanel, std::min(span.last * kPerPanel, out.width)};
    for_values(e, step, out, columns, e.num_rows(step, out), visit);
  }

  void run(Executor& e, const StepContext&, int thread) override {
    const ExpertRows& rows = e.expert_rows();
    const int size = out.group_size ? out.group_size / (kPanelColumns / 2) : 1;  // panels whose outputs share a group
    const int per_expert = (panels.last - panels.first + size - 1) / size;
    const int count = int(rows.chosen.size()) * per_expert;
    for (int i; (i = next_item.fetch_add(1, std::memory_order_relaxed)) < count;) {
      const int expert = rows.chosen[i / per_expert], first = panels.first + i % per_expert * size;
      LinearArgs args = expert_args(e, in, experts[expert], rows, expert, thread);
      args.epilogue = Epilogue::kSiluMul;
      args.width = out.width;
      write_to(e, rows.first[expert], thread, args);
      e.kernels().linear(args, first, std::min(first + size, panels.last));
    }
  }

  void write_to(const Executor& e, int row, int thread, LinearArgs& args) const {
    if (is_plain(out)) {
      args.y = e.values(out) + size_t(row) * out.width;
    } else if (out.group_size) {
      const QuantizedRows all = e.quantized_rows(out);
      args.gathered = e.thread_scratch(thread);
      args.quantized = {all.row(row), all.group_size};
    } else {
      args.rounded = e.bf16_row(out, row);
    }
  }
};

// Where there are enough, so that an expert's rows, once in the second-level cache, meet more than one of its panels.
constexpr int kPanelsPerItem = 2;

// Experts' down, added to their tokens in the order of experts. An item is the same panels of all experts: whoever has
// it adds all that there is to add to their columns.
struct ExpertDown final : Phase {
  const char* kind() const override { return "expert_linear"; }
  Buffer in, residual, out;
  std::vector<PackedMatrix> experts;
  Span panels;
  std::vector<Span> host_panels;

  Gathered gathered(const Executor&) const override { return Gathered::kByAll; }
  void for_pieces(const Executor& e, const StepContext& step, int host, const PieceVisitor& visit) const override {
    const Span span = host_panels[host];
    const Span columns{span.first * kPanelColumns, std::min(span.last * kPanelColumns, out.width)};
    for_values(e, step, out, columns, e.num_rows(step, out), visit);
  }

  void run(Executor& e, const StepContext& step, int thread) override {
    const ExpertRows& rows = e.expert_rows();
    const int num_chosen = int(rows.chosen.size());
    const bool are_many = panels.last - panels.first >= kPanelsPerItem * kItemsPerThread * e.num_threads();
    const int size = are_many ? kPanelsPerItem : 1;
    for (int first; (first = panels.first + size * next_item.fetch_add(1, std::memory_order_relaxed)) < panels.last;) {
      const Span item{first, std::min(first + size, panels.last)};
      const PanelSums sums(e, step.batch.num_tokens, residual, out, item, thread);
      for (int i = 0; i < num_chosen; ++i) {
        const int expert = rows.chosen[i];
        LinearArgs args = expert_args(e, in, experts[expert], rows, expert, thread);
        args.epilogue = Epilogue::kWeightedAdd;
        args.width = out.width;
        args.tokens = rows.tokens.data() + rows.first[expert];
        args.weights = rows.weights.data() + rows.first[expert];
        args.weight_stride = 1;
        for (int p = item.first; p < item.last; ++p) {
          args.y = sums.panel(p);
          const bool stays = p + 1 < item.last || i + 1 == num_chosen;  // with this expert
          args.next = stays ? nullptr : experts[rows.chosen[i + 1]].panel(item.first);
          e.kernels().linear(args, p, p + 1);
        }
      }
      sums.store();
    }
  }
};

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

void check_experts(const std::vector<PackedMatrix>& experts, const Buffer& in, size_t num_experts, Span panels) {
  require(!experts.empty() && experts.size() == num_experts, "there are other experts than rows were dispatched to");
  const PackedMatrix& first = experts.front();
  for (const PackedMatrix& expert : experts)
    require(expert.n == first.n && expert.k == in.width && (!in.group_size || expert.group_size == in.group_size),
            "experts differ in shape, or from their input");
  require(0 <= panels.first && panels.first <= panels.last && panels.last <= first.num_panels(),
          "a rank's panels are outside the matrix");
  require(in.rows == Rows::kRouted, "experts multiply routed rows");
}

}  // namespace

void ExpertRows::reserve(int num_experts, int num_rows) {
  first.resize(num_experts + 1);
  chosen.reserve(num_experts);
  tokens.resize(num_rows);
  weights.resize(num_rows);
}

void ExpertRows::sort(const float* routes, int width, int top_k, int num_tokens) {
  std::fill(first.begin(), first.end(), 0);
  const auto for_routes = [&](auto work) {
    for (int token = 0; token < num_tokens; ++token)
      for (int i = 0; i < top_k; ++i) {
        const float* at = routes + size_t(token) * width + i;
        work(token, int(at[0]), at[top_k]);
      }
  };
  for_routes([&](int, int expert, float) { ++first[expert + 1]; });
  chosen.clear();
  for (size_t expert = 0; expert + 1 < first.size(); ++expert) {
    if (first[expert + 1]) chosen.push_back(int32_t(expert));
    first[expert + 1] += first[expert];
  }
  for_routes([&](int token, int expert, float weight) {
    const int row = first[expert]++;
    tokens[row] = token, weights[row] = weight;
  });
  for (size_t expert = first.size() - 1; expert > 0; --expert) first[expert] = first[expert - 1];
  first[0] = 0;
}

void Executor::add_route(Buffer in, PackedMatrix router, int num_experts, bool normalizes, Buffer routes) {
  const int has_shared = router.n - num_experts;
  require(num_experts >= experts_per_token() && num_experts <= kMaxExperts && (has_shared == 0 || has_shared == 1),
          "the router has other scores than there are experts");
  require(router.n <= config_.scratch_width && routes.width == 2 * experts_per_token() + has_shared && is_plain(routes),
          "routes have the wrong width");
  auto linear = std::make_unique<Linear>();
  linear->product = add_product(router);
  linear->in = in;
  linear->weight = router;
  linear->width = router.n;
  linear->epilogue = Epilogue::kStore;
  linear->bias = nullptr;
  linear->destination = Linear::Destination::kWork;
  linear->panels = {{0, router.num_panels()}};  // by every rank
  add(std::move(linear));
  auto route = std::make_unique<Route>();
  route->routes = routes;
  route->num_experts = num_experts;
  route->num_scores = router.n;
  route->normalizes = normalizes;
  add(std::move(route));
}

void Executor::add_shared_linear_add(Buffer in, Buffer routes, PackedMatrix weight, Buffer residual, Buffer out,
                                     Span panels, std::vector<Span> host_panels) {
  require(0 <= panels.first && panels.first <= panels.last && panels.last <= weight.num_panels(),
          "a rank's panels are outside the matrix");
  require(int(host_panels.size()) == num_hosts(), "panels of every host, or of none");
  require(routes.width == 2 * experts_per_token() + 1 && is_plain(out), "there is no weight of a shared expert");
  reserve_thread_scratch(size_t(max_tokens()) * kPanelColumns);
  auto phase = std::make_unique<Linear>();
  phase->product = add_product(weight);
  phase->in = in;
  phase->weight = weight;
  phase->width = out.width;
  phase->epilogue = Epilogue::kWeightedAdd;
  phase->bias = nullptr;
  phase->residual = residual;
  phase->routes = routes;
  phase->out = out;
  phase->panels = {panels};
  phase->host_panels = std::move(host_panels);
  phase->destination = Linear::Destination::kBuffer;
  add(std::move(phase));
}

void Executor::add_dispatch(Buffer in, Buffer routes, int num_experts, Buffer out) {
  require(num_experts > 0 && num_experts <= kMaxExperts && routes.width >= 2 * experts_per_token(),
          "there are too many experts, or their weights are missing");
  require(in.width == out.width && in.kind == out.kind && in.group_size == out.group_size && out.rows == Rows::kRouted,
          "rows are dispatched as they are");
  expert_rows_.reserve(num_experts, max_tokens() * experts_per_token());
  auto phase = std::make_unique<Dispatch>();
  phase->in = in;
  phase->routes = routes;
  phase->out = out;
  add(std::move(phase));
}

void Executor::add_expert_gate_up_silu(Buffer in, std::vector<PackedMatrix> experts, Buffer out, Span panels,
                                       std::vector<Span> host_panels) {
  check_experts(experts, in, expert_rows_.first.size() - 1, panels);
  require(int(host_panels.size()) == num_hosts(), "panels of every host, or of none");
  require(!out.group_size || out.group_size >= kPanelColumns / 2, "a panel's outputs share a group");
  if (out.group_size) reserve_thread_scratch(size_t(max_tokens()) * out.group_size);
  auto phase = std::make_unique<ExpertGateUp>();
  phase->in = in;
  phase->experts = std::move(experts);
  phase->out = out;
  phase->panels = panels;
  phase->host_panels = std::move(host_panels);
  add(std::move(phase));
}

void Executor::add_expert_linear_add(Buffer in, std::vector<PackedMatrix> experts, Buffer residual, Buffer out,
                                     Span panels, std::vector<Span> host_panels) {
  check_experts(experts, in, expert_rows_.first.size() - 1, panels);
  require(int(host_panels.size()) == num_hosts(), "panels of every host, or of none");
  require(is_plain(out) && out.rows == Rows::kTokens, "experts are added to tokens");
  reserve_thread_scratch(size_t(max_tokens()) * kPanelColumns * kPanelsPerItem);
  auto phase = std::make_unique<ExpertDown>();
  phase->in = in;
  phase->experts = std::move(experts);
  phase->residual = residual;
  phase->out = out;
  phase->panels = panels;
  phase->host_panels = std::move(host_panels);
  add(std::move(phase));
}

}  // namespace qwench
