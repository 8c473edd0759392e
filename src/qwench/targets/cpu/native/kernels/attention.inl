// Paged causal attention of some tokens over one kv head. Included inside the namespace of one simd header.
//
// The query heads that share the kv head are folded into rows. Keys are visited in tiles of 64 absolute positions with
// an online softmax (arXiv:1805.02867); every row takes the same steps at the same positions whatever rows are beside
// it, so the result does not depend on how a prompt is cut. A tile that a row can't see leaves it as it was.

constexpr int kScoreVecs = kKeyGroup / kLanes;  // vectors of one group of 16 positions
constexpr int kTileVecs = tile_vecs(kFloatRows);
constexpr int kScoreGroups = kTileVecs / kScoreVecs > 0 ? kTileVecs / kScoreVecs : 1;
constexpr float kMasked = -__builtin_inff();
constexpr float kNoScore = -1e30f;  // finite, so that a row that has seen nothing yet stays clear of inf - inf

template <CacheKind C>
constexpr size_t cache_item = C == CacheKind::kFp32 ? 4 : 2;

// Elements index... of the first (kOdd: second) of two neighbouring vectors: bf16 has them interleaved in dwords, fp32
// `stride` items apart.
template <CacheKind C, bool kOdd>
QWENCH_INLINE Float load_of_pair(const uint8_t* base, int index, int stride) {
  if constexpr (C == CacheKind::kBf16) {
    const Int raw = load_int(base + size_t(index) * 4);
    return kOdd ? bf16_high(raw) : bf16_low(raw);
  } else {
    return load(reinterpret_cast<const float*>(base) + index + (kOdd ? stride : 0));
  }
}

// One dimension of the scores. Its keys are held in registers only here: 24 accumulators leave room for no more.
template <CacheKind C, int R, int G, bool kOdd>
QWENCH_INLINE void score_step(const float* const* q, int d, const uint8_t* const* keys,
                              Float (&acc)[R][G * kScoreVecs]) {
  Float key[G * kScoreVecs];
  for (int v = 0; v < G * kScoreVecs; ++v)
    key[v] = load_of_pair<C, kOdd>(keys[v / kScoreVecs] + size_t(d) * kKeyGroup * cache_item<C>,
                                   v % kScoreVecs * kLanes, kKeyGroup);
  for (int r = 0; r < R; ++r) {
    const Float x = set(q[r][d + kOdd]);
    for (int v = 0; v < G * kScoreVecs; ++v) fma_to(acc[r][v], key[v], x);
  }
}

// scores[r][64] for R rows and G groups of 16 positions from `group` on.
template <CacheKind C, int R, int G>
inline void score_tile(const float* const* q, int head_dim, const uint8_t* const* keys, float* scores) {
  Float acc[R][G * kScoreVecs];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < G * kScoreVecs; ++v) acc[r][v] = set(0.0f);
  for (int d = 0; d < head_dim; d += 2) {
    score_step<C, R, G, false>(q, d, keys, acc);
    score_step<C, R, G, true>(q, d, keys, acc);
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < G * kScoreVecs; ++v) store(scores + r * kScoreTile + v * kLanes, acc[r][v]);
}

// One position's values times the rows' probabilities p[r][0].
template <CacheKind C, int R, int V, bool kOdd>
QWENCH_INLINE void value_step(const float* p, const uint8_t* pair, int dim, int padded_dim, Float (&acc)[R][V]) {
  Float value[V];
  for (int v = 0; v < V; ++v) value[v] = load_of_pair<C, kOdd>(pair, dim + v * kLanes, padded_dim);
  for (int r = 0; r < R; ++r) {
    const Float x = set(p[r * kScoreTile]);
    for (int v = 0; v < V; ++v) fma_to(acc[r][v], value[v], x);
  }
}

