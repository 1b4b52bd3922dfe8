#include "cpu/head_backward.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "cpu/attention_gradient.h"
#include "cpu/blas.h"
#include "cpu/rows.h"
#include "cpu/spoiled_rows.h"
#include "cpu/strip_operator.h"

namespace convbasis {
namespace {

/// A view of the rows in reverse.
template <class T>
View<T, 2> reversed(const View<T, 2>& matrix) {
  const index_t last = std::max<index_t>(matrix.shape[0] - 1, 0);
  return {matrix.data + last * matrix.strides[0],
          matrix.shape,
          {-matrix.strides[0], matrix.strides[1]}};
}

template <class T>
Buffer<T> zeros(index_t count) {
  Buffer<T> buffer(count);
  std::fill_n(buffer.data(), count, T(0));
  return buffer;
}

/// to = factor * other * rows of `from`, or with `more` added to what is there. The product of both
/// factors may overflow.
template <class T>
void put_rows(Rows<const T> from, T factor, T other, bool more, const View<T, 2>& to,
              const Exec& exec) {
  const index_t columns = to.shape[1];
  for_each_row(exec, to.shape[0], [&](index_t i) {
    const T* row = from.row(i);
    if (to.strides[1] == 1) {
      T* target = to.data + i * to.strides[0];
      for (index_t c = 0; c < columns; ++c)
        target[c] = (more ? target[c] : T(0)) + factor * row[c] * other;
    } else {
      for (index_t c = 0; c < columns; ++c)
        to(i, c) = (more ? to(i, c) : T(0)) + factor * row[c] * other;
    }
  });
}

/// The same backwards, with nothing but the order changed, into contiguous rows.
template <class T>
void add_reversed(const Buffer<T>& from, index_t rows, index_t channels, Buffer<T>& to,
                  const Exec& exec) {
  const View<T, 2> target{to.data(), {rows, channels}, {channels, 1}};
  put_rows<T>({from.data(), channels}, 1, 1, true, reversed(target), exec);
}

}  // namespace

template <class T>
HeadBackward<T>::HeadBackward(const StripMatrix<T>& lower, const StripMatrix<T>* upper,
                              const View<const T, 2>& query, const View<const T, 2>& key,
                              const View<const T, 2>& value, const View<const T, 2>& grad_output,
                              double scale, const CostModel& model, const Exec& exec)
    : query_(query),
      key_(key),
      grad_output_(grad_output),
      scale_(scale),
      model_(model),
      exec_(exec),
      rows_(query.shape[0]),
      keys_(key.shape[0]),
      head_dim_(query.shape[1]),
      forward_(lower, upper, value, model, exec),
      query_rows_(as_rows(query, query_copy_)),
      key_rows_(as_rows(key, key_copy_)),
      grad_rows_(as_rows(grad_output, forward_.channels(), grad_copy_)) {}

template <class T>
void HeadBackward<T>::run(Gradient gradient, const View<T, 2>& grad_query,
                          const View<T, 2>& grad_key, const View<T, 2>& grad_value) {
  run_forward(gradient);
  divide_by_sums();
  grad_query_ = zeros<T>(rows_ * head_dim_);
  grad_key_ = zeros<T>(keys_ * head_dim_);
  grad_value_ = zeros<T>(keys_ * forward_.channels());
  if (gradient == Gradient::basis) {
    multiply_transposed();
    differentiate_kernels();
  } else {
    differentiate_entries();
  }
  const T scale = static_cast<T>(scale_) / unit_, unscale = forward_.values().unscale;
  put_rows<T>({grad_query_.data(), head_dim_}, scale, unscale, false, grad_query, exec_);
  put_rows<T>({grad_key_.data(), head_dim_}, scale, unscale, true, grad_key, exec_);
  put_rows<T>({grad_value_.data(), forward_.channels()}, 1 / unit_, 1, true, grad_value, exec_);
  add_share(seconds, forward_.seconds, 1);
}

/// The forward pass, and which rows the products of the backward pass can take.
template <class T>
void HeadBackward<T>::run_forward(Gradient gradient) {
  const index_t channels = forward_.channels(), value_dim = grad_output_.shape[1];
  output_ = zeros<T>(rows_ * channels);
  forward_.run({output_.data(), {rows_, value_dim}, {channels, 1}}, {});
  std::optional<Schedule> far;
  if (gradient == Gradient::attention) {
    near_ = choose_near(forward_, head_dim_, value_dim, model_);
    if (near_ < rows_) far = far_schedule(rows_, near_);
  }
  forward_.judge_products(far ? &*far : nullptr);
  rows_exact = forward_.rows_exact;
}

/// What both gradients need of each row.
template <class T>
void HeadBackward<T>::divide_by_sums() {
  const Kernels<T>& simd = kernels<T>();
  const index_t channels = forward_.channels();
  StageTimer timer(seconds.normalize);
  Buffer<T> peaks(rows_);
  for_each_row(exec_, rows_,
               [&](index_t i) { peaks[i] = simd.max_magnitude(grad_rows_.row(i), channels); });
  scale_to_one(simd.max_magnitude(peaks.data(), rows_));

  const Buffer<double> inverse = forward_.inverse_sums();
  largest_share_ = *std::max_element(inverse.data(), inverse.data() + rows_);
  const T unscale = forward_.values().unscale;
  delta_.resize(static_cast<std::size_t>(rows_));
  delta_shares_.resize(static_cast<std::size_t>(rows_));
  grads_ = Buffer<T>(rows_ * channels);
  shares_ = Buffer<T>(rows_ * channels);
  for_each_row(exec_, rows_, [&](index_t i) {
    T *grad = grads_.data() + i * channels, *share = shares_.data() + i * channels;
    T* mean = output_.data() + i * channels;
    std::copy_n(grad_rows_.row(i), channels, grad);
    simd.scale(grad, unit_, channels);
    simd.scale(mean, 1 / unscale, channels);  // first: sums of the largest values overflow
    T dot = 0;
    simd.dots({grad, channels}, 1, mean, channels, T(1), &dot);
    const auto at = static_cast<std::size_t>(i);
    delta_[at] = static_cast<double>(dot);
    delta_shares_[at] = delta_[at] * inverse[i];
    std::copy_n(grad, channels, share);
    simd.scale(share, static_cast<T>(inverse[i]), channels);
  });
  output_ = {};
}

/// Chooses unit_, a power of two that does not overflow, nor does its inverse.
template <class T>
void HeadBackward<T>::scale_to_one(T peak) {
  int exponent = 0;
  if (std::isfinite(peak)) std::frexp(peak, &exponent);
  unit_ = std::ldexp(T(1), -std::clamp(exponent, -100, 100));
}

/// grad_value = f^T grad_output of the rows that are not spoiled.
template <class T>
void HeadBackward<T>::multiply_transposed() {
  const index_t channels = forward_.channels();
  const Rows<T> sums{grad_value_.data(), channels};
  const Rows<const T> shares{shares_.data(), channels};
  const auto& halves = forward_.halves();
  multiply_strips<T>(halves[0].weights.matrix, halves[0].schedule, true, shares, sums, channels,
                     exec_, seconds);
  if (halves.size() == 1) return;
  Buffer<T> upper(rows_ * channels);
  multiply_strips<T>(halves[1].weights.matrix, halves[1].schedule, true, reversed(shares, rows_),
                     Rows<T>{upper.data(), channels}, channels, exec_, seconds);
  add_reversed(upper, rows_, channels, grad_value_, exec_);
}

template <class T>
template <class Consume>
void HeadBackward<T>::add_spoiled_rows(const Consume& consume) {
  StageTimer timer(seconds.rows);
  const index_t channels = forward_.channels();
  backward_of_spoiled_rows<T>(forward_, delta_, {grads_.data(), channels},
                              {grad_value_.data(), channels}, exec_, consume);
}

/// Shares of rows with small sums are large: where their products with values could overflow,
/// shares and, in a copy, values are multiplied by powers of two.
template <class T>
Unscale<T> HeadBackward<T>::scale_for_products(Buffer<T>& scaled) {
  // Exponents that leave room for the products of two spectra, of a third and two thirds of it.
  constexpr int kMost = std::numeric_limits<T>::max_exponent / 2 - 4, kOfValues = kMost / 3;
  const Kernels<T>& simd = kernels<T>();
  const auto& peaks = forward_.values().peaks;
  const T peak = simd.max_magnitude(peaks.data(), static_cast<index_t>(peaks.size()));
  int of_shares = 0, of_values = 0;
  std::frexp(largest_share_, &of_shares);
  if (std::isfinite(peak)) std::frexp(peak, &of_values);
  if (of_shares + of_values <= kMost) return {};
  of_shares = std::max(of_shares - (kMost - kOfValues), 0);
  of_values = std::max(of_values - kOfValues, 0);

  const index_t channels = forward_.channels();
  scaled = Buffer<T>(keys_ * channels);
  for_each_row(exec_, keys_, [&](index_t j) {
    std::copy_n(forward_.values().rows.row(j), channels, scaled.data() + j * channels);
    simd.scale(scaled.data() + j * channels, std::ldexp(T(1), -of_values), channels);
  });
  for_each_row(exec_, rows_, [&](index_t i) {
    simd.scale(shares_.data() + i * channels, std::ldexp(T(1), -of_shares), channels);
    double& delta = delta_shares_[static_cast<std::size_t>(i)];
    delta = std::ldexp(delta, -of_shares - of_values);
  });
  return {std::ldexp(T(1), of_shares), std::ldexp(T(1), of_values)};
}

/// The exact derivative of the approximate function: only start columns of the logits count.
template <class T>
void HeadBackward<T>::differentiate_kernels() {
  const index_t channels = forward_.channels();
  Buffer<T> scaled;
  const Unscale<T> unscale = scale_for_products(scaled);
  const Rows<const T> shares{shares_.data(), channels},
      values = scaled.size() > 0 ? Rows<const T>{scaled.data(), channels} : forward_.values().rows;
  const auto& halves = forward_.halves();
  KernelGradient<T> lower(halves[0], values, shares, delta_shares_, unscale, channels, exec_,
                          seconds);
  std::optional<KernelGradient<T>> upper;
  if (halves.size() > 1) {
    const std::vector<double> deltas(delta_shares_.rbegin(), delta_shares_.rend());
    upper.emplace(halves[1], reversed(values, rows_), reversed(shares, rows_), deltas, unscale,
                  channels, exec_, seconds);
  }
  Buffer<T> backwards(keys_);
  add_spoiled_rows([&](std::span<const index_t> rows, Rows<const T> grads) {
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const T* of_row = grads.row(static_cast<index_t>(r));
      lower.add(rows[r], of_row);
      if (!upper) continue;
      const index_t row = rows_ - 1 - rows[r];
      std::reverse_copy(of_row, of_row + keys_, backwards.data());
      backwards[row] = 0;  // the diagonal is the lower half's
      upper->add(row, backwards.data());
    }
  });
  lower.add_to(query_rows_, key_rows_, head_dim_, {grad_query_.data(), head_dim_},
               {grad_key_.data(), head_dim_}, seconds);
  if (!upper) return;
  Buffer<T> query_copy, key_copy;
  Buffer<T> query_sums = zeros<T>(rows_ * head_dim_), key_sums = zeros<T>(keys_ * head_dim_);
  upper->add_to(as_rows(reversed(query_), query_copy), as_rows(reversed(key_), key_copy), head_dim_,
                {query_sums.data(), head_dim_}, {key_sums.data(), head_dim_}, seconds);
  add_reversed(query_sums, rows_, head_dim_, grad_query_, exec_);
  add_reversed(key_sums, keys_, head_dim_, grad_key_, exec_);
}

