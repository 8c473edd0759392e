// Matrix products over packed panels. Included inside the namespace of one simd header.
//
// A tile is up to kFloatRows or kIntRows rows x some vectors of columns, accumulated in registers over one chunk of K:
// fp32 in the order of k; integers per group (exact), then scaled and added to fp32 in the order of the groups. Between
// chunks the sums rest in fp32 in memory, which changes nothing: neither tile nor block nor chunk shows in the bits.
//
// For many rows the order of loops is panel, block of rows, chunk of K, tile: a chunk of weights (8 to 16 KB), the
// block's sums (12 KB) and its activations stay in the first-level cache.

constexpr int kBlockRows = 48;
constexpr int kFloatChunk = 128;  // values of K per chunk of a bf16 panel
constexpr int kColumnBytes = 4;   // a column of a panel row: 4 codes, 8 nibbles or 2 bf16
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

// Adds the products over [k_begin, k_end) to `tile` [R, 64].
template <int R, int V>
QWENCH_INLINE void tile_bf16(const LinearArgs& a, const uint8_t* panel, int k_begin, int k_end, int row, int column,
                             float* tile) {
  const float* x[R];
  for (int r = 0; r < R; ++r) x[r] = a.x.values + size_t(row + r) * a.x.width;
  Float acc[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) acc[r][v] = load(tile + r * kPanelColumns + column + v * kLanes);
  const uint8_t* w = panel + size_t(k_begin) / 2 * kPanelRowBytes + column * kColumnBytes;
  const int even_end = k_end / 2 * 2;
  for (int k = k_begin; k < even_end; k += 2, w += kPanelRowBytes) {
    Float wide[V];
    for (int v = 0; v < V; ++v) wide[v] = bf16_low(load_int(w + v * kLanes * kColumnBytes));
    fma_step<R, V>(x, k, wide, acc);
    for (int v = 0; v < V; ++v) wide[v] = bf16_high(load_int(w + v * kLanes * kColumnBytes));
    fma_step<R, V>(x, k + 1, wide, acc);
  }
  if (k_end > even_end) {
    Float wide[V];
    for (int v = 0; v < V; ++v) wide[v] = bf16_low(load_int(w + v * kLanes * kColumnBytes));
    fma_step<R, V>(x, even_end, wide, acc);
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

// Adds the products over group g to `tile` [R, 64]. Codes carry an offset that makes them unsigned, so their sum starts
// at -offset * sum(x): exact, and free.
template <Codes C, int R, int V>
QWENCH_INLINE void tile_int(const LinearArgs& a, const float* scales, const uint8_t* codes, int g, int row, int column,
                            float* tile) {
  constexpr int kOffset = C == Codes::kBytes ? kByteOffset : 8;
  const int num_groups = a.weight.num_groups(), group = a.weight.group_size;
  const int8_t* x[R];
  for (int r = 0; r < R; ++r) x[r] = a.x.codes + size_t(row + r) * a.weight.padded_k();
  Int acc[R][V];
  for (int r = 0; r < R; ++r) {
    const Int start = set_int(-kOffset * a.x.sums[size_t(row + r) * num_groups + g]);
    for (int v = 0; v < V; ++v) acc[r][v] = start;
  }
  dot_group<C, R, V>(x, g * group, (g + 1) * group, codes + column * kColumnBytes, acc);
  for (int r = 0; r < R; ++r) {
    const Float x_scale = set(a.x.scales[size_t(row + r) * num_groups + g]);
    for (int v = 0; v < V; ++v) {
      float* at = tile + r * kPanelColumns + column + v * kLanes;
      store(at, fma(mul(to_float(acc[r][v]), x_scale), load(scales + column + v * kLanes), load(at)));
    }
  }
}

// A chunk of a panel: values [k_begin, k_end) of K, which is one group for integers.
struct Chunk {
  const uint8_t* panel;  // bf16: the whole panel
  const float* scales;   // integers: of the group
  const uint8_t* codes;  // integers: of the group, packed or unpacked
  bool is_unpacked;
  int index, k_begin, k_end;
};

// R rows x all columns of a panel. One call site per kernel, each inlined: g++ 12 spills the accumulators of
// out-of-line copies.
template <int R>
inline void tile_rows(const LinearArgs& a, const Chunk& c, int row, float* tile) {
  constexpr int V = tile_vecs(R);
  for (int column = 0; column < kPanelColumns; column += V * kLanes) {
    if (a.weight.kind == WeightKind::kBf16)
      tile_bf16<R, V>(a, c.panel, c.k_begin, c.k_end, row, column, tile);
    else if (a.weight.kind == WeightKind::kInt8)
      tile_int<Codes::kBytes, R, V>(a, c.scales, c.codes, c.index, row, column, tile);
    else if (c.is_unpacked)
      tile_int<Codes::kUnpacked, R, V>(a, c.scales, c.codes, c.index, row, column, tile);
    else
      tile_int<Codes::kNibbles, R, V>(a, c.scales, c.codes, c.index, row, column, tile);
  }
}

// Nibbles of one group to bytes.
inline void unpack_nibbles(const uint8_t* codes, int group_size, uint8_t* out) {
  const size_t num_bytes = size_t(kPanelColumns) * group_size / 2;
  for (size_t i = 0; i < num_bytes; i += kPanelRowBytes, out += 2 * kPanelRowBytes)
    for (int b = 0; b < kPanelRowBytes; b += kLanes * kColumnBytes) {
      const Int raw = load_int(codes + i + b);
      store_int(out + b, low_nibbles(raw));
      store_int(out + kPanelRowBytes + b, high_nibbles(raw));
    }
}

inline Chunk chunk_of(const LinearArgs& a, const uint8_t* panel, int index, int num_rows, uint8_t* scratch) {
  const PackedMatrix& w = a.weight;
  if (w.kind == WeightKind::kBf16) {
    const int begin = index * kFloatChunk, end = begin + kFloatChunk;
    return {panel, nullptr, nullptr, false, index, begin, end < w.k ? end : w.k};
  }
  const uint8_t* group = panel + index * w.group_bytes();
  const uint8_t* codes = group + kPanelColumns * sizeof(float);
  const bool unpack = w.kind == WeightKind::kInt4 && num_rows >= kUnpackRows;
  if (unpack) unpack_nibbles(codes, w.group_size, scratch);
  return {panel, reinterpret_cast<const float*>(group), unpack ? scratch : codes, unpack, index, 0, 0};
}

// The epilogue of a block's sums [num_rows, 64].
inline void finish_block(const LinearArgs& a, int panel, int row, int num_rows, float* sums) {
  const bool is_silu = a.epilogue == Epilogue::kSiluMul;
  const int width = is_silu ? kPanelColumns / 2 : kPanelColumns;
  const int n = a.width;
  const int first = panel * width, count = n - first < width ? n - first : width;
  for (int r = 0; r < num_rows; ++r) {
    float* t = sums + r * kPanelColumns;
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
  static_assert(kFloatRows <= 6 && kIntRows <= 6);
  alignas(64) float sums[kBlockRows * kPanelColumns];
  alignas(64) uint8_t scratch[256 * kPanelColumns];  // an unpacked group
  const bool is_bf16 = a.weight.kind == WeightKind::kBf16;
  const int tile_height = is_bf16 ? kFloatRows : kIntRows;
  const int num_chunks = is_bf16 ? (a.weight.k + kFloatChunk - 1) / kFloatChunk : a.weight.num_groups();
  for (int p = first_panel; p < last_panel; ++p)
    for (int block = 0; block < a.num_rows; block += kBlockRows) {
      const int num_rows = a.num_rows - block < kBlockRows ? a.num_rows - block : kBlockRows;
      for (int i = 0; i < num_rows * kPanelColumns; i += kLanes) store(sums + i, set(0.0f));
      for (int index = 0; index < num_chunks; ++index) {
        const Chunk chunk = chunk_of(a, a.weight.panel(p), index, num_rows, scratch);
        for (int r = 0; r < num_rows; r += tile_height) {
          float* tile = sums + r * kPanelColumns;
          switch (num_rows - r < tile_height ? num_rows - r : tile_height) {
            case 1:
              tile_rows<1>(a, chunk, block + r, tile);
              break;
            case 2:
              tile_rows<2>(a, chunk, block + r, tile);
              break;
            case 3:
              tile_rows<3>(a, chunk, block + r, tile);
              break;
            case 4:
              tile_rows<4>(a, chunk, block + r, tile);
              break;
            case 5:
              tile_rows<5>(a, chunk, block + r, tile);
              break;
            default:
              tile_rows<6>(a, chunk, block + r, tile);
              break;
          }
        }
      }
      finish_block(a, p, block, num_rows, sums);
    }
}
