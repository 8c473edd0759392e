// What a kernel is given, and the table of kernels that each instruction set fills.
//
// Kernels compute a range of independent outputs of one op; they know nothing of threads, ops or Python. An output's
// bits depend on its own row and column alone: neither on the range, the tile or the batch, nor on the instruction set.
// Every unit multiplies and adds in the same order, fuses the same products (fma rounds once, everything else twice),
// takes the same polynomial for exp, and counts subnormals as zeros (machine/floating_point.h).
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace qwench {

// Shared by units built for different instruction sets: never emitted as a function that the linker could share.
#define QWENCH_INLINE inline __attribute__((always_inline))

constexpr int kPanelColumns = 64;  // output columns of a packed weight panel
constexpr int kNestedBlock = 256;  // values along K that share the factor of nested scales
constexpr int kKeyGroup = 16;      // cache positions whose keys are interleaved
constexpr int kScoreTile = 64;     // cache positions per step of the online softmax, at absolute multiples
// A group whose largest magnitude is no more than this counts as zeros: the inverse of its scale would overflow.
constexpr float kNoMagnitude = 1e-30f;
constexpr float kSplitRange = 127 * 128 + 63;  // largest magnitude of 128 * high + low
// Of a panel's int4 codes as bytes, which stay in a second-level cache of a megabyte while all rows meet them.
constexpr size_t kUnpackedPanelBytes = size_t(512) << 10;
constexpr int kMaxAttentionRows = 84;
constexpr int kLoraBlock = 16;          // ranks that are computed together, and outputs whose ranks are neighbours
constexpr int kMaxExperts = 1024;       // that a router chooses from
constexpr int kMaxPartition = 1 << 30;  // its end and a tile more fit 32 bits

enum class WeightKind : int { kBf16 = 0, kInt8 = 1, kInt4 = 2 };
enum class ScaleKind : int { kBf16 = 0, kFp16 = 1, kFp32 = 2, kNested = 3 };
enum class OffsetKind : int { kNone = 0, kMinimum = 1, kZeroPoint = 2 };
enum class SourceKind : int { kBf16 = 0, kFp16 = 1, kFp32 = 2 };
enum class CacheKind : int { kFp32 = 0, kBf16 = 1, kInt8 = 2, kInt16 = 3 };
enum class ActivationKind : int { kFp32 = 0, kBf16 = 1, kInt8 = 2, kInt16 = 3 };
enum class PeakKind : int { kFp32 = 0, kBf16 = 1, kInt8 = 2 };
enum class Epilogue : int { kStore = 0, kAdd = 1, kSiluMul = 2, kWeightedAdd = 3 };

// A matrix [n, k] in panels of 64 columns (rows of the checkpoint's matrix); beyond n and k it is zero. A panel is
//   bf16:  [padded_k / 2][64] pairs, the first value in the high half of a dword, as vdpbf16ps takes them
//   int8:  per group of K: [64] scales, [64] offsets if any, [group / 4][64][4] codes + 128
//   int4:  per group of K: likewise, [group / 8][64][4] bytes of codes + 8, k in the low nibble, k + 4 in the high
// Scales are bf16, fp16, fp32, or int8 factors of fp16 ones, which come before the first of each block's groups.
// Offsets are minima, stored like the scales, or zero points, a byte each. A value is (code - zero point) * scale -
// minimum. int4 codes with offsets are stored as they are, from 0 to 15; zero points beside int8 + 128.
struct PackedMatrix {
  const uint8_t* data;
  WeightKind kind;
  int n, k, group_size;
  ScaleKind scales = ScaleKind::kBf16;
  OffsetKind offsets = OffsetKind::kNone;

  QWENCH_INLINE int num_panels() const { return (n + kPanelColumns - 1) / kPanelColumns; }
  QWENCH_INLINE int padded_k() const {
    const int multiple = group_size ? group_size : 2;
    return (k + multiple - 1) / multiple * multiple;
  }
  QWENCH_INLINE int num_groups() const { return group_size ? padded_k() / group_size : 0; }
  QWENCH_INLINE bool has_offsets() const { return offsets != OffsetKind::kNone; }
  // What integer codes have added where they are stored.
  QWENCH_INLINE int code_bias() const { return kind == WeightKind::kInt8 ? 128 : has_offsets() ? 0 : 8; }
  QWENCH_INLINE size_t scale_bytes() const {
    return kPanelColumns * (scales == ScaleKind::kFp32 ? 4 : scales == ScaleKind::kNested ? 1 : 2);
  }
  QWENCH_INLINE size_t header_bytes() const {  // scales and offsets
    return scale_bytes() + (offsets == OffsetKind::kMinimum ? scale_bytes()
                            : offsets == OffsetKind::kNone  ? 0
                                                            : kPanelColumns);
  }
  QWENCH_INLINE size_t group_bytes() const {
    const size_t codes = size_t(kPanelColumns) * group_size;
    return header_bytes() + (kind == WeightKind::kInt4 ? codes / 2 : codes);
  }
  QWENCH_INLINE int groups_per_block() const { return kNestedBlock / group_size; }
  QWENCH_INLINE size_t block_bytes() const {  // the factors of nested scales and minima
    return scales == ScaleKind::kNested ? kPanelColumns * sizeof(uint16_t) * (has_offsets() ? 2 : 1) : 0;
  }
  QWENCH_INLINE const uint8_t* group(const uint8_t* panel, int g) const {
    return panel + g * group_bytes() + (block_bytes() ? (g / groups_per_block() + 1) * block_bytes() : 0);
  }
  QWENCH_INLINE size_t panel_bytes() const {
    if (!group_size) return size_t(kPanelColumns) * padded_k() * 2;
    return num_groups() * group_bytes() + (block_bytes() ? num_groups() / groups_per_block() * block_bytes() : 0);
  }
  QWENCH_INLINE const uint8_t* panel(int p) const { return data + p * panel_bytes(); }
};

// Bytes of a row of bf16 activations: pairs, the first value in the high half of a dword, for units that have an
// instruction for them, and fp32 values for the others.
QWENCH_INLINE size_t bf16_row_bytes(bool in_pairs, int width) {
  return in_pairs ? size_t(width + 1) / 2 * 4 : size_t(width) * 4;
}

// Rows of activations: fp32 or bf16 `rows`, `row_bytes` apart, or int8 `codes` [rows, parts, padded_k] with a scale and
// minus the sum of the codes per group, `scales` and `starts` [num_groups, group_stride], rows and parts side by side.
// An int8 value has one part. One of int16 has two, 128 * high + low: to a product these are two rows, whose sums are
// added in its epilogue.
struct Activation {
  ActivationKind kind;
  const uint8_t* rows;
  size_t row_bytes;
  const int8_t* codes;
  const float* scales;
  const int32_t* starts;
  size_t group_stride;
  int parts;

  // From a row on; padded_k: of codes.
  QWENCH_INLINE Activation after(int row, int padded_k) const {
    const int i = row * parts;
    return {kind,
            rows ? rows + row * row_bytes : nullptr,
            row_bytes,
            codes ? codes + size_t(i) * padded_k : nullptr,
            scales ? scales + i : nullptr,
            starts ? starts + i : nullptr,
            group_stride,
            parts};
  }
};

// Where one row's codes go; group g's scale at scales[g * group_stride], that of a second part after it.
struct QuantizedRow {
  int8_t* codes;
  float* scales;
  int32_t* starts;
  size_t group_stride;
  int padded_k, parts;

  QWENCH_INLINE QuantizedRow after(int rows) const {
    const int i = rows * parts;
    return {codes + size_t(i) * padded_k, scales + i, starts + i, group_stride, padded_k, parts};
  }
};
struct QuantizedRows {
  QuantizedRow first;
  int group_size;

  QWENCH_INLINE QuantizedRow row(int r) const { return first.after(r); }
};

// What one low-rank adapter adds to one product: (x A.T * scales) B.T. Matrices that are multiplied as one have their
// ranks one after another. An output needs `depth` of them, from first_rank[output / 16] on; others' B is zero.
//   a: [num_ranks / 16][lora_padded_k][16] bf16; b: [panels][depth][64] bf16, columns as the panel's
struct LoraMatrix {
  const uint16_t *a, *b;
  const float* scales;        // [num_ranks]
  const int32_t* first_rank;  // [panels * 4]
  int num_ranks;              // a multiple of 16; 0: the adapter leaves the product alone
  int k, depth;
};
constexpr int kLoraSums = 4;  // partial sums of every fourth product each
QWENCH_INLINE int lora_padded_k(int k) { return (k + kLoraSums - 1) / kLoraSums * kLoraSums; }

// The adapters of a product's rows. `shrunk` [rows, stride] is what lora_shrink made of them, in num_items parts, of
// which other threads may still have some in hand: `wait` returns when num_done has reached num_items.
struct LinearLora {
  const LoraMatrix* matrices;
  const int32_t* of_row;  // [rows], which of the matrices; -1: none
  const float* shrunk;
  size_t stride;
  const std::atomic<int>* num_done;
  int num_items;
  void (*wait)(const LinearLora&);
};

// y [rows, width] = epilogue(x @ weight.T). kStore adds `bias` if given; kAdd adds `residual` [rows, width]; kSiluMul
// takes panels of 32 gate and 32 up columns and stores silu(gate) * up, 32 outputs a panel. kWeightedAdd adds to what
// is in y, [rows, 64] of one panel: a row of x times its weight to the row of its token, of which several rows may be.
struct LinearArgs {
  Activation x;
  PackedMatrix weight;
  int num_rows;
  int width;
  float* y;
  Epilogue epilogue;
  const float* bias;
  const float* residual;
  // Of logits: where each panel's largest goes, [rows, num_panels], NaN if one is; null: nowhere. Of these maxima the
  // sampler finds the largest logits without reading them all again.
  float* maxima;
  // Where y goes as bf16 activations instead; null: y.
  uint8_t* rounded;
  // Where y goes as integers instead, by way of this thread's `gathered` [rows, group_size]; null: y.
  float* gathered;
  QuantizedRows quantized;
  // Added before the epilogue; null: no row has an adapter.
  const LinearLora* lora;
  // Of kWeightedAdd: of row r the row of y, tokens[r], or r if null, and the weight, weights[r * weight_stride].
  const int32_t* tokens = nullptr;
  const float* weights = nullptr;
  size_t weight_stride = 0;
  const uint8_t* next = nullptr;  // what is read after the last panel; null: what follows it
  uint8_t* unpacked = nullptr;    // this thread's kUnpackedPanelBytes, or null
};

// One sequence's view of one layer of the paged cache. Of a block and head, fp32: keys [block_size / 16][head_dim][16],
// values [block_size][padded_dim]; bf16 in pairs, the first in the high half: keys [block_size / 16][head_dim / 2][16],
// values [block_size / 2][padded_dim]. int8: scales of a group of code_group_size positions, then codes + 128: keys
// less their rotated bias [padded_dim / 4][group][4], values in panels of up to 64 dimensions, [group / 4][64][4].
// int16: the same in codes of 16 bits, keys whole [padded_dim / 2][group][2], values [group / 2][64][2].
struct AttentionArgs {
  const float* q;         // [tokens of the step, num_heads, head_dim], rotated
  float* out;             // the same shape
  const uint8_t* keys;    // this layer, first block, first head
  const uint8_t* values;  // likewise
  size_t block_stride;    // bytes from block to block
  size_t head_stride;     // bytes from head to head within a block
  const int32_t* block_table;
  CacheKind cache;
  bool rounds;  // queries and probabilities to bf16, as the cache is; else they are fp32
  int block_size, num_heads, num_kv_heads, head_dim, padded_dim;
  int first_kv_head;  // in the cache and the bias, which may have some of them alone
  int window;         // positions seen, 0 for all
  bool is_causal;     // a token sees none behind it; else all up to the item's end
  int partition_len;  // positions that may be computed apart, a multiple of kScoreTile
  float scale;
  float* scratch;  // this thread's, attention_scratch_floats
  // For keys without their bias: the bias [num_kv_heads, head_dim], or null if it is zero; cosines and sines of every
  // 64th position; the same of positions 0 to 63 over the table's factor, [head_dim][64].
  const float *key_bias, *far_rope, *near_rope;
};

QWENCH_INLINE constexpr bool has_codes(CacheKind cache) {
  return cache == CacheKind::kInt8 || cache == CacheKind::kInt16;
}
QWENCH_INLINE constexpr int code_bytes(CacheKind cache) { return cache == CacheKind::kInt8 ? 1 : 2; }
// Positions whose codes lie together: a tile's where blocks hold whole tiles, so that attention reads them as they lie.
QWENCH_INLINE constexpr int code_group_size(int block_size) { return block_size % kScoreTile ? kKeyGroup : kScoreTile; }
// Of a position of one head's keys, or values, in a cache of codes: its scale and codes.
QWENCH_INLINE constexpr size_t code_position_bytes(CacheKind cache, int padded_dim) {
  return sizeof(float) + size_t(padded_dim) * code_bytes(cache);
}
// The largest magnitude of codes of 16 bits, so that a sum of `num_terms` products of two of them fits 32 bits.
QWENCH_INLINE constexpr int largest_word(int num_terms) { return int(__builtin_sqrt(2147483647.0 / num_terms)); }

// The state of attention over some positions: `rows` of values, a highest score and a sum each.
QWENCH_INLINE size_t attention_state_floats(int num_rows, int padded_dim) {
  return size_t(num_rows) * ((padded_dim + kPanelColumns - 1) / kPanelColumns * kPanelColumns + 2);
}
QWENCH_INLINE size_t attention_scratch_floats(int head_dim, int padded_dim) {
  const int panels = (padded_dim + kPanelColumns - 1) / kPanelColumns;
  const size_t of_any_cache = size_t(kMaxAttentionRows) * (head_dim + kScoreTile) + size_t(padded_dim) * kScoreTile +
                              size_t(panels) * kScoreTile * kPanelColumns +
                              2 * attention_state_floats(kMaxAttentionRows, padded_dim);
  const size_t of_codes = size_t(kMaxAttentionRows) * (padded_dim + padded_dim / 2 + kScoreTile / 2 + 8);
  return of_any_cache + of_codes + 4 * kScoreTile + size_t(kMaxAttentionRows) * 16;
}

// Heads [first_head, first_head + num_heads), which share a kv head, of `num_tokens` tokens: rows first_row... of the
// step, at cache positions first_position... At most kMaxAttentionRows heads times tokens. Over the positions below
// `end` of partitions [first_partition, last_partition), all there are unless `partial` takes the state of a single
// one.
struct AttentionItem {
  int first_head, num_heads, first_row, first_position, num_tokens, end;
  int first_partition, last_partition;
  float* partial;
};

struct KernelTable {
  // Whether bf16 activations lie in pairs, for an instruction that multiplies them; else as fp32, for fma.
  bool bf16_pairs;
  // Panels [first_panel, last_panel) of a linear; whole groups of panels if the outputs are quantised.
  void (*linear)(const LinearArgs& args, int first_panel, int last_panel);
  // x A.T * scales of the given rows, for 16 ranks from first_rank on, to shrunk [all rows, stride].
  void (*lora_shrink)(const LoraMatrix& lora, const Activation& x, int group_size, const int32_t* rows, int num_rows,
                      int first_rank, float* shrunk, size_t stride);
  void (*attention)(const AttentionArgs& args, const AttentionItem& item);
  // Ends what items with partials began: those of all partitions, in order.
  void (*merge_attention)(const AttentionArgs& args, const AttentionItem& item, const float* partials,
                          int num_partials);
  // y = x / rms(x) * gain; y may be x.
  void (*rms_norm)(const float* x, const float* gain, float eps, int width, float* y);
  void (*quantize)(const float* x, int width, int group_size, QuantizedRow row);
  // To a row of bf16 activations, ties to even; it may take the place of x.
  void (*round_to_bf16)(const float* x, int width, void* row);
  // The top_k experts with the highest of a row's scores [num_experts], in order, of equal ones the first; their
  // weights by softmax, divided by their sum if it normalizes; and, if there is a shared expert, the sigmoid of one
  // more score.
  void (*route)(const float* scores, int num_experts, int top_k, bool normalizes, bool has_shared, float* routes);
  // Rotates one row of `num_heads` heads; table row: head_dim / 2 cosines, then sines.
  void (*rope)(const float* x, const float* table_row, int num_heads, int head_dim, float* y);
  void (*write_keys)(const float* k, int head_dim, int padded_dim, int offset_in_block, int block_size, CacheKind cache,
                     uint8_t* block_head);
  void (*write_values)(const float* v, int head_dim, int padded_dim, int offset_in_block, int block_size,
                       CacheKind cache, uint8_t* block_head);
  // One row of the matrix, dequantised: y [k].
  void (*embed)(const PackedMatrix& weight, int row, float* y);
  // Quantises and packs 64 rows of a checkpoint matrix, each [k] or null for zeros, into one panel.
  void (*pack_panel)(const void* const* rows, SourceKind kind, const PackedMatrix& weight, uint8_t* panel);
  // Multiply-adds on registers, for the measured ceiling; returns operations done. kBf16 without bf16_pairs is kFp32.
  double (*peak)(PeakKind kind, int iterations);
  // Reads whole lines of 64 bytes and does nothing else, for the measured ceiling; fetches `ahead` bytes before it
  // reads.
  uint64_t (*read)(const uint8_t* p, size_t num_bytes, size_t ahead);
};

const KernelTable& generic_kernels();
#ifdef QWENCH_X86
const KernelTable& avx2_kernels();
const KernelTable& avx512_kernels();
const KernelTable& avx512bf16_kernels();
#endif

}  // namespace qwench
