// Paged causal attention of some tokens over one kv head. Included inside the namespace of one simd header.
//
// The query heads that share the kv head are folded into rows. Keys are visited in tiles of 64 absolute positions with
// an online softmax (arXiv:1805.02867); a tile's keys and values are laid out once as panels, so that both products are
// those of the linears. Tiles of `partition_len` absolute positions make a partition, begun afresh and merged into what
// came before (as in arXiv:2311.01282), so that partitions can be computed apart. Every row takes the same steps at the
// same positions whatever rows are beside it: the result depends neither on how a prompt is cut nor on who computes
// what. A tile or partition that a row can't see leaves it as it was, to the bit.

constexpr float kMasked = -__builtin_inff();
constexpr float kNoScore = -1e30f;  // finite, so that a row that has seen nothing yet stays clear of inf - inf

// The state of an item's rows over some positions: sums of values as panels of 64 dimensions [panels][rows][64], and
// per row the highest score and the sum of probabilities relative to it.
struct Gathered {
  float *values, *peak, *total;
  int num_rows, num_panels;

  QWENCH_INLINE static size_t num_floats(int rows, int panels) { return size_t(rows) * (panels * kPanelColumns + 2); }
  QWENCH_INLINE Gathered(float* memory, int rows, int panels)
      : values(memory),
        peak(memory + size_t(rows) * panels * kPanelColumns),
        total(peak + rows),
        num_rows(rows),
        num_panels(panels) {}
  QWENCH_INLINE float* row(int panel, int r) const { return values + (size_t(panel) * num_rows + r) * kPanelColumns; }

  void clear() const {
    for (int i = 0; i < num_rows * num_panels * kPanelColumns; i += kLanes) store(values + i, set(0.0f));
    for (int r = 0; r < num_rows; ++r) peak[r] = kNoScore, total[r] = 0.0f;
  }
  void scale_row(int r, float factor) const {
    for (int panel = 0; panel < num_panels; ++panel)
      for (int i = 0; i < kPanelColumns; i += kLanes)
        store(row(panel, r) + i, mul(load(row(panel, r) + i), set(factor)));
  }
};

// e^x, or 2^x where scores are powers of two.
inline float weight_of(bool of_codes, float x) {
  float lanes[kLanes];
  store(lanes, of_codes ? exp2(set(x)) : exp(set(x)));
  return lanes[0];
}

// `all` with `part`, which lies behind it.
inline void merge(bool of_codes, const Gathered& all, const Gathered& part) {
  for (int r = 0; r < all.num_rows; ++r) {
    const float peak = part.peak[r] > all.peak[r] ? part.peak[r] : all.peak[r];
    const float old_factor = weight_of(of_codes, all.peak[r] - peak);
    const float factor = weight_of(of_codes, part.peak[r] - peak);
    for (int panel = 0; panel < all.num_panels; ++panel)
      for (int i = 0; i < kPanelColumns; i += kLanes) {
        float* at = all.row(panel, r) + i;
        store(at, fma(load(part.row(panel, r) + i), set(factor), mul(load(at), set(old_factor))));
      }
    all.peak[r] = peak;
    all.total[r] = all.total[r] * old_factor + part.total[r] * factor;
  }
}

// The place of an item's kv head in the cache.
inline int kv_head_of(const AttentionArgs& a, const AttentionItem& item) {
  return item.first_head / (a.num_heads / a.num_kv_heads) - a.first_kv_head;
}

// Where the keys or values of 16 positions from `at` on lie.
inline const uint8_t* cached(const AttentionArgs& a, const uint8_t* layer, int kv_head, int at, int row_bytes) {
  return layer + a.block_table[at / a.block_size] * a.block_stride + kv_head * a.head_stride +
         size_t(at % a.block_size) * row_bytes;
}

// Keys of positions [tile, tile + count) to fp32 [head_dim][64]; columns beyond hold anything.
inline void lay_out_keys(const AttentionArgs& a, int kv_head, int tile, int count, float* keys) {
  const int item = a.cache == CacheKind::kFp32 ? 4 : 2;
  for (int g = 0; g < count; g += kKeyGroup) {
    const uint8_t* from = cached(a, a.keys, kv_head, tile + g, a.head_dim * item);
    float* to = keys + g;
    if (a.cache == CacheKind::kFp32) {
      for (int d = 0; d < a.head_dim; ++d, to += kPanelColumns, from += kKeyGroup * 4)
        for (int i = 0; i < kKeyGroup; i += kLanes) store(to + i, load(reinterpret_cast<const float*>(from) + i));
    } else {
      for (int d = 0; d < a.head_dim; d += 2, to += 2 * kPanelColumns, from += kKeyGroup * 4)
        for (int i = 0; i < kKeyGroup; i += kLanes) {
          const Int raw = load_int(from + i * 4);
          store(to + i, bf16_high(raw));
          store(to + kPanelColumns + i, bf16_low(raw));
        }
    }
  }
}

