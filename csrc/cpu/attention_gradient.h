#pragma once

#include "convbasis/types.h"
#include "cpu/operator.h"

namespace convbasis {

/// Rows of one head of contiguous channels, without padding.
template <class T>
struct GradientInputs {
  Rows<const T> query, key;          ///< head_dim channels
  Rows<const T> value, grad_output;  ///< value_dim channels
  const double* delta;               ///< grad_output . output of each query row
  index_t head_dim, value_dim;
  double scale;
};

template <class T>
struct GradientSums {
  Rows<T> query, key, value;
};

/// Adds the gradients of attention with the softmax f to `sums`:
///
///     dV = f^T dY,   dQ = scale * dS K,   dK = scale * dS^T Q,   dS = f o (dY V^T - delta),
///
/// f o (x y^T) is diag(x) f diag(y), so that dS is a sum of value_dim + 1 products with f, and is
/// never formed but in tiles of near entries. O(n d) memory; results do not depend on the number of
/// threads. Rows that are 0 in f give nothing.
template <class T>
void attention_gradient(const AttentionOperator<T>& f, const GradientInputs<T>& inputs,
                        const GradientSums<T>& sums, const Exec& exec);

}  // namespace convbasis
