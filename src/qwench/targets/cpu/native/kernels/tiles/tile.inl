// Tiles on plain vectors, for instruction sets without a tile of their own. Included inside a simd namespace.

constexpr int kPasses = 1;  // over a chunk, of a tile

template <Codes C, int R, int V>
QWENCH_INLINE void dot_step(const IntTile& t, int k, const Int* w, Int (&acc)[R][V]) {
  for (int r = 0; r < R; ++r) {
    const Broadcast value = broadcast_codes(t.row(r) + k);
    for (int v = 0; v < V; ++v)
      if constexpr (C == Codes::kWords)
        dot2_words_to(acc[r][v], w[v], value);
      else if constexpr (C == Codes::kBytes)
        dot4_to(acc[r][v], w[v], value);
      else
        dot4_nibbles_to(acc[r][v], w[v], value);
  }
}

template <Codes C, bool kMinima, int R, int V>
QWENCH_INLINE void int_columns(const IntTile& t, int column) {
  constexpr int kBias = C == Codes::kBytes ? kByteOffset : code_bias(C, kMinima);
  constexpr int kStep = C == Codes::kNibbles ? 8 : 4;
  Int acc[R][V];
  for (int r = 0; r < R; ++r) {
    const Int start = set_int(first_sum(kBias, t.starts[r]));
    for (int v = 0; v < V; ++v) acc[r][v] = start;
  }
  const uint8_t* w = t.codes + column * kColumnBytes;
  for (int k = 0; k < t.group_size; k += kStep, w += kPanelRowBytes) {
    Int raw[V], codes[V];
    for (int v = 0; v < V; ++v) raw[v] = load_int(w + v * kLanes * kColumnBytes);
    for (int v = 0; v < V; ++v)
      codes[v] = C == Codes::kBytes ? byte_weights(raw[v]) : C == Codes::kNibbles ? low_nibbles(raw[v]) : raw[v];
    dot_step<C, R, V>(t, k, codes, acc);
    if constexpr (C == Codes::kNibbles) {
      for (int v = 0; v < V; ++v) codes[v] = high_nibbles(raw[v]);
      dot_step<C, R, V>(t, k + 4, codes, acc);
    }
  }
  for (int r = 0; r < R; ++r) {
    const Float x_scale = set(t.x_scales[r]);
    for (int v = 0; v < V; ++v) {
      float* at = t.sums + r * kPanelColumns + column + v * kLanes;
      Float sum = fma(mul(to_float(acc[r][v]), x_scale), load(t.w_scales + column + v * kLanes), load(at));
      if constexpr (kMinima)
        sum = fma(mul(to_float(set_int(t.starts[r])), x_scale), load(t.w_minima + column + v * kLanes), sum);
      store(at, sum);
    }
  }
}

template <Codes C, bool kMinima, int R, int>
QWENCH_INLINE void int_tile(const IntTile& t) {
  constexpr int V = tile_vecs(R);
  for (int column = 0; column < kPanelColumns; column += V * kLanes) int_columns<C, kMinima, R, V>(t, column);
}

// One vector row of weights: values k (kOdd: the second of a pair of bf16).
template <Values W, bool kOdd, int R, int V>
QWENCH_INLINE void fma_step(const FloatTile& t, int k, const uint8_t* w, Float (&acc)[R][V]) {
  Float values[V];
  for (int v = 0; v < V; ++v) {
    const Int raw = load_int(w + v * kLanes * kColumnBytes);
    values[v] = W == Values::kFp32 ? bits_of_floats(raw) : kOdd ? bf16_low(raw) : bf16_high(raw);
  }
  for (int r = 0; r < R; ++r) {
    const Float x = set(t.value(r, k));
    for (int v = 0; v < V; ++v) fma_to(acc[r][v], values[v], x);
  }
}

template <Values W, int R, int V>
QWENCH_INLINE void add_values(const FloatTile& t, const uint8_t* w, Float (&acc)[R][V]) {
  constexpr int kSecond = W == Values::kFp32 ? kPanelRowBytes : 0;  // from a pair's first to its second value
  const int even_k = t.num_k / 2 * 2;
  for (int k = 0; k < even_k; k += 2, w += kPanelRowBytes + kSecond) {
    fma_step<W, false, R, V>(t, k, w, acc);
    fma_step<W, true, R, V>(t, k + 1, w + kSecond, acc);
  }
  if (t.num_k > even_k) fma_step<W, false, R, V>(t, even_k, w, acc);
}

template <Values W, int R, int V>
QWENCH_INLINE void float_columns(const FloatTile& t, int column) {
  static_assert(W != Values::kPairs, "no instruction for it");
  Float acc[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) acc[r][v] = load(t.sums + r * kPanelColumns + column + v * kLanes);
  add_values<W, R, V>(t, t.w + column * kColumnBytes, acc);
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(t.sums + r * kPanelColumns + column + v * kLanes, acc[r][v]);
}

template <Values W, int R, int>
QWENCH_INLINE void float_tile(const FloatTile& t) {
  constexpr int V = tile_vecs(R);
  for (int column = 0; column < kPanelColumns; column += V * kLanes) float_columns<W, R, V>(t, column);
}
