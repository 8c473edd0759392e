// Any number of rows as tiles of kByteRows, kNibbleRows or kFloatRows and one smaller tile. Included inside a simd
// namespace, after its tiles. Each kernel is inlined into its one call site: g++ 12 spills the sums of copies out of
// line.

static_assert(kFloatRows <= 6 && kByteRows <= 6 && kNibbleRows <= 6);

constexpr int int_tile_rows(Codes codes) {
  return codes == Codes::kBytes ? kByteRows : codes == Codes::kWords ? kFloatRows : kNibbleRows;
}

// What a tile prefetches in all its passes, in lines for every two dwords of activations.
constexpr int lines_of_tile(int lines) { return lines > 0 ? lines * kPasses : 1; }

template <Codes C, bool kMinima, int Lines>
inline void int_tiles(IntTile t, int num_rows) {
  constexpr int kRows = int_tile_rows(C);
  for (; num_rows >= kRows; num_rows -= kRows, t.advance(kRows, lines_of_tile(Lines)))
    int_tile<C, kMinima, kRows, Lines>(t);
  switch (num_rows) {
    case 5:
      return int_tile<C, kMinima, 5 < kRows ? 5 : 1, Lines>(t);
    case 4:
      return int_tile<C, kMinima, 4 < kRows ? 4 : 1, Lines>(t);
    case 3:
      return int_tile<C, kMinima, 3 < kRows ? 3 : 1, Lines>(t);
    case 2:
      return int_tile<C, kMinima, 2 < kRows ? 2 : 1, Lines>(t);
    case 1:
      return int_tile<C, kMinima, 1, Lines>(t);
  }
}

template <Values W, int Lines>
inline void float_tiles(FloatTile t, int num_rows) {
  for (; num_rows >= kFloatRows; num_rows -= kFloatRows, t.advance(kFloatRows, lines_of_tile(Lines)))
    float_tile<W, kFloatRows, Lines>(t);
  switch (num_rows) {
    case 5:
      return float_tile<W, 5, Lines>(t);
    case 4:
      return float_tile<W, 4, Lines>(t);
    case 3:
      return float_tile<W, 3, Lines>(t);
    case 2:
      return float_tile<W, 2, Lines>(t);
    case 1:
      return float_tile<W, 1, Lines>(t);
  }
}

// Lines to prefetch in each turn of each tile so that all of the next chunk is there when it is wanted: with few rows,
// memory is what a product waits for. More than that costs as much as it gives. 0: less than one, so that a tile of
// several passes prefetches in its first alone.
inline int lines_per_turn(size_t next_bytes, int num_rows, int height, int num_turns) {
  const int tiles = (num_rows + height - 1) / height;
  return kPrefetches ? int(next_bytes / 64) / (tiles * kPasses * (num_turns > 0 ? num_turns : 1)) : 1;
}

template <int N>
struct Lines {
  static constexpr int value = N;
};

// work(Lines<n>) for the n that tiles are built for and that comes nearest.
template <class Work>
inline void with_lines(int lines, Work work) {
  if (lines < 1)
    work(Lines<kPasses == 1>());
  else if (lines == 1)
    work(Lines<1>());
  else if (lines <= 3)
    work(Lines<2>());
  else if (lines <= 7)
    work(Lines<4>());
  else
    work(Lines<8>());
}

template <Codes C>
inline void int_rows(const IntTile& t, int num_rows, size_t next_bytes) {
  with_lines(lines_per_turn(next_bytes, num_rows, int_tile_rows(C), t.group_size / 8),
             [&](auto lines) { int_tiles<C, false, lines.value>(t, num_rows); });
}
template <Values W>
inline void float_rows(const FloatTile& t, int num_rows, size_t next_bytes) {
  with_lines(lines_per_turn(next_bytes, num_rows, kFloatRows, t.num_k / 2),
             [&](auto lines) { float_tiles<W, lines.value>(t, num_rows); });
}
