// Quantising and packing one panel of 64 output columns. Included inside the namespace of one simd header, compiled for
// each instruction set for speed. Columns lie in lanes and sums run over k in order, so that the bits are the same on
// all.

constexpr int kStrip = 16;      // columns quantised at once
constexpr int kMaxGroup = 256;  // weights that share a scale, at most
constexpr int kTrialsAtOnce = 3;
// Candidates for an int4 scale, as the code that the largest weight lands on; as INT4_CANDIDATES in formats.py.
constexpr int kInt4Candidates = 15;
constexpr float kFirstInt4Candidate = 7.0f, kInt4CandidateStep = 0.25f;

// A strip holds one group of 16 columns, k by k: values[k * kStrip + column].

// Codes of one vector of columns at k: rint(w * inverse), within what the format can hold.
inline Float int4_codes(Float w, Float inverse) { return max(set(-8.0f), min(set(7.0f), round_even(mul(w, inverse)))); }
inline Float int8_codes(Float w, Float inverse) {
  return max(set(-127.0f), min(set(127.0f), round_even(mul(w, inverse))));
}
inline float inverse_of(float scale) { return scale != 0.0f ? 1.0f / scale : 0.0f; }

// Tries candidate scales of all columns, given as inverses [kTrialsAtOnce][kStrip]: with codes q their dots sum(w * q)
// and norms sum(q * q).
inline void try_int4(const float* strip, int group, const float* inverses, float* dots, float* norms) {
  for (int c = 0; c < kStrip; c += kLanes) {
    Float inverse[kTrialsAtOnce], dot[kTrialsAtOnce], norm[kTrialsAtOnce];
    for (int t = 0; t < kTrialsAtOnce; ++t) inverse[t] = load(inverses + t * kStrip + c), dot[t] = norm[t] = set(0.0f);
    for (int k = 0; k < group; ++k) {
      const Float w = load(strip + k * kStrip + c);
      for (int t = 0; t < kTrialsAtOnce; ++t) {
        const Float code = int4_codes(w, inverse[t]);
        dot[t] = add(dot[t], mul(w, code));
        norm[t] = add(norm[t], mul(code, code));
      }
    }
    for (int t = 0; t < kTrialsAtOnce; ++t)
      store(dots + t * kStrip + c, dot[t]), store(norms + t * kStrip + c, norm[t]);
  }
}

// A scale as it is stored.
inline float rounded(float scale) { return bf16_to_float(float_to_bf16(scale)); }

// The int4 scales of a strip: of the candidates of formats.py, each with the least-squares scale of its codes,
// the one with the least squared error.
inline void choose_int4(const float* strip, int group, float* scales) {
  constexpr int kTrials = kInt4Candidates / kTrialsAtOnce;
  float least[kStrip], most[kStrip], unit[kStrip], gains[kStrip];
  for (int c = 0; c < kStrip; c += kLanes) {
    Float low = set(0.0f), high = set(0.0f);
    for (int k = 0; k < group; ++k) {
      const Float w = load(strip + k * kStrip + c);
      low = min(low, w), high = max(high, w);
    }
    store(least + c, low), store(most + c, high);
  }
  for (int c = 0; c < kStrip; ++c) {
    const float peak = most[c] >= -least[c] ? most[c] : least[c];
    unit[c] = peak > kNoMagnitude || peak < -kNoMagnitude ? -1.0f / peak : 0.0f;
    scales[c] = 0.0f, gains[c] = -1.0f;
  }
  for (int trial = 0; trial < kTrials; ++trial) {
    float tried[kTrialsAtOnce * kStrip], dots[kTrialsAtOnce * kStrip], norms[kTrialsAtOnce * kStrip];
    for (int t = 0; t < kTrialsAtOnce; ++t)
      for (int c = 0; c < kStrip; ++c)
        tried[t * kStrip + c] = unit[c] * (kFirstInt4Candidate + kInt4CandidateStep * (trial * kTrialsAtOnce + t));
    try_int4(strip, group, tried, dots, norms);
    for (int t = 0; t < kTrialsAtOnce; ++t)
      for (int c = 0; c < kStrip; ++c) {
        const int i = t * kStrip + c;
        const float norm = norms[i] > 0.0f ? norms[i] : 1.0f, scale = rounded(dots[i] / norm);
        const float gain = scale * (2.0f * dots[i] - scale * norm);
        const bool is_better = gain > gains[c];
        gains[c] = is_better ? gain : gains[c];
        scales[c] = is_better ? scale : scales[c];
      }
  }
}

