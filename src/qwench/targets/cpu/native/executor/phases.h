// What the lowered ops share: how rows are handed out, what operands look like, and the product. Included by phases.cpp
// and experts.cpp alone.
#pragma once
#include <algorithm>
#include <cstring>

#include "executor/executor.h"

namespace qwench {

template <class Work>
void for_share(int num_rows, int thread, int num_threads, Work work) {
  const Range share = static_share(num_rows, thread, num_threads);
  for (int row = share.begin; row < share.end; ++row) work(row);
}

template <class Work>  // work(row) for this thread's share of the rows, which all ranks see
void for_rows(Executor& e, int num_rows, int thread, Work work) {
  for_share(num_rows, e.row_thread(thread), e.num_row_threads(), work);
}

template <class Work>  // the same where every rank has all rows: of its own heads
void for_own_rows(Executor& e, int num_rows, int thread, Work work) {
  for_share(num_rows, thread, e.num_threads(), work);
}

template <class Work>  // the same for rows of `out`, which rank 0 alone writes if they are a result
void for_output_rows(Executor& e, const StepContext& step, const Buffer& out, int thread, Work work) {
  const int num_rows = e.num_rows(step, out);
  if (!out.is_result)
    for_rows(e, num_rows, thread, work);
  else if (e.has_results())
    for_own_rows(e, num_rows, thread, work);
}

// What a product reads: fp32 as it is, or a row encoded as bf16 or integers.
inline bool is_plain(const Buffer& operand) { return operand.kind == ActivationKind::kFp32; }

// Columns that begin at a group or a pair, of x [width].
inline void encode(const Executor& e, const float* x, const Buffer& operand, int row, Span columns) {
  const int first = columns.first, count = columns.last - first;
  if (operand.kind == ActivationKind::kBf16) {
    const size_t at = bf16_row_bytes(e.kernels().bf16_pairs, first);
    e.kernels().round_to_bf16(x + first, count, e.bf16_row(operand, row) + at);
    return;
  }
  QuantizedRow to = e.quantized_rows(operand).row(row);
  const size_t at = first / operand.group_size * to.group_stride;
  to.codes += first, to.scales += at, to.starts += at;
  e.kernels().quantize(x + first, count, operand.group_size, to);
}

// Columns of rows [width] as pieces of memory, for Phase::for_pieces.
inline void for_floats(float* rows, int width, Span columns, int num_rows, const PieceVisitor& visit) {
  for (int row = 0; row < num_rows; ++row)
    visit(rows + size_t(row) * width + columns.first, size_t(columns.last - columns.first) * sizeof(float));
}

// The same of rows of bf16; columns begin at a pair.
inline void for_rounded(const Executor& e, const Buffer& b, Span columns, int num_rows, const PieceVisitor& visit) {
  const bool in_pairs = e.kernels().bf16_pairs;
  const size_t first = bf16_row_bytes(in_pairs, columns.first);
  for (int row = 0; row < num_rows; ++row)
    visit(e.bf16_row(b, row) + first, bf16_row_bytes(in_pairs, columns.last) - first);
}

// The same of codes, with scales and sums; columns begin at a group.
inline void for_codes(const QuantizedRows& rows, Span columns, int num_rows, const PieceVisitor& visit) {
  const QuantizedRow& first = rows.first;
  const int size = rows.group_size, begin = columns.first / size, end = (columns.last + size - 1) / size;
  for (int row = 0; row < num_rows * first.parts; ++row)
    visit(first.codes + size_t(row) * first.padded_k + begin * size, size_t(end - begin) * size);
  for (int group = begin; group < end; ++group) {
    visit(first.scales + group * first.group_stride, num_rows * first.parts * sizeof(float));
    visit(first.starts + group * first.group_stride, num_rows * first.parts * sizeof(int32_t));
  }
}

// Columns of any buffer that products are written to.
inline void for_values(const Executor& e, const StepContext& step, const Buffer& b, Span columns, int num_rows,
                       const PieceVisitor& visit) {
  if (columns.first >= columns.last) return;
  if (b.group_size) return for_codes(e.quantized_rows(b), columns, num_rows, visit);
  if (b.kind == ActivationKind::kBf16) return for_rounded(e, b, columns, num_rows, visit);
  for_floats(e.output(step, b), b.width, columns, num_rows, visit);
}

// Columns of some panels that weighted products are added to, in this thread's scratch [panels, rows, 64], where a
// panel's rows lie next to each other and not pages apart: at first the residual's, or zeros if it has no width; then
// they go to `out`.
class PanelSums {
 public:
  PanelSums(const Executor& e, int num_rows, const Buffer& residual, const Buffer& out, Span panels, int thread)
      : sums_(e.thread_scratch(thread)), out_(e.values(out)), panels_(panels), num_rows_(num_rows), width_(out.width) {
    const float* x = residual.width ? e.values(residual) : nullptr;
    for_each([&](float* sums, size_t at, size_t count) {
      std::fill(sums, sums + kPanelColumns, 0.0f);
      if (x) std::memcpy(sums, x + at, count * sizeof(float));
    });
  }
  float* panel(int p) const { return sums_ + size_t(p - panels_.first) * num_rows_ * kPanelColumns; }
  void store() const {
    for_each([&](const float* sums, size_t at, size_t count) { std::memcpy(out_ + at, sums, count * sizeof(float)); });
  }

