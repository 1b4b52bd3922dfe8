#pragma once

#include "cuda/strips.h"

namespace convbasis::cuda {

/// exp of logits, and what was subtracted from them: the largest logit of each head, 0 for a head
/// without keys.
template <class T>
struct Weights {
  Strips<T> strips;
  DeviceBuffer<T> shifts;  ///< (all heads)
};

/// exp(logits - shift), one kernel after another. Columns before the first start have logit 0, so
/// they become a strip of their own.
template <class T>
[[nodiscard]] Weights<T> exponentiate(const Strips<T>& logits, const Stream& stream);

}  // namespace convbasis::cuda
