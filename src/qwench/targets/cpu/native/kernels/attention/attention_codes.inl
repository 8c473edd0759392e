// Attention over a tile of a cache of codes. Included inside the namespace of one simd header, by
// kernels/attention/attention.inl.
//
// Both products are those of integer weights: a tile's keys, and its values, are a group of codes with a scale per
// position, and what they meet, queries and probabilities, becomes integers too.
//   int16: words times words. Of a sum of n products none may exceed sqrt((2^31 - 1) / n), 5792 for 64 positions.
//   int8: bytes times 15-bit integers, two bytes a value, so that nothing but the cache is as coarse as 8 bits.
//
// In an int8 cache keys lie without their layer's bias, which can be a hundred times what varies and would take all of
// the codes' range. Rotated, it is known for each position, and its part of the scores is
//   q . rotate(bias, p) = sum over pairs i of  c_i cos(angle_i(p)) + s_i sin(angle_i(p)),
// with c and s of the query alone. At p = tile + j, the angles' sum turns c and s by the tile's angle, and what is left
// is a product with the cosines and sines of 64 positions, the same for every tile, head and layer.

// Codes of rows x [num_rows][width] come from a pass over all rows at a time, so that the reductions of different rows
// overlap. `peaks` are the rows' largest magnitudes, NaN or infinite for a row that isn't finite: codes can't say so,
// scales can.
inline bool is_broken(float peak) { return !(peak - peak == 0); }
constexpr int kCodeRows = 48;  // whose scores are computed together
// A tile's scores may be so many powers of two above what a row's sums are relative to, before these are scaled anew.
constexpr float kMostAbove = 16.0f;
constexpr int kTileVectors = kScoreTile / kLanes;  // of a row of scores

// range / peak of each row, 0 for rows of zeros.
inline void invert_peaks(const float* peaks, int num_rows, float range, float* inverses) {
  for (int r = 0; r < num_rows; r += kLanes) {
    const Float peak = load(peaks + r), finite = max(peak, set(kNoMagnitude));
    store(inverses + r, zero_below(peak, kNoMagnitude, div(set(range), finite)));
  }
}

// Rows as words, [rows][width]: x = scale * code.
struct WordRows {
  static constexpr CacheKind kCache = CacheKind::kInt16;
  static constexpr int32_t kNoStarts[kMaxAttentionRows] = {};  // words have no bias
  static constexpr float kRange = largest_word(kScoreTile);    // of probabilities
  int16_t* codes;
  float* scales;
  int width, range;

  WordRows(float* memory, int rows, int row_width)
      : codes(reinterpret_cast<int16_t*>(memory)),
        scales(memory + size_t(rows) * row_width / 2),
        width(row_width),
        range(largest_word(row_width)) {}
  // The codes of row r of probabilities, [64] between 0 and kRange; set_scales says what all rows' are worth.
  void put(int r, const Float (&values)[kTileVectors]) const {
    for (int v = 0; v < kTileVectors; ++v) store_words(codes + size_t(r) * kScoreTile + v * kLanes, values[v]);
  }
  void set_scales(const float* weights, int num_rows) const {
    __builtin_memcpy(scales, weights, num_rows * sizeof(float));
  }
  void set_rows(const float* x, int num_rows, const float* peaks) const {
    alignas(64) float inverses[kMaxAttentionRows + kLanes];
    invert_peaks(peaks, num_rows, range, inverses);
    for (int r = 0; r < num_rows; ++r) {
      const Float inverse = set(inverses[r]);
      for (int i = 0; i < width; i += kLanes) {
        const size_t at = size_t(r) * width + i;
        store_words(codes + at, is_broken(peaks[r]) ? set(0.0f) : mul(load(x + at), inverse));
      }
      scales[r] = peaks[r] * (1.0f / range);
    }
  }
  // sums [num_rows][64] += x[first:] @ columns, while the loop of a few rows brings in `next`.
  void multiply(int first, int num_rows, const uint8_t* columns, const float* column_scales, float* sums,
                const uint8_t* const (&next)[2], size_t next_bytes) const {
    const int row_bytes = width * sizeof(int16_t);
    const auto* x = reinterpret_cast<const int8_t*>(codes + size_t(first) * width);
    IntTile tile = {x, size_t(row_bytes), kNoStarts, scales + first, columns, column_scales, row_bytes, sums, columns};
    if (!next_bytes) return int_rows<Codes::kWords>(tile, num_rows, 0);
    // Half of the rows bring in one part of what comes next, the others the other.
    const int half = (num_rows + 1) / 2,
              rows = half > kFloatRows ? (half + kFloatRows - 1) / kFloatRows * kFloatRows : half;
    tile.next = next[0];
    int_rows<Codes::kWords>(tile, rows, next_bytes);
    if (rows == num_rows) return;  // a single one
    tile.advance(rows, 0);
    tile.next = next[1];
    int_rows<Codes::kWords>(tile, num_rows - rows, next_bytes);
  }
};

