// Writes one key or value into its block of the cache; the layouts are told beside AttentionArgs. Included inside a
// simd namespace.

// Where element d of the key at `offset` lies within a block and head, and likewise for values; see AttentionArgs.
inline int key_index(CacheKind cache, int offset, int d, int head_dim) {
  const int group = offset / kKeyGroup * kKeyGroup * head_dim, lane = offset % kKeyGroup;
  return cache == CacheKind::kFp32 ? group + d * kKeyGroup + lane
                                   : group + d / 2 * 2 * kKeyGroup + lane * 2 + 1 - d % 2;
}
inline int value_index(CacheKind cache, int offset, int d, int padded_dim) {
  return cache == CacheKind::kFp32 ? offset * padded_dim + d : offset / 2 * 2 * padded_dim + 2 * d + 1 - offset % 2;
}
inline void put(CacheKind cache, uint8_t* block_head, int index, float v) {
  if (cache == CacheKind::kFp32)
    reinterpret_cast<float*>(block_head)[index] = v;
  else
    reinterpret_cast<uint16_t*>(block_head)[index] = float_to_bf16(v);
}

// Of codes, where the group of positions that holds `offset` begins: their scales, then codes.
inline uint8_t* code_group(CacheKind cache, uint8_t* block_head, int offset, int size, int padded_dim) {
  return block_head + size_t(offset / size * size) * code_position_bytes(cache, padded_dim);
}

inline void round_codes(const float* scaled, uint8_t* codes) {
  int8_t rounded[kLanes];
  store_codes(rounded, load(scaled));
  for (int i = 0; i < kLanes; ++i) codes[i] = uint8_t(rounded[i] + 128);
}
inline void round_codes(const float* scaled, int16_t* codes) { store_words(codes, load(scaled)); }

// Dimensions of the panel of values that begins with dimension `first`.
inline int panel_width(int padded_dim, int first) {
  return padded_dim - first < kPanelColumns ? padded_dim - first : kPanelColumns;
}

// x to codes of at most `range`, zero from `dim` on, which `put` takes with their dimensions; returns their scale,
// which is NaN if an element isn't finite: codes can't say so.
template <class Code, class Put>
inline float write_codes(const float* x, int dim, int padded_dim, float range, Put put) {
  float amax = 0.0f, broken = 0.0f;
  for (int d = 0; d < dim; ++d) {
    const float v = __builtin_fabsf(x[d]);
    amax = v > amax ? v : amax;
    broken += x[d] - x[d];
  }
  const float inverse = broken == 0.0f && amax > kNoMagnitude ? range / amax : 0.0f;
  for (int d = 0; d < padded_dim; d += kLanes) {
    alignas(64) float values[kLanes];
    alignas(64) Code rounded[kLanes];
    for (int i = 0; i < kLanes; ++i) values[i] = broken == 0.0f && d + i < dim ? x[d + i] * inverse : 0.0f;
    round_codes(values, rounded);
    for (int i = 0; i < kLanes; ++i) put(d + i, rounded[i]);
  }
  return amax * (1.0f / range) + broken;
}

// Code: uint8_t or int16_t, of which a dword holds kTogether.
template <class Code>
inline void write_key_codes(const float* k, int head_dim, int padded_dim, int lane, int size, float range,
                            uint8_t* group) {
  constexpr int kTogether = kColumnBytes / sizeof(Code);
  float* scales = reinterpret_cast<float*>(group);
  Code* codes = reinterpret_cast<Code*>(scales + size) + lane * kTogether;
  scales[lane] = write_codes<Code>(k, head_dim, padded_dim, range, [&](int d, Code code) {
    codes[size_t(d / kTogether) * size * kTogether + d % kTogether] = code;
  });
}
template <class Code>
inline void write_value_codes(const float* v, int head_dim, int padded_dim, int lane, int size, float range,
                              uint8_t* group) {
  constexpr int kTogether = kColumnBytes / sizeof(Code);
  float* scales = reinterpret_cast<float*>(group);
  Code* codes = reinterpret_cast<Code*>(scales + size) + lane % kTogether;
  scales[lane] = write_codes<Code>(v, head_dim, padded_dim, range, [&](int d, Code code) {
    const int first = d / kPanelColumns * kPanelColumns, width = panel_width(padded_dim, first);
    codes[size_t(first) * size + (size_t(lane / kTogether) * width + d - first) * kTogether] = code;
  });
}

void write_keys(const float* k, int head_dim, int padded_dim, int offset, int block_size, CacheKind cache,
                uint8_t* block_head) {
  const int size = code_group_size(block_size), lane = offset % size;
  uint8_t* group = code_group(cache, block_head, offset, size, padded_dim);
  if (cache == CacheKind::kInt8)
    write_key_codes<uint8_t>(k, head_dim, padded_dim, lane, size, 127.0f, group);
  else if (cache == CacheKind::kInt16)
    write_key_codes<int16_t>(k, head_dim, padded_dim, lane, size, float(largest_word(padded_dim)), group);
  else
    for (int d = 0; d < head_dim; ++d) put(cache, block_head, key_index(cache, offset, d, head_dim), k[d]);
}

void write_values(const float* v, int head_dim, int padded_dim, int offset, int block_size, CacheKind cache,
                  uint8_t* block_head) {
  const int size = code_group_size(block_size), lane = offset % size;
  uint8_t* group = code_group(cache, block_head, offset, size, padded_dim);
  if (cache == CacheKind::kInt8)
    write_value_codes<uint8_t>(v, head_dim, padded_dim, lane, size, 127.0f, group);
  else if (cache == CacheKind::kInt16)
    write_value_codes<int16_t>(v, head_dim, padded_dim, lane, size, float(largest_word(kScoreTile)), group);
  else
    for (int d = 0; d < padded_dim; ++d)
      put(cache, block_head, value_index(cache, offset, d, padded_dim), d < head_dim ? v[d] : 0.0f);
}
