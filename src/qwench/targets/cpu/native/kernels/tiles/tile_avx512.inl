// The AVX-512 tile in assembly: up to 6 rows x 64 columns of sums stay in 24 registers while a chunk of K streams by.
// Included inside namespace avx512, where it takes the place of tile.inl: same functions, same bits.
//
// Assembly, because g++ 12 keeps such sums in registers or in memory as it pleases, which is a factor of two. A step
// multiplies four vectors of weights, 16 columns each, by one dword of activations per row: four bytes, two words
// or bf16, or one fp32. It has 24 multiply-adds for two ports, so it takes 12 cycles; its 4 loads and 6 broadcasts hide
// behind them. Each turn of the loop is two steps and prefetches a line of the weights that come next: without it a
// fifth of the time goes into waiting for the second-level cache.
//
// Registers: zmm0-3 weights, zmm4-6 activations in turns, zmm7 the mask of a split, zmm8-31 sums, four a row.

constexpr int kPasses = 1;  // over a chunk, of a tile

// clang-format off
// M(row, its sums, its broadcast register) for each row; the assembler drops those beyond %[rows].
#define TILE_ROWS(M) M(0, 8, 9, 10, 11, 4) M(1, 12, 13, 14, 15, 5) M(2, 16, 17, 18, 19, 6) \
                     M(3, 20, 21, 22, 23, 4) M(4, 24, 25, 26, 27, 5) M(5, 28, 29, 30, 31, 6)
#define TILE_IF_ROW(r, text) ".if %c[rows] > " #r "\n" text ".endif\n"
#define TILE_ROW_0 "(%[x])"
#define TILE_ROW_1 "(%[x], %[stride])"
#define TILE_ROW_2 "(%[x], %[stride], 2)"
#define TILE_ROW_3 "(%[x3])"
#define TILE_ROW_4 "(%[x3], %[stride])"
#define TILE_ROW_5 "(%[x3], %[stride], 2)"