// The squared errors of int8 codes with each of kTrialsAtOnce scales of all columns, [kTrialsAtOnce][kStrip].
inline void try_int8(const float* strip, int group, const float* scales, float* errors) {
  for (int c = 0; c < kStrip; c += kLanes) {
    Float scale[kTrialsAtOnce], inverse[kTrialsAtOnce], error[kTrialsAtOnce];
    for (int t = 0; t < kTrialsAtOnce; ++t) {
      float inverses[kLanes];
      for (int i = 0; i < kLanes; ++i) inverses[i] = inverse_of(scales[t * kStrip + c + i]);
      scale[t] = load(scales + t * kStrip + c), inverse[t] = load(inverses), error[t] = set(0.0f);
    }
    for (int k = 0; k < group; ++k) {
      const Float w = load(strip + k * kStrip + c);
      for (int t = 0; t < kTrialsAtOnce; ++t) {
        const Float wrong = sub(w, mul(int8_codes(w, inverse[t]), scale[t]));
        error[t] = add(error[t], mul(wrong, wrong));
      }
    }
    for (int t = 0; t < kTrialsAtOnce; ++t) store(errors + t * kStrip + c, error[t]);
  }
}

// The int8 scales of a strip: of the bf16 next to the largest magnitude over 127, and those before and after it, the
// one with the least squared error.
inline void choose_int8(const float* strip, int group, float* scales) {
  for (int c = 0; c < kStrip; c += kLanes) {
    Float peak = set(0.0f);
    for (int k = 0; k < group; ++k) peak = max(peak, abs(load(strip + k * kStrip + c)));
    store(scales + c, peak);
  }
  float tried[kTrialsAtOnce * kStrip], errors[kTrialsAtOnce * kStrip];
  for (int c = 0; c < kStrip; ++c) {
    const bool is_zero = scales[c] <= kNoMagnitude;
    const uint16_t nearest = float_to_bf16(scales[c] * (1.0f / 127.0f));
    for (int t = 0; t < kTrialsAtOnce; ++t)
      tried[t * kStrip + c] = is_zero ? 0.0f : bf16_to_float(uint16_t(nearest + t - kTrialsAtOnce / 2));
  }
  try_int8(strip, group, tried, errors);
  for (int c = 0; c < kStrip; ++c) {
    int best = c;
    for (int t = 1; t < kTrialsAtOnce; ++t) best = errors[t * kStrip + c] < errors[best] ? t * kStrip + c : best;
    scales[c] = tried[best];
  }
}

// Writes a strip's codes into the dwords of its columns, at out[i * kPanelColumns + column]. The halves of a dword are
// put together in fp32, which holds them exactly.
template <bool kIsInt4>
inline void write_codes(const float* strip, int group, const float* inverses, uint32_t* out) {
  constexpr int kCodes = kIsInt4 ? 8 : 4;  // in a dword
  for (int first = 0; first < group; first += kCodes, out += kPanelColumns) {
    alignas(64) float halves[2][kStrip];
    for (int half = 0; half < 2; ++half)
      for (int c = 0; c < kStrip; c += kLanes) {
        const Float inverse = load(inverses + c);
        const float* from = strip + (first + 2 * half) * kStrip + c;
        const auto code = [&](int i) {
          const Float w = load(from + i * kStrip);
          return kIsInt4 ? add(int4_codes(w, inverse), set(8.0f)) : add(int8_codes(w, inverse), set(128.0f));
        };
        const auto byte = [&](int i) { return kIsInt4 ? add(code(i), mul(code(i + 4), set(16.0f))) : code(i); };
        store(halves[half] + c, add(byte(0), mul(byte(1), set(256.0f))));
      }
    for (int c = 0; c < kStrip; ++c) out[c] = uint32_t(int(halves[0][c])) | uint32_t(int(halves[1][c])) << 16;
  }
}

inline void widen(const void* row, SourceKind kind, size_t first, int count, float* out) {
  if (kind == SourceKind::kFp32) {
    __builtin_memcpy(out, static_cast<const float*>(row) + first, size_t(count) * 4);
  } else if (kind == SourceKind::kBf16) {
    const uint16_t* from = static_cast<const uint16_t*>(row) + first;
    for (int i = 0; i < count; ++i) out[i] = bf16_to_float(from[i]);
  } else {
    const uint16_t* from = static_cast<const uint16_t*>(row) + first;
    int i = 0;
    for (; i + kLanes <= count; i += kLanes) store(out + i, load_half(from + i));
    if (i == count) return;
    uint16_t rest[kLanes] = {};
    float wide[kLanes];
    __builtin_memcpy(rest, from + i, size_t(count - i) * 2);
    store(wide, load_half(rest));
    __builtin_memcpy(out + i, wide, size_t(count - i) * 4);
  }
}

