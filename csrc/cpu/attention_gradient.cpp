#include "cpu/attention_gradient.h"

#include <algorithm>
#include <vector>

#include "core/buffer.h"
#include "cpu/near_gradient.h"
#include "cpu/rows.h"

namespace convbasis {
namespace {

/// Terms of dS that share a product: two, or as many as have this number of channels.
constexpr index_t kMostTerms = 2, kMostChannels = 64;

/// A matrix of this call, channels padded with zeros.
template <class T>
struct Matrix {
  Matrix(index_t row_count, index_t channel_count)
      : rows(row_count), channels(channel_count), numbers(row_count * channel_count) {}
  [[nodiscard]] T* row(index_t i) { return numbers.data() + i * channels; }
  [[nodiscard]] Rows<const T> view() const { return {numbers.data(), channels}; }
  [[nodiscard]] Rows<T> writable() { return {numbers.data(), channels}; }

  index_t rows, channels;
  Buffer<T> numbers;
};

template <class T>
Matrix<T> zeros(index_t rows, index_t channels) {
  Matrix<T> matrix(rows, channels);
  std::fill_n(matrix.numbers.data(), matrix.numbers.size(), T(0));
  return matrix;
}

template <class T>
std::vector<T> mean_of_rows(Rows<const T> x, index_t rows, index_t channels) {
  std::vector<double> sum(static_cast<std::size_t>(channels), 0.0);
  for (index_t i = 0; i < rows; ++i)
    for (index_t c = 0; c < channels; ++c)
      sum[static_cast<std::size_t>(c)] += static_cast<double>(x.row(i)[c]);
  std::vector<T> mean(static_cast<std::size_t>(channels), T(0));
  for (std::size_t c = 0; c < mean.size() && rows > 0; ++c)
    mean[c] = static_cast<T>(sum[c] / static_cast<double>(rows));
  return mean;
}

/// x - mean, or x without one, padded with zeros to `padded` channels.
template <class T>
Matrix<T> padded_rows(Rows<const T> x, index_t rows, index_t channels, index_t padded,
                      const std::vector<T>& mean, const Exec& exec) {
  Matrix<T> result(rows, padded);
  for_each_row(exec, rows, [&](index_t i) {
    const T* from = x.row(i);
    T* to = result.row(i);
    for (index_t c = 0; c < channels; ++c)
      to[c] = mean.empty() ? from[c] : from[c] - mean[static_cast<std::size_t>(c)];
    std::fill(to + channels, to + padded, T(0));
  });
  return result;
}

/// out += sum over the terms r of diag(after[:, r]) F diag(before[:, r]) x, where F is the far part
/// of f or its transpose.
template <class T>
void add_far_terms(const AttentionOperator<T>& f, bool transpose, Rows<const T> after,
                   Rows<const T> before, index_t terms, const Matrix<T>& x, Matrix<T>& out,
                   const Exec& exec) {
  const index_t channels = x.channels,
                groups = ceil_div(terms, std::max(kMostTerms, kMostChannels / channels));
  const index_t most = ceil_div(terms, groups);
  const std::unique_ptr<PreparedProduct<T>> far = f.far(transpose);
  Matrix<T> in(x.rows, most * channels), product(out.rows, most * channels);
  for (index_t first = 0; first < terms; first += most) {
    const index_t count = std::min(most, terms - first);
    for_each_row(exec, x.rows, [&](index_t j) {
      const T *from = x.view().row(j), *factors = before.row(j) + first;
      for (index_t r = 0; r < count; ++r) {
        T* to = in.row(j) + r * channels;
        for (index_t c = 0; c < channels; ++c) to[c] = factors[r] * from[c];
      }
    });
    far->multiply(in.view(), product.writable(), count * channels);
    for_each_row(exec, out.rows, [&](index_t i) {
      T* to = out.row(i);
      const T* factors = after.row(i) + first;
      for (index_t r = 0; r < count; ++r) {
        const T* from = product.row(i) + r * channels;
        for (index_t c = 0; c < channels; ++c) to[c] += factors[r] * from[c];
      }
    });
  }
}

template <class T>
void add_rows(const Matrix<T>& from, Rows<T> to, index_t channels, double factor,
              const Exec& exec) {
  for_each_row(exec, from.rows, [&](index_t i) {
    const T* row = from.view().row(i);
    for (index_t c = 0; c < channels; ++c) to.row(i)[c] += static_cast<T>(factor) * row[c];
  });
}

}  // namespace

template <class T>
void attention_gradient(const AttentionOperator<T>& f, const GradientInputs<T>& inputs,
                        const GradientSums<T>& sums, const Exec& exec) {
  const index_t n = f.rows(), m = f.columns(), d = inputs.head_dim, dv = inputs.value_dim;
  if (n == 0 || m == 0) return;
  const index_t lanes = f.channel_multiple();
  {
    const index_t padded = round_up(dv, lanes);
    const Matrix<T> grad = padded_rows<T>(inputs.grad_output, n, dv, padded, {}, exec);
    Matrix<T> product(m, padded);
    f.multiply(true, grad.view(), product.writable(), padded);
    add_rows(product, sums.value, dv, 1, exec);
  }

  // dS = f o (left right^T) with delta as one more term. Its rows sum to 0, and it does not change
  // when a vector is added to all values: means are noise only, so they go.
  const std::vector<T> mean = mean_of_rows(inputs.value, m, dv);
  const index_t terms = dv + 1;
  Matrix<T> left(n, terms), right(m, terms);
  for_each_row(exec, n, [&](index_t i) {
    double delta = inputs.delta[i];
    for (index_t c = 0; c < dv; ++c) {
      const T grad = inputs.grad_output.row(i)[c];
      left.row(i)[c] = grad;
      delta -= static_cast<double>(grad) * static_cast<double>(mean[static_cast<std::size_t>(c)]);
    }
    left.row(i)[dv] = static_cast<T>(-delta);
  });
  for_each_row(exec, m, [&](index_t j) {
    for (index_t c = 0; c < dv; ++c)
      right.row(j)[c] = inputs.value.row(j)[c] - mean[static_cast<std::size_t>(c)];
    right.row(j)[dv] = T(1);
  });
  const index_t padded = round_up(d, lanes);
  const Matrix<T> query = padded_rows<T>(inputs.query, n, d, padded, {}, exec);
  const Matrix<T> key = padded_rows(inputs.key, m, d, padded, mean_of_rows(inputs.key, m, d), exec);
  Matrix<T> grad_query = zeros<T>(n, padded), grad_key = zeros<T>(m, padded);
  add_near_gradient(f, {left.view(), right.view(), terms}, query.view(), key.view(), padded,
                    grad_query.writable(), grad_key.writable(), exec);
  if (f.has_far()) {
    const Rows<const T> by_row = left.view(), by_column = right.view();
    add_far_terms(f, false, by_row, by_column, terms, key, grad_query, exec);
    add_far_terms(f, true, by_column, by_row, terms, query, grad_key, exec);
  }
  add_rows(grad_query, sums.query, d, inputs.scale, exec);
  add_rows(grad_key, sums.key, d, inputs.scale, exec);
}

template void attention_gradient(const AttentionOperator<float>&, const GradientInputs<float>&,
                                 const GradientSums<float>&, const Exec&);
template void attention_gradient(const AttentionOperator<double>&, const GradientInputs<double>&,
                                 const GradientSums<double>&, const Exec&);

}  // namespace convbasis