// sums += weights * the dword of activations at `offset`.
#define TILE_MULTIPLY(op, offset, r, s0, s1, s2, s3, x)     \
  TILE_IF_ROW(r,                                            \
    "vpbroadcastd " offset TILE_ROW_##r ", %%zmm" #x "\n"   \
    op " %%zmm" #x ", %%zmm0, %%zmm" #s0 "\n"               \
    op " %%zmm" #x ", %%zmm1, %%zmm" #s1 "\n"               \
    op " %%zmm" #x ", %%zmm2, %%zmm" #s2 "\n"               \
    op " %%zmm" #x ", %%zmm3, %%zmm" #s3 "\n")
#define TILE_DOT_0(...) TILE_MULTIPLY("vpdpbusd", "", __VA_ARGS__)
#define TILE_DOT_4(...) TILE_MULTIPLY("vpdpbusd", "4", __VA_ARGS__)
#define TILE_WORDS_0(...) TILE_MULTIPLY("vpdpwssd", "", __VA_ARGS__)
#define TILE_WORDS_4(...) TILE_MULTIPLY("vpdpwssd", "4", __VA_ARGS__)
#define TILE_FMA_0(...) TILE_MULTIPLY("vfmadd231ps", "", __VA_ARGS__)
#define TILE_FMA_4(...) TILE_MULTIPLY("vfmadd231ps", "4", __VA_ARGS__)
#define TILE_PAIRS_0(...) TILE_MULTIPLY("vdpbf16ps", "", __VA_ARGS__)
#define TILE_PAIRS_4(...) TILE_MULTIPLY("vdpbf16ps", "4", __VA_ARGS__)

// A vector row of weights: as it lies in memory, or the low or high part of each of its dwords.
#define TILE_WHOLE(offset)                        \
  "vmovups " #offset "(%[w]), %%zmm0\n"           \
  "vmovups " #offset "+64(%[w]), %%zmm1\n"        \
  "vmovups " #offset "+128(%[w]), %%zmm2\n"       \
  "vmovups " #offset "+192(%[w]), %%zmm3\n"
#define TILE_MASKED                               \
  "vpandd (%[w]), %%zmm7, %%zmm0\n"               \
  "vpandd 64(%[w]), %%zmm7, %%zmm1\n"             \
  "vpandd 128(%[w]), %%zmm7, %%zmm2\n"            \
  "vpandd 192(%[w]), %%zmm7, %%zmm3\n"
#define TILE_SHIFTED(shift)                       \
  shift ", (%[w]), %%zmm0\n"                      \
  shift ", 64(%[w]), %%zmm1\n"                    \
  shift ", 128(%[w]), %%zmm2\n"                   \
  shift ", 192(%[w]), %%zmm3\n"
#define TILE_MASK_SHIFTED                         \
  "vpandd %%zmm0, %%zmm7, %%zmm0\n"               \
  "vpandd %%zmm1, %%zmm7, %%zmm1\n"               \
  "vpandd %%zmm2, %%zmm7, %%zmm2\n"               \
  "vpandd %%zmm3, %%zmm7, %%zmm3\n"
#define TILE_LOAD_MASK "vpbroadcastd %[mask], %%zmm7\n"

// Lines of the next chunk's weights: as many in each turn as bring all of it in while this chunk is used.
#define TILE_PREFETCH                                                                                        \
  "prefetcht0 (%[next])\n"                                                                                   \
  ".if %c[lines] > 1\n prefetcht0 64(%[next])\n .endif\n"                                                   \
  ".if %c[lines] > 2\n prefetcht0 128(%[next])\n prefetcht0 192(%[next])\n .endif\n"                        \
  ".if %c[lines] > 4\n prefetcht0 256(%[next])\n prefetcht0 320(%[next])\n prefetcht0 384(%[next])\n"       \
  "prefetcht0 448(%[next])\n .endif\n"                                                                       \
  "add $64*%c[lines], %[next]\n"
#define TILE_LOOP(first_weights, first_step, second_weights, second_step, w_bytes) \
  ".p2align 6\n1:\n"                                                                \
  first_weights TILE_ROWS(first_step)                                               \
  TILE_PREFETCH                                                                     \
  second_weights TILE_ROWS(second_step)                                             \
  "add $" #w_bytes ", %[w]\n"                                                       \
  "add $8, %[x3]\n add $8, %[x]\n cmp %[x_end], %[x]\n jb 1b\n"

// Integers start at bias * starts, where the bias is 1 << shift or none, and end as floats:
// sums += (x_scale * integer) * w_scale, and with minima sums += (x_scale * starts) * w_minimum.
#define TILE_START(r, s0, s1, s2, s3, x)                    \
  TILE_IF_ROW(r,                                            \
    ".if %c[shift] >= 0\n"                                  \
    "vpbroadcastd 4*" #r "(%[starts]), %%zmm" #s0 "\n"      \
    "vpslld $%c[shift], %%zmm" #s0 ", %%zmm" #s0 "\n"       \
    ".else\n vpxord %%zmm" #s0 ", %%zmm" #s0 ", %%zmm" #s0 "\n .endif\n" \
    "vmovdqa64 %%zmm" #s0 ", %%zmm" #s1 "\n"                \
    "vmovdqa64 %%zmm" #s0 ", %%zmm" #s2 "\n"                \
    "vmovdqa64 %%zmm" #s0 ", %%zmm" #s3 "\n")
#define TILE_LOAD_SCALES                                    \
  "vmovups (%[w_scales]), %%zmm0\n"                         \
  "vmovups 64(%[w_scales]), %%zmm1\n"                       \
  "vmovups 128(%[w_scales]), %%zmm2\n"                      \
  "vmovups 192(%[w_scales]), %%zmm3\n"
#define TILE_SCALE_VECTOR(r, v, s)                          \
  "vcvtdq2ps %%zmm" #s ", %%zmm" #s "\n"                    \
  "vmulps %%zmm4, %%zmm" #s ", %%zmm" #s "\n"               \
  "vfmadd213ps 256*" #r "+64*" #v "(%[sums]), %%zmm" #v ", %%zmm" #s "\n" \
  ".if %c[minima]\n vfmadd231ps 64*" #v "(%[w_minima]), %%zmm5, %%zmm" #s "\n .endif\n" \
  "vmovups %%zmm" #s ", 256*" #r "+64*" #v "(%[sums])\n"
#define TILE_SCALE(r, s0, s1, s2, s3, x)                    \
  TILE_IF_ROW(r,                                            \
    "vbroadcastss 4*" #r "(%[x_scales]), %%zmm4\n"          \
    ".if %c[minima]\n vpbroadcastd 4*" #r "(%[starts]), %%zmm5\n" \
    "vcvtdq2ps %%zmm5, %%zmm5\n vmulps %%zmm4, %%zmm5, %%zmm5\n .endif\n" \
    TILE_SCALE_VECTOR(r, 0, s0) TILE_SCALE_VECTOR(r, 1, s1) \
    TILE_SCALE_VECTOR(r, 2, s2) TILE_SCALE_VECTOR(r, 3, s3))

#define TILE_LOAD_SUMS(r, s0, s1, s2, s3, x)                \
  TILE_IF_ROW(r,                                            \
    "vmovups 256*" #r "(%[sums]), %%zmm" #s0 "\n"           \
    "vmovups 256*" #r "+64(%[sums]), %%zmm" #s1 "\n"        \
    "vmovups 256*" #r "+128(%[sums]), %%zmm" #s2 "\n"       \
    "vmovups 256*" #r "+192(%[sums]), %%zmm" #s3 "\n")
#define TILE_STORE_SUMS(r, s0, s1, s2, s3, x)               \
  TILE_IF_ROW(r,                                            \
    "vmovups %%zmm" #s0 ", 256*" #r "(%[sums])\n"           \
    "vmovups %%zmm" #s1 ", 256*" #r "+64(%[sums])\n"        \
    "vmovups %%zmm" #s2 ", 256*" #r "+128(%[sums])\n"       \
    "vmovups %%zmm" #s3 ", 256*" #r "+192(%[sums])\n")

#define TILE_CLOBBERS                                                                                         \
  "memory", "cc", "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10",    \
  "zmm11", "zmm12", "zmm13", "zmm14", "zmm15", "zmm16", "zmm17", "zmm18", "zmm19", "zmm20", "zmm21", "zmm22", \
  "zmm23", "zmm24", "zmm25", "zmm26", "zmm27", "zmm28", "zmm29", "zmm30", "zmm31"
#define TILE_INT(loop)                                                                                            \
  asm volatile(TILE_ROWS(TILE_START) loop TILE_LOAD_SCALES TILE_ROWS(TILE_SCALE)                                  \
               : [x] "+r"(x), [x3] "+r"(x3), [w] "+r"(w), [next] "+r"(next)                                       \
               : [x_end] "r"(x_end), [stride] "r"(t.x_stride), [sums] "r"(t.sums), [starts] "r"(t.starts),        \
                 [x_scales] "r"(t.x_scales), [w_scales] "r"(t.w_scales), [mask] "m"(mask), [shift] "i"(shift),    \
                 [w_minima] "r"(t.w_minima), [minima] "i"(int(kMinima)), [rows] "i"(R), [lines] "i"(Lines)        \
               : TILE_CLOBBERS)
#define TILE_FLOAT(loop)                                                                                          \
  asm volatile(TILE_ROWS(TILE_LOAD_SUMS) loop TILE_ROWS(TILE_STORE_SUMS)                                          \
               : [x] "+r"(x), [x3] "+r"(x3), [w] "+r"(w), [next] "+r"(next)                                       \
               : [x_end] "r"(x_end), [stride] "r"(t.x_stride), [sums] "r"(t.sums), [mask] "m"(mask), [rows] "i"(R), \
                 [lines] "i"(Lines)                                                                               \
               : TILE_CLOBBERS)
// clang-format on

template <Codes C, bool kMinima, int R, int Lines>
QWENCH_INLINE void int_tile(const IntTile& t) {
  const uint8_t *x = reinterpret_cast<const uint8_t*>(t.x), *x3 = x + 3 * t.x_stride, *x_end = x + t.group_size;
  const uint8_t *w = t.codes, *next = t.next;
  const uint32_t mask = 0x0f0f0f0f;
  constexpr int bias = code_bias(C, kMinima), shift = bias == 128 ? 7 : bias == 8 ? 3 : -1;
  static_assert(bias == 0 || bias == 1 << shift);
  if constexpr (C == Codes::kNibbles)
    TILE_INT(TILE_LOAD_MASK TILE_LOOP(TILE_MASKED, TILE_DOT_0, TILE_SHIFTED("vpsrld $4") TILE_MASK_SHIFTED, TILE_DOT_4,
                                      256));
  else if constexpr (C == Codes::kWords)
    TILE_INT(TILE_LOOP(TILE_WHOLE(0), TILE_WORDS_0, TILE_WHOLE(256), TILE_WORDS_4, 512));
  else
    TILE_INT(TILE_LOOP(TILE_WHOLE(0), TILE_DOT_0, TILE_WHOLE(256), TILE_DOT_4, 512));
}

template <Values W, int R, int Lines>
QWENCH_INLINE void float_tile(const FloatTile& t) {
  const int num_steps = W == Values::kPairs ? t.num_k / 2 : t.num_k, even = num_steps / 2 * 2;
  const uint8_t *x = t.row(0), *x3 = t.row(3), *x_end = x + 4 * even;
  const uint8_t *w = t.w, *next = t.next;
  const uint32_t mask = 0xffff0000;
  if (even > 0) {
    if constexpr (W == Values::kPairs)
      TILE_FLOAT(TILE_LOOP(TILE_WHOLE(0), TILE_PAIRS_0, TILE_WHOLE(256), TILE_PAIRS_4, 512));
    else if constexpr (W == Values::kBf16)
      TILE_FLOAT(TILE_LOAD_MASK TILE_LOOP(TILE_MASKED, TILE_FMA_0, TILE_SHIFTED("vpslld $16"), TILE_FMA_4, 256));
    else
      TILE_FLOAT(TILE_LOOP(TILE_WHOLE(0), TILE_FMA_0, TILE_WHOLE(256), TILE_FMA_4, 512));
  }
  if (num_steps == even) return;
  for (int r = 0; r < R; ++r)  // the odd step
    for (int v = 0; v < kPanelColumns; v += kLanes) {
      const Int raw = load_int(w + v * kColumnBytes);
      Float sum = load(t.sums + r * kPanelColumns + v);
      if constexpr (W == Values::kPairs)
        dot2_to(sum, raw, set_int(t.pair(r, 2 * even)));
      else
        fma_to(sum, W == Values::kBf16 ? bf16_high(raw) : bits_of_floats(raw), set(t.value(r, even)));
      store(t.sums + r * kPanelColumns + v, sum);
    }
}

#undef TILE_ROWS
#undef TILE_IF_ROW
#undef TILE_ROW_0
#undef TILE_ROW_1
#undef TILE_ROW_2
#undef TILE_ROW_3
#undef TILE_ROW_4
#undef TILE_ROW_5
#undef TILE_MULTIPLY
#undef TILE_DOT_0
#undef TILE_DOT_4
#undef TILE_WORDS_0
#undef TILE_WORDS_4
#undef TILE_FMA_0
#undef TILE_FMA_4
#undef TILE_PAIRS_0
#undef TILE_PAIRS_4
#undef TILE_WHOLE
#undef TILE_MASKED
#undef TILE_SHIFTED
#undef TILE_MASK_SHIFTED
#undef TILE_LOAD_MASK
#undef TILE_LOOP
#undef TILE_START
#undef TILE_LOAD_SCALES
#undef TILE_SCALE_VECTOR
#undef TILE_SCALE
#undef TILE_LOAD_SUMS
#undef TILE_STORE_SUMS
#undef TILE_CLOBBERS
#undef TILE_INT
#undef TILE_FLOAT
