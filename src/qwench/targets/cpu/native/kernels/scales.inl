// The scales and offsets of a group of weights as fp32, and codes with them as values. Included inside a simd
// namespace.

// Of a panel's columns. minima: what is taken off code * scale. Nested scales are multiplied with those of their block.
struct GroupScales {
  alignas(64) float scales[kPanelColumns], minima[kPanelColumns];
  alignas(64) float block_scales[kPanelColumns], block_minima[kPanelColumns];
};

template <class Load>
QWENCH_INLINE void for_columns(Load load_at, float* out) {
  for (int i = 0; i < kPanelColumns; i += kLanes) store(out + i, load_at(i));
}

QWENCH_INLINE void widen_scales(ScaleKind kind, const uint8_t* packed, const float* block, float* out) {
  switch (kind) {
    case ScaleKind::kBf16:
      return for_columns([&](int i) { return load_bf16(packed + 2 * i); }, out);
    case ScaleKind::kFp16:
      return for_columns([&](int i) { return load_half(packed + 2 * i); }, out);
    case ScaleKind::kFp32:
      return for_columns([&](int i) { return load(reinterpret_cast<const float*>(packed) + i); }, out);
    case ScaleKind::kNested:
      return for_columns([&](int i) { return mul(load_int8(packed + i), load(block + i)); }, out);
  }
}

// The group that begins at `group`; groups of a block in order, from the first one on.
QWENCH_INLINE void widen_group(const PackedMatrix& w, const uint8_t* group, bool begins_block, GroupScales& s) {
  if (w.scales == ScaleKind::kNested && begins_block) {  // what a block's groups share
    const uint8_t* block = group - w.block_bytes();
    widen_scales(ScaleKind::kFp16, block, nullptr, s.block_scales);
    if (w.has_offsets())
      widen_scales(ScaleKind::kFp16, block + kPanelColumns * sizeof(uint16_t), nullptr, s.block_minima);
  }
  widen_scales(w.scales, group, s.block_scales, s.scales);
  const uint8_t* offsets = group + w.scale_bytes();
  if (w.offsets == OffsetKind::kMinimum) {
    widen_scales(w.scales, offsets, s.block_minima, s.minima);
  } else if (w.offsets == OffsetKind::kZeroPoint) {
    const Float bias = set(w.kind == WeightKind::kInt8 ? 128.0f : 0.0f);
    for_columns([&](int i) { return mul(sub(load_uint8(offsets + i), bias), load(s.scales + i)); }, s.minima);
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
