#pragma once

#include <span>

#include "cuda/element.h"
#include "cuda/gpu_schedule.h"
#include "cuda/rounding.h"

namespace convbasis::cuda {

/// y = A x, or A^T x, for all heads by one schedule: blocks on the diagonal directly, then level by
/// level, so no FFT maps a later input to an earlier output. y has elements of type T. What the
/// transforms may do to its rows, or to those of products with other rows of x, is added to each of
/// `rounding`, unless `transpose` is set.
template <class T>
void multiply_strips(const Strips<T>& strips, const Schedule& schedule, bool transpose,
                     const Array<T>& x, const Array<T>& y, index_t workspace, const Stream& stream,
                     std::span<const RoundingErrors> rounding = {});

}  // namespace convbasis::cuda
