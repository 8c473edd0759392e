// Matrix products over packed panels. Included inside the namespace of one simd header, after its tiles.
//
// The order of loops is panel, block of rows, chunk of K, tile: a chunk of weights (8 KB), the block's sums (12 KB) and
// its activations stay in the first-level cache, a panel of weights in the second. Between chunks the sums rest in fp32
// in memory, which changes nothing: neither tile nor block nor chunk shows in the bits.

constexpr int kBlockRows = 48;
constexpr int kUnpackRows = 12;  // from this many rows on, unpacking a chunk once beats doing it per tile
constexpr int kScratchBytes = kPanelColumns * 256;  // a group of up to 256 bytes a column, or 32 fp32 values

// Whether the activations lie as the tile of pairs reads them.
inline bool in_pairs(const Activation& x) { return kBf16Pairs && x.kind == ActivationKind::kBf16; }

inline bool has_floats(const Activation& x) {
  return x.kind == ActivationKind::kFp32 || x.kind == ActivationKind::kBf16;
}

// Values of K per chunk of a product of floats.
inline int float_chunk(const Activation& x) { return in_pairs(x) ? 64 : 32; }

// A chunk of a panel: values [k_begin, k_begin + num_k) of K, which is one group for integers.
struct Chunk {
  const uint8_t* weights;
  bool is_unpacked;
  int index, k_begin, num_k;
  const uint8_t* next;  // where the next chunk's weights begin, as packed
  size_t next_bytes;
};

// Nibbles to bytes, or bf16 to fp32: each vector row becomes two.
inline void unpack(WeightKind kind, const uint8_t* packed, int num_panel_rows, uint8_t* out) {
  for (int i = 0; i < num_panel_rows; ++i, packed += kPanelRowBytes, out += 2 * kPanelRowBytes)
    for (int b = 0; b < kPanelRowBytes; b += kLanes * kColumnBytes) {
      const Int raw = load_int(packed + b);
      if (kind == WeightKind::kInt4) {
        store_int(out + b, low_nibbles(raw));
        store_int(out + kPanelRowBytes + b, high_nibbles(raw));
      } else {
        store(reinterpret_cast<float*>(out + b), bf16_high(raw));
        store(reinterpret_cast<float*>(out + kPanelRowBytes + b), bf16_low(raw));
      }
    }
}

inline int num_chunks(const LinearArgs& a) {
  const int chunk = float_chunk(a.x);
  return has_floats(a.x) ? (a.weight.k + chunk - 1) / chunk : a.weight.num_groups();
}

// Integer weights for a product of floats: a part of a group, dequantised.
inline Chunk dequantized_chunk(const LinearArgs& a, const uint8_t* panel, int index, GroupScales& scales,
                               uint8_t* scratch) {
  const PackedMatrix& w = a.weight;
  const int chunk = float_chunk(a.x), first = index * chunk, g = first / w.group_size, in_group = first % w.group_size;
  if (in_group == 0) widen_group(w, panel, g, scales);
  const size_t column_bytes = w.kind == WeightKind::kInt4 ? 2 : 1;  // values in a byte
  const uint8_t* codes = w.group(panel, g) + w.header_bytes() + in_group * kPanelColumns / column_bytes;
  dequantize(w, codes, chunk, scales, reinterpret_cast<float*>(scratch));
  const size_t num_bytes = chunk * kPanelColumns / column_bytes;
  return {scratch, true, index, first, w.k - first < chunk ? w.k - first : chunk, codes + num_bytes, num_bytes};
}

