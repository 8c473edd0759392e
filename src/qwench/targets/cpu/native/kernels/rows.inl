// Ops that work on one row: norm, quantisation, RoPE, embedding. Included inside a simd namespace.

// Four times the partial sums of `fold` keep the adders busy.
void rms_norm(const float* x, const float* gain, float eps, int width, float* y) {
  constexpr int kSums = 4 * kWide, kStep = 4 * kPartialSums;
  Float sums[kSums];
  for (int s = 0; s < kSums; ++s) sums[s] = set(0.0f);
  int i = 0;
  for (; i + kStep <= width; i += kStep)
    for (int s = 0; s < kSums; ++s) {
      const Float v = load(x + i + s * kLanes);
      fma_to(sums[s], v, v);
    }
  Float partial[kWide];
  for (int s = 0; s < kWide; ++s)
    partial[s] = add(add(sums[s], sums[s + kWide]), add(sums[s + 2 * kWide], sums[s + 3 * kWide]));
  float total = fold(partial);
  for (; i < width; ++i) total += x[i] * x[i];
  const float inverse = 1.0f / __builtin_sqrtf(total / float(width) + eps);
  for (i = 0; i + kLanes <= width; i += kLanes) store(y + i, mul(mul(load(x + i), set(inverse)), load(gain + i)));
  for (; i < width; ++i) y[i] = x[i] * inverse * gain[i];
}

inline float sigmoid(float x) {
  float lanes[kLanes];
  store(lanes, minus_reciprocal(sub(set(-1.0f), exp(set(-x)))));
  return lanes[0];
}

// Marks the top_k highest of the scores, of equal ones the first. NaN is as good as any: its weight tells.
inline void choose_experts(const float* scores, int num_experts, int top_k, bool* is_chosen) {
  for (int i = 0; i < num_experts; ++i) is_chosen[i] = false;
  for (int chosen = 0; chosen < top_k; ++chosen) {
    int best = -1;
    for (int i = 0; i < num_experts; ++i)
      if (!is_chosen[i] && (best < 0 || scores[i] > scores[best])) best = i;
    is_chosen[best] = true;
  }
}

void route(const float* scores, int num_experts, int top_k, bool normalizes, bool has_shared, float* routes) {
  bool is_chosen[kMaxExperts];
  choose_experts(scores, num_experts, top_k, is_chosen);
  alignas(64) float values[kMaxExperts];
  float peak = scores[0];
  for (int i = 1; i < num_experts; ++i) peak = scores[i] > peak ? scores[i] : peak;
  const int padded = (num_experts + kPartialSums - 1) / kPartialSums * kPartialSums;
  for (int i = 0; i < padded; ++i) values[i] = i < num_experts ? scores[i] - peak : -__builtin_inff();
  Float sums[kWide];
  for (int s = 0; s < kWide; ++s) sums[s] = set(0.0f);
  for (int i = 0; i < padded; i += kPartialSums)
    for (int s = 0; s < kWide; ++s) {
      float* at = values + i + s * kLanes;
      const Float value = exp(load(at));
      store(at, value);
      sums[s] = add(sums[s], value);
    }
  float total = fold(sums), total_chosen = 0.0f;
  for (int i = 0; i < num_experts; ++i) total_chosen += is_chosen[i] ? values[i] : 0.0f;
  // A broken score must reach the logits, though its expert may not be chosen.
  const float divisor = normalizes ? total_chosen + (total - total) : total;
  int count = 0;
  for (int i = 0; i < num_experts; ++i) {
    if (!is_chosen[i]) continue;
    routes[count] = float(i);
    routes[top_k + count++] = values[i] / divisor;
  }
  if (has_shared) routes[2 * top_k] = sigmoid(scores[num_experts]);
}

// Values no larger than kSplitRange to two codes each, 128 * high + low, that are added to `sums`.
inline void split(Float whole, int8_t* high, int8_t* low, Int (&sums)[2]) {
  const Int upper = store_codes(high, mul(whole, set(1.0f / 128)));
  sums[0] = add_int(sums[0], upper);
  sums[1] = add_int(sums[1], store_codes(low, fma(to_float(upper), set(-128.0f), whole)));
}
// The same of values times `inverse`.
inline void split(const float* x, Float inverse, bool is_broken, int count, int8_t* high, int8_t* low, Int (&sums)[2]) {
  for (int i = 0; i < count; i += kLanes)
    split(is_broken ? set(0.0f) : mul(load(x + i), inverse), high + i, low + i, sums);
}

