#include <algorithm>
#include <array>
#include <cmath>

#include "convbasis/backward.h"
#include "core/groups.h"
#include "core/head_polynomial.h"
#include "core/heads.h"
#include "core/mask.h"
#include "core/shape.h"
#include "cpu/attention_gradient.h"
#include "cpu/lowrank_operator.h"
#include "cpu/rows.h"

namespace convbasis {
namespace {

constexpr const char* kName = "polynomial_attention_backward";

/// Arrays of one head, or gradients by them.
template <class T>
struct Head {
  View<T, 2> query, key, value;
};

/// Numbers of a gradient, C-contiguous.
template <class T>
struct Sums {
  explicit Sums(const View<const T, 2>& like)
      : rows(like.shape[0]), channels(like.shape[1]), numbers(rows * channels) {
    std::fill_n(numbers.data(), numbers.size(), T(0));
  }
  [[nodiscard]] Rows<T> view() { return {numbers.data(), channels}; }
  [[nodiscard]] View<T, 4> whole() {
    return contiguous_view<T, 4>(numbers.data(), {1, 1, rows, channels});
  }
  void scale(int exponent) {
    const double factor = std::ldexp(1.0, exponent);
    for (index_t i = 0; i < rows * channels; ++i)
      numbers[i] = static_cast<T>(factor * static_cast<double>(numbers[i]));
  }
  void add_to(const View<T, 2>& to) const {
    for (index_t i = 0; i < rows; ++i)
      for (index_t c = 0; c < channels; ++c) to(i, c) += numbers[i * channels + c];
  }

  index_t rows, channels;
  Buffer<T> numbers;
};

template <class T>
struct HeadSums {
  Sums<T> query, key, value;
};

template <class T>
View<const T, 4> whole(const View<const T, 2>& matrix) {
  return {matrix.data,
          {1, 1, matrix.shape[0], matrix.shape[1]},
          {0, 0, matrix.strides[0], matrix.strides[1]}};
}

/// grad_output . output of each query row.
template <class T>
std::vector<double> deltas(Rows<const T> grad, Rows<const T> output, index_t rows,
                           index_t channels) {
  std::vector<double> all(static_cast<std::size_t>(rows), 0.0);
  for (index_t i = 0; i < rows; ++i)
    for (index_t c = 0; c < channels; ++c)
      all[static_cast<std::size_t>(i)] +=
          static_cast<double>(grad.row(i)[c]) * static_cast<double>(output.row(i)[c]);
  return all;
}

/// 2^exponent times a matrix, C-contiguous.
template <class T>
struct Scaled {
  Scaled(const View<const T, 2>& matrix, int exponent)
      : shape(matrix.shape), numbers(shape[0] * shape[1]) {
    const double factor = std::ldexp(1.0, exponent);
    for (index_t i = 0; i < shape[0]; ++i)
      for (index_t c = 0; c < shape[1]; ++c)
        numbers[i * shape[1] + c] = static_cast<T>(factor * static_cast<double>(matrix(i, c)));
  }
  [[nodiscard]] View<const T, 2> view() const { return {numbers.data(), shape, {shape[1], 1}}; }
  [[nodiscard]] Rows<const T> rows() const { return {numbers.data(), shape[1]}; }