// `after`: what is read when this panel's last chunk is done. Chunks come in order; `scales` are those of the last one.
inline Chunk chunk_of(const LinearArgs& a, const uint8_t* panel, int index, bool unpack_it, const uint8_t* after,
                      GroupScales& scales, uint8_t* scratch) {
  if (a.weight.kind != WeightKind::kBf16 && has_floats(a.x)) return dequantized_chunk(a, panel, index, scales, scratch);
  const PackedMatrix& w = a.weight;
  const bool is_last = index + 1 == num_chunks(a);
  Chunk c;
  c.index = index;
  c.is_unpacked = unpack_it && (w.kind == WeightKind::kInt4 || (w.kind == WeightKind::kBf16 && !in_pairs(a.x)));
  if (w.kind == WeightKind::kBf16) {
    const int chunk = float_chunk(a.x);
    c.k_begin = index * chunk;
    c.num_k = w.k - c.k_begin < chunk ? w.k - c.k_begin : chunk;
    c.weights = panel + size_t(c.k_begin) / 2 * kPanelRowBytes;
    c.next_bytes = chunk / 2 * kPanelRowBytes;
    c.next = is_last ? after : c.weights + c.next_bytes;
  } else {
    const uint8_t* next = is_last ? after + w.block_bytes() : w.group(panel, index + 1);
    const size_t header_bytes = w.header_bytes();
    c.k_begin = index * w.group_size;
    c.num_k = w.group_size;
    widen_group(w, panel, index, scales);
    for (size_t i = 0; kPrefetches && i < header_bytes; i += 64) __builtin_prefetch(next + i);
    c.weights = w.group(panel, index) + header_bytes;
    c.next_bytes = w.group_bytes() - header_bytes;  // the tiles bring the codes
    c.next = next + header_bytes;
  }
  if (c.is_unpacked) {
    const int values_per_row = w.kind == WeightKind::kBf16 ? 2 : 8;
    unpack(w.kind, c.weights, (c.num_k + values_per_row - 1) / values_per_row, scratch);
    c.weights = scratch;
  }
  return c;
}

// Where a panel's outputs go: row r at y + r * stride, `count` columns of which belong to the matrix.
struct Destination {
  float* y;
  size_t stride;
  int first, count;  // columns of the whole output
};

// The largest of `count` values; NaN if one of them is NaN or infinite.
inline float largest(const float* values, int count) {
  Float best = set(values[0]), poison = set(0.0f);  // poison: sums of v - v, which is NaN for what isn't finite
  int j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    const Float v = load(values + j);
    best = max(best, v), poison = add(poison, sub(v, v));
  }
  float peak = reduce_max(best), rest = reduce_add(poison);
  for (; j < count; ++j) peak = values[j] > peak ? values[j] : peak, rest += values[j] - values[j];
  return peak + rest;
}

// Of values in two parts, a value's sum is that of its parts': [2 * num_rows, 64] to [num_rows, 64].
inline void add_parts(int num_rows, float* sums) {
  for (int r = 0; r < num_rows; ++r)
    for (int j = 0; j < kPanelColumns; j += kLanes) {
      const float* high = sums + 2 * r * kPanelColumns + j;
      store(sums + r * kPanelColumns + j, add(load(high), load(high + kPanelColumns)));
    }
}

// The epilogue of a block's sums [num_rows, 64].
inline void finish_block(const LinearArgs& a, const Destination& to, int row, int num_rows, float* sums) {
  const bool is_silu = a.epilogue == Epilogue::kSiluMul;
  for (int r = 0; r < num_rows; ++r) {
    float* t = sums + r * kPanelColumns;
    float* y = to.y + (row + r) * to.stride;
    if (is_silu)
      for (int j = 0; j < kPanelColumns / 2; j += kLanes)
        store(t + j, mul(silu(load(t + j)), load(t + kPanelColumns / 2 + j)));
    const float* addend = a.epilogue == Epilogue::kAdd ? a.residual + size_t(row + r) * a.width + to.first
                          : a.bias                     ? a.bias + to.first
                                                       : nullptr;
    if (a.rounded) {
      uint8_t* rounded = a.rounded + (row + r) * bf16_row_bytes(kBf16Pairs, a.width);
      round_to_bf16(t, to.count, rounded + bf16_row_bytes(kBf16Pairs, to.first));
      continue;
    }
    int j = 0;
    for (; j + kLanes <= to.count; j += kLanes) store(y + j, addend ? add(load(t + j), load(addend + j)) : load(t + j));
    for (; j < to.count; ++j) y[j] = addend ? t[j] + addend[j] : t[j];
    if (a.maxima) a.maxima[size_t(row + r) * a.weight.num_panels() + to.first / kPanelColumns] = largest(y, to.count);
  }
}

template <bool kMinima>
inline void codes_tile(WeightKind kind, const Chunk& c, const IntTile& tile, int num_rows) {
  if (kind == WeightKind::kInt8)
    int_rows<Codes::kBytes, kMinima>(tile, num_rows, c.next_bytes);
  else if (c.is_unpacked)
    int_rows<Codes::kUnpacked, kMinima>(tile, num_rows, c.next_bytes);
  else
    int_rows<Codes::kNibbles, kMinima>(tile, num_rows, c.next_bytes);
}

