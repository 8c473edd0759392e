// Matrix products over packed panels. Included inside the namespace of one simd header.
//
// A tile is kTileRows rows x kTileVecs vectors of columns, accumulated in registers over all of K: fp32 in the order
// of k; integers per group (exact), then scaled and added to fp32 in the order of the groups. The shape of the tile
// therefore never shows in the bits.

constexpr int kTileColumns = kTileVecs * kLanes;
constexpr int kColumnBytes = 4;                            // a column of a panel row: 4 codes, 8 nibbles or 2 bf16
constexpr int kPanelRowBytes = kPanelColumns * kColumnBytes;
constexpr int kUnpackRows = 12;  // from this many rows on, unpacking a panel of nibbles once beats doing it per tile

inline Int broadcast_codes(const int8_t* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return set_int(v);
}

template <int R>
QWENCH_INLINE void tile_bf16(const LinearArgs& a, const uint8_t* panel, int row, int column, float* tile) {
  const float* x[R];
  for (int r = 0; r < R; ++r) x[r] = a.x.values + size_t(row + r) * a.x.width;
  Float acc[R][kTileVecs];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < kTileVecs; ++v) acc[r][v] = set(0.0f);
  const uint8_t* w = panel + column * kColumnBytes;
  const int k_pairs = a.weight.k / 2;
  for (int k = 0; k < k_pairs; ++k, w += kPanelRowBytes) {
    Int raw[kTileVecs];
    Float wide[kTileVecs];
    for (int v = 0; v < kTileVecs; ++v) raw[v] = load_int(w + v * kLanes * kColumnBytes);
    for (int v = 0; v < kTileVecs; ++v) wide[v] = bf16_low(raw[v]);
    for (int r = 0; r < R; ++r) {
      const Float xv = set(x[r][2 * k]);
      for (int v = 0; v < kTileVecs; ++v) fma_to(acc[r][v], wide[v], xv);
    }
    for (int v = 0; v < kTileVecs; ++v) wide[v] = bf16_high(raw[v]);
    for (int r = 0; r < R; ++r) {
      const Float xv = set(x[r][2 * k + 1]);
      for (int v = 0; v < kTileVecs; ++v) fma_to(acc[r][v], wide[v], xv);
    }
  }
  if (a.weight.k % 2)
    for (int v = 0; v < kTileVecs; ++v) {
      const Float wide = bf16_low(load_int(w + v * kLanes * kColumnBytes));
      for (int r = 0; r < R; ++r) fma_to(acc[r][v], wide, set(x[r][2 * k_pairs]));
    }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < kTileVecs; ++v) store(tile + r * kPanelColumns + column + v * kLanes, acc[r][v]);
}

// kNibbles: codes are still two a byte. `codes` and `stride` say where group g's codes lie: in the panel behind their
// scales, or unpacked in scratch. Codes are unsigned (+128, or +8 for int4), so the sum starts at -offset * sum(x).
template <int R, bool kNibbles>
QWENCH_INLINE void tile_int(const LinearArgs& a, const uint8_t* panel, const uint8_t* codes, size_t stride, int row, int column,
                     float* tile) {
  const int offset = a.weight.kind == WeightKind::kInt4 ? 8 : 128;
  const int num_groups = a.weight.num_groups(), group = a.weight.group_size;
  const size_t group_bytes = a.weight.group_bytes();
  const int8_t* x[R];
  for (int r = 0; r < R; ++r) x[r] = a.x.codes + size_t(row + r) * a.weight.padded_k();
  const float* x_scales = a.x.scales + size_t(row) * num_groups;
  const int32_t* x_sums = a.x.sums + size_t(row) * num_groups;
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < kTileVecs; ++v) store(tile + r * kPanelColumns + column + v * kLanes, set(0.0f));
  for (int g = 0; g < num_groups; ++g) {
    Int acc[R][kTileVecs];
    for (int r = 0; r < R; ++r) {
      const Int start = set_int(-offset * x_sums[size_t(r) * num_groups + g]);
      for (int v = 0; v < kTileVecs; ++v) acc[r][v] = start;
    }
    const uint8_t* w = codes + g * stride + column * kColumnBytes;
    const int k_begin = g * group, k_end = k_begin + group;
    if constexpr (kNibbles) {
      for (int k = k_begin; k < k_end; k += 8, w += kPanelRowBytes) {
        Int raw[kTileVecs], half[kTileVecs];
        for (int v = 0; v < kTileVecs; ++v) raw[v] = load_int(w + v * kLanes * kColumnBytes);
        for (int v = 0; v < kTileVecs; ++v) half[v] = low_nibbles(raw[v]);
        for (int r = 0; r < R; ++r) {
          const Int xv = broadcast_codes(x[r] + k);
          for (int v = 0; v < kTileVecs; ++v) dot4_nibbles_to(acc[r][v], half[v], xv);
        }
        for (int v = 0; v < kTileVecs; ++v) half[v] = high_nibbles(raw[v]);
        for (int r = 0; r < R; ++r) {
          const Int xv = broadcast_codes(x[r] + k + 4);
          for (int v = 0; v < kTileVecs; ++v) dot4_nibbles_to(acc[r][v], half[v], xv);
        }
      }
    } else {
      for (int k = k_begin; k < k_end; k += 4, w += kPanelRowBytes) {
        Int raw[kTileVecs];
        for (int v = 0; v < kTileVecs; ++v) raw[v] = load_int(w + v * kLanes * kColumnBytes);
        for (int r = 0; r < R; ++r) {
          const Int xv = broadcast_codes(x[r] + k);
          for (int v = 0; v < kTileVecs; ++v) dot4_to(acc[r][v], raw[v], xv);
        }
      }
    }
    const float* scales = reinterpret_cast<const float*>(panel + g * group_bytes) + column;
    for (int r = 0; r < R; ++r) {
      const Float x_scale = set(x_scales[size_t(r) * num_groups + g]);
      for (int v = 0; v < kTileVecs; ++v) {
        float* at = tile + r * kPanelColumns + column + v * kLanes;
        store(at, fma(mul(to_float(acc[r][v]), x_scale), load(scales + v * kLanes), load(at)));
      }
    }
  }
}

