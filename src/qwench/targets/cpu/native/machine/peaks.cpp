#include "machine/peaks.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <vector>

#include "machine/cpu_features.h"
#include "machine/thread_pool.h"

namespace qwench {
namespace {

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Zeros on huge pages where the system has them, each thread's share touched by itself.
class Memory {
 public:
  Memory(size_t num_bytes, ThreadPool& pool) : num_bytes_(num_bytes) {
    void* memory = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    bytes_ = static_cast<uint8_t*>(memory);
    madvise(memory, num_bytes, MADV_HUGEPAGE);
    pool.run([&](int t) {
      const Range share = static_share(int((num_bytes + 4095) / 4096), t, pool.num_threads());
      for (int page = share.begin; page < share.end; ++page) bytes_[size_t(page) * 4096] = 1;
    });
  }
  ~Memory() { munmap(bytes_, num_bytes_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  const uint8_t* bytes() const { return bytes_; }

 private:
  uint8_t* bytes_;
  size_t num_bytes_;
};

}  // namespace

double measure_read_gbps(const std::string& variant, int num_threads, int megabytes) {
  const KernelTable& kernels = kernels_for(variant);
  if (num_threads < 1 || megabytes < 1) throw std::invalid_argument("threads and megabytes must be positive");
  // Chunks are handed out one by one, as panels of weights are; which lookahead is best is the processor's.
  constexpr size_t kChunk = 1 << 16;
  const size_t num_bytes = (size_t(megabytes) * 1000000 + kChunk - 1) / kChunk * kChunk;
  const int num_passes = std::clamp(int((size_t(1) << 28) / num_bytes), 2, 50);
  const int num_chunks = int(num_bytes / kChunk);
  ThreadPool pool(num_threads);
  const Memory memory(num_bytes, pool);
  std::vector<uint64_t> sink(size_t(num_threads) * 8);
  double best = 0;
  for (int pass = 0; pass < num_passes; ++pass)
    for (size_t ahead : {0, 512, 1024, 2048, 4096}) {
      std::atomic<int> next{0};
      const double start = now_s();
      pool.run([&](int t) {
        for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < num_chunks;)
          sink[size_t(t) * 8] += kernels.read(memory.bytes() + i * kChunk, kChunk, ahead);
      });
      best = std::max(best, double(num_bytes) / (now_s() - start) / 1e9);
    }
  asm volatile("" : : "r"(sink.data()) : "memory");
  return best;
}

double measure_peak_gops(const std::string& variant, const std::string& kind, int num_threads) {
  const KernelTable& kernels = kernels_for(variant);
  if (num_threads < 1) throw std::invalid_argument("num_threads must be positive");
  if (kind != "fp32" && kind != "bf16" && kind != "int8")
    throw std::invalid_argument("kind must be 'fp32', 'bf16' or 'int8'");
  const PeakKind peak_kind = kind == "int8" ? PeakKind::kInt8 : kind == "bf16" ? PeakKind::kBf16 : PeakKind::kFp32;
  ThreadPool pool(num_threads);
  double best = 0;
  for (int pass = 0; pass < 5; ++pass) {
    std::vector<double> ops(size_t(num_threads) * 8);
    const double start = now_s();
    pool.run([&](int t) { ops[size_t(t) * 8] = kernels.peak(peak_kind, 2000000); });
    double total = 0;
    for (double o : ops) total += o;
    best = std::max(best, total / (now_s() - start) / 1e9);
  }
  return best;
}

double measure_product_gops(const std::string& variant, WeightKind weights, ActivationKind activations) {
  constexpr int kRows = 48, kColumns = 2 * kPanelColumns, kK = 1024, kGroup = 128, kTrials = 30;
  const KernelTable& kernels = kernels_for(variant);
  const bool has_groups = weights != WeightKind::kBf16;
  const bool has_integers = activations == ActivationKind::kInt8 || activations == ActivationKind::kInt16;
  if (has_groups ? activations == ActivationKind::kBf16 : has_integers)
    throw std::invalid_argument("integers are multiplied by integers or fp32, bf16 by floats");
  ThreadPool pool(1);  // in the kernels' floating-point mode
  std::vector<float> values(kRows * kK), outputs(kRows * kColumns), scales(2 * kRows * kK / kGroup);
  std::vector<int8_t> codes(2 * kRows * kK);
  std::vector<int32_t> starts(scales.size());
  PackedMatrix matrix{nullptr, weights, kColumns, kK, has_groups ? kGroup : 0};
  std::vector<uint8_t> packed(matrix.panel_bytes() * matrix.num_panels() + 4096);  // prefetched beyond its end
  matrix.data = packed.data();
  LinearArgs args{};
  args.x.kind = activations;
  args.x.rows = reinterpret_cast<const uint8_t*>(values.data());
  args.x.row_bytes = bf16_row_bytes(activations == ActivationKind::kBf16 && kernels.bf16_pairs, kK);
  args.x.codes = codes.data(), args.x.scales = scales.data(), args.x.starts = starts.data();
  args.x.parts = activations == ActivationKind::kInt16 ? 2 : 1;
  args.x.group_stride = size_t(kRows) * args.x.parts;
  args.weight = matrix, args.num_rows = kRows, args.width = kColumns, args.y = outputs.data();
  double best_s = 1e9;
  for (int trial = 0; trial < kTrials; ++trial) {
    const double start = now_s();
    pool.run([&](int) { kernels.linear(args, 0, matrix.num_panels()); });
    best_s = std::min(best_s, now_s() - start);
  }
  return 2.0 * kRows * kColumns * kK / best_s / 1e9;
}

}  // namespace qwench
