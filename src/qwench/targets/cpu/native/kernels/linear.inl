// Matrix products over packed panels. Included inside the namespace of one simd header, after its tiles.
//
// The order of loops is panel, block of rows, chunk of K, tile: a chunk of weights (8 KB), the block's sums (12 KB) and
// its activations stay in the first-level cache, a panel of weights in the second. Between chunks the sums rest in fp32
// in memory, which changes nothing: neither tile nor block nor chunk shows in the bits.

constexpr int kUnpackRows = 12;  // from this many rows on, unpacking a chunk once beats doing it per tile
constexpr int kScratchBytes = kPanelColumns * 256;  // a group of up to 256 bytes a column, or 32 fp32 values

// Whether the activations lie as the tile of pairs reads them.
inline bool in_pairs(const Activation& x) { return kBf16Pairs && x.kind == ActivationKind::kBf16; }

inline bool has_floats(const Activation& x) {
  return x.kind == ActivationKind::kFp32 || x.kind == ActivationKind::kBf16;
}

// Values of K per chunk of a product of floats.
inline int float_chunk(const Activation& x) { return in_pairs(x) ? 64 : 32; }

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

// Where a panel's outputs go: row r at y + r * stride, `count` columns of which belong to the matrix.
struct Destination {
  float* y;
  size_t stride;
  int panel;
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

// Of rows of 32 gate and 32 up values: silu(gate) * up takes the gate's place.
template <int Rows>
inline void silu_mul(float* rows) {
  constexpr int kPerRow = kPanelColumns / 2 / kLanes;
  const auto at = [&](int v) { return rows + v / kPerRow * kPanelColumns + v % kPerRow * kLanes; };
  Float gate[Rows * kPerRow];
  for (int v = 0; v < Rows * kPerRow; ++v) gate[v] = load(at(v));
  silu(gate);
  for (int v = 0; v < Rows * kPerRow; ++v) store(at(v), mul(gate[v], load(at(v) + kPanelColumns / 2)));
}

inline void silu_mul_rows(int num_rows, float* rows) {
  constexpr int kPerRow = kPanelColumns / 2 / kLanes, kRows = kPerRow < 4 ? 4 / kPerRow : 1;
  for (; num_rows >= kRows; num_rows -= kRows, rows += kRows * kPanelColumns) silu_mul<kRows>(rows);
  for (; num_rows > 0; --num_rows, rows += kPanelColumns) silu_mul<1>(rows);
}

// The epilogue of a block's sums [num_rows, 64].
inline void finish_block(const LinearArgs& a, const Destination& to, int row, int num_rows, float* sums) {
  if (a.lora) lora_expand(*a.lora, to.panel, row, num_rows, sums);
  if (a.epilogue == Epilogue::kSiluMul) silu_mul_rows(num_rows, sums);
  for (int r = 0; r < num_rows; ++r) {
    float* t = sums + r * kPanelColumns;
    float* y = to.y + (row + r) * to.stride;
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
    if (a.maxima) a.maxima[size_t(row + r) * a.weight.num_panels() + to.panel] = largest(y, to.count);
  }
}

// The epilogue of rows that are experts' or the shared one's: each is added to its token's, times its weight.
inline void add_weighted(const LinearArgs& a, int panel, int row, int num_rows, float* sums) {
  if (a.lora) lora_expand(*a.lora, panel, row, num_rows, sums);
  for (int r = row; r < row + num_rows; ++r, sums += kPanelColumns) {
    float* y = a.y + size_t(a.tokens ? a.tokens[r] : r) * kPanelColumns;
    const Float weight = set(a.weights[r * a.weight_stride]);
    for (int j = 0; j < kPanelColumns; j += kLanes) store(y + j, fma(weight, load(sums + j), load(y + j)));
  }
}

// Where nibbles are unpacked to: each group to the same place, or, when several blocks of rows meet a panel, to its
// own, by the first block for the others.
struct Unpacked {
  uint8_t* codes;
  size_t group_stride;
  bool is_done;
};

// Adds a panel's products to a block's sums [num_rows, 64], group by group; a part counts as a row. `after`: what is
// read when the last group is done.
template <Codes C, bool kMinima, int Lines>
inline void add_int_products(const LinearArgs& a, const uint8_t* panel, int first_row, int num_rows,
                             const uint8_t* after, const Unpacked& unpacked, float* sums) {
  const PackedMatrix& w = a.weight;
  const int groups = w.num_groups(), groups_per_block = w.block_bytes() ? w.groups_per_block() : groups;
  const size_t header_bytes = w.header_bytes(), group_bytes = w.group_bytes(), block_bytes = w.block_bytes();
  GroupScales scales;
  IntTile tile{a.x.codes + first_row * size_t(w.padded_k()),
               size_t(w.padded_k()),
               a.x.starts + first_row,
               a.x.scales + first_row,
               nullptr,
               scales.scales,
               w.group_size,
               sums,
               nullptr,
               scales.minima};
  const uint8_t* group = panel + block_bytes;
  for (int g = 0, in_block = 0; g < groups; ++g) {
    const bool begins_block = in_block == 0;
    if (++in_block == groups_per_block) in_block = 0;
    const uint8_t* next = g + 1 == groups ? after + block_bytes : group + group_bytes + (in_block ? 0 : block_bytes);
    widen_group(w, group, begins_block, scales);
    for (size_t i = 0; kPrefetches && i < header_bytes; i += 64) __builtin_prefetch(next + i);
    tile.codes = group + header_bytes;
    tile.next = next + header_bytes;
    if constexpr (C == Codes::kUnpacked) {
      uint8_t* codes = unpacked.codes + g * unpacked.group_stride;
      if (!unpacked.is_done)
        unpack(w.kind, tile.codes, w.group_size / 8, codes);
      else if (g + 1 < groups)
        tile.next = codes + unpacked.group_stride;
      tile.codes = codes;
    }
    int_tiles<C, kMinima, Lines>(tile, num_rows);
    tile.x += w.group_size, tile.starts += a.x.group_stride, tile.x_scales += a.x.group_stride;
    group = next;
  }
}

template <Codes C, bool kMinima>
inline void add_int_products(const LinearArgs& a, const uint8_t* panel, int first_row, int num_rows,
                             const uint8_t* after, const Unpacked& unpacked, float* sums) {
  const size_t code_bytes = (a.weight.group_bytes() - a.weight.header_bytes()) * (unpacked.is_done ? 2 : 1);
  with_lines(lines_per_turn(code_bytes, num_rows, int_tile_rows(C), a.weight.group_size / 8), [&](auto lines) {
    add_int_products<C, kMinima, lines.value>(a, panel, first_row, num_rows, after, unpacked, sums);
  });
}

template <bool kMinima>
inline void add_int_products(const LinearArgs& a, const uint8_t* panel, int first_row, int num_rows,
                             const uint8_t* after, const Unpacked& unpacked, float* sums) {
  if (a.weight.kind == WeightKind::kInt8)
    add_int_products<Codes::kBytes, kMinima>(a, panel, first_row, num_rows, after, unpacked, sums);
  else if (num_rows >= kUnpackRows || unpacked.is_done)
    add_int_products<Codes::kUnpacked, kMinima>(a, panel, first_row, num_rows, after, unpacked, sums);
  else
    add_int_products<Codes::kNibbles, kMinima>(a, panel, first_row, num_rows, after, unpacked, sums);
}

// The same for floats, a chunk of K after the other. bf16 weights are widened once for many rows; integers always
// become fp32 first.
inline void add_float_products(const LinearArgs& a, const uint8_t* panel, int first_row, int num_rows,
                               const uint8_t* after, uint8_t* scratch, float* sums) {
  const PackedMatrix& w = a.weight;
  const bool pairs = in_pairs(a.x), is_bf16 = w.kind == WeightKind::kBf16;
  const int chunk = float_chunk(a.x);
  GroupScales scales;
  for (int first = 0; first < w.k; first += chunk) {
    const int count = w.k - first < chunk ? w.k - first : chunk;
    const uint8_t* packed = panel + size_t(first) / 2 * kPanelRowBytes;
    size_t packed_bytes = chunk / 2 * kPanelRowBytes;
    if (!is_bf16) {
      const size_t values_per_byte = w.kind == WeightKind::kInt4 ? 2 : 1;
      packed_bytes = chunk * kPanelColumns / values_per_byte;
      const int part = w.group_size < chunk ? w.group_size : chunk;  // a chunk is part of a group, or some groups
      for (int at = first; at < first + chunk && at < w.padded_k(); at += part) {
        const uint8_t* group = w.group(panel, at / w.group_size);
        packed = group + w.header_bytes() + at % w.group_size * kPanelColumns / values_per_byte;
        if (at % w.group_size == 0) widen_group(w, group, at % kNestedBlock == 0, scales);
        dequantize(w, packed, part, scales, reinterpret_cast<float*>(scratch) + (at - first) * kPanelColumns);
      }
    } else if (num_rows >= kUnpackRows && !pairs) {
      unpack(w.kind, packed, (count + 1) / 2, scratch);
    }
    const bool is_unpacked = !is_bf16 || (num_rows >= kUnpackRows && !pairs);
    const FloatTile tile{a.x.rows + first_row * a.x.row_bytes + first * (pairs ? sizeof(uint16_t) : sizeof(float)),
                         a.x.row_bytes,
                         is_unpacked ? scratch : packed,
                         pairs ? (count + 1) / 2 * 2 : count,
                         sums,
                         first + chunk < w.k ? packed + packed_bytes : after};
    if constexpr (kBf16Pairs)
      if (pairs) {
        float_rows<Values::kPairs>(tile, num_rows, packed_bytes);
        continue;
      }
    if (is_unpacked)
      float_rows<Values::kFp32>(tile, num_rows, packed_bytes);
    else
      float_rows<Values::kBf16>(tile, num_rows, packed_bytes);
  }
}

inline void linear_panel(const LinearArgs& a, const Destination& to) {
  alignas(64) float sums[kBlockRows * kPanelColumns];
  alignas(64) uint8_t scratch[kScratchBytes];
  const uint8_t *panel = a.weight.panel(to.panel), *next = a.next ? a.next : panel + a.weight.panel_bytes();
  const int parts = a.x.parts, all_rows = a.num_rows * parts;
  const bool stays_unpacked = a.unpacked && a.weight.kind == WeightKind::kInt4 && all_rows > kBlockRows &&
                              size_t(kPanelColumns) * a.weight.padded_k() <= kUnpackedPanelBytes;
  static_assert(kBlockRows % 2 == 0, "a value's parts are in one block");
  for (int block = 0; block < all_rows; block += kBlockRows) {
    const bool is_last = block + kBlockRows >= all_rows;
    const int num_rows = is_last ? all_rows - block : kBlockRows;
    for (int i = 0; i < num_rows * kPanelColumns; i += kLanes) store(sums + i, set(0.0f));
    const uint8_t* after = is_last ? next : panel;
    const Unpacked unpacked = stays_unpacked
                                  ? Unpacked{a.unpacked, size_t(kPanelColumns) * a.weight.group_size, block > 0}
                                  : Unpacked{scratch, 0, false};
    if (has_floats(a.x))
      add_float_products(a, panel, block, num_rows, after, scratch, sums);
    else if (a.weight.has_offsets())
      add_int_products<true>(a, panel, block, num_rows, after, unpacked, sums);
    else
      add_int_products<false>(a, panel, block, num_rows, after, unpacked, sums);
    if (parts == 2) add_parts(num_rows / 2, sums);
    if (a.epilogue == Epilogue::kWeightedAdd)
      add_weighted(a, to.panel, block / parts, num_rows / parts, sums);
    else
      finish_block(a, to, block / parts, num_rows / parts, sums);
  }
}

// Integers: the outputs of some panels make up a group of the next product's activations. They are gathered in fp32 and
// quantised while they are in the second-level cache.
inline void linear_quantized(const LinearArgs& a, int first_panel, int last_panel, int width) {
  const int group = a.quantized.group_size, panels_per_group = group / width > 0 ? group / width : 1;
  for (int p = first_panel; p < last_panel; ++p) {
    const int first = p * width, at = first % group;
    linear_panel(a, {a.gathered + at, size_t(group), p, first, a.width - first < width ? a.width - first : width});
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
    linear_panel(a, {a.y + first, size_t(a.width), p, first, a.width - first < width ? a.width - first : width});
  }
}
