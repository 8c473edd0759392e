// Vector mathematics on the primitives of one simd header. Included inside that header's namespace.

// -v, also of what a conversion makes of NaN.
inline int32_t negative(int32_t v) { return int32_t(0u - uint32_t(v)); }

// exp by Cody and Waite's reduction and Cephes' polynomial, relative error below 2e-7; exactly 0 below -87.3 (and for
// -inf), saturated above 88; NaN stays NaN. Adding kMagic rounds to an integer and leaves it in the low bits.
inline Float exp(Float x) {
  constexpr float kLow = -87.3f, kHigh = 88.0f, kMagic = 12582912.0f;
  const Float c = max(set(kLow), min(set(kHigh), x));
  const Float rounded = fma(c, set(1.44269504088896341f), set(kMagic));
  const Float n = sub(rounded, set(kMagic));
  const Float r = fma(n, set(2.12194440e-4f), fma(n, set(-0.693359375f), c));
  Float p = set(1.9875691500e-4f);
  p = fma(p, r, set(1.3981999507e-3f));
  p = fma(p, r, set(8.3334519073e-3f));
  p = fma(p, r, set(4.1665795894e-2f));
  p = fma(p, r, set(1.6666665459e-1f));
  p = fma(p, r, set(5.0000001201e-1f));
  const Float y = add(fma(p, mul(r, r), r), set(1.0f));
  return zero_below(x, kLow, add_to_exponent(y, rounded));
}

inline Float silu(Float x) { return mul(x, reciprocal(add(set(1.0f), exp(sub(set(0.0f), x))))); }

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

void to_bf16(const float* x, int width, uint16_t* y) {
  for (int i = 0; i < width; ++i) y[i] = float_to_bf16(x[i]);
  if (width % 2) y[width] = 0;
}
