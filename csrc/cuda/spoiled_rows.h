#pragma once

#include "cuda/element.h"
#include "cuda/triangles.h"

namespace convbasis::cuda {

/// Sums the flagged rows of all heads one by one from the logits of their strips, with a softmax of
/// its own: O(n d) a row. spoiled and exact_lse are (all heads, rows); both lse may be null.
template <class T>
void attend_spoiled(const Triangles<T>& logits, const Array<T>& value, const std::int32_t* spoiled,
                    const Array<T>& out, const Array<T>& lse, double* exact_lse,
                    const Stream& stream);

}  // namespace convbasis::cuda
