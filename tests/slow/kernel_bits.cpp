// Runs the portable kernels over drawn numbers, subnormals among them, and prints a hash of what each leaves:
// test_arm.py compares the lines of two processors. Nothing here depends on a library's own arithmetic.
#include <cstdio>
#include <vector>

#include "machine/floating_point.h"
#include "kernels/kernel_table.h"

namespace {
using namespace qwench;

class Draw {
 public:
  // About normal, and now and then so small that only a subnormal holds it.
  float value() {
    const float sum = uniform() + uniform() + uniform();
    return next() % 1024 ? sum : sum * 1e-39f;
  }
  std::vector<float> values(size_t count, float scale = 1.0f) {
    std::vector<float> out(count);
    for (float& v : out) v = value() * scale;
    return out;
  }

 private:
  uint32_t next() {  // xorshift64
    state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
    return uint32_t(state_ >> 32);
  }
  float uniform() { return float(int32_t(next() >> 8) - (1 << 23)) / (1 << 23); }
  uint64_t state_ = 88172645463325252u;
};

struct AlignedBytes {
  explicit AlignedBytes(size_t count) : memory(count + 64) {}
  uint8_t* data() { return memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64; }
  std::vector<uint8_t> memory;
};

void print(const char* what, int a, int b, const void* data, size_t num_bytes) {
  uint64_t hash = 1469598103934665603u;  // FNV-1a
  for (size_t i = 0; i < num_bytes; ++i) hash = (hash ^ static_cast<const uint8_t*>(data)[i]) * 1099511628211u;
  std::printf("%s %d %d: %016llx\n", what, a, b, static_cast<unsigned long long>(hash));
}

void print(const char* what, int a, int b, const std::vector<float>& values) {
  print(what, a, b, values.data(), values.size() * sizeof(float));
}

struct Product {
  WeightKind weight;
  int group_size;
  ActivationKind activation;
};
constexpr Product kProducts[] = {{WeightKind::kBf16, 0, ActivationKind::kFp32},
                                 {WeightKind::kInt8, 128, ActivationKind::kInt8},
                                 {WeightKind::kInt4, 128, ActivationKind::kInt8},
                                 {WeightKind::kInt4, 32, ActivationKind::kInt16},
                                 {WeightKind::kInt8, 32, ActivationKind::kFp32}};

void pack(Draw& draw, PackedMatrix& matrix, AlignedBytes& memory) {
  for (int p = 0; p < matrix.num_panels(); ++p) {
    const std::vector<float> source = draw.values(size_t(kPanelColumns) * matrix.k, 0.05f);
    const void* rows[kPanelColumns] = {};
    for (int i = 0; i < kPanelColumns && p * kPanelColumns + i < matrix.n; ++i) rows[i] = &source[size_t(i) * matrix.k];
    generic_kernels().pack_panel(rows, SourceKind::kFp32, matrix, memory.data() + p * matrix.panel_bytes());
  }
  matrix.data = memory.data();
}

void multiply(Draw& draw, int kind, int num_rows) {
  const Product& product = kProducts[kind];
  PackedMatrix matrix{nullptr, product.weight, 200, 384, product.group_size};
  AlignedBytes memory(matrix.panel_bytes() * matrix.num_panels());
  pack(draw, matrix, memory);
  print("packed", kind, num_rows, memory.data(), matrix.panel_bytes() * matrix.num_panels());
  const std::vector<float> x = draw.values(size_t(num_rows) * matrix.k);
  const int parts = product.activation == ActivationKind::kInt16 ? 2 : 1, padded_k = matrix.padded_k();
  const size_t stride = size_t(num_rows) * parts;
  std::vector<int8_t> codes(stride * padded_k);
  std::vector<float> scales(stride * (matrix.num_groups() + 1));
  std::vector<int32_t> starts(scales.size());
  if (product.activation != ActivationKind::kFp32)
    for (int r = 0; r < num_rows; ++r)
      generic_kernels().quantize(
          &x[size_t(r) * matrix.k], matrix.k, product.group_size,
          QuantizedRow{codes.data(), scales.data(), starts.data(), stride, padded_k, parts}.after(r));
  for (Epilogue epilogue : {Epilogue::kStore, Epilogue::kSiluMul}) {
    std::vector<float> y(size_t(num_rows) * matrix.n);
    LinearArgs args{};
    args.x = {product.activation,
              reinterpret_cast<const uint8_t*>(x.data()),
              matrix.k * sizeof(float),
              codes.data(),
              scales.data(),
              starts.data(),
              stride,
              parts};
    args.weight = matrix, args.num_rows = num_rows, args.y = y.data(), args.epilogue = epilogue;
    args.width = epilogue == Epilogue::kSiluMul ? matrix.n / 2 : matrix.n;
    generic_kernels().linear(args, 0, matrix.num_panels());
    print(epilogue == Epilogue::kSiluMul ? "gate_up_silu" : "linear", kind, num_rows, y);
  }
}

void attend(Draw& draw, CacheKind cache, int num_tokens) {
  constexpr int kDim = 64, kHeads = 7, kBlock = 32, kPositions = 700, kBlocks = (kPositions + kBlock - 1) / kBlock;
  const size_t position_bytes =
      has_codes(cache) ? code_position_bytes(cache, kDim) : kDim * (cache == CacheKind::kFp32 ? 4 : 2);
  const size_t head_bytes = position_bytes * kBlock;
  AlignedBytes memory(2 * head_bytes * kBlocks);
  std::vector<int32_t> table(kBlocks);
  for (int p = 0; p < kPositions; ++p) {
    uint8_t* block = memory.data() + p / kBlock * 2 * head_bytes;
    table[p / kBlock] = p / kBlock;
    generic_kernels().write_keys(draw.values(kDim).data(), kDim, kDim, p % kBlock, kBlock, cache, block);
    generic_kernels().write_values(draw.values(kDim).data(), kDim, kDim, p % kBlock, kBlock, cache, block + head_bytes);
  }
  const std::vector<float> q = draw.values(size_t(num_tokens) * kHeads * kDim, 4.0f);
  std::vector<float> out(q.size());
  AlignedBytes scratch(attention_scratch_floats(kDim, kDim) * sizeof(float));
  AttentionArgs args{};
  args.q = q.data(), args.out = out.data(), args.keys = memory.data(), args.values = memory.data() + head_bytes;
  args.block_stride = 2 * head_bytes, args.head_stride = head_bytes, args.block_table = table.data();
  args.cache = cache, args.block_size = kBlock, args.num_heads = kHeads, args.num_kv_heads = 1;
  args.head_dim = args.padded_dim = kDim, args.is_causal = true, args.partition_len = 512, args.scale = 0.125f;
  args.scratch = reinterpret_cast<float*>(scratch.data());
  AttentionItem item{};
  item.num_heads = kHeads, item.num_tokens = num_tokens, item.first_position = kPositions - num_tokens;
  item.end = kPositions, item.last_partition = 2;
  generic_kernels().attention(args, item);
  print("attention", int(cache), num_tokens, out);
}

void compute_rows(Draw& draw) {
  constexpr int kWidth = 896, kExperts = 60, kTopK = 8;
  const std::vector<float> x = draw.values(kWidth), gain = draw.values(kWidth), table = draw.values(64);
  std::vector<float> y(kWidth), routes(2 * kTopK + 1);
  generic_kernels().rms_norm(x.data(), gain.data(), 1e-6f, kWidth, y.data());
  print("rms_norm", kWidth, 0, y);
  generic_kernels().rope(x.data(), table.data(), 14, 64, y.data());
  print("rope", kWidth, 0, y);
  generic_kernels().round_to_bf16(x.data(), kWidth, y.data());
  print("round_to_bf16", kWidth, 0, y);
  generic_kernels().route(x.data(), kExperts, kTopK, true, true, routes.data());
  print("route", kExperts, kTopK, routes);
}

}  // namespace

int main() {
  const KernelFloatingPoint mode;
  Draw draw;
  for (int kind = 0; kind < int(std::size(kProducts)); ++kind)
    for (int num_rows : {1, 7, 50}) multiply(draw, kind, num_rows);
  for (CacheKind cache : {CacheKind::kFp32, CacheKind::kBf16, CacheKind::kInt8, CacheKind::kInt16})
    for (int num_tokens : {1, 12}) attend(draw, cache, num_tokens);
  compute_rows(draw);
}
