// Portable vectors of 4 floats or 16 bytes, on the compiler's vector extension. Included by kernels/generic.cpp alone.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define QWENCH_SIMD generic

namespace qwench::QWENCH_SIMD {

constexpr bool kBf16Pairs = false;

constexpr int kLanes = 4;
constexpr int kFloatRows = 4, kByteRows = 4, kNibbleRows = 4;  // of a tile
constexpr int tile_vecs(int rows) { return rows == 1 ? 8 : 2; }

constexpr bool kPrefetches = false;  // whether tiles prefetch what they are told to

typedef float Float __attribute__((vector_size(16)));
typedef int32_t Int __attribute__((vector_size(16)));
typedef uint32_t Uint __attribute__((vector_size(16)));

template <class To, class From>
inline To bits(From v) {
  To r;
  static_assert(sizeof r == sizeof v);
  std::memcpy(&r, &v, sizeof r);
  return r;
}

inline Float load(const float* p) {
  Float v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Float v) { std::memcpy(p, &v, sizeof v); }
inline Float set(float v) { return Float{v, v, v, v}; }
inline Float add(Float a, Float b) { return a + b; }
inline Float sub(Float a, Float b) { return a - b; }
inline Float mul(Float a, Float b) { return a * b; }
inline Float div(Float a, Float b) { return a / b; }
inline Float select(Int mask, Float a, Float b) { return bits<Float>((bits<Int>(a) & mask) | (bits<Int>(b) & ~mask)); }
inline Float min(Float a, Float b) { return select(a < b, a, b); }  // b when either is NaN
inline Float max(Float a, Float b) { return select(a > b, a, b); }  // b when either is NaN
inline Float abs(Float a) { return bits<Float>(bits<Int>(a) & 0x7fffffff); }
inline Float round_even(Float a) {
  return Float{std::nearbyint(a[0]), std::nearbyint(a[1]), std::nearbyint(a[2]), std::nearbyint(a[3])};
}
inline Float zero_below(Float a, float bound, Float value) {
  return bits<Float>(bits<Int>(value) & ~Int(a < set(bound)));
}
inline Int to_int(Float v) { return __builtin_convertvector(v, Int); }
inline Float add_to_exponent(Float v, Float n) {  // v * 2^n, n in the low bits
  return bits<Float>(bits<Uint>(v) + (bits<Uint>(n) << 23));
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

// a * b + c, rounded once. Where processors of this kind need not have an instruction for it, in fp64: the product is
// exact there, and a sum that isn't gets an odd last bit, which keeps the rounding to fp32 from meeting a false tie
// (Boldo and Melquiond, 2008).
#ifdef __FP_FAST_FMAF
inline Float fma(Float a, Float b, Float c) {
  return Float{__builtin_fmaf(a[0], b[0], c[0]), __builtin_fmaf(a[1], b[1], c[1]), __builtin_fmaf(a[2], b[2], c[2]),
               __builtin_fmaf(a[3], b[3], c[3])};
}
#else
typedef double Double __attribute__((vector_size(32)));
typedef int64_t Long __attribute__((vector_size(32)));
typedef uint64_t Ulong __attribute__((vector_size(32)));
inline Float fma(Float a, Float b, Float c) {
  const Double product = __builtin_convertvector(a, Double) * __builtin_convertvector(b, Double);
  const Double addend = __builtin_convertvector(c, Double), sum = product + addend;
  const Double added = sum - product, error = (product - (sum - added)) + (addend - added);  // Knuth's TwoSum
  const Ulong sum_bits = bits<Ulong>(sum), is_inexact = bits<Ulong>((error < 0) | (error > 0));
  const Ulong is_even = (sum_bits & 1) - 1;                            // all ones or none
  const Ulong step = 1 - 2 * ((bits<Ulong>(error) ^ sum_bits) >> 63);  // away from 0, or towards it
  return __builtin_convertvector(bits<Double>(sum_bits + (step & is_even & is_inexact)), Float);
}
#endif
inline void fma_to(Float& acc, Float a, Float b) { acc = fma(a, b, acc); }

inline Int load_int(const void* p) {
  Int v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline Int set_int(int32_t v) { return Int{v, v, v, v}; }
inline Float bits_of_floats(Int v) { return bits<Float>(v); }
inline Int add_int(Int a, Int b) { return bits<Int>(bits<Uint>(a) + bits<Uint>(b)); }
inline Int sub_int(Int a, Int b) { return bits<Int>(bits<Uint>(a) - bits<Uint>(b)); }
inline Int bits_of(Float v) { return bits<Int>(v); }
inline Float to_float(Int v) { return __builtin_convertvector(v, Float); }
inline Int low_nibbles(Int v) { return v & 0x0f0f0f0f; }
inline Int high_nibbles(Int v) { return bits<Int>(bits<Uint>(v) >> 4) & 0x0f0f0f0f; }
// kLanes numbers from memory: bf16, fp16 (subnormal ones too, whatever the mode), int8, uint8.
inline Float load_bf16(const void* p) {
  uint16_t v[kLanes];
  std::memcpy(v, p, sizeof v);
  return bits<Float>(Uint{v[0], v[1], v[2], v[3]} << 16);
}
inline Float load_half(const void* p) {
  uint16_t v[kLanes];
  std::memcpy(v, p, sizeof v);
  const Uint wide{v[0], v[1], v[2], v[3]}, sign = (wide & 0x8000) << 16, magnitude = wide & 0x7fff;
  const Float subnormal = __builtin_convertvector(bits<Int>(magnitude), Float) * 5.9604644775390625e-8f;  // 2^-24
  const Float normal = bits<Float>((magnitude << 13) + (112u << 23));
  return bits<Float>(bits<Uint>(select(bits<Int>(magnitude) < 0x400, subnormal, normal)) | sign);
}
inline Float load_int8(const void* p) {
  int8_t v[kLanes];
  std::memcpy(v, p, sizeof v);
  return Float{float(v[0]), float(v[1]), float(v[2]), float(v[3])};
}
inline Float load_uint8(const void* p) {
  uint8_t v[kLanes];
  std::memcpy(v, p, sizeof v);
  return Float{float(v[0]), float(v[1]), float(v[2]), float(v[3])};
}
template <int kByte>
inline Int byte_of(Int v) {  // of each dword
  return bits<Int>((bits<Uint>(v) >> (8 * kByte)) & 0xffu);
}
inline void store_int(void* p, Int v) { std::memcpy(p, &v, sizeof v); }

using Broadcast = Int;
constexpr int kByteOffset = 128;
inline Broadcast broadcast_codes(const int8_t* p) {
  int32_t v;
  std::memcpy(&v, p, 4);
  return set_int(v);
}
inline Int byte_weights(Int packed) { return packed; }
inline void dot4_to(Int& acc, Int weights, Broadcast x) {  // unsigned bytes times signed bytes
  for (int byte = 0; byte < 4; ++byte) {
    const Int w = bits<Int>((bits<Uint>(weights) >> (8 * byte)) & 0xffu);
    acc += w * (bits<Int>(bits<Uint>(x) << (24 - 8 * byte)) >> 24);
  }
}
inline void dot2_words_to(Int& acc, Int weights, Broadcast x) {  // signed 16 bits
  const Int w_low = bits<Int>(bits<Uint>(weights) << 16) >> 16, x_low = bits<Int>(bits<Uint>(x) << 16) >> 16;
  const Int low = bits<Int>(bits<Uint>(w_low) * bits<Uint>(x_low));
  acc = add_int(acc, add_int(low, bits<Int>(bits<Uint>(weights >> 16) * bits<Uint>(x >> 16))));
}
inline void dot4_nibbles_to(Int& acc, Int weights, Broadcast x) { dot4_to(acc, weights, x); }

// Sum over lanes: halves are added until one is left.
inline float reduce_add(Float v) { return (v[0] + v[2]) + (v[1] + v[3]); }
inline float reduce_max(Float v) {
  const float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
  return a > b ? a : b;
}
// Of each row [num_rows][kLanes].
inline void reduce_max_rows(const float* rows, int num_rows, float* y) {
  for (int r = 0; r < num_rows; ++r) y[r] = reduce_max(load(rows + r * kLanes));
}
inline int32_t reduce_add_int(Int v) {
  const Uint u = bits<Uint>(v);
  return int32_t(u[0] + u[1] + u[2] + u[3]);
}

inline Int high_halves(Int v) { return bits<Int>(bits<Uint>(v) & 0xffff0000u); }
inline Float bf16_low(Int v) { return bits<Float>(bits<Uint>(v) << 16); }
inline Float bf16_high(Int v) { return bits<Float>(high_halves(v)); }

inline void dot2_to(Float&, Int, Int) {}  // never called: no instruction for it

inline Int store_codes(int8_t* p, Float v) {
  const Int codes = to_int(round_even(v));
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(codes[i]);
  return codes;
}
// The same to 16 bits.
inline void store_words(int16_t* p, Float v) {
  const Int codes = to_int(round_even(v));
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int16_t>(codes[i]);
}

}  // namespace qwench::QWENCH_SIMD
