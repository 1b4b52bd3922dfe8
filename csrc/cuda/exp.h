#pragma once

#include "cuda/triangles.h"

namespace convbasis::cuda {

/// exp of logits, and what was subtracted from them: the largest logit of each head, 0 for a head
/// without keys.
template <class T>
struct Weights {
  Triangles<T> triangles;
  DeviceBuffer<T> shifts;  ///< (all heads)
};

/// exp(logits - shift), one kernel after another; 0 where a lag does not count. Columns before the
/// first start have logit 0, so they become a strip of their own.
template <class T>
[[nodiscard]] Weights<T> exponentiate(const Triangles<T>& logits, const Stream& stream);

}  // namespace convbasis::cuda
