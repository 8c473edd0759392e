#include "weights/checksum.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace qwench {
namespace {

constexpr size_t kChunk = size_t(1) << 20;

std::array<uint32_t, 256> make_table() {
  std::array<uint32_t, 256> table;
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? (crc >> 1) ^ 0x82f63b78u : crc >> 1;
    table[i] = crc;
  }
  return table;
}

uint32_t portable_crc(uint32_t crc, const uint8_t* p, size_t n) {
  static const std::array<uint32_t, 256> table = make_table();
  for (size_t i = 0; i < n; ++i) crc = (crc >> 8) ^ table[(crc ^ p[i]) & 255];
  return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t hardware_crc(uint32_t crc, const uint8_t* p, size_t n) {
  uint64_t wide = crc;
  for (; n >= 8; p += 8, n -= 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    wide = _mm_crc32_u64(wide, word);
  }
  crc = uint32_t(wide);
  for (; n; ++p, --n) crc = _mm_crc32_u8(crc, *p);
  return crc;
}
#endif

uint32_t chunk_crc(const uint8_t* p, size_t n) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("sse4.2")) return ~hardware_crc(~0u, p, n);
#endif
  return ~portable_crc(~0u, p, n);
}

// Calls work(chunk index, first byte, bytes) for every chunk, over short-lived threads.
template <class Work>
void for_chunks(size_t num_bytes, int num_threads, Work work) {
  const size_t num_chunks = (num_bytes + kChunk - 1) / kChunk;
  std::atomic<size_t> next{0};
  auto serve = [&] {
    for (size_t c; (c = next.fetch_add(1)) < num_chunks;) work(c, c * kChunk, std::min(kChunk, num_bytes - c * kChunk));
  };
  std::vector<std::thread> threads;
  try {
    for (size_t t = 1; t < std::min<size_t>(std::max(num_threads, 1), num_chunks); ++t) threads.emplace_back(serve);
  } catch (const std::system_error&) {
    // Fewer threads than asked for do the same work: it is handed out piece by piece.
  }
  serve();
  for (auto& thread : threads) thread.join();
}

template <class Word, Word kExponent>
bool finite_words(const uint8_t* p, size_t n) {
  Word bad = 0;
  for (size_t i = 0; i < n; i += sizeof(Word)) {
    Word word;
    std::memcpy(&word, p + i, sizeof word);
    bad |= Word((word & kExponent) == kExponent);
  }
  return !bad;
}

}  // namespace

uint32_t crc32c(const uint8_t* data, size_t num_bytes, int num_threads) {
  std::vector<uint32_t> crcs((num_bytes + kChunk - 1) / kChunk);
  for_chunks(num_bytes, num_threads, [&](size_t c, size_t first, size_t n) { crcs[c] = chunk_crc(data + first, n); });
  return chunk_crc(reinterpret_cast<const uint8_t*>(crcs.data()), crcs.size() * 4);
}

bool all_finite(const uint8_t* data, size_t num_bytes, SourceKind kind, int num_threads) {
  std::atomic<bool> finite{true};
  for_chunks(num_bytes, num_threads, [&](size_t, size_t first, size_t n) {
    const uint8_t* p = data + first;
    const bool ok = kind == SourceKind::kBf16   ? finite_words<uint16_t, 0x7f80>(p, n)
                    : kind == SourceKind::kFp16 ? finite_words<uint16_t, 0x7c00>(p, n)
                                                : finite_words<uint32_t, 0x7f800000>(p, n);
    if (!ok) finite = false;
  });
  return finite;
}

}  // namespace qwench
