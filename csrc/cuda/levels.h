#pragma once

#include <span>

#include "cuda/element.h"
#include "cuda/rounding.h"

namespace convbasis::cuda {

/// Adds to y what the pieces of strips give to the later blocks of their spans, for all heads: one
/// level of the schedule. x and y as seen by flat heads. What its transforms may do to the rows of
/// y is added to each of `rounding`.
template <class T>
void add_level(const Strips<T>& strips, const Level& level, bool transpose, const Array<T>& x,
               const Array<T>& y, index_t workspace, const Stream& stream,
               std::span<const RoundingErrors> rounding);

/// Adds to each of `rounding` what transforms of that level would do, without a product.
template <class T>
void add_level_rounding(const Strips<T>& strips, const Level& level, index_t workspace,
                        std::span<const RoundingErrors> rounding, const Stream& stream);

}  // namespace convbasis::cuda
