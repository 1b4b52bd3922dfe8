#pragma once

#include <vector>

#include "cuda/element.h"
#include "cuda/strips.h"

namespace convbasis::cuda {

/// The matrices of all heads: strips on and below the diagonal, and unless causal those above it
/// with both axes reversed. Such an upper triangle is a lower one whose diagonal, lag 0, is not
/// used, so that each stage does for both the same, on arrays whose rows are read backwards.
template <class T>
using Triangles = std::vector<Strips<T>>;

/// The first lag of a triangle that counts.
[[nodiscard]] inline int first_lag(std::size_t triangle) { return triangle == 0 ? 0 : 1; }

/// `upper` may be null; see strips_of_basis.
template <class T>
[[nodiscard]] Triangles<T> triangles_of(const BasisView<T>& lower, const BasisView<T>* upper,
                                        std::span<const index_t> heads, const Stream& stream) {
  Triangles<T> triangles;
  triangles.push_back(strips_of_basis(lower, heads, stream));
  if (upper != nullptr) triangles.push_back(strips_of_basis(*upper, heads, stream));
  return triangles;
}

/// The same rows in place, the last one first.
template <class T>
[[nodiscard]] Array<T> reversed(Array<T> array) {
  if (array.rows == 0) return array;
  const index_t size = array.element == Element::same ? static_cast<index_t>(sizeof(T)) : 2;
  array.data = static_cast<char*>(array.data) + (array.rows - 1) * array.strides[2] * size;
  array.strides[2] = -array.strides[2];
  return array;
}

/// An array as a triangle reads its rows.
template <class T>
[[nodiscard]] Array<T> rows_of_triangle(std::size_t triangle, const Array<T>& array) {
  return triangle == 0 ? array : reversed(array);
}

/// to += from. Heads that share one of `to` are one row of the launch.
template <class T>
struct AddArray {
  Array<T> from, to;
  CONVBASIS_DEVICE void operator()(index_t shared_head, index_t item) const {
    const auto [row, c] = position_of(item, to.channels);
    const index_t head = shared_head * to.group;
    to.store(head, row, c, to.load(head, row, c) + from.load(head, row, c));
  }
};
template <class T>
void add_array(index_t all_heads, const Array<T>& from, const Array<T>& to, const Stream& stream) {
  launch(stream, all_heads / to.group, to.rows * to.channels, AddArray<T>{from, to});
}

/// Numbers of each row, (all heads, rows), the last row first.
template <class T>
struct ReverseRows {
  const T* from;
  index_t rows;
  T* to;
  CONVBASIS_DEVICE void operator()(index_t head, index_t row) const {
    to[head * rows + row] = from[(head + 1) * rows - 1 - row];
  }
};
template <class T>
[[nodiscard]] DeviceBuffer<T> reversed_rows(const DeviceBuffer<T>& from, index_t rows,
                                            const Stream& stream) {
  DeviceBuffer<T> to(stream, from.size());
  launch(stream, from.size() / rows, rows, ReverseRows<T>{from.data(), rows, to.data()});
  return to;
}

}  // namespace convbasis::cuda
