// The AVX2 tile in assembly: up to 6 rows x 16 columns of sums in registers, and four passes of it over a chunk of K,
// for the 64 columns of a panel. Included inside namespace avx2, where it takes the place of tile.inl: same
// functions, same bits.
//
// Integers have no instruction of their own here; vpmaddubsw multiplies unsigned by signed bytes, adds neighbours in 16
// bits and saturates beyond them.
//   Nibbles are unsigned: 2 products of 15 and 127 are 3810, and eight steps of them, 30480, stay within 16 bits. So
//   the sums are of 16 bits, two instructions a step, and are widened into memory every eight steps. Bytes: weights are
//   made signed, and their sign moves to x. |w| times (x with the sign of w) is at most 128 * 127, two of them 32512.
//   Each is widened at once: four instructions a step. No bias is left.
//
// Registers: ymm0-1 weights, ymm2 activations, ymm3 a product, ymm4-15 sums, two a row; for bytes ymm12-13 are |w|,
// ymm14 a temporary and ymm15 a constant, which leaves 4 rows.

constexpr int kTileColumns = 2 * kLanes, kPasses = kPanelColumns / kTileColumns;
alignas(32) constexpr uint32_t kLowNibbles[8] = {0x0f0f0f0f, 0x0f0f0f0f, 0x0f0f0f0f, 0x0f0f0f0f,
                                                 0x0f0f0f0f, 0x0f0f0f0f, 0x0f0f0f0f, 0x0f0f0f0f};
alignas(32) constexpr uint32_t kHighHalves[8] = {0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000,
                                                 0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000};
alignas(32) constexpr uint32_t kWordOnes[8] = {0x00010001, 0x00010001, 0x00010001, 0x00010001,
                                               0x00010001, 0x00010001, 0x00010001, 0x00010001};
alignas(32) constexpr uint32_t kByteOffsets[8] = {0x80808080, 0x80808080, 0x80808080, 0x80808080,
                                                  0x80808080, 0x80808080, 0x80808080, 0x80808080};

// clang-format off
// M(row, its sums) for each row; the assembler drops those beyond %[rows].
#define TILE_ROWS(M) M(0, 4, 5) M(1, 6, 7) M(2, 8, 9) M(3, 10, 11) M(4, 12, 13) M(5, 14, 15)
#define TILE_IF_ROW(r, text) ".if %c[rows] > " #r "\n" text ".endif\n"
#define TILE_ROW_0 "(%[x])"
#define TILE_ROW_1 "(%[x], %[stride])"
#define TILE_ROW_2 "(%[x], %[stride], 2)"
#define TILE_ROW_3 "(%[x3])"
#define TILE_ROW_4 "(%[x3], %[stride])"
#define TILE_ROW_5 "(%[x3], %[stride], 2)"