// One group of an activation row, fp32 [group_size], to codes with a scale and minus their sum.
inline void quantize_group(const float* x, int group_size, const QuantizedRow& row, int group) {
  Float peak = set(0.0f), check = set(0.0f);
  for (int i = 0; i < group_size; i += kLanes) {
    const Float v = load(x + i);
    peak = max(peak, abs(v));
    check = add(check, sub(v, v));  // 0, or NaN for NaN - NaN and inf - inf
  }
  const float amax = reduce_max(peak), broken = reduce_add(check);
  // Integers can't carry a NaN; the scale can, so that broken activations reach the logits and are noticed there.
  const float range = row.parts == 1 ? 127.0f : kSplitRange;
  const float inverse = broken == 0.0f && amax > kNoMagnitude ? range / amax : 0.0f;
  int8_t* codes = row.codes + group * group_size;
  const size_t at = group * row.group_stride;
  Int sums[2] = {set_int(0), set_int(0)};
  if (row.parts == 1) {
    for (int i = 0; i < group_size; i += kLanes) {
      const Float scaled = mul(load(x + i), set(inverse));
      sums[0] = add_int(sums[0], store_codes(codes + i, broken == 0.0f ? scaled : set(0.0f)));
    }
    row.scales[at] = amax * (1.0f / 127.0f) + broken;
  } else {
    split(x, set(inverse), broken != 0.0f, group_size, codes, codes + row.padded_k, sums);
    row.scales[at] = amax * (128 / kSplitRange) + broken;
    row.scales[at + 1] = amax * (1 / kSplitRange) + broken;
    row.starts[at + 1] = negative(reduce_add_int(sums[1]));
  }
  row.starts[at] = negative(reduce_add_int(sums[0]));
}

void quantize(const float* x, int width, int group_size, QuantizedRow row) {
  int k = 0;
  for (; k + group_size <= width; k += group_size) quantize_group(x + k, group_size, row, k / group_size);
  if (k == width) return;
  alignas(64) float padded[256];
  for (int i = 0; i < group_size; ++i) padded[i] = k + i < width ? x[k + i] : 0.0f;
  quantize_group(padded, group_size, row, k / group_size);
}

void rope(const float* x, const float* table_row, int num_heads, int head_dim, float* y) {
  const int half = head_dim / 2;
  const float *cosines = table_row, *sines = table_row + half;
  for (int h = 0; h < num_heads; ++h, x += head_dim, y += head_dim) {
    int i = 0;
    for (; i + kLanes <= half; i += kLanes) {
      const Float a = load(x + i), b = load(x + half + i), c = load(cosines + i), s = load(sines + i);
      store(y + i, sub(mul(a, c), mul(b, s)));
      store(y + half + i, add(mul(b, c), mul(a, s)));
    }
    for (; i < half; ++i) {
      const float a = x[i], b = x[half + i];
      y[i] = a * cosines[i] - b * sines[i];
      y[half + i] = b * cosines[i] + a * sines[i];
    }
  }
}

void embed(const PackedMatrix& w, int row, float* y) {
  const uint8_t* column = w.panel(row / kPanelColumns) + row % kPanelColumns * kColumnBytes;
  if (w.kind == WeightKind::kBf16) {
    for (int k = 0; k < w.k; ++k)
      y[k] = bf16_to_float(reinterpret_cast<const uint16_t*>(column + size_t(k / 2) * kPanelRowBytes)[1 - k % 2]);
    return;
  }
  const uint8_t* panel = w.panel(row / kPanelColumns);
  GroupScales scales;
  const uint8_t* codes = nullptr;
  for (int k = 0; k < w.k; ++k) {
    const int g = k / w.group_size, i = k % w.group_size;
    if (i == 0) {
      widen_group(w, w.group(panel, g), k % kNestedBlock == 0, scales);
      codes = w.group(panel, g) + w.header_bytes() + row % kPanelColumns * kColumnBytes;
    }
    const bool is_int8 = w.kind == WeightKind::kInt8;
    const uint8_t byte = codes[size_t(i / (is_int8 ? 4 : 8)) * kPanelRowBytes + i % 4];
    const float code = float((is_int8 ? byte : i % 8 < 4 ? byte & 15 : byte >> 4) - w.code_bias());
    const float scale = scales.scales[row % kPanelColumns];
    y[k] = w.has_offsets() ? fused(code, scale, -scales.minima[row % kPanelColumns]) : code * scale;
  }
}