 private:
  // work(a row's sums of a panel, where they lie in the whole, how many there are).
  template <class Work>
  void for_each(Work work) const {
    for (int row = 0; row < num_rows_; ++row)
      for (int p = panels_.first; p < panels_.last; ++p) {
        const int first = p * kPanelColumns;
        work(panel(p) + size_t(row) * kPanelColumns, size_t(row) * width_ + first,
             std::min(kPanelColumns, width_ - first));
      }
  }

  float *sums_, *out_;
  Span panels_;
  int num_rows_, width_;
};

// Rows that one thread shrinks at a time: enough to read an adapter once for all rows of a step that decodes.
constexpr int kShrunkRows = 16;

struct Linear final : Phase {
  const char* kind() const override { return "linear"; }
  int product;
  Buffer in;
  PackedMatrix weight;
  int width;
  Epilogue epilogue;
  const float* bias;
  Buffer residual, out;
  Buffer routes{};                // of kWeightedAdd: where a row's last number is its weight
  std::vector<Span> panels;       // that this rank computes
  std::vector<Span> host_panels;  // that each host does
  enum class Destination { kBuffer, kRounded, kCodes, kWork } destination;
  void run(Executor& e, const StepContext& step, int thread) override {
    LinearArgs args;
    args.x = e.activation(in);
    args.weight = weight;
    args.num_rows = e.num_rows(step, in);
    args.unpacked = e.unpacked_panel(thread);
    args.width = width;
    args.y = destination == Destination::kWork ? e.own_work() : e.output(step, out);
    args.maxima = destination == Destination::kBuffer && out.is_result && out.rows == Rows::kLogits
                      ? step.results.maxima
                      : nullptr;
    args.gathered = nullptr;
    args.rounded = destination == Destination::kRounded ? e.bf16_row(out, 0) : nullptr;
    int panels_per_item = 1;  // panels whose outputs share a group stay with one thread
    if (destination == Destination::kCodes) {
      args.gathered = e.thread_scratch(thread);
      args.quantized = e.quantized_rows(out);
      panels_per_item = out.group_size / (kPanelColumns / 2);
    }
    args.epilogue = epilogue;
    args.bias = bias;
    args.residual = epilogue == Epilogue::kAdd ? e.values(residual) : nullptr;
    if (epilogue == Epilogue::kWeightedAdd) {
      args.weights = e.values(routes) + routes.width - 1;
      args.weight_stride = routes.width;
    }
    const LinearLora lora{e.lora(product), step.adapters_of(in.rows).of_row.data(),
                          e.shrunk(),      e.lora_stride(),
                          &num_shrunk,     num_shrinks(e, step),
                          wait_for_shrinks};
    args.lora = lora.num_items ? &lora : nullptr;
    if (args.lora) shrink(e, step, args.x);
    // Handed out one by one: on a shared machine one of the processors is often slower than the others.
    const int count = num_items(panels_per_item);
    for (int i; (i = next_item.fetch_add(1, std::memory_order_relaxed)) < count;) {
      const Span item = this->item(i, panels_per_item);
      if (epilogue == Epilogue::kWeightedAdd) {
        const PanelSums sums(e, args.num_rows, residual, out, item, thread);
        args.y = sums.panel(item.first);
        e.kernels().linear(args, item.first, item.last);
        sums.store();
        continue;
      }
      e.kernels().linear(args, item.first, item.last);
    }
  }

