#include <map>

#include "convbasis/lowrank.h"
#include "core/buffer.h"
#include "core/head_polynomial.h"
#include "cuda/gpu_schedule.h"
#include "cuda/lowrank_rows.h"
#include "cuda/single_rows.h"

namespace convbasis::cuda {
namespace {

constexpr const char* kName = "polynomial_attention";
constexpr index_t kMostFeatures = index_t{1} << 26;
constexpr double kSumsOfBlock = 4096;

/// Arrays of a call.
template <class T>
struct Operands {
  Array<T> query, key, value, out, lse;
  double scale;
  bool is_causal;
};

/// Where the heads of queries and keys begin. Looked up, as an index that is computed in the loops
/// below would be divided for in 64 bits.
template <class T>
struct FindHeads {
  Array<T> query, key;
  index_t* begins;  // pairs
  CONVBASIS_DEVICE void operator()(index_t, index_t head) const {
    begins[2 * head] = query.at(head, 0, 0);
    begins[2 * head + 1] = key.at(head, 0, 0);
  }
};

template <class T>
struct Logits {
  Array<T> query, key;
  const index_t* begins;  // of heads
  double scale;
  bool is_causal;
  [[nodiscard]] CONVBASIS_DEVICE index_t keys(index_t row) const {
    return is_causal && row + 1 < key.rows ? row + 1 : key.rows;
  }
  [[nodiscard]] CONVBASIS_DEVICE double logit(int head, index_t row, index_t column) const {
    const index_t q = begins[2 * head] + row * query.strides[2];
    const index_t k = begins[2 * head + 1] + column * key.strides[2];
    double sum = 0;
    for (index_t c = 0; c < query.channels; ++c)
      sum += static_cast<double>(query.read(q + c * query.strides[3])) *
             static_cast<double>(key.read(k + c * key.strides[3]));
    return scale * sum;
  }
};

struct FlagRows {
  const std::int32_t* listed;  // pairs of head and row
  index_t rows;
  std::int32_t* flags;
  CONVBASIS_DEVICE void operator()(index_t, index_t i) const {
    flags[listed[2 * i] * rows + listed[2 * i + 1]] = 1;
  }
};

/// Keys of a chunk. When causal, the keys of a row's own chunk take b (d + c) / 2 multiply-adds a
/// row, and states r (c + 1) / b numbers of four passes through memory. Otherwise chunks only keep
/// all multiprocessors busy.
index_t chunk_of(index_t rank, index_t head_dim, index_t stride, index_t keys, index_t heads,
                 bool is_causal, index_t element_size) {
  const GpuModel model;
  constexpr index_t kMultiple = LowRankTokens<float>::kTokenMultiple;
  const auto state = static_cast<double>(rank * stride);
  double wanted;
  if (is_causal) {
    const double bytes = 4 * static_cast<double>(element_size) * state / model.bytes;
    wanted = std::sqrt(bytes * model.flops / static_cast<double>(head_dim + stride));
    const double most = static_cast<double>(model.workspace / element_size) / state;
    wanted = std::max(wanted, static_cast<double>(keys) / std::max(most, 1.0));
  } else {
    const double tiles = std::ceil(state / kSumsOfBlock) * static_cast<double>(heads);
    const double chunks = std::ceil(4 * model.multiprocessors / tiles);
    wanted = static_cast<double>(keys) / chunks;
  }
  wanted = std::max(std::min(wanted, static_cast<double>(keys)), 1.0);
  return ceil_div(static_cast<index_t>(std::ceil(wanted)), kMultiple) * kMultiple;
}

/// Heads of one degree, as many at a time as the workspace has room for.
template <class T>
void attend_heads(std::span<const index_t> listed, std::span<const HeadPolynomial> polynomials,
                  index_t degree, const Operands<T>& all, std::int32_t* spoiled,
                  const Stream& stream) {
  const index_t head_dim = all.query.channels, rows = all.out.rows;
  const index_t keys = all.is_causal ? std::min(rows, all.key.rows) : all.key.rows;
  const Monomials monomials(head_dim, degree, stream);
  ChunkStates<T> states;
  states.monomials = monomials.table();
  states.keys = keys;
  states.stride = all.value.channels + 1;
  const auto count = static_cast<index_t>(listed.size());
  states.chunk = chunk_of(states.monomials.padded, head_dim, states.stride, keys, count,
                          all.is_causal, sizeof(T));
  states.chunks = ceil_div(keys, states.chunk);
  const index_t bytes = states.of_head() * static_cast<index_t>(sizeof(T)) +
                        LowRankTokens<T>::bytes(rows, keys, head_dim);
  const index_t at_once = std::clamp(GpuModel().workspace / bytes, index_t{1}, count);
  for (index_t first = 0; first < count; first += at_once) {
    const auto part = listed.subspan(static_cast<std::size_t>(first),
                                     static_cast<std::size_t>(std::min(at_once, count - first)));
    const LowRankTokens<T> tokens(part, polynomials, all.query, all.key, all.value, keys, all.scale,
                                  spoiled, stream);
    sum_chunks(tokens.heads(), all.value, states, stream);
    attend_rows(tokens.heads(), states, all.query, all.value, all.is_causal, all.scale, spoiled,
                all.out, all.lse, stream);
  }
}

void require_supported(const AttentionOptions& options, std::span<const HeadPolynomial> polynomials,
                       index_t head_dim) {
  require(std::holds_alternative<std::monostate>(options.mask), kName,
          "mask is given; expected none: on a GPU, is_causal alone hides keys");
  for (const HeadPolynomial& polynomial : polynomials) {
    require(polynomial.exact_columns.empty(), kName,
            "polynomials hold exact columns; expected none on a GPU; got " +
                std::to_string(polynomial.exact_columns.size()));
    const auto degree = static_cast<index_t>(polynomial.coefficients.size()) - 1;
    require(degree <= kMostDegree, kName,
            "polynomials hold one of degree " + std::to_string(degree) + "; expected at most " +
                std::to_string(kMostDegree));
    const index_t rank = rank_of(polynomial, head_dim);
    require(rank <= kMostFeatures, kName,
            "polynomials hold one with " + std::to_string(rank) + " features; expected at most " +
                std::to_string(kMostFeatures));
  }
}

}  // namespace

template <class E>
void polynomial_attention(View<const E, 4> query, View<const E, 4> key, View<const E, 4> value,
                          View<E, 4> out, View<Compute<E>, 3> lse,
                          std::span<const HeadPolynomial> polynomials,
                          const AttentionOptions& options, std::span<const index_t> heads,
                          const Stream& stream) {
  using T = Compute<E>;
  require_attention(kName, query, key, value);
  const auto [batch, query_heads, n, head_dim] = query.shape;
  require_shape(kName, "out", out.shape, {batch, query_heads, n, value.shape[3]},
                "to match query and value");
  if (lse.data != nullptr)
    require_shape(kName, "lse", lse.shape, {batch, query_heads, n}, "to match query");
  const HeadList list(kName, heads, batch * query_heads);
  require_polynomials(kName, polynomials, batch * query_heads, n, key.shape[2], head_dim);
  require_supported(options, polynomials, head_dim);
  if (batch * query_heads * n == 0) return;

  const DeviceGuard guard(stream.device);
  std::map<index_t, std::vector<index_t>> by_degree;
  std::vector<std::int32_t> exact;
  for (index_t i = 0; i < list.size(); ++i) {
    const HeadPolynomial& polynomial = polynomials[static_cast<std::size_t>(list[i])];
    by_degree[static_cast<index_t>(polynomial.coefficients.size()) - 1].push_back(list[i]);
    for (const index_t row : polynomial.exact_rows) {
      exact.push_back(static_cast<std::int32_t>(list[i]));
      exact.push_back(static_cast<std::int32_t>(row));
    }
  }
  const index_t all_heads = batch * query_heads;
  const DeviceBuffer<std::int32_t> spoiled(stream, all_heads * n);
  fill_zero(stream, spoiled.data(), static_cast<std::size_t>(spoiled.size()) * 4);
  const DeviceBuffer<std::int32_t> exact_rows = upload<std::int32_t>(stream, exact);
  launch(stream, 1, exact_rows.size() / 2, FlagRows{exact_rows.data(), n, spoiled.data()});

  const auto of = [&](const auto& view) { return array_of(view, query_heads); };
  const Operands<T> all{of(query),
                        of(key),
                        of(value),
                        of(out),
                        column_of(lse, query_heads),
                        scale_of(options, head_dim),
                        options.is_causal};
  for (const auto& [degree, listed] : by_degree)
    attend_heads(listed, polynomials, degree, all, spoiled.data(), stream);

  const DeviceBuffer<index_t> begins(stream, 2 * all_heads);
  launch(stream, 1, all_heads, FindHeads<T>{all.query, all.key, begins.data()});
  const Logits<T> logits{all.query, all.key, begins.data(), all.scale, all.is_causal};
  attend_single_rows(all_heads, logits, all.value, spoiled.data(), all.out, all.lse, nullptr,
                     stream);
}

#define CONVBASIS_INSTANTIATE(E)                                                               \
  template void polynomial_attention(View<const E, 4>, View<const E, 4>, View<const E, 4>,     \
                                     View<E, 4>, View<Compute<E>, 3>,                          \
                                     std::span<const HeadPolynomial>, const AttentionOptions&, \
                                     std::span<const index_t>, const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
CONVBASIS_INSTANTIATE(Float16)
CONVBASIS_INSTANTIATE(BFloat16)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