// Values of positions [tile, tile + count) to fp32 panels [dim / 64][64 positions][64].
inline void lay_out_values(const AttentionArgs& a, int kv_head, int tile, int count, float* values) {
  const bool is_wide = a.cache == CacheKind::kFp32;
  for (int i = 0; i < count; i += 2) {
    const int at = tile + i / kKeyGroup * kKeyGroup;
    const uint8_t* from = cached(a, a.values, kv_head, at, a.padded_dim * (is_wide ? 4 : 2)) +
                          size_t(i % kKeyGroup) * a.padded_dim * (is_wide ? 4 : 2);
    for (int d = 0; d < a.padded_dim; d += kLanes) {
      float* to = values + (size_t(d / kPanelColumns) * kScoreTile + i) * kPanelColumns + d % kPanelColumns;
      if (is_wide) {
        const float* row = reinterpret_cast<const float*>(from) + d;
        store(to, load(row));
        store(to + kPanelColumns, load(row + a.padded_dim));
      } else {
        const Int raw = load_int(from + size_t(d) * 4);
        store(to, bf16_high(raw));
        store(to + kPanelColumns, bf16_low(raw));
      }
    }
  }
}

inline int clamp(int v, int low, int high) { return v < low ? low : v > high ? high : v; }

// Hides what row r may not see.
inline void mask_row(const AttentionArgs& a, const AttentionItem& item, int tile, int r, float* scores) {
  const int position = item.first_position + r / item.num_heads;
  const int low = a.window ? clamp(position + 1 - a.window - tile, 0, kScoreTile) : 0;
  for (int i = 0; i < low; ++i) scores[i] = kMasked;
  const int high = a.is_causal ? position + 1 : item.end;
  for (int i = clamp(high - tile, 0, kScoreTile); i < kScoreTile; ++i) scores[i] = kMasked;
}

// The same as bf16 pairs, as they are in the cache: keys [head_dim / 2][64], values [panels][32][64]. Of the last pair,
// the position that may never have been written becomes zero.
inline void lay_out_key_pairs(const AttentionArgs& a, int kv_head, int tile, int count, uint8_t* keys) {
  for (int g = 0; g < count; g += kKeyGroup) {
    const uint8_t* from = cached(a, a.keys, kv_head, tile + g, a.head_dim * 2);
    uint8_t* to = keys + g * kColumnBytes;
    for (int d = 0; d < a.head_dim; d += 2, to += kPanelRowBytes, from += kKeyGroup * 4)
      __builtin_memcpy(to, from, kKeyGroup * 4);
  }
}

inline void lay_out_value_pairs(const AttentionArgs& a, int kv_head, int tile, int count, uint8_t* values) {
  for (int i = 0; i < count; i += 2) {
    const uint8_t* from = cached(a, a.values, kv_head, tile + i / kKeyGroup * kKeyGroup, a.padded_dim * 2) +
                          size_t(i % kKeyGroup) * a.padded_dim * 2;
    for (int d = 0; d < a.padded_dim; d += kLanes) {
      uint8_t* to = values + (size_t(d / kPanelColumns) * kScoreTile / 2 + i / 2) * kPanelRowBytes +
                    d % kPanelColumns * kColumnBytes;
      const Int raw = load_int(from + size_t(d) * 4);
      store_int(to, i + 1 < count ? raw : high_halves(raw));
    }
  }
}

