#pragma once

#include "cuda/shares.h"

namespace convbasis::cuda {

/// The flagged rows of each head, in their order.
struct SpoiledRows {
  DeviceBuffer<std::int32_t> rows, counts;  ///< (all heads, rows), (all heads)
};

/// Reads the flags twice.
[[nodiscard]] SpoiledRows list_spoiled(const std::int32_t* spoiled, index_t all, index_t rows,
                                       const Stream& stream);

/// What the gradients of rows that rounding spoiled are formed of, one by one: O(n d) a row. Each
/// sum has one owner, which goes through the rows in their order. A head without such rows costs a
/// look at its count.
template <class T>
struct SpoiledGradient {
  StripTable<T> logits;
  const std::int32_t *rows, *counts;  ///< see SpoiledRows
  const double *lse, *delta;          ///< (all heads, rows); delta in units
  const HeadUnits* units;
  Array<T> value, grad_output;  ///< value in units
};

/// Adds f^T grad_output, in units, to grad_value (all heads, columns, dv).
template <class T>
void add_spoiled_values(const SpoiledGradient<T>& spoiled, const Array<T>& grad_value,
                        const Stream& stream);

/// Adds f (G V - delta), in units, to the kernels' gradients (all heads, most, rows).
template <class T>
void add_spoiled_kernels(const SpoiledGradient<T>& spoiled, index_t all, T* kernel_grads,
                         const Stream& stream);

}  // namespace convbasis::cuda
