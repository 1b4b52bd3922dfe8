#pragma once

#include "cuda/gpu_schedule.h"
#include "cuda/strips.h"
#include "cuda/term_factors.h"

namespace convbasis::cuda {

/// y += sum over terms r of diag(after[:, r]) F diag(before[:, r]) x, where F is what one level of
/// the strips has, or its transpose.
///
/// A product with (dv + 1) d channels: see levels.h. Terms are multiplied in as rows are gathered,
/// and summed as they are added to y, so that nothing of that width is ever in memory but in the
/// chunks' workspace.
template <class T>
void add_far_terms(const Strips<T>& strips, const Level& level, bool transpose,
                   const TermFactors<T>& after, const TermFactors<T>& before, const Array<T>& x,
                   const Array<T>& y, index_t workspace, const Stream& stream);

}  // namespace convbasis::cuda
