// The Python face of the native library: arrays in, typed errors out, the GIL released while it works.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <optional>
#include <stdexcept>

#include "executor/executor.h"
#include "machine/cpu_features.h"
#include "machine/peaks.h"
#include "sampling/chain.h"
#include "sampling/sampling.h"
#include "weights/checksum.h"
#include "weights/pack.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using qwench::Buffer;
using qwench::PackedMatrix;

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MutableBytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MutableFloats = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Longs = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatRows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatStates = nb::ndarray<float, nb::ndim<3>, nb::device::cpu>;  // any strides
using ConstFloatRows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Doubles = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Halves = nb::ndarray<const uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using IntRows = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

qwench::SourceKind source_kind(const std::string& name) {
  if (name == "bf16") return qwench::SourceKind::kBf16;
  if (name == "fp16") return qwench::SourceKind::kFp16;
  if (name == "fp32") return qwench::SourceKind::kFp32;
  throw std::invalid_argument("dtype must be bf16, fp16 or fp32");
}

qwench::CacheKind cache_kind(const std::string& name) {
  if (name == "fp32") return qwench::CacheKind::kFp32;
  if (name == "bf16") return qwench::CacheKind::kBf16;
  if (name == "int8") return qwench::CacheKind::kInt8;
  if (name == "int16") return qwench::CacheKind::kInt16;
  throw std::invalid_argument("cache dtype must be fp32, bf16 or int8");
}

qwench::WeightKind weight_kind(const std::string& name) {
  if (name == "bf16") return qwench::WeightKind::kBf16;
  if (name == "int8") return qwench::WeightKind::kInt8;
  if (name == "int4") return qwench::WeightKind::kInt4;
  throw std::invalid_argument("kind must be bf16, int8 or int4");
}

qwench::ScaleKind scale_kind(const std::string& name) {
  if (name == "bf16") return qwench::ScaleKind::kBf16;
  if (name == "fp16") return qwench::ScaleKind::kFp16;
  if (name == "fp32") return qwench::ScaleKind::kFp32;
  if (name == "nested") return qwench::ScaleKind::kNested;
  throw std::invalid_argument("scales must be bf16, fp16, fp32 or nested");
}

qwench::OffsetKind offset_kind(const std::string& name) {
  if (name.empty()) return qwench::OffsetKind::kNone;
  if (name == "min") return qwench::OffsetKind::kMinimum;
  if (name == "zero") return qwench::OffsetKind::kZeroPoint;
  throw std::invalid_argument("offsets must be min, zero or none");
}

// What formats.py's Format says of weights: kind, group size, scales, offsets.
using FormatTuple = std::tuple<std::string, int, std::string, std::string>;

PackedMatrix packed_matrix(const FormatTuple& format, int n, int k, const uint8_t* data) {
  const auto& [kind, group_size, scales, offsets] = format;
  require(n > 0 && k > 0, "a matrix needs rows and columns");
  const PackedMatrix w{data, weight_kind(kind), n, k, group_size, scale_kind(scales), offset_kind(offsets)};
  require((w.kind == qwench::WeightKind::kBf16) == (group_size == 0), "integer formats have groups, bf16 has none");
  const int least = w.kind == qwench::WeightKind::kInt8 ? 16 : 32;
  require(group_size >= 0 && group_size % least == 0 && group_size <= 256,
          "group_size must be a multiple of 32 up to 256, or 16 beside int8");
  require(w.scales != qwench::ScaleKind::kNested ||
              (k % qwench::kNestedBlock == 0 && qwench::kNestedBlock % group_size == 0 &&
               w.offsets != qwench::OffsetKind::kZeroPoint),
          "nested scales need whole blocks of 256 values, and have no zero points");
  return w;
}

PackedMatrix checked_matrix(const FormatTuple& format, int n, int k, const Bytes& data) {
  PackedMatrix w = packed_matrix(format, n, k, data.data());
  require(data.size() >= w.panel_bytes() * w.num_panels(), "the packed matrix is too short");
  return w;
}

using MatrixTuple = std::tuple<FormatTuple, int, int, Bytes>;  // and its rows, columns and bytes

std::vector<PackedMatrix> checked_matrices(const std::vector<MatrixTuple>& matrices) {
  require(!matrices.empty(), "no experts");
  std::vector<PackedMatrix> result;
  for (const auto& [format, n, k, data] : matrices) result.push_back(checked_matrix(format, n, k, data));
  return result;
}

qwench::ActivationKind activation_kind(const std::string& name) {
  if (name == "fp32") return qwench::ActivationKind::kFp32;
  if (name == "bf16") return qwench::ActivationKind::kBf16;
  if (name == "int8") return qwench::ActivationKind::kInt8;
  if (name == "int16") return qwench::ActivationKind::kInt16;
  throw std::invalid_argument("an activation is fp32, bf16, int8 or int16");
}

// Address and size of the memory that ranks share, that of its mailbox, this one's rank, and the threads of each.
using TeamTuple = std::tuple<uintptr_t, size_t, size_t, int, std::vector<int>>;

// Addresses of MPI's functions and its handles, this host and how many there are.
using LinkTuple = std::tuple<std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t>, int, int>;