// Turns scores [rows][64] into probabilities relative to the rows' running peaks; rescales what the rows gathered.
inline void softmax_tile(const AttentionArgs& a, const AttentionItem& item, int tile, float* scores,
                         const Gathered& state) {
  alignas(64) float peaks[kMaxAttentionRows], factors[kMaxAttentionRows + kLanes];  // exp takes whole vectors
  for (int r = 0; r < state.num_rows; ++r) {
    float* row = scores + r * kScoreTile;
    mask_row(a, item, tile, r, row);
    Float best = load(row);
    for (int i = kLanes; i < kScoreTile; i += kLanes) best = max(best, load(row + i));
    const float tile_peak = reduce_max(best) * a.scale;
    peaks[r] = tile_peak > state.peak[r] ? tile_peak : state.peak[r];
    factors[r] = state.peak[r] - peaks[r];
    state.peak[r] = peaks[r];
  }
  for (int r = 0; r < state.num_rows; r += kLanes) store(factors + r, exp(load(factors + r)));
  for (int r = 0; r < state.num_rows; ++r) {
    float* row = scores + r * kScoreTile;
    Float sums[kWide];
    for (int s = 0; s < kWide; ++s) sums[s] = set(0.0f);
    for (int i = 0; i < kScoreTile; i += kPartialSums)
      for (int s = 0; s < kWide; ++s) {
        float* at = row + i + s * kLanes;
        const Float e = exp(fma(load(at), set(a.scale), set(-peaks[r])));
        store(at, e);
        sums[s] = add(sums[s], e);
      }
    if (factors[r] != 1.0f) state.scale_row(r, factors[r]);
    state.total[r] = state.total[r] * factors[r] + fold(sums);
  }
}

struct AttentionScratch {
  float *q, *keys, *values, *scores, *running, *part;
  float* rest;  // for CodeScratch
  AttentionScratch(float* memory, int head_dim, int padded_dim, int num_panels) {
    q = memory;
    keys = q + size_t(kMaxAttentionRows) * head_dim;
    values = keys + size_t(padded_dim) * kScoreTile;
    scores = values + size_t(num_panels) * kScoreTile * kPanelColumns;
    running = scores + size_t(kMaxAttentionRows) * kScoreTile;
    part = running + Gathered::num_floats(kMaxAttentionRows, num_panels);
    rest = part + Gathered::num_floats(kMaxAttentionRows, num_panels);
  }
};

#include "kernels/attention/attention_codes.inl"

// Adds the tile at position `tile` to `state`. kPairs: queries, probabilities and the cache lie in pairs of bf16.
template <bool kPairs>
inline void attend_tile(const AttentionArgs& a, const AttentionItem& item, const AttentionScratch& s, int tile,
                        const Gathered& state) {
  constexpr Values kValues = kPairs ? Values::kPairs : Values::kFp32;
  const int kv_head = kv_head_of(a, item);
  const int count = item.end - tile < kScoreTile ? item.end - tile : kScoreTile;
  auto *keys = reinterpret_cast<uint8_t*>(s.keys), *values = reinterpret_cast<uint8_t*>(s.values);
  if constexpr (kPairs)
    lay_out_key_pairs(a, kv_head, tile, count, keys);
  else
    lay_out_keys(a, kv_head, tile, count, s.keys);
  for (int i = 0; i < state.num_rows * kScoreTile; i += kLanes) store(s.scores + i, set(0.0f));
  constexpr size_t item_bytes = kPairs ? sizeof(uint16_t) : sizeof(float);
  float_rows<kValues>({s.q, a.head_dim * item_bytes, keys, a.head_dim, s.scores, values}, state.num_rows, 0);
  softmax_tile(a, item, tile, s.scores, state);
  for (int r = 0; a.rounds && r < state.num_rows; ++r)
    round_to_bf16(s.scores + r * kScoreTile, kScoreTile, s.scores + r * kScoreTile);
  if constexpr (kPairs)
    lay_out_value_pairs(a, kv_head, tile, count, values);
  else
    lay_out_values(a, kv_head, tile, count, s.values);
  constexpr size_t panel_bytes = size_t(kScoreTile) * kPanelColumns * item_bytes;
  for (int panel = 0; panel < state.num_panels; ++panel)
    float_rows<kValues>({s.scores, kScoreTile * sizeof(float), values + panel * panel_bytes,
                         kPairs ? (count + 1) / 2 * 2 : count, state.row(panel, 0), values},
                        state.num_rows, 0);
}

// Adds the tiles from position `tile` to `last` to `state`.
template <bool kPairs>
inline void attend_tiles(const AttentionArgs& a, const AttentionItem& item, const AttentionScratch& s, int tile,
                         int last, const Gathered& state) {
  for (; tile < last; tile += kScoreTile) attend_tile<kPairs>(a, item, s, tile, state);
}

