#include "peaks.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <vector>

#include "cpu_features.h"
#include "thread_pool.h"

namespace qwench {
namespace {

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

uint64_t read_all(const uint64_t* p, size_t words) {
  uint64_t sums[8] = {};
  for (size_t i = 0; i + 8 <= words; i += 8)
    for (int j = 0; j < 8; ++j) sums[j] ^= p[i + j];
  uint64_t total = 0;
  for (uint64_t s : sums) total ^= s;
  return total;
}

}  // namespace

double measure_read_gbps(int num_threads, int megabytes) {
  if (num_threads < 1 || megabytes < 1) throw std::invalid_argument("threads and megabytes must be positive");
  const size_t num_bytes = size_t(megabytes) * 1000000 / 64 * 64;
  void* memory = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  madvise(memory, num_bytes, MADV_HUGEPAGE);
  auto* words = static_cast<uint64_t*>(memory);
  const int num_lines = int(num_bytes / 64);
  ThreadPool pool(num_threads);
  pool.run([&](int t) {
    const Range share = static_share(num_lines, t, num_threads);
    for (size_t i = size_t(share.begin) * 8; i < size_t(share.end) * 8; ++i) words[i] = i;
  });
  double best = 0;
  std::vector<uint64_t> sink(num_threads * 8);
  for (int pass = 0; pass < 4; ++pass) {
    const double start = now_s();
    pool.run([&](int t) {
      const Range share = static_share(num_lines, t, num_threads);
      sink[t * 8] ^= read_all(words + size_t(share.begin) * 8, size_t(share.end - share.begin) * 8);
    });
    best = std::max(best, num_bytes / (now_s() - start) / 1e9);
  }
  munmap(memory, num_bytes);
  asm volatile("" : : "r"(sink.data()) : "memory");
  return best;
}

double measure_peak_gops(const std::string& variant, const std::string& kind, int num_threads) {
  const KernelTable& kernels = kernels_for(variant);
  if (num_threads < 1) throw std::invalid_argument("num_threads must be positive");
  if (kind != "fp32" && kind != "bf16" && kind != "int8")
    throw std::invalid_argument("kind must be 'fp32', 'bf16' or 'int8'");
  if (kind == "bf16" && !kernels.bf16_dots) throw std::invalid_argument("these kernels have no bf16 arithmetic");
  const PeakKind peak_kind = kind == "int8" ? PeakKind::kInt8 : kind == "bf16" ? PeakKind::kBf16 : PeakKind::kFp32;
  ThreadPool pool(num_threads);
  double best = 0;
  for (int pass = 0; pass < 5; ++pass) {
    std::vector<double> ops(num_threads * 8);
    const double start = now_s();
    pool.run([&](int t) { ops[t * 8] = kernels.peak(peak_kind, 2000000); });
    double total = 0;
    for (double o : ops) total += o;
    best = std::max(best, total / (now_s() - start) / 1e9);
  }
  return best;
}

}  // namespace qwench
