#pragma once

#include "convbasis/types.h"
#include "cpu/operator.h"

namespace convbasis {

/// Factors of the gradient by the logits, dS = f o (left right^T), each with `rank` columns.
template <class T>
struct LogitGradient {
  Rows<const T> left, right;
  index_t rank;
};

/// grad_query += dS key and grad_key += dS^T query with the near entries of f, tile by tile; rows
/// have `channels` channels.
template <class T>
void add_near_gradient(const AttentionOperator<T>& f, const LogitGradient<T>& grad,
                       Rows<const T> query, Rows<const T> key, index_t channels, Rows<T> grad_query,
                       Rows<T> grad_key, const Exec& exec);

}  // namespace convbasis