// sums += weights * the dword of activations at `offset`.
#define TILE_NIBBLES(offset, r, s0, s1)                     \
  TILE_IF_ROW(r,                                            \
    "vpbroadcastd " offset TILE_ROW_##r ", %%ymm2\n"        \
    "vpmaddubsw %%ymm2, %%ymm0, %%ymm3\n"                   \
    "vpaddw %%ymm3, %%ymm" #s0 ", %%ymm" #s0 "\n"           \
    "vpmaddubsw %%ymm2, %%ymm1, %%ymm3\n"                   \
    "vpaddw %%ymm3, %%ymm" #s1 ", %%ymm" #s1 "\n")
#define TILE_BYTE_VECTOR(w, magnitude, s, t)                \
    "vpsignb %%ymm" #w ", %%ymm2, %%ymm" #t "\n"            \
    "vpmaddubsw %%ymm" #t ", %%ymm" #magnitude ", %%ymm" #t "\n" \
    "vpmaddwd %%ymm15, %%ymm" #t ", %%ymm" #t "\n"          \
    "vpaddd %%ymm" #t ", %%ymm" #s ", %%ymm" #s "\n"
#define TILE_BYTES(offset, r, s0, s1)                       \
  TILE_IF_ROW(r,                                            \
    "vpbroadcastd " offset TILE_ROW_##r ", %%ymm2\n"        \
    TILE_BYTE_VECTOR(0, 12, s0, 3) TILE_BYTE_VECTOR(1, 13, s1, 14))
#define TILE_WORDS(offset, r, s0, s1)                       \
  TILE_IF_ROW(r,                                            \
    "vpbroadcastd " offset TILE_ROW_##r ", %%ymm2\n"        \
    "vpmaddwd %%ymm2, %%ymm0, %%ymm3\n"                     \
    "vpaddd %%ymm3, %%ymm" #s0 ", %%ymm" #s0 "\n"           \
    "vpmaddwd %%ymm2, %%ymm1, %%ymm3\n"                     \
    "vpaddd %%ymm3, %%ymm" #s1 ", %%ymm" #s1 "\n")
#define TILE_FMA(offset, r, s0, s1)                         \
  TILE_IF_ROW(r,                                            \
    "vbroadcastss " offset TILE_ROW_##r ", %%ymm2\n"        \
    "vfmadd231ps %%ymm2, %%ymm0, %%ymm" #s0 "\n"            \
    "vfmadd231ps %%ymm2, %%ymm1, %%ymm" #s1 "\n")
#define TILE_NIBBLES_0(...) TILE_NIBBLES("", __VA_ARGS__)
#define TILE_NIBBLES_4(...) TILE_NIBBLES("4", __VA_ARGS__)
#define TILE_BYTES_0(...) TILE_BYTES("", __VA_ARGS__)
#define TILE_BYTES_4(...) TILE_BYTES("4", __VA_ARGS__)
#define TILE_WORDS_0(...) TILE_WORDS("", __VA_ARGS__)
#define TILE_WORDS_4(...) TILE_WORDS("4", __VA_ARGS__)
#define TILE_FMA_0(...) TILE_FMA("", __VA_ARGS__)
#define TILE_FMA_4(...) TILE_FMA("4", __VA_ARGS__)

// A vector row of weights: as it lies in memory, or made of the low or high part of each byte or dword.
#define TILE_WHOLE(offset) "vmovdqu " #offset "(%[w]), %%ymm0\n vmovdqu " #offset "+32(%[w]), %%ymm1\n"
#define TILE_MASKED(mask)  \
  "vmovdqa %[" #mask "], %%ymm1\n vpand (%[w]), %%ymm1, %%ymm0\n vpand 32(%[w]), %%ymm1, %%ymm1\n"
#define TILE_SHIFTED(shift) TILE_WHOLE(0) shift ", %%ymm0, %%ymm0\n" shift ", %%ymm1, %%ymm1\n"
#define TILE_MASK_SHIFTED "vpand %[low_nibbles], %%ymm0, %%ymm0\n vpand %[low_nibbles], %%ymm1, %%ymm1\n"
#define TILE_SIGNED(offset)                                                                      \
  "vmovdqa %[byte_offsets], %%ymm1\n vpxor " #offset "(%[w]), %%ymm1, %%ymm0\n"                 \
  "vpxor " #offset "+32(%[w]), %%ymm1, %%ymm1\n vpabsb %%ymm0, %%ymm12\n vpabsb %%ymm1, %%ymm13\n"

// Lines of the next chunk's weights.
#define TILE_PREFETCH                                                                                        \
  ".if %c[lines] > 0\n prefetcht0 (%[next])\n .endif\n"                                                     \
  ".if %c[lines] > 1\n prefetcht0 64(%[next])\n .endif\n"                                                   \
  ".if %c[lines] > 2\n prefetcht0 128(%[next])\n prefetcht0 192(%[next])\n .endif\n"                        \
  ".if %c[lines] > 4\n prefetcht0 256(%[next])\n prefetcht0 320(%[next])\n prefetcht0 384(%[next])\n"       \
  "prefetcht0 448(%[next])\n .endif\n"                                                                       \
  ".if %c[lines] > 0\n add $64*%c[lines], %[next]\n .endif\n"
#define TILE_LOOP(label, first_weights, first_step, second_weights, second_step, w_bytes, end) \
  ".p2align 5\n" #label ":\n"                                                                    \
  first_weights TILE_ROWS(first_step)                                                            \
  TILE_PREFETCH                                                                                  \
  second_weights TILE_ROWS(second_step)                                                          \
  "add $" #w_bytes ", %[w]\n"                                                                    \
  "add $8, %[x3]\n add $8, %[x]\n cmp %[" #end "], %[x]\n jb " #label "b\n"
// Eight steps of nibbles in 16 bits, then on.
#define TILE_WIDENED_LOOP(...)                                                                   \
  "2:\n lea 32(%[x]), %[pause]\n"                                                                \
  TILE_ROWS(TILE_ZERO) TILE_LOOP(1, __VA_ARGS__, pause) TILE_ROWS(TILE_WIDEN)                    \
  "cmp %[x_end], %[x]\n jb 2b\n"

#define TILE_ZERO(r, s0, s1)                                \
  TILE_IF_ROW(r,                                            \
    "vpxor %%ymm" #s0 ", %%ymm" #s0 ", %%ymm" #s0 "\n"      \
    "vpxor %%ymm" #s1 ", %%ymm" #s1 ", %%ymm" #s1 "\n")
#define TILE_WIDEN(r, s0, s1)                               \
  TILE_IF_ROW(r,                                            \
    "vpmaddwd %[word_ones], %%ymm" #s0 ", %%ymm" #s0 "\n"   \
    "vpmaddwd %[word_ones], %%ymm" #s1 ", %%ymm" #s1 "\n"   \
    "vpaddd 64*" #r "(%[integers]), %%ymm" #s0 ", %%ymm" #s0 "\n"    \
    "vpaddd 64*" #r "+32(%[integers]), %%ymm" #s1 ", %%ymm" #s1 "\n" \
    "vmovdqa %%ymm" #s0 ", 64*" #r "(%[integers])\n"        \
    "vmovdqa %%ymm" #s1 ", 64*" #r "+32(%[integers])\n")
#define TILE_STORE_INTEGERS(r, s0, s1)                      \
  TILE_IF_ROW(r,                                            \
    "vmovdqa %%ymm" #s0 ", 64*" #r "(%[integers])\n"        \
    "vmovdqa %%ymm" #s1 ", 64*" #r "+32(%[integers])\n")
#define TILE_LOAD_SUMS(r, s0, s1)                           \
  TILE_IF_ROW(r,                                            \
    "vmovups 256*" #r "(%[sums]), %%ymm" #s0 "\n"           \
    "vmovups 256*" #r "+32(%[sums]), %%ymm" #s1 "\n")
#define TILE_STORE_SUMS(r, s0, s1)                          \
  TILE_IF_ROW(r,                                            \
    "vmovups %%ymm" #s0 ", 256*" #r "(%[sums])\n"           \
    "vmovups %%ymm" #s1 ", 256*" #r "+32(%[sums])\n")

#define TILE_CLOBBERS                                                                                         \
  "memory", "cc", "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10",    \
  "ymm11", "ymm12", "ymm13", "ymm14", "ymm15"
#define TILE_ASM(text)                                                                                             \
  asm volatile(text : [x] "+r"(x), [x3] "+r"(x3), [w] "+r"(w), [next] "+r"(next), [pause] "=&r"(pause)             \
               : [x_end] "r"(x_end), [stride] "r"(t.x_stride), [sums] "r"(sums), [integers] "r"(integers),         \
                 [low_nibbles] "m"(kLowNibbles), [high_halves] "m"(kHighHalves), [word_ones] "m"(kWordOnes),        \
                 [byte_offsets] "m"(kByteOffsets), [rows] "i"(R), [lines] "i"(Lines) : TILE_CLOBBERS)
// clang-format on

// One pass: columns column... of a group. Returns what to prefetch in the next one.
template <Codes C, bool kMinima, int R, int Lines>
QWENCH_INLINE const uint8_t* int_columns(const IntTile& t, const uint8_t* next, int column) {
  alignas(32) int32_t integers[R * kTileColumns];
  const uint8_t *x = reinterpret_cast<const uint8_t*>(t.x), *x3 = x + 3 * t.x_stride, *x_end = x + t.group_size;
  const uint8_t *w = t.codes + column * kColumnBytes, *pause;
  float* sums = t.sums + column;
  if constexpr (C == Codes::kBytes) {
    TILE_ASM("vmovdqa %[word_ones], %%ymm15\n" TILE_ROWS(TILE_ZERO) TILE_LOOP(
        1, TILE_SIGNED(0), TILE_BYTES_0, TILE_SIGNED(256), TILE_BYTES_4, 512, x_end) TILE_ROWS(TILE_STORE_INTEGERS));
  } else if constexpr (C == Codes::kWords) {
    TILE_ASM(TILE_ROWS(TILE_ZERO) TILE_LOOP(1, TILE_WHOLE(0), TILE_WORDS_0, TILE_WHOLE(256), TILE_WORDS_4, 512, x_end)
                 TILE_ROWS(TILE_STORE_INTEGERS));
  } else {
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < kTileColumns; v += kLanes)
        store_int(integers + r * kTileColumns + v, set_int(first_sum(code_bias(C, kMinima), t.starts[r])));
    if constexpr (C == Codes::kNibbles)
      TILE_ASM(TILE_WIDENED_LOOP(TILE_MASKED(low_nibbles), TILE_NIBBLES_0, TILE_SHIFTED("vpsrlw $4") TILE_MASK_SHIFTED,
                                 TILE_NIBBLES_4, 256));
    else
      TILE_ASM(TILE_WIDENED_LOOP(TILE_WHOLE(0), TILE_NIBBLES_0, TILE_WHOLE(256), TILE_NIBBLES_4, 512));
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < kTileColumns; v += kLanes) {
      float* at = sums + r * kPanelColumns + v;
      const Float integer = to_float(load_int(integers + r * kTileColumns + v));
      const Float x_scale = set(t.x_scales[r]);
      Float sum = fma(mul(integer, x_scale), load(t.w_scales + column + v), load(at));
      if constexpr (kMinima)
        sum = fma(mul(to_float(set_int(t.starts[r])), x_scale), load(t.w_minima + column + v), sum);
      store(at, sum);
    }
  return next;
}

template <Codes C, bool kMinima, int R, int Lines>
QWENCH_INLINE void int_tile(const IntTile& t) {
  const uint8_t* next = int_columns<C, kMinima, R, Lines ? Lines : 1>(t, t.next, 0);
  for (int column = kTileColumns; column < kPanelColumns; column += kTileColumns)
    next = int_columns<C, kMinima, R, Lines>(t, next, column);
}

template <Values W, int R, int Lines>
QWENCH_INLINE const uint8_t* float_columns(const FloatTile& t, const uint8_t* next, int column) {
  static_assert(W != Values::kPairs, "no instruction for it");
  const int even = t.num_k / 2 * 2;
  const uint8_t *x = t.row(0), *x3 = t.row(3), *x_end = x + 4 * even;
  const uint8_t *w = t.w + column * kColumnBytes, *pause;
  float* sums = t.sums + column;
  [[maybe_unused]] int32_t* integers = nullptr;
  if (even > 0) {
    if constexpr (W == Values::kBf16)
      TILE_ASM(TILE_ROWS(TILE_LOAD_SUMS) TILE_LOOP(1, TILE_MASKED(high_halves), TILE_FMA_0, TILE_SHIFTED("vpslld $16"),
                                                   TILE_FMA_4, 256, x_end) TILE_ROWS(TILE_STORE_SUMS));
    else
      TILE_ASM(TILE_ROWS(TILE_LOAD_SUMS) TILE_LOOP(1, TILE_WHOLE(0), TILE_FMA_0, TILE_WHOLE(256), TILE_FMA_4, 512,
                                                   x_end) TILE_ROWS(TILE_STORE_SUMS));
  }
  if (t.num_k == even) return next;
  for (int r = 0; r < R; ++r)  // the odd step
    for (int v = 0; v < kTileColumns; v += kLanes) {
      const Int raw = load_int(w + v * kColumnBytes);
      float* at = sums + r * kPanelColumns + v;
      store(at, fma(W == Values::kBf16 ? bf16_high(raw) : bits_of_floats(raw), set(t.value(r, even)), load(at)));
    }
  return next;
}

template <Values W, int R, int Lines>
QWENCH_INLINE void float_tile(const FloatTile& t) {
  const uint8_t* next = float_columns<W, R, Lines ? Lines : 1>(t, t.next, 0);
  for (int column = kTileColumns; column < kPanelColumns; column += kTileColumns)
    next = float_columns<W, R, Lines>(t, next, column);
}

#undef TILE_ROWS
#undef TILE_IF_ROW
#undef TILE_ROW_0
#undef TILE_ROW_1
#undef TILE_ROW_2
#undef TILE_ROW_3
#undef TILE_ROW_4
#undef TILE_ROW_5
#undef TILE_NIBBLES
#undef TILE_BYTE_VECTOR
#undef TILE_BYTES
#undef TILE_WORDS
#undef TILE_FMA
#undef TILE_NIBBLES_0
#undef TILE_NIBBLES_4
#undef TILE_BYTES_0
#undef TILE_BYTES_4
#undef TILE_WORDS_0
#undef TILE_WORDS_4
#undef TILE_FMA_0
#undef TILE_FMA_4
#undef TILE_WHOLE
#undef TILE_MASKED
#undef TILE_SHIFTED
#undef TILE_MASK_SHIFTED
#undef TILE_SIGNED
#undef TILE_PREFETCH
#undef TILE_LOOP
#undef TILE_WIDENED_LOOP
#undef TILE_ZERO
#undef TILE_WIDEN
#undef TILE_STORE_INTEGERS
#undef TILE_LOAD_SUMS
#undef TILE_STORE_SUMS
#undef TILE_CLOBBERS
#undef TILE_ASM