// Rows as two bytes a value, [rows][width] each: x = scales[0] * codes[0] + scales[1] * codes[1]. `starts` as of
// IntTile.
struct SplitRows {
  static constexpr CacheKind kCache = CacheKind::kInt8;
  static constexpr float kRange = kSplitRange;
  int8_t* codes[2];
  float* scales[2];
  int32_t* starts[2];
  int width;

  SplitRows(float* memory, int rows, int row_width) : width(row_width) {
    for (int part = 0; part < 2; ++part) {
      codes[part] = reinterpret_cast<int8_t*>(memory) + size_t(part) * rows * width;
      scales[part] = memory + size_t(rows) * width / 2 + part * rows;
      starts[part] = reinterpret_cast<int32_t*>(memory + size_t(rows) * width / 2 + (2 + part) * rows);
    }
  }
  void put(int r, const Float (&values)[kTileVectors]) const {
    const size_t at = size_t(r) * kScoreTile;
    Int sums[2] = {set_int(0), set_int(0)};
    for (int v = 0; v < kTileVectors; ++v)
      split(values[v], codes[0] + at + v * kLanes, codes[1] + at + v * kLanes, sums);
    for (int part = 0; part < 2; ++part) starts[part][r] = negative(reduce_add_int(sums[part]));
  }
  void set_scales(const float* weights, int num_rows) const {
    for (int r = 0; r < num_rows; ++r) scales[0][r] = 128 * weights[r], scales[1][r] = weights[r];
  }
  void set_rows(const float* x, int num_rows, const float* peaks) const {
    alignas(64) float inverses[kMaxAttentionRows + kLanes];
    invert_peaks(peaks, num_rows, kSplitRange, inverses);
    for (int r = 0; r < num_rows; ++r) {
      const size_t at = size_t(r) * width;
      Int sums[2] = {set_int(0), set_int(0)};
      split(x + at, set(inverses[r]), is_broken(peaks[r]), width, codes[0] + at, codes[1] + at, sums);
      for (int part = 0; part < 2; ++part) {
        scales[part][r] = peaks[r] * ((part == 0 ? 128 : 1) / kSplitRange);
        starts[part][r] = negative(reduce_add_int(sums[part]));
      }
    }
  }
  void multiply(int first, int num_rows, const uint8_t* columns, const float* column_scales, float* sums,
                const uint8_t* const (&next)[2], size_t next_bytes) const {
    for (int part = 0; part < 2; ++part)
      int_rows<Codes::kBytes>(
          {codes[part] + size_t(first) * width, size_t(width), starts[part] + first, scales[part] + first, columns,
           column_scales, width, sums, next_bytes ? next[part] : columns},
          num_rows, next_bytes);
  }
};

// What attention over a cache of codes needs in working space, beside what any cache needs.
template <class Rows>
struct CodeScratch {
  float* turned;  // [rows][padded_dim]
  Rows q, probabilities;
  float *key_scales, *value_scales;    // of a tile
  float *value_logs, *value_inverses;  // log2 of the values' scales, and one over them
  float* totals;                       // [rows][16], sums of probabilities
  CodeScratch(float* memory, int padded_dim)
      : turned(memory),
        q(turned + size_t(kMaxAttentionRows) * padded_dim, kMaxAttentionRows, padded_dim),
        probabilities(turned + size_t(kMaxAttentionRows) * (padded_dim + padded_dim / 2 + 4), kMaxAttentionRows,
                      kScoreTile),
        key_scales(turned + size_t(kMaxAttentionRows) * (padded_dim + padded_dim / 2 + 4 + kScoreTile / 2 + 4)),
        value_scales(key_scales + kScoreTile),
        value_logs(value_scales + kScoreTile),
        value_inverses(value_logs + kScoreTile),
        totals(value_inverses + kScoreTile) {}
};

// Where the scales, then the codes, of the group of positions that holds `at` lie.
inline const uint8_t* cached_codes(const AttentionArgs& a, const uint8_t* layer, int kv_head, int at) {
  return code_group(
      a.cache,
      const_cast<uint8_t*>(layer) + a.block_table[at / a.block_size] * a.block_stride + kv_head * a.head_stride,
      at % a.block_size, code_group_size(a.block_size), a.padded_dim);
}

