#pragma once

#include "cuda/online_softmax.h"

namespace convbasis::cuda {

/// Exact attention of float16 or bfloat16 arrays on tensor cores, into `out` and, unless it is
/// empty, lse. Weights are rounded to the arrays' type before values are multiplied by them; all
/// sums are float. `listed` heads, null for all of `heads`.
void attend_half(const OnlineSoftmax<float>& softmax, const Array<float>& value,
                 const Array<float>& out, const Array<float>& lse, index_t heads,
                 const std::int32_t* listed, const Stream& stream);

}  // namespace convbasis::cuda
