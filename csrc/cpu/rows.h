#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "core/buffer.h"
#include "core/thread_pool.h"
#include "cpu/simd/kernels.h"

namespace convbasis {

/// Calls task(i) for every row, with several rows an item of parallel_for.
template <class Task>
void for_each_row(const Exec& exec, index_t rows, const Task& task) {
  constexpr index_t kRowsPerTask = 256;
  parallel_for(exec, ceil_div(rows, kRowsPerTask), [&](index_t item, int) {
    const index_t last = std::min((item + 1) * kRowsPerTask, rows);
    for (index_t i = item * kRowsPerTask; i < last; ++i) task(i);
  });
}

/// The first `count` rows in reverse.
template <class T>
[[nodiscard]] Rows<T> reversed(Rows<T> rows, index_t count) {
  return {rows.row(count - 1), -rows.stride};
}

/// Rows [first, last) with contiguous channels, padded with zeros to `channels`.
template <class T>
void pack_rows(const View<const T, 2>& matrix, index_t first, index_t last, index_t channels,
               T* to) {
  const index_t columns = matrix.shape[1];
  for (index_t i = first; i < last; ++i, to += channels) {
    if (matrix.strides[1] == 1) {
      std::copy_n(matrix.data + i * matrix.strides[0], columns, to);
    } else {
      for (index_t c = 0; c < columns; ++c) to[c] = matrix(i, c);
    }
    std::fill(to + columns, to + channels, T(0));
  }
}

/// A head's matrix as rows of contiguous channels, padded with zeros to `channels`: the array
/// itself when its layout fits vectors and BLAS (which wants a positive stride of at least the
/// row's length), otherwise a copy in `scratch`.
template <class T>
[[nodiscard]] Rows<const T> as_rows(const View<const T, 2>& matrix, index_t channels,
                                    Buffer<T>& scratch) {
  const auto [rows, columns] = matrix.shape;
  const index_t stride = matrix.strides[0];
  if (matrix.strides[1] == 1 && columns == channels && stride >= columns &&
      stride <= std::numeric_limits<int>::max())
    return {matrix.data, stride};
  scratch = Buffer<T>(rows * channels);
  pack_rows(matrix, 0, rows, channels, scratch.data());
  return {scratch.data(), channels};
}

/// The rows in another order, in `scratch`; the matrix itself for an empty order.
template <class T>
[[nodiscard]] View<const T, 2> in_order(const View<const T, 2>& matrix,
                                        std::span<const index_t> order, Buffer<T>& scratch) {
  if (order.empty()) return matrix;
  const index_t columns = matrix.shape[1];
  scratch = Buffer<T>(matrix.shape[0] * columns);
  for (std::size_t i = 0; i < order.size(); ++i)
    pack_rows(matrix, order[i], order[i] + 1, columns,
              scratch.data() + static_cast<index_t>(i) * columns);
  return {scratch.data(), matrix.shape, {columns, 1}};
}

/// Values as rows, and how large each is. Sums of values near the largest number overflow, so such
/// a head is scaled down by a power of two, which is exact; results are to be multiplied by
/// `unscale`.
template <class T>
struct ValueRows {
  Rows<const T> rows;
  T unscale = 1;
  std::vector<T> peaks;       ///< max |value| of each row
  std::vector<double> norms;  ///< Euclidean norm of each row
};

/// Of the power of two that brings values of this peak to where sums and products are safe.
template <class T>
[[nodiscard]] int scaling_exponent(T peak) {
  constexpr int kHeadroom = 40;  // longer sums than any memory holds
  constexpr int kSmall = -20, kLargest = std::numeric_limits<T>::max_exponent;
  if (!(peak > T(0)) || !std::isfinite(peak)) return 0;
  int exponent = 0;
  std::frexp(peak, &exponent);
  if (exponent > kLargest - kHeadroom) return -kHeadroom;
  return exponent < kSmall ? std::min(-exponent, kLargest - kHeadroom) : 0;
}

template <class T>
[[nodiscard]] ValueRows<T> as_value_rows(const View<const T, 2>& matrix, index_t channels,
                                         Buffer<T>& scratch, const Exec& exec) {
  constexpr index_t kRowsPerTask = 512;
  const Kernels<T>& simd = kernels<T>();
  const index_t rows = matrix.shape[0];
  ValueRows<T> values{as_rows(matrix, channels, scratch), 1,
                      std::vector<T>(static_cast<std::size_t>(rows)),
                      std::vector<double>(static_cast<std::size_t>(rows))};
  const auto measure = [&] {
    parallel_for(exec, ceil_div(rows, kRowsPerTask), [&](index_t task, int) {
      for (index_t i = task * kRowsPerTask; i < std::min((task + 1) * kRowsPerTask, rows); ++i) {
        values.peaks[static_cast<std::size_t>(i)] =
            simd.max_magnitude(values.rows.row(i), channels);
        values.norms[static_cast<std::size_t>(i)] = simd.norm(values.rows.row(i), channels);
      }
    });
  };
  measure();
  const T peak = simd.max_magnitude(values.peaks.data(), rows);
  const int exponent = scaling_exponent(peak);
  if (exponent == 0) return values;
  Buffer<T> scaled(rows * channels);
  for (index_t i = 0; i < rows; ++i) {
    std::copy_n(values.rows.row(i), channels, scaled.data() + i * channels);
    simd.scale(scaled.data() + i * channels, std::ldexp(T(1), exponent), channels);
  }
  scratch = std::move(scaled);
  values.rows = {scratch.data(), channels};
  values.unscale = std::ldexp(T(1), -exponent);
  measure();
  return values;
}

/// factor times a row of contiguous channels, into an array of any layout.
template <class T>
void write_row(const T* from, const View<T, 2>& to, index_t row, T factor = 1) {
  const index_t channels = to.shape[1];
  if (to.strides[1] == 1 && factor == T(1)) {
    T* target = to.data + row * to.strides[0];
    if (target != from) std::copy_n(from, channels, target);
  } else {
    for (index_t c = 0; c < channels; ++c) to(row, c) = factor * from[c];
  }
}

/// The same without padding.
template <class T>
[[nodiscard]] Rows<const T> as_rows(const View<const T, 2>& matrix, Buffer<T>& scratch) {
  return as_rows(matrix, matrix.shape[1], scratch);
}

}  // namespace convbasis
