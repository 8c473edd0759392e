// What the measured ceilings are made of: arithmetic on registers alone, reading alone. Included inside a simd
// namespace.

// Ten independent chains cover a latency of five cycles on two ports. They are ten variables and not an array, because
// g++ 12 keeps an array here in memory, and would measure a quarter of the peak.
template <class Vector, class Step>
inline void run_chains(Vector start, int iterations, Step step) {
  Vector a = start, b = start, c = start, d = start, e = start, f = start, g = start, h = start, i = start, j = start;
  for (int n = 0; n < iterations; ++n) {
    step(a), step(b), step(c), step(d), step(e), step(f), step(g), step(h), step(i), step(j);
    asm volatile("");  // keeps the loop
  }
  // Never used, only not thrown away.
  const Vector chains[] = {a, b, c, d, e, f, g, h, i, j};
  for (const Vector& chain : chains) {
    Float lanes;
    __builtin_memcpy(&lanes, &chain, sizeof lanes);
    volatile float sink = reduce_max(lanes);
    (void)sink;
  }
}

// Runs `iterations` rounds of ten independent multiply-adds; returns the number of operations done.
double peak(PeakKind kind, int iterations) {
  if (kind == PeakKind::kInt8) {
    const int8_t ones[4] = {1, 1, 1, 1};
    const Broadcast x = broadcast_codes(ones);
    Int w = set_int(0x01020304);
    run_chains(set_int(0), iterations, [&](Int& acc) {
      if constexpr (kLanes == 4) asm volatile("" : "+m"(w));  // or the compiler multiplies once for all
      dot4_to(acc, w, x);
    });
    return double(iterations) * 10 * kLanes * 8;
  }
  if (kind == PeakKind::kBf16) {
    if constexpr (kBf16Pairs) {
      const Int ones = set_int(0x3f803f80);
      run_chains(set(0.0f), iterations, [&](Float& acc) { dot2_to(acc, ones, ones); });
      return double(iterations) * 10 * kLanes * 4;
    }
  }
  const Float w = set(0.999f), x = set(1.001f);
  run_chains(set(0.0f), iterations, [&](Float& acc) { fma_to(acc, w, x); });
  return double(iterations) * 10 * kLanes * 2;
}

uint64_t read(const uint8_t* p, size_t num_bytes, size_t ahead) {
  constexpr int kStep = 256, kVectors = kStep / (kLanes * 4);
  Int sums[kVectors];
  for (int v = 0; v < kVectors; ++v) sums[v] = set_int(0);
  for (const uint8_t* end = p + num_bytes / kStep * kStep; p < end; p += kStep) {
    for (int line = 0; ahead && line < kStep; line += 64) __builtin_prefetch(p + ahead + line);
    for (int v = 0; v < kVectors; ++v) sums[v] = add_int(sums[v], load_int(p + v * kLanes * 4));
  }
  uint32_t total = 0;
  for (int v = 0; v < kVectors; ++v) total += uint32_t(reduce_add_int(sums[v]));
  return total;
}
