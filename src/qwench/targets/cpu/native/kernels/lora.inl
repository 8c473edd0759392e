// What low-rank adapters add to a product: x is shrunk to an adapter's ranks, which are expanded into the sums of each
// panel before its epilogue. Included inside a simd namespace.

constexpr int kBlockRows = 48;  // of a product, at a time: linear.inl
constexpr int kLoraWide = kLoraBlock / kLanes;
constexpr int kLoraRows = kLanes == 16 ? 4 : 1;  // of a tile: what 16 registers, or 32, have room for
constexpr int kLoraChunk = 256;                  // values of K at a time, whole groups of any activation

// `count` values of a row of activations from k on, as the numbers that a product sees; zeros behind the last.
inline void widen_activations(const Activation& x, size_t padded_k, int group_size, int row, int k, int count,
                              float* values) {
  if (!group_size) {
    const uint8_t* data = x.rows + row * x.row_bytes;
    if (kBf16Pairs && x.kind == ActivationKind::kBf16) {
      for (int i = 0; i < count; ++i) {
        uint16_t value;
        __builtin_memcpy(&value, data + size_t((k + i) / 2) * 4 + (i % 2 ? 0 : 2), 2);
        values[i] = bf16_to_float(value);
      }
    } else {
      __builtin_memcpy(values, data + size_t(k) * sizeof(float), count * sizeof(float));
    }
  } else {
    const int8_t* codes = x.codes + size_t(row) * x.parts * padded_k + k;
    for (int first = 0; first < count; first += group_size) {
      const float* scales = x.scales + size_t((k + first) / group_size) * x.group_stride + row * x.parts;
      for (int i = first; i < first + group_size; i += kLanes) {
        Float value = mul(load_int8(codes + i), set(scales[0]));
        if (x.parts == 2) value = fma(load_int8(codes + padded_k + i), set(scales[1]), value);
        store(values + i, value);
      }
    }
  }
  for (int i = count; i % kLoraSums != 0; ++i) values[i] = 0.0f;
}

// R rows of values [R][kLoraChunk] times [count][16] of A, onto sums [R][kLoraSums][16].
template <int R>
inline void shrink_tile(const float* values, const uint16_t* a, int count, float* sums) {
  Float acc[R * kLoraSums * kLoraWide];
  for (int i = 0; i < R * kLoraSums * kLoraWide; ++i) acc[i] = load(sums + i * kLanes);
  for (int k = 0; k < count; k += kLoraSums)
#pragma GCC unroll 4
    for (int s = 0; s < kLoraSums; ++s)
#pragma GCC unroll 4
      for (int w = 0; w < kLoraWide; ++w) {
        const Float column = load_bf16(a + (k + s) * kLoraBlock + w * kLanes);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
          fma_to(acc[(r * kLoraSums + s) * kLoraWide + w], set(values[r * kLoraChunk + k + s]), column);
      }
  for (int i = 0; i < R * kLoraSums * kLoraWide; ++i) store(sums + i * kLanes, acc[i]);
}

template <int R>
inline void shrink_rows(const LoraMatrix& lora, const Activation& x, int group_size, const int32_t* rows,
                        int first_rank, float* shrunk, size_t stride) {
  alignas(64) float values[R * kLoraChunk], sums[R * kLoraSums * kLoraBlock] = {};
  const uint16_t* a = lora.a + size_t(first_rank) * lora_padded_k(lora.k);
  const size_t padded_k = group_size ? (lora.k + group_size - 1) / group_size * group_size : lora.k;
  for (int k = 0; k < lora.k; k += kLoraChunk, a += size_t(kLoraChunk) * kLoraBlock) {
    const int count = lora.k - k < kLoraChunk ? lora.k - k : kLoraChunk;
    for (int r = 0; r < R; ++r) widen_activations(x, padded_k, group_size, rows[r], k, count, values + r * kLoraChunk);
    shrink_tile<R>(values, a, count, sums);
  }
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < kLoraBlock; i += kLanes) {
      const float* s = sums + r * kLoraSums * kLoraBlock + i;
      const Float low = add(load(s), load(s + kLoraBlock)),
                  high = add(load(s + 2 * kLoraBlock), load(s + 3 * kLoraBlock));
      store(shrunk + rows[r] * stride + first_rank + i, mul(add(low, high), load(lora.scales + first_rank + i)));
    }
}

void lora_shrink(const LoraMatrix& lora, const Activation& x, int group_size, const int32_t* rows, int num_rows,
                 int first_rank, float* shrunk, size_t stride) {
  for (; num_rows >= kLoraRows; num_rows -= kLoraRows, rows += kLoraRows)
    shrink_rows<kLoraRows>(lora, x, group_size, rows, first_rank, shrunk, stride);
  for (; num_rows > 0; --num_rows, ++rows) shrink_rows<1>(lora, x, group_size, rows, first_rank, shrunk, stride);
}

// Onto R rows of a block's sums, which need not be neighbours: those of the block's rows at rows[0] to rows[R - 1].
template <int R>
inline void expand_tile(const LoraMatrix& lora, const float* shrunk, size_t stride, int panel, const int* rows,
                        float* sums) {
  constexpr int kVectors = kPanelColumns / kLanes;
  const int32_t* first_rank = lora.first_rank + panel * (kPanelColumns / kLoraBlock);
  const uint16_t* b = lora.b + size_t(panel) * lora.depth * kPanelColumns;
  Float acc[R * kVectors];
  const float* values[R];
  for (int r = 0; r < R; ++r) {
    values[r] = shrunk + rows[r] * stride;
    for (int v = 0; v < kVectors; ++v) acc[r * kVectors + v] = load(sums + rows[r] * kPanelColumns + v * kLanes);
  }
  for (int rank = 0; rank < lora.depth; ++rank, b += kPanelColumns)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const Float column = load_bf16(b + v * kLanes);
      const int at = first_rank[v * kLanes / kLoraBlock] + rank;
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) fma_to(acc[r * kVectors + v], set(values[r][at]), column);
    }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < kVectors; ++v) store(sums + rows[r] * kPanelColumns + v * kLanes, acc[r * kVectors + v]);
}

// The adapters' part of a block's sums [num_rows, 64], its first row being `row` of the step. Rows with one adapter go
// together, wherever they are, so that its B is widened once for several of them.
inline void lora_expand(const LinearLora& lora, int panel, int row, int num_rows, float* sums) {
  lora.wait(lora);
  const int32_t* of_row = lora.of_row + row;
  const float* shrunk = lora.shrunk + row * lora.stride;
  bool is_done[kBlockRows] = {};
  for (int first = 0; first < num_rows; ++first) {
    if (is_done[first] || of_row[first] < 0 || lora.matrices[of_row[first]].num_ranks == 0) continue;
    const LoraMatrix& matrix = lora.matrices[of_row[first]];
    int rows[kBlockRows], count = 0;
    for (int r = first; r < num_rows; ++r)
      if (of_row[r] == of_row[first]) is_done[r] = true, rows[count++] = r;
    int done = 0;
    for (; done + kLoraRows <= count; done += kLoraRows)
      expand_tile<kLoraRows>(matrix, shrunk, lora.stride, panel, rows + done, sums);
    for (; done < count; ++done) expand_tile<1>(matrix, shrunk, lora.stride, panel, rows + done, sums);
  }
}
