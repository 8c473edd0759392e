// Any number of rows as tiles of kIntRows or kFloatRows and one smaller tile. Included inside a simd namespace, after
// its tiles. One call of each kernel, inlined: g++ 12 spills the sums of copies out of line.

static_assert(kFloatRows <= 6 && kIntRows <= 6);

template <Codes C>
inline void int_rows(IntTile t, int num_rows) {
  for (; num_rows >= kIntRows; num_rows -= kIntRows, t.advance(kIntRows, kPrefetchBytes)) int_tile<C, kIntRows>(t);
  switch (num_rows) {
    case 5:
      return int_tile<C, 5>(t);
    case 4:
      return int_tile<C, 4>(t);
    case 3:
      return int_tile<C, 3>(t);
    case 2:
      return int_tile<C, 2>(t);
    case 1:
      return int_tile<C, 1>(t);
  }
}

template <Values W>
inline void float_rows(FloatTile t, int num_rows) {
  for (; num_rows >= kFloatRows; num_rows -= kFloatRows, t.advance(kFloatRows, kPrefetchBytes))
    float_tile<W, kFloatRows>(t);
  switch (num_rows) {
    case 5:
      return float_tile<W, 5>(t);
    case 4:
      return float_tile<W, 4>(t);
    case 3:
      return float_tile<W, 3>(t);
    case 2:
      return float_tile<W, 2>(t);
    case 1:
      return float_tile<W, 1>(t);
  }
}
