// The scales and offsets of a group of weights as fp32, and codes with them as values. Included inside a simd
// namespace.

// Of a panel's columns. minima: what is taken off code * scale. Nested scales are multiplied with those of their block.
struct GroupScales {
  alignas(64) float scales[kPanelColumns], minima[kPanelColumns];
  alignas(64) float block_scales[kPanelColumns], block_minima[kPanelColumns];
};

inline void widen_halves(const uint8_t* packed, float* out) {
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(packed);
  for (int i = 0; i < kPanelColumns; ++i) out[i] = half_to_float(halves[i]);
}

inline void widen_scales(ScaleKind kind, const uint8_t* packed, const float* block, float* out) {
  switch (kind) {
    case ScaleKind::kBf16:
      for (int i = 0; i < kPanelColumns; ++i) out[i] = bf16_to_float(reinterpret_cast<const uint16_t*>(packed)[i]);
      return;
    case ScaleKind::kFp16:
      return widen_halves(packed, out);
    case ScaleKind::kFp32:
      __builtin_memcpy(out, packed, kPanelColumns * sizeof(float));
      return;
    case ScaleKind::kNested:
      for (int i = 0; i < kPanelColumns; ++i) out[i] = float(reinterpret_cast<const int8_t*>(packed)[i]) * block[i];
      return;
  }
}

// What a block's groups share; for their first one.
inline void widen_block(const PackedMatrix& w, const uint8_t* group, GroupScales& s) {
  const uint8_t* block = group - w.block_bytes();
  widen_halves(block, s.block_scales);
  if (w.has_offsets()) widen_halves(block + kPanelColumns * sizeof(uint16_t), s.block_minima);
}

// Group g of a panel; groups of a block in order, from the first one on.
inline void widen_group(const PackedMatrix& w, const uint8_t* panel, int g, GroupScales& s) {
  const uint8_t* group = w.group(panel, g);
  if (w.scales == ScaleKind::kNested && g % w.groups_per_block() == 0) widen_block(w, group, s);
  widen_scales(w.scales, group, s.block_scales, s.scales);
  if (w.offsets == OffsetKind::kMinimum) widen_scales(w.scales, group + w.scale_bytes(), s.block_minima, s.minima);
  if (w.offsets == OffsetKind::kZeroPoint) {
    const uint8_t* points = group + w.scale_bytes();
    const int bias = w.kind == WeightKind::kInt8 ? 128 : 0;
    for (int i = 0; i < kPanelColumns; ++i) s.minima[i] = float(int(points[i]) - bias) * s.scales[i];
  }
}

template <int kByte>
inline void dequantize_byte(Int codes, Int bias, Float scale, Float minus_minimum, bool has_offsets, float* out) {
  const Float code = to_float(sub_int(byte_of<kByte>(codes), bias));
  store(out + kByte * kPanelColumns, has_offsets ? fma(code, scale, minus_minimum) : mul(code, scale));
}

// `count` values of each column of a group, a multiple of 8, to [count][64] fp32, each rounded once.
inline void dequantize(const PackedMatrix& w, const uint8_t* codes, int count, const GroupScales& s, float* out) {
  const bool is_int4 = w.kind == WeightKind::kInt4, has_offsets = w.has_offsets();
  const Int bias = set_int(w.code_bias());
  for (int k = 0; k < count; k += is_int4 ? 8 : 4, codes += kPanelRowBytes)
    for (int column = 0; column < kPanelColumns; column += kLanes) {
      const Int raw = load_int(codes + column * kColumnBytes);
      const Float scale = load(s.scales + column);
      const Float minus_minimum = has_offsets ? sub(set(0.0f), load(s.minima + column)) : set(0.0f);
      for (int half = 0; half < (is_int4 ? 2 : 1); ++half) {
        const Int bytes = !is_int4 ? raw : half ? high_nibbles(raw) : low_nibbles(raw);
        float* to = out + (k + 4 * half) * kPanelColumns + column;
        dequantize_byte<0>(bytes, bias, scale, minus_minimum, has_offsets, to);
        dequantize_byte<1>(bytes, bias, scale, minus_minimum, has_offsets, to);
        dequantize_byte<2>(bytes, bias, scale, minus_minimum, has_offsets, to);
        dequantize_byte<3>(bytes, bias, scale, minus_minimum, has_offsets, to);
      }
    }
}
