#pragma once

#include "cuda/element.h"
#include "cuda/strips.h"

namespace convbasis::cuda {

/// The part of correlate_strips inside blocks of `diagonal` rows on the diagonal: every lag of out
/// is written.
template <class T>
void correlate_diagonal(const Strips<T>& strips, index_t diagonal, const Array<T>& x,
                        const Array<T>& y, T* out, const Stream& stream);

}  // namespace convbasis::cuda
