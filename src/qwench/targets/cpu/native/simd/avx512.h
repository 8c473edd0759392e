// AVX-512 (F, BW, DQ, VL, VNNI) vectors: 16 floats or 64 bytes. Included by kernels/avx512.cpp and avx512bf16.cpp.
#pragma once
#include <immintrin.h>

#include <cstdint>

// Built twice: kernels/avx512bf16.cpp multiplies bf16 pairs with an instruction of their own.
#ifdef QWENCH_BF16_PAIRS
#define QWENCH_SIMD avx512bf16
#else
#define QWENCH_SIMD avx512
#endif

namespace qwench::QWENCH_SIMD {

#ifdef QWENCH_BF16_PAIRS
constexpr bool kBf16Pairs = true;
#else
constexpr bool kBf16Pairs = false;
#endif

constexpr int kLanes = 16;
// A tile of 6 rows x 4 vectors takes 24 accumulators, 4 weights and 1 broadcast of 32 registers.
constexpr int kFloatRows = 6, kByteRows = 6, kNibbleRows = 6;  // of a tile

constexpr bool kPrefetches = true;  // whether tiles prefetch what they are told to

using Float = __m512;
using Int = __m512i;

inline Float load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Float v) { _mm512_storeu_ps(p, v); }
inline Float set(float v) { return _mm512_set1_ps(v); }
inline Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
inline Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
inline Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
inline Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
inline Float min(Float a, Float b) { return _mm512_min_ps(a, b); }  // b when either is NaN
inline Float max(Float a, Float b) { return _mm512_max_ps(a, b); }  // b when either is NaN
inline Float abs(Float a) { return _mm512_abs_ps(a); }
inline Float round_even(Float a) { return _mm512_roundscale_ps(a, 0); }
inline Float zero_below(Float a, float bound, Float value) {  // value where a >= bound or NaN, 0 elsewhere
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, _mm512_set1_ps(bound), _CMP_NLT_UQ), value);
}
inline Float add_to_exponent(Float v, Float n) {  // v * 2^n, n in the low bits
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), _mm512_slli_epi32(_mm512_castps_si512(n), 23)));
}
// The integer nearest to x, of magnitude below 2^22, as times_power takes it, and the rest behind it.
inline Float split_power(Float x, Float& rest) {
  const Float n = _mm512_roundscale_ps(x, 0);
  rest = sub(x, n);
  return n;
}
inline Float times_power(Float v, Float n) { return _mm512_scalef_ps(v, n); }  // v * 2^n

// g++ 12 spills accumulators around the intrinsics below; as asm they stay in registers, which is worth a factor of
// two.
inline void fma_to(Float& acc, Float a, Float b) { asm("vfmadd231ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b)); }
// Weights are unsigned here, so that the activations are the broadcast operand; kByteOffset * sum(x) is taken off.
using Broadcast = Int;
constexpr int kByteOffset = 128;
inline Broadcast broadcast_codes(const int8_t* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return _mm512_set1_epi32(v);
}
inline Int byte_weights(Int packed) { return packed; }
inline void dot4_to(Int& acc, Int weights, Broadcast x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(weights), "v"(x));
}
// acc += the product of the high halves, then that of the low ones, each rounded as by fma. Subnormals are zeros.
inline void dot2_to(Float& acc, Int weights, Int x) { asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(weights), "v"(x)); }
inline Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }

inline Int load_int(const void* p) { return _mm512_loadu_si512(p); }
inline Int set_int(int32_t v) { return _mm512_set1_epi32(v); }
inline Float bits_of_floats(Int v) { return _mm512_castsi512_ps(v); }
inline Int add_int(Int a, Int b) { return _mm512_add_epi32(a, b); }
inline Int sub_int(Int a, Int b) { return _mm512_sub_epi32(a, b); }
inline Int bits_of(Float v) { return _mm512_castps_si512(v); }
inline Float to_float(Int v) { return _mm512_cvtepi32_ps(v); }
inline Int low_nibbles(Int v) { return _mm512_and_si512(v, _mm512_set1_epi8(0x0f)); }
inline Int high_nibbles(Int v) { return low_nibbles(_mm512_srli_epi32(v, 4)); }
// kLanes numbers from memory: bf16, fp16 (subnormal ones too, whatever the mode), int8, uint8.
inline Float load_bf16(const void* p) {
  const __m256i halves = _mm256_loadu_si256(static_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
inline Float load_half(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
inline Float load_int8(const void* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
}
inline Float load_uint8(const void* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
}
template <int kByte>
inline Int byte_of(Int v) {  // of each dword
  return _mm512_and_si512(_mm512_srli_epi32(v, 8 * kByte), _mm512_set1_epi32(0xff));
}
inline void store_int(void* p, Int v) { _mm512_storeu_si512(p, v); }

inline void dot4_nibbles_to(Int& acc, Int weights, Broadcast x) { dot4_to(acc, weights, x); }

// Sum over lanes: halves are added until one is left.
inline float reduce_add(Float v) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float reduce_max(Float v) { return _mm512_reduce_max_ps(v); }
// Of each row [num_rows][kLanes], 16 at a time, halved and transposed in one go; rows beyond may hold anything.
inline void reduce_max_rows(const float* rows, int num_rows, float* y) {
  for (; num_rows > 0; num_rows -= 16, rows += 16 * kLanes, y += 16) {
    Float quarters[4];
    for (int i = 0; i < 4; ++i) {
      Float halves[2];
      for (int j = 0; j < 2; ++j) {
        const Float a = load(rows + (4 * i + 2 * j) * kLanes), b = load(rows + (4 * i + 2 * j + 1) * kLanes);
        halves[j] = max(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
      }
      const __m512d a = _mm512_castps_pd(halves[0]), b = _mm512_castps_pd(halves[1]);
      quarters[i] = max(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    Float halves[2];
    for (int i = 0; i < 2; ++i) {
      const Float a = quarters[2 * i], b = quarters[2 * i + 1];
      halves[i] = max(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
    store(y, max(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88), _mm512_shuffle_f32x4(halves[0], halves[1], 0xdd)));
  }
}
inline int32_t reduce_add_int(Int v) {  // not _mm512_reduce_add_epi32, whose last sum may not overflow
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

// Of 16 dwords that each hold two bf16: the low ones and the high ones as floats.
inline Int high_halves(Int v) { return _mm512_and_si512(v, _mm512_set1_epi32(0xffff0000)); }
inline Float bf16_low(Int v) { return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)); }
inline Float bf16_high(Int v) { return _mm512_castsi512_ps(high_halves(v)); }

// Rounds to int8 codes (values already within +-127), 16 of them; returns their sum per lane as dwords.
inline Int store_codes(int8_t* p, Float v) {
  const Int codes = _mm512_cvtps_epi32(v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(codes));
  return codes;
}
// The same to 16 bits.
inline void store_words(int16_t* p, Float v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(v)));
}

}  // namespace qwench::QWENCH_SIMD
