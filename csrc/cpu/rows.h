#pragma once

#include <limits>

#include "core/buffer.h"
#include "cpu/simd/kernels.h"

namespace convbasis {

/// A head's matrix as rows of contiguous channels, padded with zeros to `channels` where needed:
/// the array itself when its layout fits, otherwise a copy in `scratch`.
template <class T>
[[nodiscard]] Rows<const T> as_rows(const View<const T, 2>& matrix, index_t channels,
                                    Buffer<T>& scratch) {
  const auto [rows, columns] = matrix.shape;
  if (matrix.strides[1] == 1 && columns == channels) return {matrix.data, matrix.strides[0]};
  scratch = Buffer<T>(rows * channels);
  for (index_t i = 0; i < rows; ++i) {
    T* row = scratch.data() + i * channels;
    for (index_t c = 0; c < columns; ++c) row[c] = matrix(i, c);
    for (index_t c = columns; c < channels; ++c) row[c] = T(0);
  }
  return {scratch.data(), channels};
}

/// The same for BLAS, which wants a positive stride of at least the row's length.
template <class T>
[[nodiscard]] Rows<const T> as_blas_rows(const View<const T, 2>& matrix, Buffer<T>& scratch) {
  const index_t columns = matrix.shape[1], stride = matrix.strides[0];
  const bool fits = matrix.strides[1] == 1 && stride >= columns &&
                    stride <= std::numeric_limits<int>::max();
  if (fits) return {matrix.data, stride};
  scratch = Buffer<T>(matrix.shape[0] * columns);
  for (index_t i = 0; i < matrix.shape[0]; ++i)
    for (index_t c = 0; c < columns; ++c) scratch[i * columns + c] = matrix(i, c);
  return {scratch.data(), columns};
}

}  // namespace convbasis
