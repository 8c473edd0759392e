// Quantising and packing one panel of 64 output columns. Included inside the namespace of one simd header, compiled for
// each instruction set for speed; sums run over 16 fixed lanes, so that the bits are the same on all of them.

constexpr int kSumLanes = 16;

inline float sum_lanes(float* lane) {
  for (int width = kSumLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

// The int4 scale of one group: of the candidates of program/formats.py the one with the least squared error, then the
// least-squares scale of its codes. Writes codes in [-8, 7] and returns the scale.
inline float choose_int4(const float* w, int group, int8_t* codes) {
  float peak = 0.0f, magnitude = 0.0f;
  for (int i = 0; i < group; ++i) {
    const float a = w[i] < 0 ? -w[i] : w[i];
    if (a > magnitude) magnitude = a, peak = w[i];
  }
  float best_gain = -1.0f, best_scale = 0.0f, best_inverse = 0.0f;
  for (float candidate = 7.0f; candidate < 10.75f; candidate += 0.25f) {
    const float inverse = magnitude > kNoMagnitude ? -candidate / peak : 0.0f;
    float dots[kSumLanes] = {}, norms[kSumLanes] = {};
    for (int i = 0; i < group; i += kLanes) {
      const Float v = load(w + i);
      const Float code = max(set(-8.0f), min(set(7.0f), round_even(mul(v, set(inverse)))));
      float* dot = dots + i % kSumLanes;
      float* norm = norms + i % kSumLanes;
      store(dot, add(load(dot), mul(v, code)));
      store(norm, add(load(norm), mul(code, code)));
    }
    const float dot = sum_lanes(dots), norm = sum_lanes(norms);
    const float gain = norm > 0.0f ? dot * dot / norm : 0.0f;
    if (gain > best_gain) best_gain = gain, best_scale = norm > 0.0f ? dot / norm : 0.0f, best_inverse = inverse;
  }
  for (int i = 0; i < group; i += kLanes)
    store_codes(codes + i, max(set(-8.0f), min(set(7.0f), round_even(mul(load(w + i), set(best_inverse))))));
  return best_scale;
}

inline float choose_int8(const float* w, int group, int8_t* codes) {
  Float peak = set(0.0f);
  for (int i = 0; i < group; i += kLanes) peak = max(peak, abs(load(w + i)));
  const float amax = reduce_max(peak);
  const float inverse = amax > kNoMagnitude ? 127.0f / amax : 0.0f;
  for (int i = 0; i < group; i += kLanes) store_codes(codes + i, mul(load(w + i), set(inverse)));
  return amax * (1.0f / 127.0f);
}

inline float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
  float f;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24
    f = float(mantissa) * 5.9604644775390625e-8f;
    return sign ? -f : f;
  }
  const uint32_t wide = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13;
  __builtin_memcpy(&f, &wide, 4);
  return f;
}

inline void widen(const void* row, SourceKind kind, size_t first, int count, float* out) {
  if (kind == SourceKind::kFp32) {
    __builtin_memcpy(out, static_cast<const float*>(row) + first, size_t(count) * 4);
  } else if (kind == SourceKind::kBf16) {
    const uint16_t* from = static_cast<const uint16_t*>(row) + first;
    for (int i = 0; i < count; ++i) out[i] = bf16_to_float(from[i]);
  } else {
    const uint16_t* from = static_cast<const uint16_t*>(row) + first;
    for (int i = 0; i < count; ++i) out[i] = half_to_float(from[i]);
  }
}

inline void pack_bf16(const void* const* rows, SourceKind kind, const PackedMatrix& w, uint8_t* panel) {
  uint16_t* out = reinterpret_cast<uint16_t*>(panel);
  float values[256];
  for (int column = 0; column < kPanelColumns; ++column)
    for (int k = 0; k < w.padded_k(); k += 256) {
      const int padded = w.padded_k() - k < 256 ? w.padded_k() - k : 256;
      const int count = !rows[column] ? 0 : w.k - k < padded ? w.k - k : padded;
      if (count) widen(rows[column], kind, k, count, values);
      for (int i = 0; i < padded; ++i)
        out[(size_t(k + i) / 2 * kPanelColumns + column) * 2 + i % 2] = i < count ? float_to_bf16(values[i]) : 0;
    }
}

inline void pack_quantized(const void* const* rows, SourceKind kind, const PackedMatrix& w, uint8_t* panel) {
  const int group = w.group_size;
  const bool is_int4 = w.kind == WeightKind::kInt4;
  float values[256];
  alignas(64) int8_t codes[256];
  for (int g = 0; g < w.num_groups(); ++g, panel += w.group_bytes()) {
    float* scales = reinterpret_cast<float*>(panel);
    uint8_t* out = panel + kPanelColumns * sizeof(float);
    for (int column = 0; column < kPanelColumns; ++column) {
      const int first = g * group;
      const int count = !rows[column] ? 0 : w.k - first < group ? w.k - first : group;
      if (count) widen(rows[column], kind, first, count, values);
      for (int i = count; i < group; ++i) values[i] = 0.0f;
      scales[column] = is_int4 ? choose_int4(values, group, codes) : choose_int8(values, group, codes);
      if (is_int4)
        for (int k = 0; k < group; k += 8)
          for (int i = 0; i < 4; ++i)
            out[(size_t(k) / 8 * kPanelColumns + column) * 4 + i] =
                uint8_t((codes[k + i] + 8) | ((codes[k + 4 + i] + 8) << 4));
      else
        for (int k = 0; k < group; k += 4)
          for (int i = 0; i < 4; ++i)
            out[(size_t(k) / 4 * kPanelColumns + column) * 4 + i] = uint8_t(codes[k + i] + 128);
    }
  }
}

void pack_panel(const void* const* rows, SourceKind kind, const PackedMatrix& w, uint8_t* panel) {
  if (w.kind == WeightKind::kBf16)
    pack_bf16(rows, kind, w, panel);
  else
    pack_quantized(rows, kind, w, panel);
}
