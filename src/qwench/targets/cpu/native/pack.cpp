#include "pack.h"

#include <atomic>
#include <system_error>
#include <thread>

namespace qwench {
namespace {

constexpr int kHalf = kPanelColumns / 2;

const void* row_of(const SourceMatrix& source, int row, int k) {
  const size_t item = source.kind == SourceKind::kFp32 ? 4 : 2;
  return row < source.num_rows ? source.data + size_t(row) * k * item : nullptr;
}

}  // namespace

int packed_columns(const std::vector<int>& source_rows, bool paired) {
  if (paired) return (source_rows.at(0) + kHalf - 1) / kHalf * kPanelColumns;
  int total = 0;
  for (int rows : source_rows) total += rows;
  return total;
}

void pack_matrix(const std::vector<SourceMatrix>& sources, bool paired, const PackedMatrix& weight, uint8_t* out,
                 const KernelTable& kernels, int num_threads) {
  // A panel's rows may come from two sources of a stack; all have one dtype (bindings check).
  auto source_row = [&](int column) -> const void* {
    if (paired) {
      const int panel = column / kPanelColumns, lane = column % kPanelColumns;
      return row_of(sources[lane / kHalf], panel * kHalf + lane % kHalf, weight.k);
    }
    for (const auto& source : sources) {
      if (column < source.num_rows) return row_of(source, column, weight.k);
      column -= source.num_rows;
    }
    return nullptr;
  };
  std::atomic<int> next{0};
  auto serve = [&] {
    for (int p; (p = next.fetch_add(1)) < weight.num_panels();) {
      const void* rows[kPanelColumns];
      for (int c = 0; c < kPanelColumns; ++c) rows[c] = source_row(p * kPanelColumns + c);
      kernels.pack_panel(rows, sources[0].kind, weight, out + p * weight.panel_bytes());
    }
  };
  std::vector<std::thread> threads;
  try {
    for (int t = 1; t < num_threads; ++t) threads.emplace_back(serve);
  } catch (const std::system_error&) {
    // Fewer threads than asked for do the same work: it is handed out piece by piece.
  }
  serve();
  for (auto& thread : threads) thread.join();
}

}  // namespace qwench
