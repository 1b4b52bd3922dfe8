#pragma once

#include "cuda/element.h"

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

}  // namespace convbasis::cuda
