#pragma once

#include "cuda/element.h"
#include "cuda/gpu_schedule.h"
#include "cuda/strips.h"

namespace convbasis::cuda {

/// A number of each row and term: those of `numbers`, and one more term, `last` or ones.
template <class T>
struct TermFactors {
  Array<T> numbers;
  const double* last;  ///< (all heads, rows), multiplied by -1; null: 1
  [[nodiscard]] CONVBASIS_DEVICE T at(index_t head, index_t row, index_t term) const {
    if (term < numbers.channels) return numbers.load(head, row, term);
    return last != nullptr ? -static_cast<T>(last[head * numbers.rows + row]) : T(1);
  }
};

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