/// The paper's gradient: that of exact attention, with f through the strips.
template <class T>
void HeadBackward<T>::differentiate_entries() {
  const index_t channels = forward_.channels(), value_dim = grad_output_.shape[1];
  const StripOperator<T> f(forward_, near_, exec_);
  const GradientSums<T> sums{{grad_query_.data(), head_dim_},
                             {grad_key_.data(), head_dim_},
                             {grad_value_.data(), channels}};
  {
    StageTimer timer(seconds.products);
    attention_gradient<T>(f,
                          {query_rows_,
                           key_rows_,
                           forward_.values().rows,
                           {grads_.data(), channels},
                           delta_.data(),
                           head_dim_,
                           value_dim,
                           1.0},
                          sums, exec_);
  }
  Buffer<T> queries;
  add_spoiled_rows([&](std::span<const index_t> rows, Rows<const T> grads) {
    const auto count = static_cast<index_t>(rows.size());
    queries = Buffer<T>(count * head_dim_);
    Buffer<T> of_queries = zeros<T>(count * head_dim_);
    for (index_t r = 0; r < count; ++r)
      std::copy_n(query_rows_.row(rows[static_cast<std::size_t>(r)]), head_dim_,
                  queries.data() + r * head_dim_);
    blas::multiply<T>(count, head_dim_, keys_, T(1), {grads.data, grads.stride},
                      {key_rows_.data, key_rows_.stride}, T(0), {of_queries.data(), head_dim_});
    for (index_t r = 0; r < count; ++r)
      std::copy_n(of_queries.data() + r * head_dim_, head_dim_,
                  grad_query_.data() + rows[static_cast<std::size_t>(r)] * head_dim_);
    blas::add_transposed_product<T>(keys_, head_dim_, count, {grads.data, grads.stride},
                                    {queries.data(), head_dim_}, {grad_key_.data(), head_dim_});
  });
}

template class HeadBackward<float>;
template class HeadBackward<double>;

}  // namespace convbasis