  std::array<index_t, 2> shape;
  Buffer<T> numbers;
};

/// Adds the gradients to `sums`. False, and nothing is added, when a row has no positive sum.
///
/// All numbers are scaled by powers of two first: keys and queries as in the forward pass, with
/// that of the logits' scale given to the queries, values and grad_output each by their own.
template <class T>
bool differentiate_polynomial(const Head<const T>& head, const View<const T, 2>& grad_output,
                              HeadPolynomial polynomial, const AttentionOptions& options,
                              HeadSums<T>& sums, const Exec& exec) {
  const index_t head_dim = head.query.shape[1], value_dim = head.value.shape[1];
  const double scale = scale_of(options, head_dim);
  const int of_scale = scale == 0 ? 0 : std::ilogb(scale);
  const int of_key =
      key_exponent<T>(head.query, numbers_without(head.query.shape[0], {}), head.key,
                      numbers_without(head.key.shape[0], {}), polynomial.centre, scale);
  const int of_query = of_scale - of_key;
  const int of_value = value_exponent(head.value), of_grad = value_exponent(grad_output);
  for (double& number : polynomial.centre) number = std::ldexp(number, of_key);
  const Scaled<T> query(head.query, of_query), key(head.key, of_key);
  const Scaled<T> value(head.value, of_value), grad(grad_output, of_grad);
  const double rest = std::ldexp(scale, -of_scale);

  const LowRankOperator<T> f(query.view(), key.view(), value.view(), polynomial, rest, options,
                             exec);
  if (!f.is_sound()) return false;
  const std::vector<double> delta = deltas(grad.rows(), f.output(), f.rows(), value_dim);
  attention_gradient<T>(f,
                        {query.rows(), key.rows(), value.rows(), grad.rows(), delta.data(),
                         head_dim, value_dim, rest},
                        {sums.query.view(), sums.key.view(), sums.value.view()}, exec);
  sums.query.scale(of_query - of_value - of_grad);
  sums.key.scale(of_key - of_value - of_grad);
  sums.value.scale(-of_grad);
  return true;
}

/// Writes the gradient by the query, adds those by key and value. False when the head had to be
/// computed exactly.
template <class T>
bool differentiate(const Head<const T>& head, const View<const T, 2>& grad_output,
                   const HeadPolynomial& polynomial, const AttentionOptions& options,
                   const Head<T>& grads, const Exec& exec) {
  HeadSums<T> sums{Sums<T>(head.query), Sums<T>(head.key), Sums<T>(head.value)};
  const bool is_sound =
      polynomial.exact_rows.empty() && polynomial.exact_columns.empty() &&
      differentiate_polynomial(head, grad_output, polynomial, options, sums, exec);
  if (!is_sound)
    exact_attention_backward<T>(whole(head.query), whole(head.key), whole(head.value),
                                whole(grad_output), sums.query.whole(), sums.key.whole(),
                                sums.value.whole(), options, {}, exec);
  for (index_t i = 0; i < sums.query.rows; ++i) write_row(sums.query.view().row(i), grads.query, i);
  sums.key.add_to(grads.key);
  sums.value.add_to(grads.value);
  return is_sound;
}

}  // namespace

template <class T>
LowRankReport polynomial_attention_backward(View<const T, 4> query, View<const T, 4> key,
                                            View<const T, 4> value, View<const T, 4> grad_output,
                                            View<T, 4> grad_query, View<T, 4> grad_key,
                                            View<T, 4> grad_value,
                                            std::span<const HeadPolynomial> polynomials,
                                            const AttentionOptions& options,
                                            std::span<const index_t> heads, const Exec& exec) {
  require_attention(kName, query, key, value);
  const auto [batch, query_heads, n, head_dim] = query.shape;
  require_shape(kName, "grad_output", grad_output.shape, {batch, query_heads, n, value.shape[3]},
                "to match query and value");
  require_shape(kName, "grad_query", grad_query.shape, query.shape, "to match query");
  require_shape(kName, "grad_key", grad_key.shape, key.shape, "to match key");
  require_shape(kName, "grad_value", grad_value.shape, value.shape, "to match value");
  require_mask(kName, options.mask, n, key.shape[2]);
  const HeadList list(kName, heads, batch * query_heads);
  require_polynomials(kName, polynomials, batch * query_heads, n, key.shape[2], head_dim);

  LowRankReport report{std::vector<index_t>(polynomials.size(), 0),
                       std::vector<index_t>(polynomials.size(), 0)};
  if (batch * query_heads * n == 0) return report;
  const std::vector<Group> groups = groups_of(list, batch, query_heads, key.shape[1]);
  const Exec fixed{resolve_threads(exec), exec.interrupt};
  for_each_head(fixed, static_cast<index_t>(groups.size()), [&](index_t i, const Exec& inside) {
    const auto& [b, g, listed] = groups[static_cast<std::size_t>(i)];
    for (const index_t h : listed) {
      const auto flat = static_cast<std::size_t>(b * query_heads + h);
      const bool is_sound = differentiate<T>(
          {head_view(query, b, h), head_view(key, b, g), head_view(value, b, g)},
          head_view(grad_output, b, h), polynomials[flat], options,
          {head_view(grad_query, b, h), head_view(grad_key, b, g), head_view(grad_value, b, g)},
          inside);
      report.rows_exact[flat] = is_sound ? 0 : query.shape[2];
      report.rank[flat] = rank_of(polynomials[flat], query.shape[3]);
    }
  });
  return report;
}

#define CONVBASIS_INSTANTIATE(T)                                                          \
  template LowRankReport polynomial_attention_backward(                                   \
      View<const T, 4>, View<const T, 4>, View<const T, 4>, View<const T, 4>, View<T, 4>, \
      View<T, 4>, View<T, 4>, std::span<const HeadPolynomial>, const AttentionOptions&,   \
      std::span<const index_t>, const Exec&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