// Adds a chunk's products to a block's sums [num_rows, 64]; a part counts as a row.
inline void tile_block(const LinearArgs& a, const Chunk& c, const GroupScales& scales, int first_row, int num_rows,
                       float* sums) {
  if (has_floats(a.x)) {
    const bool pairs = in_pairs(a.x);
    const FloatTile tile{a.x.rows + first_row * a.x.row_bytes + c.k_begin * (pairs ? sizeof(uint16_t) : sizeof(float)),
                         a.x.row_bytes,
                         c.weights,
                         pairs ? (c.num_k + 1) / 2 * 2 : c.num_k,
                         sums,
                         c.next};
    if constexpr (kBf16Pairs)
      if (pairs) return float_rows<Values::kPairs>(tile, num_rows, c.next_bytes);
    if (c.is_unpacked)
      float_rows<Values::kFp32>(tile, num_rows, c.next_bytes);
    else
      float_rows<Values::kBf16>(tile, num_rows, c.next_bytes);
    return;
  }
  const size_t k = a.weight.padded_k(), at = c.index * a.x.group_stride + first_row;
  const IntTile tile{a.x.codes + first_row * k + c.k_begin,
                     k,
                     a.x.starts + at,
                     a.x.scales + at,
                     c.weights,
                     scales.scales,
                     c.num_k,
                     sums,
                     c.next,
                     scales.minima};
  a.weight.has_offsets() ? codes_tile<true>(a.weight.kind, c, tile, num_rows)
                         : codes_tile<false>(a.weight.kind, c, tile, num_rows);
}

inline void linear_panel(const LinearArgs& a, int p, const Destination& to) {
  alignas(64) float sums[kBlockRows * kPanelColumns];
  alignas(64) uint8_t scratch[kScratchBytes];
  GroupScales scales;
  const uint8_t* panel = a.weight.panel(p);
  const int chunks = num_chunks(a), parts = a.x.parts, all_rows = a.num_rows * parts;
  static_assert(kBlockRows % 2 == 0, "a value's parts are in one block");
  for (int block = 0; block < all_rows; block += kBlockRows) {
    const bool is_last = block + kBlockRows >= all_rows;
    const int num_rows = is_last ? all_rows - block : kBlockRows;
    for (int i = 0; i < num_rows * kPanelColumns; i += kLanes) store(sums + i, set(0.0f));
    const uint8_t* after = is_last ? panel + a.weight.panel_bytes() : panel;
    for (int index = 0; index < chunks; ++index) {
      const Chunk chunk = chunk_of(a, panel, index, num_rows >= kUnpackRows, after, scales, scratch);
      tile_block(a, chunk, scales, block, num_rows, sums);
    }
    if (parts == 2) add_parts(num_rows / 2, sums);
    finish_block(a, to, block / parts, num_rows / parts, sums);
  }
}

// Integers: the outputs of some panels make up a group of the next product's activations. They are gathered in fp32 and
// quantised while they are in the second-level cache.
inline void linear_quantized(const LinearArgs& a, int first_panel, int last_panel, int width) {
  const int group = a.quantized.group_size, panels_per_group = group / width > 0 ? group / width : 1;
  for (int p = first_panel; p < last_panel; ++p) {
    const int first = p * width, at = first % group;
    linear_panel(a, p, {a.gathered + at, size_t(group), first, a.width - first < width ? a.width - first : width});
    const bool is_last = p + 1 == a.weight.num_panels();
    if ((p + 1) % panels_per_group != 0 && !is_last) continue;
    const int filled = first + width < a.width ? at + width : a.width - first / group * group;
    for (int r = 0; r < a.num_rows; ++r) {
      float* row = a.gathered + size_t(r) * group;
      for (int i = filled; i < group; ++i) row[i] = 0.0f;
      quantize_group(row, group, a.quantized.row(r), first / group);
    }
  }
}

void linear(const LinearArgs& a, int first_panel, int last_panel) {
  const int width = a.epilogue == Epilogue::kSiluMul ? kPanelColumns / 2 : kPanelColumns;
  if (a.gathered) {
    linear_quantized(a, first_panel, last_panel, width);
    return;
  }
  for (int p = first_panel; p < last_panel; ++p) {
    const int first = p * width;
    linear_panel(a, p, {a.y + first, size_t(a.width), first, a.width - first < width ? a.width - first : width});
  }
}