inline void copy_bytes(void* to, const uint8_t* from, int num_bytes) {
  for (int i = 0; i < num_bytes; i += kLanes * 4) store_int(static_cast<uint8_t*>(to) + i, load_int(from + i));
}

// Keys of positions [tile, tile + count) as rows of dwords [padded_dim / codes of a dword][64], where they lie or else
// in `room`; columns beyond hold anything.
template <CacheKind kCache>
inline const uint8_t* key_codes(const AttentionArgs& a, int kv_head, int tile, int count, uint8_t* room,
                                float* scales) {
  constexpr int kTogether = kColumnBytes / code_bytes(kCache);
  const int group = code_group_size(a.block_size);
  for (int g = 0; g < count; g += group) {
    const uint8_t* from = cached_codes(a, a.keys, kv_head, tile + g);
    copy_bytes(scales + g, from, group * sizeof(float));
    from += group * sizeof(float);
    if (group == kScoreTile) return from;
    uint8_t* to = room + g * kColumnBytes;
    for (int d = 0; d < a.padded_dim; d += kTogether, to += kPanelRowBytes, from += group * kColumnBytes)
      copy_bytes(to, from, group * kColumnBytes);
  }
  return room;
}

// Values of positions [tile, tile + count) as panels of dwords [dim / 64][64 positions / codes of a dword][64],
// likewise; scales beyond are 0.
template <CacheKind kCache>
inline const uint8_t* value_codes(const AttentionArgs& a, int kv_head, int tile, int count, uint8_t* room,
                                  float* scales) {
  constexpr int kTogether = kColumnBytes / code_bytes(kCache), kPanelBytes = kScoreTile / kTogether * kPanelRowBytes;
  const int group = code_group_size(a.block_size);
  const bool is_whole = group == kScoreTile && a.padded_dim % kPanelColumns == 0;
  const uint8_t* from = nullptr;
  for (int g = 0; g < count; g += group) {
    from = cached_codes(a, a.values, kv_head, tile + g);
    copy_bytes(scales + g, from, group * sizeof(float));
    from += group * sizeof(float);
    if (is_whole) break;
    uint8_t* to = room + g / kTogether * kPanelRowBytes;
    for (int d = 0; d < a.padded_dim; d += kPanelColumns, to += kPanelBytes) {
      const int row_bytes = panel_width(a.padded_dim, d) * kColumnBytes;
      for (int i = 0; i < group / kTogether; ++i, from += row_bytes)
        copy_bytes(to + i * kPanelRowBytes, from, row_bytes);
    }
  }
  for (int i = count; i < kScoreTile; ++i) scales[i] = 0.0f;
  return is_whole ? from : room;
}

// Of the scales of a tile's values, log2 and inverse. Scales that say nothing beside the largest one, such as the zeros
// of positions beyond the end, are as much as their inverse bears; the inverse of one that is no number isn't either.
inline void invert_scales(const float* scales, float* logs, float* inverses) {
  Float best = load(scales);
  for (int i = kLanes; i < kScoreTile; i += kLanes) best = max(best, load(scales + i));
  const float peak = reduce_max(best) * 0x1p-60f, floor = peak > kNoMagnitude ? peak : kNoMagnitude;
  for (int i = 0; i < kScoreTile; i += kLanes) {
    const Float scale = max(set(floor), load(scales + i));
    store(logs + i, log2(scale));
    store(inverses + i, add(div(set(1.0f), scale), sub(scale, scale)));
  }
}

// The highest of each row's scores [num_rows][64], of those that it sees.
inline void find_peaks(const AttentionArgs& a, const AttentionItem& item, int tile, int first_row, int num_rows,
                       float* scores, float* peaks) {
  alignas(64) float bests[(kCodeRows + kLanes) * kLanes];
  const bool is_masked = a.window || tile + kScoreTile > (a.is_causal ? item.first_position + 1 : item.end);
  for (int r = 0; r < num_rows; ++r) {
    float* row = scores + r * kScoreTile;
    if (is_masked) mask_row(a, item, tile, first_row + r, row);
    Float best = load(row);
    for (int i = kLanes; i < kScoreTile; i += kLanes) best = max(best, load(row + i));
    store(bests + r * kLanes, best);
  }
  reduce_max_rows(bests, num_rows, peaks);
}

// 2^x, and 0 where that is below 2^-126.
inline Float exp2_or_zero(Float x) { return zero_below(x, -126.0f, exp2(x)); }

