#include "cpu/lowrank_operator.h"

#include <cmath>
#include <numeric>

#include "convbasis/error.h"
#include "cpu/lowrank_part.h"
#include "cpu/rows.h"

namespace convbasis {
namespace {

template <class T>
View<const T, 2> as_view(Rows<const T> rows, index_t count, index_t channels) {
  return {rows.data, {count, channels}, {rows.stride, 1}};
}

template <class T>
Buffer<T> centred(const View<const T, 2>& key, std::span<const double> centre) {
  const auto [count, head_dim] = key.shape;
  Buffer<T> keys(count * head_dim);
  for (index_t j = 0; j < count; ++j)
    for (index_t c = 0; c < head_dim; ++c)
      keys[j * head_dim + c] =
          static_cast<T>(static_cast<double>(key(j, c)) -
                         (centre.empty() ? 0.0 : centre[static_cast<std::size_t>(c)]));
  return keys;
}

}  // namespace

template <class T>
LowRankOperator<T>::LowRankOperator(const View<const T, 2>& query, const View<const T, 2>& key,
                                    const View<const T, 2>& value, const HeadPolynomial& polynomial,
                                    double scale, const AttentionOptions& options, const Exec& exec)
    : query_(query),
      count_(key.shape[0]),
      value_dim_(value.shape[1]),
      scale_(scale),
      exec_(exec),
      coefficients_(polynomial.coefficients),
      monomials_(key.shape[1], static_cast<index_t>(coefficients_.size()) - 1),
      keys_(centred(key, polynomial.centre)),
      inverse_sums_(rows()),
      output_(rows() * value_dim_) {
  if (std::holds_alternative<masks::RowChange>(options.mask))
    throw Unsupported(
        "[polynomial_attention_backward] mask is a RowChange; expected a mask of windows or "
        "patterns, or exact_attention_backward, which takes any; got RowChange");
  std::vector<index_t> all(static_cast<std::size_t>(count_));
  std::iota(all.begin(), all.end(), index_t{0});
  parts_ = key_windows(options.mask, options.is_causal, rows(), all);
  for (const KeyWindows& part : parts_) {
    KeyWindows by_key = transposed("polynomial_attention_backward", part);
    if (!by_key.rows.empty()) transposed_parts_.push_back(std::move(by_key));
  }

  const Buffer<T> sums = product(false, value);
  const index_t width = ValueGroups(value_dim_ + 1).padded();
  std::vector<char> sees_any(static_cast<std::size_t>(rows()), 0);
  for (const KeyWindows& part : parts_)
    for (const index_t row : part.rows) sees_any[static_cast<std::size_t>(row)] = 1;
  for (index_t i = 0; i < rows(); ++i) {
    const T* row = sums.data() + i * width;
    const bool is_seeing = sees_any[static_cast<std::size_t>(i)] != 0;
    inverse_sums_[i] = is_seeing ? T(1) / row[value_dim_] : T(0);
    is_sound_ = is_sound_ && (!is_seeing || row[value_dim_] > T(0));
    for (index_t c = 0; c < value_dim_; ++c) {
      output_[i * value_dim_ + c] = is_seeing ? row[c] * inverse_sums_[i] : T(0);
      is_sound_ = is_sound_ && std::isfinite(output_[i * value_dim_ + c]);
    }
  }
}

/// Weights times (x, 1), or transposed; rows of ValueGroups(channels + 1).padded() numbers.
template <class T>
Buffer<T> LowRankOperator<T>::product(bool transpose, const View<const T, 2>& x) const {
  const index_t width = ValueGroups(x.shape[1] + 1).padded();
  const index_t count = transpose ? columns() : rows(), head_dim = monomials_.variables();
  const View<const T, 2> keys = as_view<T>({keys_.data(), head_dim}, columns(), head_dim);
  const std::vector<double> no_centre(static_cast<std::size_t>(head_dim), 0.0);
  Buffer<T> sums(count * width);
  std::fill_n(sums.data(), sums.size(), T(0));
  for (const KeyWindows& windows : transpose ? transposed_parts_ : parts_)
    LowRankPart<T>(monomials_, coefficients_, windows, transpose ? query_ : keys, x, no_centre, {},
                   exec_)
        .add(transpose ? keys : query_, scale_, {sums.data(), width}, exec_);
  return sums;
}

template <class T>
void LowRankOperator<T>::multiply(bool transpose, Rows<const T> x, Rows<T> y,
                                  index_t channels) const {
  Buffer<T> scaled(transpose ? rows() * channels : 0);
  if (transpose) {
    for_each_row(exec_, rows(), [&](index_t i) {
      for (index_t c = 0; c < channels; ++c)
        scaled[i * channels + c] = inverse_sums_[i] * x.row(i)[c];
    });
    x = {scaled.data(), channels};
  }
  const Buffer<T> sums = product(transpose, as_view(x, transpose ? rows() : columns(), channels));
  const index_t width = ValueGroups(channels + 1).padded();
  for_each_row(exec_, transpose ? columns() : rows(), [&](index_t i) {
    const T factor = transpose ? T(1) : inverse_sums_[i];
    for (index_t c = 0; c < channels; ++c) y.row(i)[c] = factor * sums[i * width + c];
  });
}

template class LowRankOperator<float>;
template class LowRankOperator<double>;

}  // namespace convbasis