// One call site per kernel, each inlined: g++ 12 spills the accumulators of the out-of-line copy.
template <int R>
inline void tile_columns(const LinearArgs& a, const uint8_t* panel, const uint8_t* unpacked, int row, float* tile) {
  const uint8_t* codes = unpacked ? unpacked : panel + kPanelColumns * sizeof(float);
  const size_t stride = unpacked ? size_t(kPanelColumns) * a.weight.group_size : a.weight.group_bytes();
  const bool is_nibbles = a.weight.kind == WeightKind::kInt4 && !unpacked;
  for (int column = 0; column < kPanelColumns; column += kTileColumns) {
    if (a.weight.kind == WeightKind::kBf16)
      tile_bf16<R>(a, panel, row, column, tile);
    else if (is_nibbles)
      tile_int<R, true>(a, panel, codes, stride, row, column, tile);
    else
      tile_int<R, false>(a, panel, codes, stride, row, column, tile);
  }
}

// Nibbles of a panel to bytes, group after group without the scales.
inline void unpack_nibbles(const PackedMatrix& w, const uint8_t* panel, uint8_t* out) {
  const size_t code_bytes = size_t(kPanelColumns) * w.group_size / 2;
  for (int g = 0; g < w.num_groups(); ++g) {
    const uint8_t* from = panel + g * w.group_bytes() + kPanelColumns * sizeof(float);
    for (size_t i = 0; i < code_bytes; i += kPanelRowBytes, out += 2 * kPanelRowBytes)
      for (int b = 0; b < kPanelRowBytes; b += kLanes * kColumnBytes) {
        const Int raw = load_int(from + i + b);
        store_int(out + b, low_nibbles(raw));
        store_int(out + kPanelRowBytes + b, high_nibbles(raw));
      }
  }
}

inline void finish_tile(const LinearArgs& a, int panel, int row, int num_rows, float* tile) {
  const bool is_silu = a.epilogue == Epilogue::kSiluMul;
  const int width = is_silu ? kPanelColumns / 2 : kPanelColumns;
  const int n = a.width;
  const int first = panel * width, count = n - first < width ? n - first : width;
  for (int r = 0; r < num_rows; ++r) {
    float* t = tile + r * kPanelColumns;
    float* y = a.y + size_t(row + r) * n + first;
    if (is_silu)
      for (int j = 0; j < width; j += kLanes) store(t + j, mul(silu(load(t + j)), load(t + width + j)));
    const float* addend = a.epilogue == Epilogue::kAdd ? a.residual + size_t(row + r) * n + first
                          : a.bias                     ? a.bias + first
                                                       : nullptr;
    int j = 0;
    for (; j + kLanes <= count; j += kLanes) store(y + j, addend ? add(load(t + j), load(addend + j)) : load(t + j));
    for (; j < count; ++j) y[j] = addend ? t[j] + addend[j] : t[j];
  }
}

void linear(const LinearArgs& a, int first_panel, int last_panel) {
  alignas(64) float tile[kTileRows * kPanelColumns];
  for (int p = first_panel; p < last_panel; ++p) {
    const uint8_t* panel = a.weight.panel(p);
    const uint8_t* unpacked = nullptr;
    if (a.weight.kind == WeightKind::kInt4 && a.num_rows >= kUnpackRows) {
      unpack_nibbles(a.weight, panel, a.scratch);
      unpacked = a.scratch;
    }
    for (int row = 0; row < a.num_rows; row += kTileRows) {
      const int rows = a.num_rows - row < kTileRows ? a.num_rows - row : kTileRows;
      switch (rows) {
        case 1: tile_columns<1>(a, panel, unpacked, row, tile); break;
        case 2: tile_columns<2>(a, panel, unpacked, row, tile); break;
        case 3: tile_columns<3>(a, panel, unpacked, row, tile); break;
        case 4: tile_columns<4>(a, panel, unpacked, row, tile); break;
        case 5: tile_columns<5>(a, panel, unpacked, row, tile); break;
        default: tile_columns<kTileRows>(a, panel, unpacked, row, tile); break;
      }
      finish_tile(a, p, row, rows, tile);
    }
  }
}
