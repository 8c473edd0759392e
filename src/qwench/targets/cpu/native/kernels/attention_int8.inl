// Attention over a tile of an int8 cache. Included inside the namespace of one simd header, by kernels/attention.inl.
//
// Both products are those of int8 weights: a tile's keys, and its values, are a group of codes with a scale per
// position. What they meet, queries and probabilities, becomes 15-bit integers, two codes a value, so that nothing but
// the cache is as coarse as 8 bits. Keys lie in the cache without their layer's bias, which can be a hundred times what
// varies and would take all of the codes' range. Rotated, it is known for each position, and its part of the scores is
//   q . rotate(bias, p) = sum over pairs i of  c_i cos(angle_i(p)) + s_i sin(angle_i(p)),
// with c and s of the query alone. At p = tile + j, the angles' sum turns c and s by the tile's angle, and what is left
// is a product with the cosines and sines of 64 positions, the same for every tile, head and layer.

// Rows as two codes a value, [rows][width] each: x = scales[0] * codes[0] + scales[1] * codes[1]. `starts` as of
// IntTile.
struct SplitRows {
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
  // Of x [num_rows][width], whose rows' largest magnitudes are `peaks`, NaN or infinite for a row that isn't finite:
  // its codes can't say so, its scales can. In passes over all rows, so that the reductions of different rows overlap.
  void set_rows(const float* x, int num_rows, const float* peaks) const {
    alignas(64) float inverses[kMaxAttentionRows + kLanes];
    for (int r = 0; r < num_rows; r += kLanes) {
      const Float peak = load(peaks + r), finite = max(peak, set(kNoMagnitude));
      store(inverses + r, zero_below(peak, kNoMagnitude, div(set(kSplitRange), finite)));
    }
    for (int r = 0; r < num_rows; ++r) {
      const bool is_broken = !(peaks[r] - peaks[r] == 0);  // NaN or infinite
      const size_t at = size_t(r) * width;
      Int sums[2] = {set_int(0), set_int(0)};
      split(x + at, set(inverses[r]), is_broken, width, codes[0] + at, codes[1] + at, sums);
      for (int part = 0; part < 2; ++part) {
        scales[part][r] = peaks[r] * ((part == 0 ? 128 : 1) / kSplitRange);
        starts[part][r] = negative(reduce_add_int(sums[part]));
      }
    }
  }
};

// What attention over an int8 cache needs in working space, beside what any cache needs.
struct CodeScratch {
  float* turned;  // [rows][padded_dim]
  SplitRows q, probabilities;
  float *key_scales, *value_scales;  // of a tile
  CodeScratch(float* memory, int padded_dim)
      : turned(memory),
        q(turned + size_t(kMaxAttentionRows) * padded_dim, kMaxAttentionRows, padded_dim),
        probabilities(turned + size_t(kMaxAttentionRows) * (padded_dim + padded_dim / 2 + 4), kMaxAttentionRows,
                      kScoreTile),
        key_scales(turned + size_t(kMaxAttentionRows) * (padded_dim + padded_dim / 2 + 4 + kScoreTile / 2 + 4)),
        value_scales(key_scales + kScoreTile) {}
};

// Where the scales, then the codes, of the 16 positions that hold `at` lie.
inline const uint8_t* cached_codes(const AttentionArgs& a, const uint8_t* layer, int kv_head, int at) {
  return code_group(
      const_cast<uint8_t*>(layer) + a.block_table[at / a.block_size] * a.block_stride + kv_head * a.head_stride,
      at % a.block_size, a.padded_dim);
}

inline void copy_bytes(uint8_t* to, const uint8_t* from, int num_bytes) {
  for (int i = 0; i < num_bytes; i += kLanes * 4) store_int(to + i, load_int(from + i));
}

// Keys of positions [tile, tile + count) to codes [padded_dim / 4][64][4]; columns beyond hold anything.
inline void lay_out_key_codes(const AttentionArgs& a, int kv_head, int tile, int count, uint8_t* keys, float* scales) {
  for (int g = 0; g < count; g += kKeyGroup) {
    const uint8_t* from = cached_codes(a, a.keys, kv_head, tile + g);
    copy_bytes(reinterpret_cast<uint8_t*>(scales + g), from, kGroupScaleBytes);
    from += kGroupScaleBytes;
    uint8_t* to = keys + g * kColumnBytes;
    for (int d = a.padded_dim; d > 0; d -= 4, to += kPanelRowBytes, from += kKeyGroup * 4)
      copy_bytes(to, from, kKeyGroup * 4);
  }
}

// Values of positions [tile, tile + count) to panels of codes [dim / 64][64 positions / 4][64][4]; scales beyond are 0.
inline void lay_out_value_codes(const AttentionArgs& a, int kv_head, int tile, int count, uint8_t* values,
                                float* scales) {
  for (int g = 0; g < count; g += kKeyGroup) {
    const uint8_t* from = cached_codes(a, a.values, kv_head, tile + g);
    copy_bytes(reinterpret_cast<uint8_t*>(scales + g), from, kGroupScaleBytes);
    from += kGroupScaleBytes;
    uint8_t* to = values + g / 4 * kPanelRowBytes;
    for (int d = 0; d < a.padded_dim; d += kPanelColumns, to += kScoreTile * kPanelColumns) {
      const int row_bytes = (a.padded_dim - d < kPanelColumns ? a.padded_dim - d : kPanelColumns) * kColumnBytes;
      for (int i = 0; i < kKeyGroup / 4; ++i)
        copy_bytes(to + i * kPanelRowBytes, from + size_t(i) * a.padded_dim * 4 + d * kColumnBytes, row_bytes);
    }
  }
  for (int i = count; i < kScoreTile; ++i) scales[i] = 0.0f;
}