// Turns scores [num_rows][64], powers of two with the scales of their positions' values, of rows first_row... into
// codes: probabilities times those scales, relative to the tile's highest. Rescales what the rows gathered.
template <class Rows>
inline void softmax_codes(const AttentionArgs& a, const AttentionItem& item, const CodeScratch<Rows>& s, int tile,
                          int first_row, int num_rows, float* scores, const Gathered& state) {
  alignas(64) float peaks[kCodeRows + kLanes], factors[kCodeRows + kLanes], weights[kCodeRows + kLanes];
  find_peaks(a, item, tile, first_row, num_rows, scores, peaks);
  for (int r = 0; r < num_rows; ++r) {
    float& reference = state.peak[first_row + r];
    if (peaks[r] < kNoScore) peaks[r] = kNoScore;  // a row that sees nothing of the tile
    const float now = peaks[r] > reference + kMostAbove ? peaks[r] : reference;
    factors[r] = reference - now;
    weights[r] = peaks[r] - now;
    reference = now;
  }
  for (int r = 0; r < num_rows; r += kLanes) {
    store(factors + r, exp2_or_zero(load(factors + r)));
    store(weights + r, exp2_or_zero(load(weights + r)));
  }
  for (int r = 0; r < num_rows; ++r) {
    const float* row = scores + r * kScoreTile;
    float* total = s.totals + size_t(first_row + r) * kPartialSums;
    const Float peak = set(peaks[r]);
    Float values[kTileVectors], sums[kWide];
    for (int v = 0; v < kTileVectors; ++v) {
      values[v] = exp2(sub(load(row + v * kLanes), peak), Rows::kRange);
      const Float inverse = load(s.value_inverses + v * kLanes);
      sums[v % kWide] = v < kWide ? mul(values[v], inverse) : fma(values[v], inverse, sums[v % kWide]);
    }
    s.probabilities.put(r, values);
    for (int v = 0; v < kWide; ++v)
      store(total + v * kLanes, fma(load(total + v * kLanes), set(factors[r]), mul(sums[v], set(weights[r]))));
    if (factors[r] != 1.0f) state.scale_row(first_row + r, factors[r]);
  }
  s.probabilities.set_scales(weights, num_rows);
}

// c and s of one query: [head_dim] each half.
inline void bias_part(const float* q, const float* bias, int head_dim, float* y) {
  const int half = head_dim / 2;
  for (int i = 0; i < half; ++i) {
    y[i] = q[i] * bias[i] + q[half + i] * bias[half + i];
    y[half + i] = q[half + i] * bias[i] - q[i] * bias[half + i];
  }
}

// The same of a query turned back by a position's angles: that position's cosines, then sines.
inline void turn_back(const float* x, const float* table_row, int head_dim, float* y) {
  const int half = head_dim / 2;
  const float *cosines = table_row, *sines = table_row + half;
  int i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Float c = load(x + i), s = load(x + half + i), cosine = load(cosines + i), sine = load(sines + i);
    store(y + i, add(mul(c, cosine), mul(s, sine)));
    store(y + half + i, sub(mul(s, cosine), mul(c, sine)));
  }
  for (; i < half; ++i) {
    const float c = x[i], s = x[half + i];
    y[i] = c * cosines[i] + s * sines[i];
    y[half + i] = s * cosines[i] - c * sines[i];
  }
}

// Of each query, times a factor that makes its scores powers of two: codes and, where keys have a bias, c and s.
// q: [rows][head_dim].
template <class Rows>
inline void prepare_queries(const AttentionArgs& a, int kv_head, int num_rows, float* q, const CodeScratch<Rows>& s) {
  alignas(64) float peaks[kMaxAttentionRows + kLanes];
  const float factor = a.scale * 1.44269504f;
  for (int r = 0; r < num_rows; ++r) {
    float *row = q + size_t(r) * a.head_dim, *padded = s.turned + size_t(r) * a.padded_dim;
    for (int d = 0; d < a.padded_dim; ++d) padded[d] = d < a.head_dim ? row[d] * factor : 0.0f;
    Float peak = set(0.0f), check = set(0.0f);
    for (int d = 0; d < a.padded_dim; d += kLanes) {
      const Float v = load(padded + d);
      peak = max(peak, abs(v));
      check = add(check, sub(v, v));  // 0, or NaN for NaN - NaN and inf - inf
    }
    peaks[r] = reduce_max(peak) + reduce_add(check);
    if (a.key_bias) bias_part(padded, a.key_bias + size_t(kv_head) * a.head_dim, a.head_dim, row);
  }
  s.q.set_rows(s.turned, num_rows, peaks);
}

