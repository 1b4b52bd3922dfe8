#pragma once

#include <limits>

#include "core/buffer.h"
#include "cpu/simd/kernels.h"

namespace convbasis {

/// A head's matrix as rows of contiguous channels, padded with zeros to `channels`: the array itself
/// when its layout fits vectors and BLAS (which wants a positive stride of at least the row's
/// length), otherwise a copy in `scratch`.
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

/// The same without padding.
template <class T>
[[nodiscard]] Rows<const T> as_rows(const View<const T, 2>& matrix, Buffer<T>& scratch) {
  return as_rows(matrix, matrix.shape[1], scratch);
}

}  // namespace convbasis