// The rows' output: what they gathered over the sum of their probabilities.
inline void write_output(const AttentionArgs& a, const AttentionItem& item, const Gathered& state) {
  for (int r = 0; r < state.num_rows; ++r) {
    const int token = item.first_row + r / item.num_heads, head = item.first_head + r % item.num_heads;
    float* y = a.out + (size_t(token) * a.num_heads + head) * a.head_dim;
    for (int d = 0; d < a.head_dim; d += kPanelColumns) {
      const float* values = state.row(d / kPanelColumns, r);
      const int count = a.head_dim - d < kPanelColumns ? a.head_dim - d : kPanelColumns;
      int i = 0;
      for (; i + kLanes <= count; i += kLanes) store(y + d + i, div(load(values + i), set(state.total[r])));
      for (; i < count; ++i) y[d + i] = values[i] / state.total[r];
    }
  }
}

inline int dim_panels(const AttentionArgs& a) { return (a.padded_dim + kPanelColumns - 1) / kPanelColumns; }

void attention(const AttentionArgs& a, const AttentionItem& item) {
  const int num_rows = item.num_tokens * item.num_heads, num_panels = dim_panels(a);
  const AttentionScratch s(a.scratch, a.head_dim, a.padded_dim, num_panels);
  const size_t row_bytes = a.rounds ? bf16_row_bytes(kBf16Pairs, a.head_dim) : a.head_dim * sizeof(float);
  for (int r = 0; r < num_rows; ++r) {
    const int token = item.first_row + r / item.num_heads, head = item.first_head + r % item.num_heads;
    const float* q = a.q + (size_t(token) * a.num_heads + head) * a.head_dim;
    uint8_t* row = reinterpret_cast<uint8_t*>(s.q) + r * row_bytes;
    if (a.rounds)
      round_to_bf16(q, a.head_dim, row);
    else
      __builtin_memcpy(row, q, row_bytes);
  }
  const CodeScratch<SplitRows> bytes(s.rest, a.padded_dim);
  const CodeScratch<WordRows> words(s.rest, a.padded_dim);
  if (a.cache == CacheKind::kInt8) prepare_queries(a, kv_head_of(a, item), num_rows, s.q, bytes);
  if (a.cache == CacheKind::kInt16) prepare_queries(a, kv_head_of(a, item), num_rows, s.q, words);
  if (num_panels * kPanelColumns > a.padded_dim)  // columns that lay_out_values leaves alone
    for (int i = 0; i < num_panels * kScoreTile * kPanelColumns; i += kLanes) store(s.values + i, set(0.0f));

  const int begin = a.window && item.first_position + 1 > a.window ? item.first_position + 1 - a.window : 0;
  const Gathered running(s.running, num_rows, num_panels),
      part(item.partial ? item.partial : s.part, num_rows, num_panels);
  running.clear();
  for (int p = item.first_partition; p < item.last_partition; ++p) {
    const int first = p * a.partition_len,
              last = first + a.partition_len < item.end ? first + a.partition_len : item.end;
    if (begin >= last && !item.partial) continue;
    const int tile = (begin > first ? begin : first) / kScoreTile * kScoreTile;
    part.clear();
    if (a.cache == CacheKind::kInt8)
      attend_codes(a, item, s, bytes, tile, last, part);
    else if (a.cache == CacheKind::kInt16)
      attend_codes(a, item, s, words, tile, last, part);
    else if (a.rounds && kBf16Pairs)
      attend_tiles<kBf16Pairs>(a, item, s, tile, last, part);
    else
      attend_tiles<false>(a, item, s, tile, last, part);
    if (!item.partial) merge(has_codes(a.cache), running, part);
  }
  if (!item.partial) write_output(a, item, running);
}

void merge_attention(const AttentionArgs& a, const AttentionItem& item, const float* partials, int num_partials) {
  const int num_rows = item.num_tokens * item.num_heads, num_panels = dim_panels(a);
  const AttentionScratch s(a.scratch, a.head_dim, a.padded_dim, num_panels);
  const Gathered running(s.running, num_rows, num_panels);
  running.clear();
  for (int i = 0; i < num_partials; ++i) {
    const size_t at = i * Gathered::num_floats(num_rows, num_panels);
    merge(has_codes(a.cache), running, Gathered(const_cast<float*>(partials) + at, num_rows, num_panels));
  }
  write_output(a, item, running);
}
