// Matrix products over packed panels. Included inside the namespace of one simd header.
//
// A tile is up to kFloatRows or kIntRows rows x some vectors of columns, accumulated in registers over all of K: fp32 in
// the order of k; integers per group (exact), then scaled and added to fp32 in the order of the groups. The shape of the
// tile therefore never shows in the bits.

constexpr int kColumnBytes = 4;  // a column of a panel row: 4 codes, 8 nibbles or 2 bf16
constexpr int kPanelRowBytes = kPanelColumns * kColumnBytes;
constexpr int kUnpackRows = 12;  // from this many rows on, unpacking a panel of nibbles once beats doing it per tile

// How the codes of a group lie: bytes (+128), two nibbles (+8) a byte, or nibbles (+8) unpacked to bytes.
enum class Codes { kBytes, kNibbles, kUnpacked };

// acc += one value of x per row times a vector row of weights.
template <int R, int V>
QWENCH_INLINE void fma_step(const float* const* x, int k, const Float* w, Float (&acc)[R][V]) {
  for (int r = 0; r < R; ++r) {
    const Float value = set(x[r][k]);
    for (int v = 0; v < V; ++v) fma_to(acc[r][v], w[v], value);
  }
}

template <int R, int V>
QWENCH_INLINE void tile_bf16(const LinearArgs& a, const uint8_t* panel, int row, int column, float* tile) {
  const float* x[R];
  for (int r = 0; r < R; ++r) x[r] = a.x.values + size_t(row + r) * a.x.width;
  Float acc[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) acc[r][v] = set(0.0f);
  const uint8_t* w = panel + column * kColumnBytes;
  const int even_k = a.weight.k / 2 * 2;
  for (int k = 0; k < even_k; k += 2, w += kPanelRowBytes) {
    Float wide[V];
    for (int v = 0; v < V; ++v) wide[v] = bf16_low(load_int(w + v * kLanes * kColumnBytes));
    fma_step<R, V>(x, k, wide, acc);
    for (int v = 0; v < V; ++v) wide[v] = bf16_high(load_int(w + v * kLanes * kColumnBytes));
    fma_step<R, V>(x, k + 1, wide, acc);
  }
  if (a.weight.k > even_k) {
    Float wide[V];
    for (int v = 0; v < V; ++v) wide[v] = bf16_low(load_int(w + v * kLanes * kColumnBytes));
    fma_step<R, V>(x, even_k, wide, acc);
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(tile + r * kPanelColumns + column + v * kLanes, acc[r][v]);
}

// acc += four codes of x per row times a vector row of weights.
template <Codes C, int R, int V>
QWENCH_INLINE void dot_step(const int8_t* const* x, int k, const Int* w, Int (&acc)[R][V]) {
  for (int r = 0; r < R; ++r) {
    const Broadcast value = broadcast_codes(x[r] + k);
    for (int v = 0; v < V; ++v)
      if constexpr (C == Codes::kBytes)
        dot4_to(acc[r][v], w[v], value);
      else
        dot4_nibbles_to(acc[r][v], w[v], value);
  }
}

// All of one group's K.
template <Codes C, int R, int V>
QWENCH_INLINE void dot_group(const int8_t* const* x, int k_begin, int k_end, const uint8_t* w, Int (&acc)[R][V]) {
  constexpr int kStep = C == Codes::kNibbles ? 8 : 4;
  for (int k = k_begin; k < k_end; k += kStep, w += kPanelRowBytes) {
    Int raw[V], codes[V];
    for (int v = 0; v < V; ++v) raw[v] = load_int(w + v * kLanes * kColumnBytes);
    for (int v = 0; v < V; ++v)
      codes[v] = C == Codes::kBytes ? byte_weights(raw[v]) : C == Codes::kNibbles ? low_nibbles(raw[v]) : raw[v];
    dot_step<C, R, V>(x, k, codes, acc);
    if constexpr (C == Codes::kNibbles) {
      for (int v = 0; v < V; ++v) codes[v] = high_nibbles(raw[v]);
      dot_step<C, R, V>(x, k + 4, codes, acc);
    }
  }
}

// `codes` and `stride` say where group g's codes lie: in the panel behind their scales, or unpacked in scratch. Codes
// carry an offset that makes them unsigned, so the sum starts at -offset * sum(x): exact, and free.
template <Codes C, int R, int V>
QWENCH_INLINE void tile_int(const LinearArgs& a, const uint8_t* panel, const uint8_t* codes, size_t stride, int row, int column,
                            float* tile) {
  constexpr int kOffset = C == Codes::kBytes ? kByteOffset : 8;
  const int num_groups = a.weight.num_groups(), group = a.weight.group_size;
  const size_t group_bytes = a.weight.group_bytes();
  const int8_t* x[R];
  for (int r = 0; r < R; ++r) x[r] = a.x.codes + size_t(row + r) * a.weight.padded_k();
  const float* x_scales = a.x.scales + size_t(row) * num_groups;
  const int32_t* x_sums = a.x.sums + size_t(row) * num_groups;
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(tile + r * kPanelColumns + column + v * kLanes, set(0.0f));
  for (int g = 0; g < num_groups; ++g) {
    Int acc[R][V];
    for (int r = 0; r < R; ++r) {
      const Int start = set_int(-kOffset * x_sums[size_t(r) * num_groups + g]);
      for (int v = 0; v < V; ++v) acc[r][v] = start;
    }
    dot_group<C, R, V>(x, g * group, (g + 1) * group, codes + g * stride + column * kColumnBytes, acc);
    const float* scales = reinterpret_cast<const float*>(panel + g * group_bytes) + column;
    for (int r = 0; r < R; ++r) {
      const Float x_scale = set(x_scales[size_t(r) * num_groups + g]);
      for (int v = 0; v < V; ++v) {
        float* at = tile + r * kPanelColumns + column + v * kLanes;
        store(at, fma(mul(to_float(acc[r][v]), x_scale), load(scales + v * kLanes), load(at)));
      }
    }
  }
}

// R rows x all columns of a panel. One call site per kernel, each inlined: g++ 12 spills the accumulators of
// out-of-line copies.
template <int R>
inline void tile_rows(const LinearArgs& a, const uint8_t* panel, const uint8_t* unpacked, int row, float* tile) {
  constexpr int V = tile_vecs(R);
  for (int column = 0; column < kPanelColumns; column += V * kLanes) {
    const uint8_t* codes = panel + kPanelColumns * sizeof(float);
    if (a.weight.kind == WeightKind::kBf16)
      tile_bf16<R, V>(a, panel, row, column, tile);
    else if (a.weight.kind == WeightKind::kInt8)
      tile_int<Codes::kBytes, R, V>(a, panel, codes, a.weight.group_bytes(), row, column, tile);
    else if (unpacked)
      tile_int<Codes::kUnpacked, R, V>(a, panel, unpacked, size_t(kPanelColumns) * a.weight.group_size, row, column, tile);
    else
      tile_int<Codes::kNibbles, R, V>(a, panel, codes, a.weight.group_bytes(), row, column, tile);
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
  constexpr int kMostRows = kFloatRows > kIntRows ? kFloatRows : kIntRows;
  static_assert(kMostRows <= 6);
  alignas(64) float tile[kMostRows * kPanelColumns];
  const int tile_height = a.weight.kind == WeightKind::kBf16 ? kFloatRows : kIntRows;
  for (int p = first_panel; p < last_panel; ++p) {
    const uint8_t* panel = a.weight.panel(p);
    const uint8_t* unpacked = nullptr;
    if (a.weight.kind == WeightKind::kInt4 && a.num_rows >= kUnpackRows) {
      unpack_nibbles(a.weight, panel, a.scratch);
      unpacked = a.scratch;
    }
    for (int row = 0; row < a.num_rows; row += tile_height) {
      const int rows = a.num_rows - row < tile_height ? a.num_rows - row : tile_height;
      switch (rows) {
        case 1: tile_rows<1>(a, panel, unpacked, row, tile); break;
        case 2: tile_rows<2>(a, panel, unpacked, row, tile); break;
        case 3: tile_rows<3>(a, panel, unpacked, row, tile); break;
        case 4: tile_rows<4>(a, panel, unpacked, row, tile); break;
        case 5: tile_rows<5>(a, panel, unpacked, row, tile); break;
        default: tile_rows<6>(a, panel, unpacked, row, tile); break;
      }
      finish_tile(a, p, row, rows, tile);
    }
  }
}
