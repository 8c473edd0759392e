// Vector mathematics on the primitives of one simd header. Included inside that header's namespace.

// a * b + c, rounded once.
inline float fused(float a, float b, float c) {
  float lanes[kLanes];
  store(lanes, fma(set(a), set(b), set(c)));
  return lanes[0];
}

// -v, also of what a conversion makes of NaN.
inline int32_t negative(int32_t v) { return int32_t(0u - uint32_t(v)); }

// exp by Cody and Waite's reduction and Cephes' polynomial, relative error below 2e-7; exactly 0 below -87.3 (and for
// -inf), saturated above 86; NaN stays NaN. Adding kMagic rounds to an integer and leaves it in the low bits. Vectors
// go step by step together: in each of them a step waits for the one before.
template <int N>
inline void exp(Float (&x)[N]) {
  constexpr float kLow = -87.3f, kHigh = 86.0f, kMagic = 12582912.0f;
  constexpr float kTerms[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
  Float rounded[N], r[N], p[N];
  for (int i = 0; i < N; ++i) r[i] = max(set(kLow), min(set(kHigh), x[i]));
  for (int i = 0; i < N; ++i) rounded[i] = fma(r[i], set(1.44269504088896341f), set(kMagic));
  for (int i = 0; i < N; ++i) {
    const Float n = sub(rounded[i], set(kMagic));
    r[i] = fma(n, set(2.12194440e-4f), fma(n, set(-0.693359375f), r[i]));
  }
  for (int i = 0; i < N; ++i) p[i] = set(1.9875691500e-4f);
  for (float term : kTerms)
    for (int i = 0; i < N; ++i) p[i] = fma(p[i], r[i], set(term));
  for (int i = 0; i < N; ++i) {
    const Float y = add(fma(p[i], mul(r[i], r[i]), r[i]), set(1.0f));
    x[i] = zero_below(x[i], kLow, add_to_exponent(y, rounded[i]));
  }
}

inline Float exp(Float x) {
  Float v[1] = {x};
  exp(v);
  return v[0];
}

// factor * 2^x for x up to 126, relative error below 2e-7; x counts as -126 below that (and for -inf), NaN stays NaN. A
// minimax polynomial of the rest behind the nearest integer, 1 at 0. factor >= 1.
inline Float exp2(Float x, float factor = 1.0f) {
  Float r;
  const Float n = split_power(max(set(-126.0f), x), r);
  Float p = set(factor * 1.326472615e-3f);
  p = fma(p, r, set(factor * 9.671512991e-3f));
  p = fma(p, r, set(factor * 5.550733581e-2f));
  p = fma(p, r, set(factor * 2.402224243e-1f));
  p = fma(p, r, set(factor * 6.931470037e-1f));
  return times_power(fma(p, r, set(factor)), n);
}

// log2 of a positive normal number, to about 2e-7: its nearest integer of those below m = 3/4 to 3/2 times a power of
// two, and the series of log((1 + s) / (1 - s)) at s = (m - 1) / (m + 1).
inline Float log2(Float x) {
  constexpr float kMagic = 12582912.0f;
  const Float above_one = to_float(sub_int(bits_of(x), set_int(0x3f800000)));
  const Float minus_n = fma(above_one, set(-0x1p-23f), set(kMagic));
  const Float m = add_to_exponent(x, minus_n);
  const Float s = div(sub(m, set(1.0f)), add(m, set(1.0f))), squared = mul(s, s);
  Float p = set(0.412198583f);
  p = fma(p, squared, set(0.577078016f));
  p = fma(p, squared, set(0.961796694f));
  p = fma(p, squared, set(2.885390082f));
  return fma(p, s, sub(set(kMagic), minus_n));
}

// -1 / v of -1 to -2^125, to about an ulp: a guess from the bits, within 5 %, and three Newton steps that square the
// error. Not the processors' estimates, of which each maker has its own.
template <int N>
inline void minus_reciprocal(Float (&v)[N]) {
  Float r[N];
  for (int i = 0; i < N; ++i) r[i] = bits_of_floats(sub_int(set_int(int32_t(0xfef311c7)), bits_of(v[i])));
  for (int step = 0; step < 3; ++step)
    for (int i = 0; i < N; ++i) r[i] = fma(fma(v[i], r[i], set(1.0f)), r[i], r[i]);
  for (int i = 0; i < N; ++i) v[i] = r[i];
}

inline Float minus_reciprocal(Float v) {
  Float r[1] = {v};
  minus_reciprocal(r);
  return r[0];
}

template <int N>
inline void silu(Float (&x)[N]) {
  Float v[N];
  for (int i = 0; i < N; ++i) v[i] = sub(set(0.0f), x[i]);
  exp(v);
  for (int i = 0; i < N; ++i) v[i] = sub(set(-1.0f), v[i]);
  minus_reciprocal(v);
  for (int i = 0; i < N; ++i) x[i] = mul(x[i], v[i]);
}

// Sums over a row are kept as 16 partial sums, of every 16th value each, whatever the length of a vector; `fold` adds
// halves of them until one is left.
constexpr int kPartialSums = 16, kWide = kPartialSums / kLanes;
inline float fold(const Float (&sums)[kWide]) {
  if constexpr (kWide == 4)
    return reduce_add(add(add(sums[0], sums[2]), add(sums[1], sums[3])));
  else if constexpr (kWide == 2)
    return reduce_add(add(sums[0], sums[1]));
  else
    return reduce_add(sums[0]);
}

inline float bf16_to_float(uint16_t v) {
  const uint32_t wide = uint32_t(v) << 16;
  float f;
  __builtin_memcpy(&f, &wide, 4);
  return f;
}
// Round to nearest even; NaN stays a NaN.
inline uint16_t float_to_bf16(float f) {
  uint32_t wide;
  __builtin_memcpy(&wide, &f, 4);
  if (f != f) return uint16_t((wide >> 16) | 0x40);
  return uint16_t((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
}

void round_to_bf16(const float* x, int width, void* row) {
  if constexpr (kBf16Pairs) {
    char* pairs = static_cast<char*>(row);
    for (int i = 0; i < width; i += 2, pairs += 4) {
      const uint32_t pair = uint32_t(float_to_bf16(x[i])) << 16 | (i + 1 < width ? float_to_bf16(x[i + 1]) : 0);
      __builtin_memcpy(pairs, &pair, 4);
    }
  } else {
    float* values = static_cast<float*>(row);
    for (int i = 0; i < width; ++i) values[i] = bf16_to_float(float_to_bf16(x[i]));
  }
}
