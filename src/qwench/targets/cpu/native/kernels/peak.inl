// The arithmetic peak of this instruction set, measured on registers alone. Included inside a simd namespace.

// Runs `iterations` rounds of independent multiply-adds; returns the number of operations done.
double peak(bool is_int8, int iterations) {
  constexpr int kChains = kTileRows * kTileVecs < 12 ? kTileRows * kTileVecs : 12;
  if (is_int8) {
    Int acc[kChains];
    for (int i = 0; i < kChains; ++i) acc[i] = set_int(i);
    const Int w = set_int(0x01020304), x = set_int(0x01010101);
    for (int n = 0; n < iterations; ++n)
      for (int i = 0; i < kChains; ++i) dot4_to(acc[i], w, x);
    int32_t lane[kLanes];
    for (int i = 1; i < kChains; ++i) acc[0] = add_int(acc[0], acc[i]);
    store_int(lane, acc[0]);
    asm volatile("" : : "r"(lane[0]));
    return double(iterations) * kChains * kLanes * 8;
  }
  Float acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = set(float(i));
  const Float w = set(0.999f), x = set(1.001f);
  for (int n = 0; n < iterations; ++n)
    for (int i = 0; i < kChains; ++i) fma_to(acc[i], w, x);
  for (int i = 1; i < kChains; ++i) acc[0] = add(acc[0], acc[i]);
  const float total = reduce_add(acc[0]);
  asm volatile("" : : "x"(total));
  return double(iterations) * kChains * kLanes * 2;
}