  // The panels of this rank as items of so many.
  int num_items(int size) const {
    int count = 0;
    for (const Span& span : panels) count += (span.last - span.first + size - 1) / size;
    return count;
  }
  Span item(int i, int size) const {
    for (const Span& span : panels) {
      const int count = (span.last - span.first + size - 1) / size;
      if (i < count) return {span.first + i * size, std::min(span.first + (i + 1) * size, span.last)};
      i -= count;
    }
    return {0, 0};
  }
  bool is_idle(const Executor& e, const StepContext& step) const override { return e.num_rows(step, in) == 0; }

  Gathered gathered(const Executor&) const override {
    if (destination == Destination::kWork) return Gathered::kNever;
    return out.is_result ? Gathered::kByHost0 : Gathered::kByAll;
  }
  void for_pieces(const Executor& e, const StepContext& step, int host, const PieceVisitor& visit) const override {
    const int per_panel = epilogue == Epilogue::kSiluMul ? kPanelColumns / 2 : kPanelColumns;
    const Span span = host_panels[host];
    const Span columns{span.first * per_panel, std::min(span.last * per_panel, width)};
    const int num_rows = e.num_rows(step, in);
    if (!out.is_result) return for_values(e, step, out, columns, num_rows, visit);
    if (!step.results.maxima) return;  // logits themselves come behind them
    for_floats(step.results.maxima, (width + kPanelColumns - 1) / kPanelColumns, span, num_rows, visit);
  }

  // Rows with adapters are shrunk before the first panel, and expanded where a panel ends: whoever comes there early
  // waits for the others, so that no barrier is needed between the two.
  std::atomic<int> next_shrink{0}, num_shrunk{0};

  void prepare(const StepContext& step) override {
    Phase::prepare(step);
    next_shrink.store(0, std::memory_order_relaxed);
    num_shrunk.store(0, std::memory_order_relaxed);
  }

  static void wait_for_shrinks(const LinearLora& lora) {
    for (int turn = 0; lora.num_done->load(std::memory_order_acquire) < lora.num_items; ++turn) take_turn(turn);
  }

  // work(adapter, its first row among those of the group, first rank) for each item, in order.
  template <class Work>
  void for_shrinks(const Executor& e, const StepContext& step, Work work) const {
    const AdapterRows& rows = step.adapters_of(in.rows);
    for (int g = 0; g < rows.num_groups; ++g) {
      const auto& group = rows.groups[g];
      const int num_ranks = e.lora(product)[group.adapter].num_ranks;
      for (int row = 0; num_ranks && row < int(group.rows.size()); row += kShrunkRows)
        for (int rank = 0; rank < num_ranks; rank += kLoraBlock) work(group, row, rank);
    }
  }

  int num_shrinks(const Executor& e, const StepContext& step) const {
    int count = 0;
    for_shrinks(e, step, [&](const AdapterRows::Group&, int, int) { ++count; });
    return count;
  }

  void shrink(Executor& e, const StepContext& step, const Activation& x) {
    int item = 0, mine = next_shrink.fetch_add(1, std::memory_order_relaxed);
    for_shrinks(e, step, [&](const AdapterRows::Group& group, int row, int rank) {
      if (item++ != mine) return;
      const int count = std::min(kShrunkRows, int(group.rows.size()) - row);
      e.kernels().lora_shrink(e.lora(product)[group.adapter], x, in.group_size, group.rows.data() + row, count, rank,
                              e.shrunk(), e.lora_stride());
      num_shrunk.fetch_add(1, std::memory_order_release);
      mine = next_shrink.fetch_add(1, std::memory_order_relaxed);
    });
  }
};

}  // namespace qwench