// The bias' part of the scores [rows][64] of a tile, q being what prepare_queries left there.
template <class Rows>
inline void add_bias_scores(const AttentionArgs& a, const float* q, const CodeScratch<Rows>& s, int tile, int first_row,
                            int num_rows, float* scores) {
  const float* table_row = a.far_rope + size_t(tile / kScoreTile) * a.head_dim;
  for (int r = 0; r < num_rows; ++r)
    turn_back(q + size_t(first_row + r) * a.head_dim, table_row, a.head_dim, s.turned + size_t(r) * a.head_dim);
  const auto* columns = reinterpret_cast<const uint8_t*>(a.near_rope);
  float_rows<Values::kFp32>({s.turned, a.head_dim * sizeof(float), columns, a.head_dim, scores, columns}, num_rows, 0);
}

// Adds the tile at position `tile` to `state`, in blocks of rows whose scores stay in the first-level cache.
template <class Rows>
inline void attend_code_tile(const AttentionArgs& a, const AttentionItem& item, const AttentionScratch& scratch,
                             const CodeScratch<Rows>& s, int tile, int last, const Gathered& state) {
  alignas(64) static constexpr struct Ones {
    float values[kPanelColumns];
    constexpr Ones() : values() {
      for (float& v : values) v = 1.0f;
    }
  } kOnes;
  constexpr size_t kPanelBytes = size_t(kScoreTile) * kPanelColumns * code_bytes(Rows::kCache);
  const int kv_head = kv_head_of(a, item), count = item.end - tile < kScoreTile ? item.end - tile : kScoreTile;
  // The next tile's halves: with few rows, memory is what the products wait for.
  const int near = tile + kScoreTile, far = near + kScoreTile / 2;
  const size_t position_bytes = code_position_bytes(Rows::kCache, a.padded_dim);
  size_t next_bytes = far < (item.partial ? last : item.end) ? kScoreTile / 2 * position_bytes : 0;
  const uint8_t *next_keys[2] = {}, *next_values[2] = {};
  for (int half = 0; half < 2 && next_bytes; ++half) {
    const int at = half ? far : near;
    const size_t within = at % code_group_size(a.block_size) * position_bytes;
    next_keys[half] = cached_codes(a, a.keys, kv_head, at) + within;
    next_values[half] = cached_codes(a, a.values, kv_head, at) + within;
  }
  const uint8_t *keys = key_codes<Rows::kCache>(a, kv_head, tile, count, reinterpret_cast<uint8_t*>(scratch.keys),
                                                s.key_scales),
                *values = value_codes<Rows::kCache>(a, kv_head, tile, count, reinterpret_cast<uint8_t*>(scratch.values),
                                                    s.value_scales);
  invert_scales(s.value_scales, s.value_logs, s.value_inverses);
  for (int first = 0; first < state.num_rows; first += kCodeRows) {
    const int num_rows = state.num_rows - first < kCodeRows ? state.num_rows - first : kCodeRows;
    for (int r = 0; r < num_rows; ++r)
      for (int i = 0; i < kScoreTile; i += kLanes) store(scratch.scores + r * kScoreTile + i, load(s.value_logs + i));
    if (a.key_bias) add_bias_scores(a, scratch.q, s, tile, first, num_rows, scratch.scores);
    s.q.multiply(first, num_rows, keys, s.key_scales, scratch.scores, next_keys, next_bytes);
    softmax_codes(a, item, s, tile, first, num_rows, scratch.scores, state);
    for (int panel = 0; panel < state.num_panels; ++panel)
      s.probabilities.multiply(0, num_rows, values + panel * kPanelBytes, kOnes.values, state.row(panel, first),
                               next_values, panel ? 0 : next_bytes);
    next_bytes = 0;
  }
}

// Adds the tiles from position `tile` to `last` to `state`.
template <class Rows>
inline void attend_codes(const AttentionArgs& a, const AttentionItem& item, const AttentionScratch& scratch,
                         const CodeScratch<Rows>& s, int tile, int last, const Gathered& state) {
  for (int i = 0; i < state.num_rows * kPartialSums; i += kLanes) store(s.totals + i, set(0.0f));
  for (; tile < last; tile += kScoreTile) attend_code_tile(a, item, scratch, s, tile, last, state);
  for (int r = 0; r < state.num_rows; ++r) {
    Float sums[kWide];
    for (int v = 0; v < kWide; ++v) sums[v] = load(s.totals + r * kPartialSums + v * kLanes);
    state.total[r] = fold(sums);
  }
}
