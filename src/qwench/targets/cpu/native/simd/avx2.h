// AVX2 and FMA vectors: 8 floats or 32 bytes. Included by kernels/avx2.cpp alone.
#pragma once
#include <immintrin.h>

#include <cstdint>

#define QWENCH_SIMD avx2

namespace qwench::QWENCH_SIMD {

constexpr bool kBf16Pairs = false;

constexpr int kLanes = 8;
constexpr int kFloatRows = 6, kByteRows = 4, kNibbleRows = 6;  // of a tile

constexpr bool kPrefetches = true;  // whether tiles prefetch what they are told to

using Float = __m256;
using Int = __m256i;

inline Float load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Float v) { _mm256_storeu_ps(p, v); }
inline Float set(float v) { return _mm256_set1_ps(v); }
inline Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
inline Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
inline Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
inline Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
inline Float min(Float a, Float b) { return _mm256_min_ps(a, b); }  // b when either is NaN
inline Float max(Float a, Float b) { return _mm256_max_ps(a, b); }  // b when either is NaN
inline Float abs(Float a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline Float round_even(Float a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Float zero_below(Float a, float bound, Float value) {  // value where a >= bound or NaN, 0 elsewhere
  return _mm256_and_ps(_mm256_cmp_ps(a, _mm256_set1_ps(bound), _CMP_NLT_UQ), value);
}
inline Float add_to_exponent(Float v, Float n) {  // v * 2^n, n in the low bits
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), _mm256_slli_epi32(_mm256_castps_si256(n), 23)));
}
// The integer nearest to x, of magnitude below 2^22, as times_power takes it, and the rest behind it. Adding kMagic
// rounds to an integer and leaves it in the low bits.
inline Float split_power(Float x, Float& rest) {
  constexpr float kMagic = 12582912.0f;
  const Float rounded = add(x, set(kMagic));
  rest = sub(x, sub(rounded, set(kMagic)));
  return rounded;
}
inline Float times_power(Float v, Float n) { return add_to_exponent(v, n); }  // v * 2^n
inline Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
// As asm, because g++ 12 spills accumulators around the intrinsics.
inline void fma_to(Float& acc, Float a, Float b) { asm("vfmadd231ps %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b)); }

inline Int load_int(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline Int set_int(int32_t v) { return _mm256_set1_epi32(v); }
inline Float bits_of_floats(Int v) { return _mm256_castsi256_ps(v); }
inline Int add_int(Int a, Int b) { return _mm256_add_epi32(a, b); }
inline Int sub_int(Int a, Int b) { return _mm256_sub_epi32(a, b); }
inline Int bits_of(Float v) { return _mm256_castps_si256(v); }
inline Float to_float(Int v) { return _mm256_cvtepi32_ps(v); }
inline Int low_nibbles(Int v) { return _mm256_and_si256(v, _mm256_set1_epi8(0x0f)); }
inline Int high_nibbles(Int v) { return low_nibbles(_mm256_srli_epi32(v, 4)); }
// kLanes numbers from memory: bf16, fp16 (subnormal ones too, whatever the mode), int8, uint8.
inline Float load_bf16(const void* p) {
  const __m128i halves = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
inline Float load_half(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
inline Float load_int8(const void* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
}
inline Float load_uint8(const void* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
}
template <int kByte>
inline Int byte_of(Int v) {  // of each dword
  return _mm256_and_si256(_mm256_srli_epi32(v, 8 * kByte), _mm256_set1_epi32(0xff));
}
inline void store_int(void* p, Int v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

// The dot of kernels/tiles/tile_avx2.inl for bytes, which the measured peak is of.
using Broadcast = Int;
constexpr int kByteOffset = 0;
inline Broadcast broadcast_codes(const int8_t* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return _mm256_set1_epi32(v);
}
inline Int byte_weights(Int packed) { return _mm256_xor_si256(packed, _mm256_set1_epi8(static_cast<char>(0x80))); }
inline void dot4_to(Int& acc, Int weights, Broadcast x) {
  Int pairs;
  asm("vpsignb %2, %3, %1\n\tvpmaddubsw %1, %4, %1\n\tvpmaddwd %5, %1, %1\n\tvpaddd %1, %0, %0"
      : "+x"(acc), "=&x"(pairs)
      : "x"(weights), "x"(x), "x"(_mm256_abs_epi8(weights)), "x"(_mm256_set1_epi16(1)));
}

// Sum over lanes: halves are added until one is left.
inline float reduce_add(Float v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float reduce_max(Float v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
// Of each row [num_rows][kLanes].
inline void reduce_max_rows(const float* rows, int num_rows, float* y) {
  for (int r = 0; r < num_rows; ++r) y[r] = reduce_max(load(rows + r * kLanes));
}
inline int32_t reduce_add_int(Int v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

inline Int high_halves(Int v) { return _mm256_and_si256(v, _mm256_set1_epi32(static_cast<int32_t>(0xffff0000))); }
inline Float bf16_low(Int v) { return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16)); }
inline Float bf16_high(Int v) { return _mm256_castsi256_ps(high_halves(v)); }

inline void dot2_to(Float&, Int, Int) {}  // never called: no instruction for it

inline Int store_codes(int8_t* p, Float v) {
  const Int codes = _mm256_cvtps_epi32(v);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  return codes;
}
// The same to 16 bits.
inline void store_words(int16_t* p, Float v) {
  const Int codes = _mm256_cvtps_epi32(v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1)));
}

}  // namespace qwench::QWENCH_SIMD