// out[r][V vectors of dimensions] += sum over `count` positions of p[r][position] * value.
template <CacheKind C, int R, int V>
inline void value_tile(const float* p, const uint8_t* const* values, int count, int padded_dim, int dim, float* out) {
  Float acc[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) acc[r][v] = load(out + size_t(r) * padded_dim + dim + v * kLanes);
  for (int i = 0; i < count; i += 2) {
    const uint8_t* pair = values[i / kKeyGroup] + size_t(i % kKeyGroup) * padded_dim * cache_item<C>;
    value_step<C, R, V, false>(p + i, pair, dim, padded_dim, acc);
    if (i + 1 == count) break;  // the odd half of the last pair may never have been written
    value_step<C, R, V, true>(p + i + 1, pair, dim, padded_dim, acc);
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(out + size_t(r) * padded_dim + dim + v * kLanes, acc[r][v]);
}

template <CacheKind C, int R>
inline void scores_of_rows(const float* const* q, int head_dim, const uint8_t* const* keys, int num_groups,
                           float* scores) {
  int g = 0;
  for (; g + kScoreGroups <= num_groups; g += kScoreGroups)
    score_tile<C, R, kScoreGroups>(q, head_dim, keys + g, scores + g * kKeyGroup);
  for (; g < num_groups; ++g) score_tile<C, R, 1>(q, head_dim, keys + g, scores + g * kKeyGroup);
}

template <CacheKind C, int R>
inline void values_of_rows(const float* p, const uint8_t* const* values, int count, int padded_dim, float* out) {
  int dim = 0;
  for (; dim + kTileVecs * kLanes <= padded_dim; dim += kTileVecs * kLanes)
    value_tile<C, R, kTileVecs>(p, values, count, padded_dim, dim, out);
  for (; dim < padded_dim; dim += kLanes) value_tile<C, R, 1>(p, values, count, padded_dim, dim, out);
}

// Turns one row of scores into probabilities relative to the row's running maximum; rescales what it gathered.
inline void softmax_step(float* scores, int low, int high, float scale, float& peak, float& total, float* out,
                         int padded_dim) {
  for (int i = 0; i < low; ++i) scores[i] = kMasked;
  for (int i = high; i < kScoreTile; ++i) scores[i] = kMasked;
  Float best = set(kNoScore);
  for (int i = 0; i < kScoreTile; i += kLanes) {
    const Float s = mul(load(scores + i), set(scale));
    store(scores + i, s);
    best = max(best, s);
  }
  const float tile_peak = reduce_max(best);
  const float new_peak = tile_peak > peak ? tile_peak : peak;
  Float sum = set(0.0f);
  for (int i = 0; i < kScoreTile; i += kLanes) {
    const Float e = exp(sub(load(scores + i), set(new_peak)));
    store(scores + i, e);
    sum = add(sum, e);
  }
  if (new_peak != peak) {
    float lane[kLanes];
    store(lane, exp(set(peak - new_peak)));
    total *= lane[0];
    for (int d = 0; d < padded_dim; d += kLanes) store(out + d, mul(load(out + d), set(lane[0])));
    peak = new_peak;
  }
  total += reduce_add(sum);
}

template <CacheKind C>
inline void attend(const AttentionArgs& a, int first_head, int num_heads, int first_row, int first_position,
                   int num_tokens) {
  const int kv_head = first_head / (a.num_heads / a.num_kv_heads), num_rows = num_tokens * num_heads;
  float* out = a.scratch;                                          // [rows, padded_dim]
  float* scores = out + size_t(kMaxAttentionRows) * a.padded_dim;  // [rows, 64]
  float* peak = scores + size_t(kMaxAttentionRows) * kScoreTile;
  float* total = peak + kMaxAttentionRows;
  const float* q[kMaxAttentionRows];
  for (int r = 0; r < num_rows; ++r) {
    q[r] = a.q + (size_t(first_row + r / num_heads) * a.num_heads + first_head + r % num_heads) * a.head_dim;
    peak[r] = kNoScore;
    total[r] = 0.0f;
  }
  for (int i = 0; i < num_rows * a.padded_dim; ++i) out[i] = 0.0f;

  const int end = first_position + num_tokens;
  const int begin = a.window && first_position + 1 > a.window ? first_position + 1 - a.window : 0;
  for (int tile = begin / kScoreTile * kScoreTile; tile < end; tile += kScoreTile) {
    const int count = end - tile < kScoreTile ? end - tile : kScoreTile;
    const int num_groups = (count + kKeyGroup - 1) / kKeyGroup;
    const uint8_t *keys[kScoreTile / kKeyGroup], *values[kScoreTile / kKeyGroup];
    for (int g = 0; g < num_groups; ++g) {
      const int at = tile + g * kKeyGroup;
      const size_t block = a.block_table[at / a.block_size] * a.block_stride + kv_head * a.head_stride;
      keys[g] = a.keys + block + size_t(at % a.block_size) * a.head_dim * cache_item<C>;
      values[g] = a.values + block + size_t(at % a.block_size) * a.padded_dim * cache_item<C>;
    }
    for (int r = 0; r < num_rows; r += kFloatRows) {
      const int rows = num_rows - r < kFloatRows ? num_rows - r : kFloatRows;
      float* s = scores + size_t(r) * kScoreTile;
      switch (rows) {
        case 1:
          scores_of_rows<C, 1>(q + r, a.head_dim, keys, num_groups, s);
          break;
        case 2:
          scores_of_rows<C, 2>(q + r, a.head_dim, keys, num_groups, s);
          break;
        case 3:
          scores_of_rows<C, 3>(q + r, a.head_dim, keys, num_groups, s);
          break;
        case 4:
          scores_of_rows<C, 4>(q + r, a.head_dim, keys, num_groups, s);
          break;
        case 5:
          scores_of_rows<C, 5>(q + r, a.head_dim, keys, num_groups, s);
          break;
        default:
          scores_of_rows<C, kFloatRows>(q + r, a.head_dim, keys, num_groups, s);
          break;
      }
      for (int i = r; i < r + rows; ++i) {
        const int position = first_position + i / num_heads;
        const int low = a.window && position + 1 - a.window > tile ? position + 1 - a.window - tile : 0;
        const int high = position + 1 - tile;
        softmax_step(scores + size_t(i) * kScoreTile, low < kScoreTile ? low : kScoreTile,
                     high < 0            ? 0
                     : high < kScoreTile ? high
                                         : kScoreTile,
                     a.scale, peak[i], total[i], out + size_t(i) * a.padded_dim, a.padded_dim);
      }
      float* o = out + size_t(r) * a.padded_dim;
      switch (rows) {
        case 1:
          values_of_rows<C, 1>(s, values, count, a.padded_dim, o);
          break;
        case 2:
          values_of_rows<C, 2>(s, values, count, a.padded_dim, o);
          break;
        case 3:
          values_of_rows<C, 3>(s, values, count, a.padded_dim, o);
          break;
        case 4:
          values_of_rows<C, 4>(s, values, count, a.padded_dim, o);
          break;
        case 5:
          values_of_rows<C, 5>(s, values, count, a.padded_dim, o);
          break;
        default:
          values_of_rows<C, kFloatRows>(s, values, count, a.padded_dim, o);
          break;
      }
    }
  }
  for (int r = 0; r < num_rows; ++r) {
    float* y = a.out + (q[r] - a.q);
    for (int d = 0; d < a.head_dim; ++d) y[d] = out[size_t(r) * a.padded_dim + d] / total[r];
  }
}

void attention(const AttentionArgs& a, int first_head, int num_heads, int first_row, int first_position,
               int num_tokens) {
  if (a.cache == CacheKind::kFp32)
    attend<CacheKind::kFp32>(a, first_head, num_heads, first_row, first_position, num_tokens);
  else
    attend<CacheKind::kBf16>(a, first_head, num_heads, first_row, first_position, num_tokens);
}
