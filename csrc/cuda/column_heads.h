#pragma once

#include "cuda/element.h"

namespace convbasis::cuda {

/// The first `window` entries of columns of logits, from the diagonal downwards, of some heads:
/// entry t of column j = scale * q_{j+t} . k_j, 0 past the last row.
template <class T>
struct ColumnHeads {
  const T* entries;  ///< (heads, window, columns)
  int window, columns;
};

/// Fills those of `heads` flat heads from `first_head` on. O(columns * window * d) a head.
template <class T>
void form_column_heads(const Array<T>& query, const Array<T>& key, double scale, index_t first_head,
                       index_t heads, index_t window, index_t columns, T* entries,
                       const Stream& stream);

}  // namespace convbasis::cuda
