// The arithmetic peak of this instruction set, measured on registers alone. Included inside a simd namespace.

// Ten independent chains cover a latency of five cycles on two ports. They are ten variables and not an array, because
// g++ 12 keeps an array here in memory, and would measure a quarter of the peak.
template <class Vector, class Step>
inline Vector run_chains(Vector start, int iterations, Step step) {
  Vector a = start, b = start, c = start, d = start, e = start, f = start, g = start, h = start, i = start, j = start;
  for (int n = 0; n < iterations; ++n) {
    step(a), step(b), step(c), step(d), step(e), step(f), step(g), step(h), step(i), step(j);
    asm volatile("");  // keeps the loop
  }
  // As bits: the sum is never used, only not thrown away.
  asm volatile("" : : "v"(a), "v"(b), "v"(c), "v"(d), "v"(e), "v"(f), "v"(g), "v"(h), "v"(i), "v"(j));
  return a;
}

// Runs `iterations` rounds of ten independent multiply-adds; returns the number of operations done.
double peak(bool is_int8, int iterations) {
  if (is_int8) {
    const int8_t ones[4] = {1, 1, 1, 1};
    const Broadcast x = broadcast_codes(ones);
    const Int w = set_int(0x01020304);
    run_chains(set_int(0), iterations, [&](Int& acc) { dot4_to(acc, w, x); });
    return double(iterations) * 10 * kLanes * 8;
  }
  const Float w = set(0.999f), x = set(1.001f);
  run_chains(set(0.0f), iterations, [&](Float& acc) { fma_to(acc, w, x); });
  return double(iterations) * 10 * kLanes * 2;
}
