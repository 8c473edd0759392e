#include "weights/pack.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <system_error>
#include <thread>

namespace qwench {
namespace {

constexpr int kHalf = kPanelColumns / 2;

// The source and its row that a packed column is made of; row -1: none, it holds zeros.
struct Origin {
  int source, row;
};

// A panel's columns may come from two sources of a stack.
std::vector<Origin> origins(const std::vector<int>& source_rows, bool paired, int num_panels) {
  std::vector<Origin> result(size_t(num_panels) * kPanelColumns, {0, -1});
  for (int source = 0, column = 0; source < int(source_rows.size()); ++source)
    for (int row = 0; row < source_rows[source]; ++row, ++column) {
      const int at = paired ? row / kHalf * kPanelColumns + source * kHalf + row % kHalf : column;
      result[at] = {source, row};
    }
  return result;
}

template <class Work>  // work(panel), on any thread; the first exception is thrown again when all are done
void for_panels(int num_panels, int num_threads, Work work) {
  std::atomic<int> next{0};
  std::atomic<bool> has_failed{false};
  std::exception_ptr failure;
  auto serve = [&] {
    try {
      for (int p; (p = next.fetch_add(1)) < num_panels && !has_failed;) work(p);
    } catch (...) {
      if (!has_failed.exchange(true)) failure = std::current_exception();
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
  if (failure) std::rethrow_exception(failure);
}

uint16_t high_half(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if (bits & 0xffff) throw std::invalid_argument("a scale isn't a bf16");
  return uint16_t(bits >> 16);
}

uint16_t half(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude == 0) return uint16_t(sign);
  if (magnitude >= 113u << 23 && magnitude < 143u << 23 && !(bits & 0x1fff))
    return uint16_t(sign | ((magnitude - (112u << 23)) >> 13));
  float absolute;
  std::memcpy(&absolute, &magnitude, 4);
  const float units = absolute * 16777216.0f;  // of 2^-24, the smallest half
  if (!(units < 1024.0f) || units != float(uint32_t(units))) throw std::invalid_argument("a scale isn't an fp16");
  return uint16_t(sign | uint32_t(units));
}

int8_t small_integer(float f) {
  if (!(f >= -128.0f && f <= 127.0f) || f != float(int(f))) throw std::invalid_argument("a nested scale isn't an int8");
  return int8_t(f);
}

void put_scale(ScaleKind kind, float scale, uint8_t* of_group, int column) {
  if (kind == ScaleKind::kNested) {
    reinterpret_cast<int8_t*>(of_group)[column] = small_integer(scale);
  } else if (kind == ScaleKind::kFp32) {
    std::memcpy(of_group + column * 4, &scale, 4);
  } else {
    const uint16_t bits = kind == ScaleKind::kBf16 ? high_half(scale) : half(scale);
    std::memcpy(of_group + column * 2, &bits, 2);
  }
}

void put_zero_point(int value, uint8_t* of_group, int column) {
  if (value < 0 || value > 255) throw std::invalid_argument("a zero point is out of bounds");
  of_group[column] = uint8_t(value);
}

// Scales and offsets of group g of one column.
void put_header(const PackedMatrix& w, const QuantizedSource& source, int row, int g, uint8_t* group, int column) {
  const size_t at = size_t(row) * w.num_groups() + g;
  put_scale(w.scales, source.scales[at], group, column);
  if (w.offsets == OffsetKind::kMinimum) put_scale(w.scales, source.minima[at], group + w.scale_bytes(), column);
  if (w.offsets == OffsetKind::kZeroPoint)
    put_zero_point(source.zero_points[at] + (w.kind == WeightKind::kInt8 ? 128 : 0), group + w.scale_bytes(), column);
  if (w.scales != ScaleKind::kNested || g % w.groups_per_block()) return;
  const size_t block = size_t(row) * (w.num_groups() / w.groups_per_block()) + g / w.groups_per_block();
  uint8_t* factors = group - w.block_bytes();
  put_scale(ScaleKind::kFp16, source.block_scales[block], factors, column);
  if (w.has_offsets())
    put_scale(ScaleKind::kFp16, source.block_minima[block], factors + kPanelColumns * sizeof(uint16_t), column);
}

// The codes of a group, [64][256] bytes with their bias, into the dwords of their columns.
void put_codes(const PackedMatrix& w, const uint8_t (*codes)[256], uint8_t* out) {
  const int step = w.kind == WeightKind::kInt4 ? 8 : 4;
  for (int k = 0; k < w.group_size; k += step)
    for (int column = 0; column < kPanelColumns; ++column, out += 4) {
      uint32_t dword, upper;
      std::memcpy(&dword, codes[column] + k, 4);
      if (step == 8) {
        std::memcpy(&upper, codes[column] + k + 4, 4);
        dword |= upper << 4;
      }
      std::memcpy(out, &dword, 4);
    }
}

void pack_codes_panel(const std::vector<QuantizedSource>& sources, const Origin* columns, const PackedMatrix& w,
                      uint8_t* panel) {
  const int bias = w.code_bias(), highest = w.kind == WeightKind::kInt4 ? 15 : 255;
  uint8_t codes[kPanelColumns][256];
  for (int g = 0; g < w.num_groups(); ++g) {
    uint8_t* group = panel + (w.group(panel, g) - panel);
    const int first = g * w.group_size, count = std::min(w.group_size, w.k - first);
    for (int column = 0; column < kPanelColumns; ++column) {
      std::memset(codes[column], bias, sizeof codes[column]);
      const auto [source, row] = columns[column];
      if (row < 0) continue;
      const int8_t* from = sources[source].codes + size_t(row) * w.k + first;
      int outside = 0;
      for (int i = 0; i < count; ++i) {
        const int code = from[i] + bias;
        outside |= code & ~highest;
        codes[column][i] = uint8_t(code);
      }
      if (outside) throw std::invalid_argument("a code is out of bounds");
      put_header(w, sources[source], row, g, group, column);
    }
    put_codes(w, codes, group + w.header_bytes());
  }
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
  std::vector<int> num_rows;
  for (const auto& source : sources) num_rows.push_back(source.num_rows);
  const std::vector<Origin> columns = origins(num_rows, paired, weight.num_panels());
  const size_t row_bytes =
      size_t(weight.k) * (sources[0].kind == SourceKind::kFp32 ? 4 : 2);  // one kind: bindings check
  for_panels(weight.num_panels(), num_threads, [&](int p) {
    const void* rows[kPanelColumns];
    for (int c = 0; c < kPanelColumns; ++c) {
      const auto [source, row] = columns[size_t(p) * kPanelColumns + c];
      rows[c] = row < 0 ? nullptr : sources[source].data + row * row_bytes;
    }
    kernels.pack_panel(rows, sources[0].kind, weight, out + p * weight.panel_bytes());
  });
}

void pack_codes(const std::vector<QuantizedSource>& sources, bool paired, const PackedMatrix& weight, uint8_t* out,
                int num_threads) {
  std::vector<int> num_rows;
  for (const auto& source : sources) num_rows.push_back(source.num_rows);
  const std::vector<Origin> columns = origins(num_rows, paired, weight.num_panels());
  std::memset(out, 0, weight.panel_bytes() * weight.num_panels());
  for_panels(weight.num_panels(), num_threads, [&](int p) {
    pack_codes_panel(sources, &columns[size_t(p) * kPanelColumns], weight, out + p * weight.panel_bytes());
  });
}

}  // namespace qwench
