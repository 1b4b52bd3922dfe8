#include "convbasis/cuda.h"
#include "core/head_polynomial.h"
#include "cuda/lowrank_heads.h"
#include "cuda/single_rows.h"

namespace convbasis::cuda {
namespace {

constexpr const char* kName = "polynomial_attention";

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
  require_supported(kName, options, polynomials, head_dim);
  if (batch * query_heads * n == 0) return;

  const DeviceGuard guard(stream.device);
  HeadsOfDegrees by_degree;
  std::vector<std::int32_t> exact;
  for (index_t i = 0; i < list.size(); ++i) {
    const HeadPolynomial& polynomial = polynomials[static_cast<std::size_t>(list[i])];
    by_degree[degree_of(polynomial)].push_back(list[i]);
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
  const LowRankOperands<T> all{of(query), of(key), of(value), scale_of(options, head_dim),
                               options.is_causal};
  const Array<T> output = of(out), sums = column_of(lse, query_heads);
  attend_by_polynomials<T>(by_degree, polynomials, all, {output, sums, nullptr, spoiled.data()},
                           stream);

  const DeviceBuffer<index_t> begins(stream, 2 * all_heads);
  launch(stream, 1, all_heads, FindHeads<T>{all.query, all.key, begins.data()});
  const Logits<T> logits{all.query, all.key, begins.data(), all.scale, all.is_causal};
  attend_single_rows(all_heads, logits, all.value, spoiled.data(), output, sums, nullptr, stream);
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