// Probabilities [rows][64] to codes, the values' scales among them.
inline void split_probabilities(float* rows, int num_rows, const float* value_scales, const SplitRows& to) {
  alignas(64) float peaks[kMaxAttentionRows + kLanes];
  Float check = set(0.0f);
  for (int i = 0; i < kScoreTile; i += kLanes) {
    const Float v = load(value_scales + i);
    check = add(check, sub(v, v));  // 0, or NaN
  }
  const float broken = reduce_add(check);
  for (int r = 0; r < num_rows; ++r) {
    float* row = rows + size_t(r) * kScoreTile;
    Float peak = set(0.0f);
    for (int i = 0; i < kScoreTile; i += kLanes) {
      const Float p = load(row + i), scaled = mul(zero_below(p, kNoMagnitude, p), load(value_scales + i));
      store(row + i, scaled);
      peak = max(peak, scaled);
    }
    peaks[r] = reduce_max(peak) + broken;
  }
  to.set_rows(rows, num_rows, peaks);
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

// sums [rows][64] += x @ codes. The loop of a few rows brings in `next` beside it.
inline void add_code_products(const SplitRows& x, int num_rows, const uint8_t* codes, const float* scales, float* sums,
                              const uint8_t* const (&next)[2], size_t next_bytes) {
  for (int part = 0; part < 2; ++part)
    int_rows<Codes::kBytes>({x.codes[part], size_t(x.width), x.starts[part], x.scales[part], codes, scales, x.width,
                             sums, next_bytes ? next[part] : codes},
                            num_rows, next_bytes);
}

// Of each query: codes and, where keys have a bias, c and s. q: [rows][head_dim].
inline void prepare_queries(const AttentionArgs& a, int kv_head, int num_rows, float* q, const CodeScratch& s) {
  alignas(64) float peaks[kMaxAttentionRows + kLanes];
  for (int r = 0; r < num_rows; ++r) {
    float *row = q + size_t(r) * a.head_dim, *padded = s.turned + size_t(r) * a.padded_dim;
    float peak = 0.0f, broken = 0.0f;
    for (int d = 0; d < a.padded_dim; ++d) {
      padded[d] = d < a.head_dim ? row[d] : 0.0f;
      peak = __builtin_fabsf(padded[d]) > peak ? __builtin_fabsf(padded[d]) : peak;
      broken += padded[d] - padded[d];
    }
    peaks[r] = peak + broken;
    if (a.key_bias) bias_part(padded, a.key_bias + size_t(kv_head) * a.head_dim, a.head_dim, row);
  }
  s.q.set_rows(s.turned, num_rows, peaks);
}

// Adds the tile at position `tile` to `state`. q: what prepare_queries left there.
inline void attend_codes(const AttentionArgs& a, const AttentionItem& item, const float* q, float* scores,
                         uint8_t* keys, uint8_t* values, const CodeScratch& s, int tile, int last,
                         const Gathered& state) {
  alignas(64) static constexpr struct Ones {
    float values[kPanelColumns];
    constexpr Ones() : values() {
      for (float& v : values) v = 1.0f;
    }
  } kOnes;
  const int kv_head = kv_head_of(a, item);
  const int count = item.end - tile < kScoreTile ? item.end - tile : kScoreTile, num_rows = state.num_rows;
  // The next tile's halves: with few rows, memory is what the products wait for.
  const int near = tile + kScoreTile, far = near + kScoreTile / 2;
  const size_t next_bytes = num_rows <= 2 * kByteRows && far < last ? 2 * code_group_bytes(a.padded_dim) : 0;
  const uint8_t *next_keys[2] = {}, *next_values[2] = {};
  for (int half = 0; half < 2 && next_bytes; ++half) {
    next_keys[half] = cached_codes(a, a.keys, kv_head, half ? far : near);
    next_values[half] = cached_codes(a, a.values, kv_head, half ? far : near);
  }
  for (int i = 0; i < num_rows * kScoreTile; i += kLanes) store(scores + i, set(0.0f));
  if (a.key_bias) {
    const float* table_row = a.far_rope + size_t(tile / kScoreTile) * a.head_dim;
    for (int r = 0; r < num_rows; ++r)
      turn_back(q + size_t(r) * a.head_dim, table_row, a.head_dim, s.turned + size_t(r) * a.head_dim);
    float_rows<Values::kFp32>({s.turned, a.head_dim * sizeof(float), reinterpret_cast<const uint8_t*>(a.near_rope),
                               a.head_dim, scores, reinterpret_cast<const uint8_t*>(a.near_rope)},
                              num_rows, 0);
  }
  lay_out_key_codes(a, kv_head, tile, count, keys, s.key_scales);
  add_code_products(s.q, num_rows, keys, s.key_scales, scores, next_keys, next_bytes);
  softmax_tile(a, item, tile, scores, state);
  lay_out_value_codes(a, kv_head, tile, count, values, s.value_scales);
  split_probabilities(scores, num_rows, s.value_scales, s.probabilities);
  for (int panel = 0; panel < state.num_panels; ++panel)
    add_code_products(s.probabilities, num_rows, values + size_t(panel) * kScoreTile * kPanelColumns, kOnes.values,
                      state.row(panel, 0), next_values, panel ? 0 : next_bytes);
}
