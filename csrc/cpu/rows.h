#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "core/buffer.h"
#include "cpu/simd/kernels.h"

namespace convbasis {

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
  for (index_t i = 0; i < rows; ++i) {
    T* row = scratch.data() + i * channels;
    for (index_t c = 0; c < columns; ++c) row[c] = matrix(i, c);
    for (index_t c = columns; c < channels; ++c) row[c] = T(0);
  }
  return {scratch.data(), channels};
}

/// Values as rows. Sums of values near the largest number overflow, so such a head is scaled down
/// by a power of two, which is exact; results are to be multiplied by `unscale`.
template <class T>
struct ValueRows {
  Rows<const T> rows;
  T unscale = 1;
};

template <class T>
[[nodiscard]] ValueRows<T> as_value_rows(const View<const T, 2>& matrix, index_t channels,
                                         Buffer<T>& scratch) {
  constexpr int kHeadroom = 40;  // in powers of two: longer sums than any memory holds
  ValueRows<T> values{as_rows(matrix, channels, scratch)};
  const index_t rows = matrix.shape[0];
  T peak = 0;
  for (index_t i = 0; i < rows; ++i)
    peak = std::max(peak, kernels<T>().max_magnitude(values.rows.row(i), channels));
  if (!(peak > std::ldexp(std::numeric_limits<T>::max(), -kHeadroom))) return values;
  Buffer<T> scaled(rows * channels);
  for (index_t i = 0; i < rows; ++i) {
    std::copy_n(values.rows.row(i), channels, scaled.data() + i * channels);
    kernels<T>().scale(scaled.data() + i * channels, std::ldexp(T(1), -kHeadroom), channels);
  }
  scratch = std::move(scaled);
  return {{scratch.data(), channels}, std::ldexp(T(1), kHeadroom)};
}

/// factor times a row of contiguous channels, into an array of any layout.
template <class T>
void write_row(const T* from, const View<T, 2>& to, index_t row, T factor = 1) {
  const index_t channels = to.shape[1];
  if (to.strides[1] == 1 && factor == T(1)) {
    std::copy_n(from, channels, to.data + row * to.strides[0]);
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
