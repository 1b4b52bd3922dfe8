#pragma once

#include "cuda/strips.h"

namespace convbasis::cuda {

/// Row sums of all heads, (all heads, rows), by windowed sums without subtraction, so that nothing
/// cancels.
template <class T>
void sum_rows(const Strips<T>& strips, double* sums, const Stream& stream);

}  // namespace convbasis::cuda