std::vector<qwench::Span> spans(const std::vector<std::pair<int, int>>& pairs, int limit) {
  std::vector<qwench::Span> result;
  for (const auto& [first, last] : pairs) {
    require(0 <= first && first <= last && last <= limit, "a host's share is outside the model");
    result.push_back({first, last});
  }
  return result;
}

using BufferTuple = std::tuple<size_t, int, std::string, int, std::string, bool>;
Buffer buffer(const BufferTuple& t) {
  const auto& [offset, width, kind_name, group_size, rows, is_result] = t;
  const auto kind = activation_kind(kind_name);
  require(rows == "tokens" || rows == "logits" || rows == "hidden" || rows == "routed",
          "rows must be tokens, logits, hidden or routed");
  require((kind == qwench::ActivationKind::kInt8 || kind == qwench::ActivationKind::kInt16) == (group_size != 0),
          "integer activations have groups, floats have none");
  require(!is_result || kind == qwench::ActivationKind::kFp32, "results are fp32");
  return {offset,
          width,
          kind,
          group_size,
          rows == "tokens"   ? qwench::Rows::kTokens
          : rows == "logits" ? qwench::Rows::kLogits
          : rows == "routed" ? qwench::Rows::kRouted
                             : qwench::Rows::kHidden,
          is_result};
}

// Codes, scales, zero points, minima, block scales, block minima: of a QuantizedMatrix.
using CodeRows = nb::ndarray<const int8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ShortRows = nb::ndarray<const int16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using QuantizedTuple = std::tuple<CodeRows, ConstFloatRows, std::optional<ShortRows>, std::optional<ConstFloatRows>,
                                  std::optional<ConstFloatRows>, std::optional<ConstFloatRows>>;

template <class Rows>
auto part_of(const std::optional<Rows>& part, bool is_wanted, size_t rows, int columns) -> decltype(part->data()) {
  require(part.has_value() == is_wanted, "a part is missing, or one is there that the format hasn't");
  if (!part) return nullptr;
  require(part->shape(0) == rows && int(part->shape(1)) == columns, "a part has the wrong shape");
  return part->data();
}

qwench::QuantizedSource quantized_source(const QuantizedTuple& parts, const PackedMatrix& w) {
  const auto& [codes, scales, zero_points, minima, block_scales, block_minima] = parts;
  const size_t rows = codes.shape(0);
  const int groups = w.num_groups();
  const bool is_nested = w.scales == qwench::ScaleKind::kNested, has_minima = w.offsets == qwench::OffsetKind::kMinimum;
  const int blocks = is_nested ? groups / w.groups_per_block() : 0;
  require(rows > 0 && int(codes.shape(1)) == w.k, "codes have the wrong shape");
  require(scales.shape(0) == rows && int(scales.shape(1)) == groups, "scales have the wrong shape");
  return {codes.data(),
          scales.data(),
          part_of(minima, has_minima, rows, groups),
          part_of(zero_points, w.offsets == qwench::OffsetKind::kZeroPoint, rows, groups),
          part_of(block_scales, is_nested, rows, blocks),
          part_of(block_minima, is_nested && has_minima, rows, blocks),
          int(rows)};
}

std::vector<qwench::LoraWeights::Line> lines_of(const Halves& values) {
  constexpr size_t kValues = sizeof(qwench::LoraWeights::Line) / sizeof(uint16_t);
  require(values.size() % kValues == 0, "an adapter's values are no whole number of lines");
  std::vector<qwench::LoraWeights::Line> lines(values.size() / kValues);
  if (!lines.empty()) std::memcpy(lines.data(), values.data(), values.size() * sizeof(uint16_t));
  return lines;
}

nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>> bytes_at(const uint8_t* address, size_t num_bytes) {
  return nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>(const_cast<uint8_t*>(address), {num_bytes}, nb::handle());
}

const float* vector_of(const std::optional<Floats>& v, int n) {
  if (!v) return nullptr;
  require(int(v->size()) >= n, "a vector is too short");
  return v->data();
}

