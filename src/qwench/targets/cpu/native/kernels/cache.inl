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

// Of int8, where the group of 16 positions that holds `offset` begins: 16 scales, then codes.
inline uint8_t* code_group(uint8_t* block_head, int offset, int padded_dim) {
  return block_head + size_t(offset / kKeyGroup) * code_group_bytes(padded_dim);
}

// x to int8 codes + 128, element d at codes[d / kTogether * stride + d % kTogether], zero from `dim` on; returns their
// scale, which is NaN if an element isn't finite: codes can't say so.
template <int kTogether>
inline float write_codes(const float* x, int dim, int padded_dim, int stride, uint8_t* codes) {
  float amax = 0.0f, broken = 0.0f;
  for (int d = 0; d < dim; ++d) {
    const float v = __builtin_fabsf(x[d]);
    amax = v > amax ? v : amax;
    broken += x[d] - x[d];
  }
  const float inverse = broken == 0.0f && amax > kNoMagnitude ? 127.0f / amax : 0.0f;
  for (int d = 0; d < padded_dim; d += kLanes) {
    alignas(64) float values[kLanes];
    alignas(64) int8_t rounded[64];
    for (int i = 0; i < kLanes; ++i) values[i] = broken == 0.0f && d + i < dim ? x[d + i] : 0.0f;
    store_codes(rounded, mul(load(values), set(inverse)));
    for (int i = 0; i < kLanes; ++i)
      codes[size_t((d + i) / kTogether) * stride + (d + i) % kTogether] = uint8_t(rounded[i] + 128);
  }
  return amax * (1.0f / 127.0f) + broken;
}

void write_keys(const float* k, int head_dim, int padded_dim, int offset, CacheKind cache, uint8_t* block_head) {
  if (cache == CacheKind::kInt8) {
    uint8_t* group = code_group(block_head, offset, padded_dim);
    const int lane = offset % kKeyGroup;
    reinterpret_cast<float*>(group)[lane] =
        write_codes<4>(k, head_dim, padded_dim, kKeyGroup * 4, group + kGroupScaleBytes + lane * 4);
    return;
  }
  for (int d = 0; d < head_dim; ++d) put(cache, block_head, key_index(cache, offset, d, head_dim), k[d]);
}

void write_values(const float* v, int head_dim, int padded_dim, int offset, CacheKind cache, uint8_t* block_head) {
  if (cache == CacheKind::kInt8) {
    uint8_t* group = code_group(block_head, offset, padded_dim);
    const int lane = offset % kKeyGroup;
    reinterpret_cast<float*>(group)[lane] = write_codes<1>(
        v, head_dim, padded_dim, 4, group + kGroupScaleBytes + size_t(lane / 4) * padded_dim * 4 + lane % 4);
    return;
  }
  for (int d = 0; d < padded_dim; ++d)
    put(cache, block_head, value_index(cache, offset, d, padded_dim), d < head_dim ? v[d] : 0.0f);
}