// to[k * kStrip + row] of from[row * kMaxGroup + k], four by four.
inline void transpose(const float* from, int group, float* to) {
  typedef float Four __attribute__((vector_size(16)));
  typedef int32_t Pick __attribute__((vector_size(16)));
  for (int row = 0; row < kStrip; row += 4)
    for (int k = 0; k < group; k += 4) {
      Four a, b, c, d;
      const float* at = from + row * kMaxGroup + k;
      __builtin_memcpy(&a, at, 16), __builtin_memcpy(&b, at + kMaxGroup, 16);
      __builtin_memcpy(&c, at + 2 * kMaxGroup, 16), __builtin_memcpy(&d, at + 3 * kMaxGroup, 16);
      const Four ab = __builtin_shuffle(a, b, Pick{0, 4, 1, 5}), cd = __builtin_shuffle(c, d, Pick{0, 4, 1, 5});
      const Four ab2 = __builtin_shuffle(a, b, Pick{2, 6, 3, 7}), cd2 = __builtin_shuffle(c, d, Pick{2, 6, 3, 7});
      const Four out[4] = {__builtin_shuffle(ab, cd, Pick{0, 1, 4, 5}), __builtin_shuffle(ab, cd, Pick{2, 3, 6, 7}),
                           __builtin_shuffle(ab2, cd2, Pick{0, 1, 4, 5}),
                           __builtin_shuffle(ab2, cd2, Pick{2, 3, 6, 7})};
      for (int i = 0; i < 4; ++i) __builtin_memcpy(to + (k + i) * kStrip + row, &out[i], 16);
    }
}

// The next values of a row, which no prefetcher of the processor finds among 64 rows.
inline void prefetch_row(const void* row, SourceKind kind, int first, int count) {
  const size_t item = kind == SourceKind::kFp32 ? 4 : 2;
  const char* at = static_cast<const char*>(row) + first * item;
  for (size_t i = 0; i < count * item; i += 64) __builtin_prefetch(at + i);
}

inline void load_strip(const void* const* rows, SourceKind kind, int first, int count, int group, float* strip) {
  alignas(64) float wide[kStrip * kMaxGroup];
  for (int c = 0; c < kStrip; ++c) {
    const int given = rows[c] ? count : 0;
    if (given) {
      widen(rows[c], kind, first, given, wide + c * kMaxGroup);
      prefetch_row(rows[c], kind, first + given, group);
    }
    for (int k = given; k < group; ++k) wide[c * kMaxGroup + k] = 0.0f;
  }
  transpose(wide, group, strip);
}

inline void pack_quantized(const void* const* rows, SourceKind kind, const PackedMatrix& w, uint8_t* panel) {
  alignas(64) float strip[kMaxGroup * kStrip];
  alignas(64) float scales[kStrip], inverses[kStrip];
  for (int first = 0; first < w.padded_k(); first += w.group_size, panel += w.group_bytes()) {
    const int count = w.k - first < w.group_size ? w.k - first : w.group_size;
    for (int column = 0; column < kPanelColumns; column += kStrip) {
      const bool is_int4 = w.kind == WeightKind::kInt4;
      load_strip(rows + column, kind, first, count, w.group_size, strip);
      is_int4 ? choose_int4(strip, w.group_size, scales) : choose_int8(strip, w.group_size, scales);
      uint16_t* out = reinterpret_cast<uint16_t*>(panel) + column;
      for (int c = 0; c < kStrip; ++c) {
        out[c] = float_to_bf16(scales[c]);
        inverses[c] = inverse_of(scales[c]);
      }
      uint32_t* codes = reinterpret_cast<uint32_t*>(panel + w.header_bytes()) + column;
      is_int4 ? write_codes<true>(strip, w.group_size, inverses, codes)
              : write_codes<false>(strip, w.group_size, inverses, codes);
    }
  }
}

// 32 values of each column at a time: a line of a bf16 source, and of the panel what the first-level cache holds.
inline void pack_bf16(const void* const* rows, SourceKind kind, const PackedMatrix& w, uint8_t* panel) {
  constexpr int kBlock = 32, kAhead = 4 * kBlock;
  for (int first = 0; first < w.padded_k(); first += kBlock) {
    const int padded = w.padded_k() - first < kBlock ? w.padded_k() - first : kBlock;
    uint32_t* out = reinterpret_cast<uint32_t*>(panel) + size_t(first) / 2 * kPanelColumns;
    for (int column = 0; column < kPanelColumns; ++column) {
      const int count = !rows[column] ? 0 : w.k - first < padded ? w.k - first : padded;
      alignas(64) uint16_t values[kBlock] = {};
      if (count) prefetch_row(rows[column], kind, first + kAhead, kBlock);
      if (count == kBlock && kind == SourceKind::kBf16) {
        __builtin_memcpy(values, static_cast<const uint16_t*>(rows[column]) + first, sizeof values);
      } else if (count) {
        float wide[kBlock];
        widen(rows[column], kind, first, count, wide);
        for (int i = 0; i < count; ++i) values[i] = float_to_bf16(wide[i]);
      }
      for (int i = 0; i < padded / 2; ++i)
        out[i * kPanelColumns + column] = uint32_t(values[2 * i]) << 16 | values[2 * i + 1];
    }
  }
}

void pack_panel(const void* const* rows, SourceKind kind, const PackedMatrix& w, uint8_t* panel) {
  if (w.kind == WeightKind::kBf16)
    pack_bf16(rows, kind, w, panel);
  else
    pack_quantized(rows, kind, w, panel);
}