void require_maxima(const ConstFloatRows& logits, const ConstFloatRows& maxima) {
  const size_t groups = (logits.shape(1) + qwench::kLogitGroup - 1) / qwench::kLogitGroup;
  require(maxima.shape(0) >= logits.shape(0) && maxima.shape(1) == groups, "maxima have the wrong shape");
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Native kernels, packing and executor of the cpu target.";

  m.def("supported_variants", &qwench::supported_variants, "Kernel variants this processor runs, best first.");
  m.def(
      "crc32c",
      [](const Bytes& data, int num_threads) {
        const uint8_t* p = data.data();
        const size_t n = data.size();
        nb::gil_scoped_release release;
        return qwench::crc32c(p, n, num_threads);
      },
      "data"_a, "num_threads"_a, "CRC-32C of the CRC-32Cs of the 1 MiB chunks of a uint8 array.");
  m.def(
      "all_finite",
      [](const Bytes& data, const std::string& dtype, int num_threads) {
        const qwench::SourceKind kind = source_kind(dtype);
        require(data.size() % (kind == qwench::SourceKind::kFp32 ? 4 : 2) == 0,
                "the bytes are no whole number of values");
        const uint8_t* p = data.data();
        const size_t n = data.size();
        nb::gil_scoped_release release;
        return qwench::all_finite(p, n, kind, num_threads);
      },
      "data"_a, "dtype"_a, "num_threads"_a, "Whether the bf16, fp16 or fp32 values in a uint8 array are all finite.");
  m.def("measure_read_gbps", &qwench::measure_read_gbps, "variant"_a, "num_threads"_a, "megabytes"_a,
        nb::call_guard<nb::gil_scoped_release>(), "Measured speed of reading a buffer of that size, in GB/s.");
  m.def(
      "measure_product_gops",
      [](const std::string& variant, const std::string& weights, const std::string& activations) {
        const qwench::WeightKind kind = weight_kind(weights);
        nb::gil_scoped_release release;
        return qwench::measure_product_gops(variant, kind, activation_kind(activations));
      },
      "variant"_a, "weights"_a, "activations"_a, "Measured speed of one thread's products, in 10^9 operations/s.");
  m.def("measure_peak_gops", &qwench::measure_peak_gops, "variant"_a, "kind"_a, "num_threads"_a,
        nb::call_guard<nb::gil_scoped_release>(),
        "Measured arithmetic peak in 10^9 operations/s; kind is fp32, bf16 or int8.");

  m.def(
      "packed_bytes",
      [](const FormatTuple& format, std::vector<int> rows, int k, bool paired) {
        const PackedMatrix w = packed_matrix(format, qwench::packed_columns(rows, paired), k, nullptr);
        return w.panel_bytes() * w.num_panels();
      },
      "format"_a, "rows"_a, "k"_a, "paired"_a, "Bytes of a packed matrix whose sources have `rows` rows.");

  m.def(
      "pack",
      [](const std::vector<Bytes>& sources, const std::string& dtype, std::vector<int> rows, int k,
         const FormatTuple& format, bool paired, MutableBytes out, const std::string& variant, int num_threads) {
        require(sources.size() == rows.size() && !sources.empty(), "one row count per source");
        require(!paired || (sources.size() == 2 && rows[0] == rows[1]),
                "pairs are made of two sources with equal rows");
        const qwench::SourceKind source = source_kind(dtype);
        const size_t item = source == qwench::SourceKind::kFp32 ? 4 : 2;
        std::vector<qwench::SourceMatrix> matrices;
        for (size_t i = 0; i < sources.size(); ++i) {
          require(rows[i] > 0 && sources[i].size() == size_t(rows[i]) * k * item, "a source has the wrong size");
          matrices.push_back({sources[i].data(), source, rows[i]});
        }
        const PackedMatrix w = packed_matrix(format, qwench::packed_columns(rows, paired), k, out.data());
        require(w.scales == qwench::ScaleKind::kBf16 && !w.has_offsets(),
                "what is quantised here has bf16 scales alone");
        require(out.size() == w.panel_bytes() * w.num_panels(), "out has the wrong size");
        const qwench::KernelTable& kernels = qwench::kernels_for(variant);
        uint8_t* p = out.data();
        nb::gil_scoped_release release;
        qwench::pack_matrix(matrices, paired, w, p, kernels, num_threads);
      },
      "sources"_a, "dtype"_a, "rows"_a, "k"_a, "format"_a, "paired"_a, "out"_a.noconvert(), "variant"_a,
      "num_threads"_a, "Quantises and packs row-major sources (as bytes) into `out`.");

  m.def(
      "pack_codes",
      [](const std::vector<QuantizedTuple>& sources, const FormatTuple& format, bool paired, MutableBytes out,
         int num_threads) {
        require(!sources.empty(), "no source");
        std::vector<int> rows;
        for (const auto& source : sources) rows.push_back(int(std::get<0>(source).shape(0)));
        require(!paired || (rows.size() == 2 && rows[0] == rows[1]), "pairs are made of two sources with equal rows");
        const int k = int(std::get<0>(sources[0]).shape(1));
        const PackedMatrix w = packed_matrix(format, qwench::packed_columns(rows, paired), k, out.data());
        require(w.group_size > 0, "codes are of integer formats");
        require(out.size() == w.panel_bytes() * w.num_panels(), "out has the wrong size");
        std::vector<qwench::QuantizedSource> quantized;
        for (const auto& source : sources) quantized.push_back(quantized_source(source, w));
        uint8_t* p = out.data();
        nb::gil_scoped_release release;
        qwench::pack_codes(quantized, paired, w, p, num_threads);
      },
      "sources"_a, "format"_a, "paired"_a, "out"_a.noconvert(), "num_threads"_a,
      "Packs matrices that are quantised already: of each codes, scales, zero points, minima, block scales and block "
      "minima, or None for what it hasn't.");

  m.def(
      "likeliest",
      [](const ConstFloatRows& logits, const ConstFloatRows& maxima, size_t num_rows) {
        require_maxima(logits, maxima);
        require(num_rows <= logits.shape(0), "there are fewer rows");
        std::vector<int> tokens(num_rows);
        for (size_t row = 0; row < num_rows; ++row) {
          tokens[row] = qwench::likeliest(&logits(row, 0), logits.shape(1), &maxima(row, 0));
        }
        return tokens;
      },
      "logits"_a.noconvert(), "maxima"_a.noconvert(), "num_rows"_a,
      "The first index of the largest logit of each of the first rows, -1 where that isn't finite.");

  m.def(
      "group_maxima",
      [](const ConstFloatRows& logits, const FloatRows& maxima) {
        require(maxima.shape(0) == logits.shape(0) &&
                    maxima.shape(1) == (logits.shape(1) + qwench::kLogitGroup - 1) / qwench::kLogitGroup,
                "maxima have the wrong shape");
        for (size_t row = 0; row < logits.shape(0); ++row)
          qwench::group_maxima(&logits(row, 0), logits.shape(1), &maxima(row, 0));
      },
      "logits"_a.noconvert(), "maxima"_a.noconvert(), "What a step gives as maxima, of any rows of logits.");

  m.def(
      "penalize",
      [](const MutableFloats& row, const Longs& ids, const Floats& counts, float repetition, float presence,
         float frequency) {
        require(ids.size() == counts.size(), "one count per token");
        for (size_t i = 0; i < ids.size(); ++i)
          require(ids(i) >= 0 && size_t(ids(i)) < row.size(), "there are fewer tokens");
        qwench::penalize(row.data(), ids.data(), counts.data(), ids.size(), {repetition, presence, frequency});
      },
      "row"_a.noconvert(), "ids"_a.noconvert(), "counts"_a.noconvert(), "repetition"_a, "presence"_a, "frequency"_a,
      "Takes the penalties of tokens that occurred so often off a row of logits.");

  m.def(
      "sum_of_weights", [](const Floats& weights) { return qwench::sum_of_weights(weights.data(), weights.size()); },
      "weights"_a.noconvert(), "In chunks of a fixed size, as `Draws` sums them.");

  // The same of an executor that has a team is `Executor`'s own.
  nb::class_<qwench::Team>(m, "Team")
      .def(
          "__init__",
          [](qwench::Team* self, const TeamTuple& team, size_t window_bytes) {
            const auto& [address, num_bytes, mail_bytes, rank, threads] = team;
            new (self) qwench::Team(reinterpret_cast<uint8_t*>(address), num_bytes, rank, threads);
            self->set_window(self->take(window_bytes), window_bytes);
            self->set_mailbox(self->take(mail_bytes), mail_bytes);
          },
          "team"_a, "window_bytes"_a)
      .def("serve", &qwench::Team::receive, nb::call_guard<nb::gil_scoped_release>(),
           "Waits for a message of rank 0, whose kind it returns; 0 when a rank was lost.")
      .def(
          "mail", [](const qwench::Team& t) { return bytes_at(t.mail(), t.mail_bytes()); }, nb::rv_policy::reference,
          "The mailbox, of which `send` makes a message.")
      .def(
          "window", [](const qwench::Team& t) { return bytes_at(t.window(), t.window_bytes()); },
          nb::rv_policy::reference, "Memory that all ranks read and write.")
      .def(
          "send",
          [](qwench::Team& t, int kind, size_t num_bytes) {
            require(kind > 0 && num_bytes <= t.mail_bytes(), "the mailbox is smaller");
            t.send(kind);
          },
          "kind"_a, "num_bytes"_a)
      .def("acknowledge", &qwench::Team::acknowledge)
      .def("wait_for_others", &qwench::Team::wait_for_others, nb::call_guard<nb::gil_scoped_release>())
      .def("barrier", &qwench::Team::barrier, nb::call_guard<nb::gil_scoped_release>(),
           "Waits for all ranks; false when one was lost.")
      .def("lose", &qwench::Team::lose)
      .def("lost_rank", &qwench::Team::lost_rank);

  nb::class_<qwench::Sampling>(m, "Sampling")
      .def(
          "__init__",
          [](qwench::Sampling* self, float temperature, size_t top_k, double top_p, float min_p, uint64_t seed,
             uint64_t sample) {
            require(temperature > 0, "without temperature nothing is drawn");
            new (self) qwench::Sampling{temperature, top_k, top_p, min_p, {seed, sample}};
          },
          "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "seed"_a, "sample"_a);

  nb::class_<qwench::Draws>(m, "Draws")
      .def(nb::init<>())
      .def(
          "largest",
          [](qwench::Draws& draws, const Floats& row, size_t k) {
            require(k >= 1 && k <= row.size(), "there are fewer logits");
            return draws.largest(row.data(), row.size(), k);
          },
          "row"_a.noconvert(), "k"_a, "The ids of the k largest of a row, largest first.")
      .def(
          "gather",
          [](qwench::Draws& draws, const ConstFloatRows& logits, const std::optional<ConstFloatRows>& maxima,
             const std::vector<size_t>& rows, const std::vector<const qwench::Sampling*>& samplings) {
            if (maxima) require_maxima(logits, *maxima);
            require(logits.shape(1) > 0 && rows.size() == samplings.size(), "one sampling per row, none of them empty");
            draws.clear();
            for (size_t i = 0; i < rows.size(); ++i) {
              require(rows[i] < logits.shape(0), "there are fewer rows");
              draws.gather(&logits(rows[i], 0), logits.shape(1), maxima ? &(*maxima)(rows[i], 0) : nullptr,
                           *samplings[i]);
            }
            return nb::ndarray<nb::numpy, float, nb::ndim<1>>(draws.weights().data(), {draws.weights().size()},
                                                              nb::handle());
          },
          "logits"_a.noconvert(), "maxima"_a.noconvert().none(), "rows"_a, "samplings"_a, nb::rv_policy::reference,
          "What `draw` wants the exponentials of, in place; valid until the next call.")
      .def(
          "draw",
          [](qwench::Draws& draws, const std::vector<uint64_t>& counters, uint64_t attempt) {
            require(counters.size() == draws.num_rows(), "one counter per row");
            std::vector<int> tokens;
            for (size_t r = 0; r < counters.size(); ++r) tokens.push_back(draws.draw(r, counters[r], attempt));
            return tokens;
          },
          "counters"_a, "attempt"_a);

  nb::class_<qwench::Executor>(m, "Executor")
      .def(
          "__init__",
          [](qwench::Executor* self, const std::string& variant, int num_threads, int max_tokens, int num_heads,
             int vocab_size, int num_outputs, size_t arena_bytes, int scratch_width, int experts_per_token,
             const std::vector<std::pair<int, int>>& cache_places, int num_places, int num_blocks, int block_size,
             int num_kv_heads, int head_dim, const std::string& cache_dtype, bool rounds_queries, int partition_len,
             std::pair<int, int> heads, const std::vector<std::pair<int, int>>& host_heads, int host,
             const std::optional<TeamTuple>& team, const std::optional<LinkTuple>& link) {
            require(num_threads >= 1 && max_tokens >= 1 && num_blocks >= 1 && num_places >= 1,
                    "threads, tokens, blocks and places must be positive");
            require(experts_per_token >= 1 && experts_per_token <= qwench::kMaxExperts, "too many experts, or none");
            require(block_size > 0 && block_size % qwench::kKeyGroup == 0, "block_size must be a multiple of 16");
            require(
                partition_len > 0 && partition_len % qwench::kScoreTile == 0 && partition_len <= qwench::kMaxPartition,
                "partition_len must be a multiple of 64 below 2^30");
            require(num_kv_heads > 0 && num_heads % num_kv_heads == 0, "num_heads must be a multiple of num_kv_heads");
            require(head_dim > 0 && head_dim % 2 == 0, "head_dim must be even");
            const auto kind = cache_kind(cache_dtype);
            require(!rounds_queries || kind == qwench::CacheKind::kBf16, "queries are rounded for a bf16 cache alone");
            const auto [first_head, last_head] = heads;
            require(0 <= first_head && first_head < last_head && last_head <= num_heads, "heads are outside the model");
            require(host >= 0 && host < int(host_heads.size()), "there is no such host");
            const int share = num_heads / num_kv_heads;
            const int kv_heads = (last_head - 1) / share - first_head / share + 1;  // those of this rank
            std::vector<qwench::CachePlace> places;
            for (const auto& [group, place] : cache_places) places.push_back({group, place});
            std::unique_ptr<qwench::Team> ranks;
            if (team) {
              const auto& [address, num_bytes, mail_bytes, rank, threads] = *team;
              ranks = std::make_unique<qwench::Team>(reinterpret_cast<uint8_t*>(address), num_bytes, rank, threads);
            }
            std::unique_ptr<qwench::Link> hosts;
            if (link) {
              const auto& [mpi, host, num_hosts] = *link;
              hosts = std::apply(
                  [&](auto... part) { return std::make_unique<qwench::Link>(qwench::Mpi{part...}, host, num_hosts); },
                  mpi);
            }
            new (self) qwench::Executor({variant,
                                         num_threads,
                                         max_tokens,
                                         num_heads,
                                         num_kv_heads,
                                         vocab_size,
                                         num_outputs,
                                         {first_head, last_head},
                                         spans(host_heads, num_heads),
                                         host,
                                         arena_bytes,
                                         team ? std::get<2>(*team) : 0,
                                         scratch_width,
                                         experts_per_token,
                                         rounds_queries,
                                         partition_len,
                                         places},
                                        {num_places, num_blocks, block_size, kv_heads, head_dim, kind},
                                        std::move(ranks), std::move(hosts));
          },
          "variant"_a, "num_threads"_a, "max_tokens"_a, "num_heads"_a, "vocab_size"_a, "num_outputs"_a, "arena_bytes"_a,
          "scratch_width"_a, "experts_per_token"_a, "cache_places"_a, "num_places"_a, "num_blocks"_a, "block_size"_a,
          "num_kv_heads"_a, "head_dim"_a, "cache_dtype"_a, "rounds_queries"_a, "partition_len"_a, "heads"_a,
          "host_heads"_a, "host"_a, "team"_a.none(), "link"_a.none())
      // Arrays are never converted: the executor keeps their addresses, or writes to them.
      .def(
          "add_embed",
          [](qwench::Executor& e, const FormatTuple& format, int n, int k, const Bytes& w, BufferTuple out) {
            e.add_embed(checked_matrix(format, n, k, w), buffer(out));
          },
          "format"_a, "n"_a, "k"_a, "weight"_a.noconvert(), "out"_a)
      .def(
          "add_norm",
          [](qwench::Executor& e, BufferTuple in, const Floats& gain, float eps, BufferTuple out,
             std::optional<Floats> order) {
            const int width = std::get<1>(in);
            e.add_norm(buffer(in), vector_of(gain, width), eps, buffer(out), vector_of(order, width));
          },
          "input"_a, "gain"_a.noconvert(), "eps"_a, "out"_a, "order"_a.noconvert().none())
      .def(
          "add_linear",
          [](qwench::Executor& e, BufferTuple in, const FormatTuple& format, int n, int k, const Bytes& w,
             std::optional<Floats> bias, const std::string& epilogue, BufferTuple residual, BufferTuple out,
             std::pair<int, int> panels, const std::vector<std::pair<int, int>>& host_panels) {
            const auto mode = epilogue == "add"        ? qwench::Epilogue::kAdd
                              : epilogue == "silu_mul" ? qwench::Epilogue::kSiluMul
                                                       : qwench::Epilogue::kStore;
            const PackedMatrix matrix = checked_matrix(format, n, k, w);
            e.add_linear(buffer(in), matrix, vector_of(bias, n), mode, buffer(residual), buffer(out),
                         {panels.first, panels.second}, spans(host_panels, matrix.num_panels()));
          },
          "input"_a, "format"_a, "n"_a, "k"_a, "weight"_a.noconvert(), "bias"_a.noconvert().none(), "epilogue"_a,
          "residual"_a, "out"_a, "panels"_a, "host_panels"_a)
      .def(
          "add_qkv_rope_write",
          [](qwench::Executor& e, BufferTuple in, const FormatTuple& format, int n, int k, const Bytes& w,
             std::optional<Floats> bias, std::optional<std::tuple<Floats, Floats, double>> head_norms, int layer,
             BufferTuple q) {
            qwench::HeadNorms norms;
            if (head_norms) {
              const int head_dim = e.cache().shape().head_dim;
              norms = {vector_of(std::get<0>(*head_norms), head_dim), vector_of(std::get<1>(*head_norms), head_dim),
                       float(std::get<2>(*head_norms))};
            }
            e.add_qkv_rope_write(buffer(in), checked_matrix(format, n, k, w), vector_of(bias, n), norms, layer,
                                 buffer(q));
          },
          "input"_a, "format"_a, "n"_a, "k"_a, "weight"_a.noconvert(), "bias"_a.noconvert().none(),
          "head_norms"_a.noconvert().none(), "layer"_a, "q"_a)
      .def(
          "add_attention",
          [](qwench::Executor& e, BufferTuple q, int layer, int window, bool is_causal, float scale, BufferTuple out,
             std::optional<Floats> order) {
            e.add_attention(buffer(q), layer, window, is_causal, scale, buffer(out),
                            vector_of(order, std::get<1>(out)));
          },
          "q"_a, "layer"_a, "window"_a, "is_causal"_a, "scale"_a, "out"_a, "order"_a.noconvert().none())
      .def("add_relu",
           [](qwench::Executor& e, BufferTuple in, BufferTuple out) { e.add_relu(buffer(in), buffer(out)); })
      .def("add_take_rows",
           [](qwench::Executor& e, BufferTuple in, BufferTuple out) { e.add_take_rows(buffer(in), buffer(out)); })
      .def(
          "add_route",
          [](qwench::Executor& e, BufferTuple in, const FormatTuple& format, int n, int k, const Bytes& w,
             int num_experts, bool normalizes, BufferTuple routes) {
            e.add_route(buffer(in), checked_matrix(format, n, k, w), num_experts, normalizes, buffer(routes));
          },
          "input"_a, "format"_a, "n"_a, "k"_a, "weight"_a.noconvert(), "num_experts"_a, "normalizes"_a, "routes"_a)
      .def(
          "add_shared_linear_add",
          [](qwench::Executor& e, BufferTuple in, BufferTuple routes, const FormatTuple& format, int n, int k,
             const Bytes& w, BufferTuple residual, BufferTuple out, std::pair<int, int> panels,
             const std::vector<std::pair<int, int>>& host_panels) {
            const PackedMatrix matrix = checked_matrix(format, n, k, w);
            e.add_shared_linear_add(buffer(in), buffer(routes), matrix, buffer(residual), buffer(out),
                                    {panels.first, panels.second}, spans(host_panels, matrix.num_panels()));
          },
          "input"_a, "routes"_a, "format"_a, "n"_a, "k"_a, "weight"_a.noconvert(), "residual"_a, "out"_a, "panels"_a,
          "host_panels"_a)
      .def(
          "add_dispatch",
          [](qwench::Executor& e, BufferTuple in, BufferTuple routes, int num_experts, BufferTuple out) {
            e.add_dispatch(buffer(in), buffer(routes), num_experts, buffer(out));
          },
          "input"_a, "routes"_a, "num_experts"_a, "out"_a)
      .def(
          "add_expert_gate_up_silu",
          [](qwench::Executor& e, BufferTuple in, const std::vector<MatrixTuple>& experts, BufferTuple out,
             std::pair<int, int> panels, const std::vector<std::pair<int, int>>& host_panels) {
            const auto matrices = checked_matrices(experts);
            e.add_expert_gate_up_silu(buffer(in), matrices, buffer(out), {panels.first, panels.second},
                                      spans(host_panels, matrices.front().num_panels()));
          },
          "input"_a, "experts"_a.noconvert(), "out"_a, "panels"_a, "host_panels"_a)
      .def(
          "add_expert_linear_add",
          [](qwench::Executor& e, BufferTuple in, const std::vector<MatrixTuple>& experts, BufferTuple residual,
             BufferTuple out, std::pair<int, int> panels, const std::vector<std::pair<int, int>>& host_panels) {
            const auto matrices = checked_matrices(experts);
            e.add_expert_linear_add(buffer(in), matrices, buffer(residual), buffer(out), {panels.first, panels.second},
                                    spans(host_panels, matrices.front().num_panels()));
          },
          "input"_a, "experts"_a.noconvert(), "residual"_a, "out"_a, "panels"_a, "host_panels"_a)
      .def("share_threads", &qwench::Executor::share_threads, "other"_a, "Two executors that never step at once.")
      .def("num_products", &qwench::Executor::num_products)
      .def(
          "set_lora",
          [](qwench::Executor& e, int product, int adapter, const Halves& a, const Halves& b, const Floats& scales,
             const Ints& first_rank, int k, int depth) {
            e.set_lora(product, adapter,
                       {lines_of(a), lines_of(b), std::vector<float>(scales.data(), scales.data() + scales.size()),
                        std::vector<int32_t>(first_rank.data(), first_rank.data() + first_rank.size()),
                        int(scales.size()), k, depth});
          },
          "product"_a, "adapter"_a, "a"_a.noconvert(), "b"_a.noconvert(), "scales"_a.noconvert(),
          "first_rank"_a.noconvert(), "k"_a, "depth"_a, "Copies one adapter's part in one product.")
      .def("drop_lora", &qwench::Executor::drop_lora, "adapter"_a)
      .def(
          "set_rope_table",
          [](qwench::Executor& e, const ConstFloatRows& table) {
            require(int(table.shape(1)) == e.cache().shape().head_dim, "the RoPE table has the wrong width");
            e.set_rope_table(table.data(), int(table.shape(0)));
          },
          nb::arg().noconvert(), "The caller keeps the table as long as the executor uses it.")
      .def(
          "step",
          [](qwench::Executor& e, const Ints& token_ids, const Ints& query_start, const Ints& seq_lens,
             const IntRows& block_tables, const Ints& logit_rows, const ConstFloatRows& embeddings,
             const Ints& hidden_rows, std::optional<Ints> adapters, FloatRows logits, FloatStates hidden,
             std::optional<FloatRows> maxima, std::optional<Ints> top_groups) {
            const int num_seqs = int(seq_lens.size());
            require(num_seqs >= 1 && int(query_start.size()) == num_seqs + 1,
                    "query_start must have num_seqs + 1 entries");
            const int num_groups = e.num_cache_groups();
            require(int(block_tables.shape(0)) == num_seqs && block_tables.shape(1) % num_groups == 0,
                    "one block table per sequence and cache group");
            require(logits.shape(0) >= logit_rows.size() && int(logits.shape(1)) == e.num_outputs(),
                    "logits have the wrong shape");
            require(!adapters || int(adapters->size()) == num_seqs, "one adapter per sequence");
            require(!top_groups || top_groups->size() == logit_rows.size(), "one number of groups per row of logits");
            const size_t width = e.hidden_width();
            require(embeddings.shape(0) == 0 || embeddings.shape(1) == width, "embeddings have the wrong width");
            const qwench::Batch batch{int(token_ids.size()),
                                      num_seqs,
                                      int(logit_rows.size()),
                                      int(hidden_rows.size()),
                                      int(embeddings.shape(0)),
                                      num_groups,
                                      int(block_tables.shape(1)) / num_groups,
                                      token_ids.data(),
                                      query_start.data(),
                                      seq_lens.data(),
                                      block_tables.data(),
                                      logit_rows.data(),
                                      hidden_rows.data(),
                                      adapters ? adapters->data() : nullptr,
                                      top_groups ? top_groups->data() : nullptr,
                                      embeddings.data()};
            const size_t num_maxima = (e.num_outputs() + qwench::kPanelColumns - 1) / qwench::kPanelColumns;
            require(!maxima || (maxima->shape(0) >= logit_rows.size() && maxima->shape(1) == num_maxima),
                    "maxima have the wrong shape");
            qwench::Results results{logits.data(), maxima ? maxima->data() : nullptr, hidden.data(),
                                    int(hidden.shape(0)), 0};
            if (hidden_rows.size() > 0) {
              require(results.num_states >= 1 && results.num_states <= e.num_states(),
                      "hidden rows need an array for at least one of the hidden states, and no more than there are");
              require(hidden.shape(1) >= hidden_rows.size() && hidden.shape(2) == width,
                      "hidden states have the wrong shape");
              require(
                  (width == 1 || hidden.stride(2) == 1) && (hidden.shape(1) == 1 || hidden.stride(1) == int64_t(width)),
                  "the rows of hidden states must be contiguous");
              results.state_stride = hidden.shape(0) == 1 ? 0 : hidden.stride(0);
            }
            nb::gil_scoped_release release;
            e.step(batch, results);
          },
          "token_ids"_a.noconvert(), "query_start"_a.noconvert(), "seq_lens"_a.noconvert(),
          "block_tables"_a.noconvert(), "logit_rows"_a.noconvert(), "embeddings"_a.noconvert(),
          "hidden_rows"_a.noconvert(), "adapters"_a.noconvert().none(), "logits"_a.noconvert(), "hidden"_a.noconvert(),
          "maxima"_a.noconvert().none(), "top_groups"_a.noconvert().none())
      .def(
          "chain",
          [](qwench::Executor& e, int token, int length, const IntRows& block_table, const Doubles& margins,
             const Doubles& odds, double product, double least, int most, double temperature, int least_confidence,
             int vocab_size, FloatRows logits, FloatRows maxima) {
            const int num_groups = e.num_cache_groups();
            require(block_table.shape(0) == 1 && block_table.shape(1) % num_groups == 0,
                    "one block table per cache group");
            const size_t num_maxima = (e.num_outputs() + qwench::kPanelColumns - 1) / qwench::kPanelColumns;
            require(logits.shape(0) >= 1 && int(logits.shape(1)) == e.num_outputs() && maxima.shape(0) >= 1 &&
                        maxima.shape(1) == num_maxima,
                    "logits or maxima have the wrong shape");
            require(odds.size() == margins.size() + 1 && most >= 1 && temperature > 0, "the chain has no rule");
            const int32_t query_start[] = {0, 1}, row = 0, ids[] = {token}, lengths[] = {length};
            const qwench::Batch batch{1,
                                      1,
                                      1,
                                      0,
                                      0,
                                      num_groups,
                                      int(block_table.shape(1)) / num_groups,
                                      ids,
                                      query_start,
                                      lengths,
                                      block_table.data(),
                                      &row,
                                      nullptr,
                                      nullptr,
                                      nullptr};
            const qwench::Results results{logits.data(), maxima.data(), nullptr, 0, 0};
            const qwench::ChainRule rule{most,  margins.data(), int(margins.size()), odds.data(), product,
                                         least, temperature,    least_confidence,    vocab_size};
            qwench::Chain chain;
            {
              nb::gil_scoped_release release;
              chain = qwench::follow_likeliest(e, batch, results, rule);
            }
            return std::tuple(chain.tokens, chain.confidences, chain.num_steps, chain.has_ended);
          },
          "token"_a, "length"_a, "block_table"_a.noconvert(), "margins"_a.noconvert(), "odds"_a.noconvert(),
          "product"_a, "least"_a, "most"_a, "temperature"_a, "least_confidence"_a, "vocab_size"_a,
          "logits"_a.noconvert(), "maxima"_a.noconvert(), "chain.h says what it does.")
      .def(
          "embed",
          [](const qwench::Executor& e, const Ints& token_ids, FloatRows rows) {
            require(rows.shape(0) == token_ids.size() && int(rows.shape(1)) == e.hidden_width(),
                    "rows have the wrong shape");
            const int32_t* ids = token_ids.data();
            const int count = int(token_ids.size());
            float* out = rows.data();
            nb::gil_scoped_release release;
            e.embed(ids, count, out);
          },
          "token_ids"_a.noconvert(), "rows"_a.noconvert())
      // Of a team, which the executor must have.
      .def("serve", &qwench::Executor::serve, nb::call_guard<nb::gil_scoped_release>(),
           "Runs steps of rank 0 until it sends another message, whose kind it returns; 0 when a rank was lost.")
      .def(
          "mail", [](const qwench::Executor& e) { return bytes_at(e.team()->mail(), e.team()->mail_bytes()); },
          nb::rv_policy::reference, "The mailbox, of which `send` makes a message.")
      .def(
          "send",
          [](qwench::Executor& e, int kind, size_t num_bytes) {
            require(kind > 1, "kind 1 is a step");
            require(num_bytes <= e.team()->mail_bytes(), "the mailbox is smaller");
            e.send(kind, num_bytes);
          },
          "kind"_a, "num_bytes"_a, nb::call_guard<nb::gil_scoped_release>())
      .def("acknowledge", [](qwench::Executor& e, const std::string& error) { e.team()->acknowledge(error); })
      .def(
          "wait_for_others", [](qwench::Executor& e) { return e.team()->wait_for_others(); },
          nb::call_guard<nb::gil_scoped_release>())
      .def("lose", [](qwench::Executor& e, int rank) { e.team()->lose(rank); })
      .def("lost_rank", [](const qwench::Executor& e) { return e.team()->lost_rank(); })
      .def("lost_host", &qwench::Executor::lost_host)
      .def("phase_seconds", &qwench::Executor::phase_seconds)
      .def("waited_seconds", &qwench::Executor::waited_seconds)
      .def("exchanged", &qwench::Executor::exchanged)
      .def("block_bytes", [](const qwench::Executor& e) { return e.cache().block_bytes(); })
      .def("copy_block", &qwench::Executor::copy_block)
      .def(
          "read_block",
          [](const qwench::Executor& e, int block, MutableBytes bytes) {
            require(bytes.size() == e.cache().block_bytes(), "a block has another size");
            e.read_block(block, bytes.data());
          },
          "block"_a, "bytes"_a.noconvert())
      .def(
          "write_block",
          [](qwench::Executor& e, int block, const Bytes& bytes) {
            require(bytes.size() == e.cache().block_bytes(), "a block has another size");
            e.write_block(block, bytes.data());
          },
          "block"_a, "bytes"_a.noconvert());
}
