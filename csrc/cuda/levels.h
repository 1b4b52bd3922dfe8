#pragma once

#include "cuda/element.h"
#include "cuda/level_plan.h"
#include "cuda/strips.h"

namespace convbasis::cuda {

/// Adds to y what the pieces of strips give to the later blocks of their spans, for all heads: one
/// level of the schedule. x and y as seen by flat heads.
template <class T>
void add_level(const Strips<T>& strips, const Level& level, bool transpose, const Array<T>& x,
               const Array<T>& y, index_t workspace, const Stream& stream);

}  // namespace convbasis::cuda
