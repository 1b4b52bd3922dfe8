#pragma once

#include "cuda/element.h"
#include "cuda/strips.h"

namespace convbasis::cuda {

/// y = the blocks of `diagonal` rows on the diagonal times x (or their transposes): every element
/// of y is written. The products of tiles that shared memory feeds.
template <class T>
void multiply_diagonal(const Strips<T>& strips, index_t diagonal, bool transpose, const Array<T>& x,
                       const Array<T>& y, const Stream& stream);

}  // namespace convbasis::cuda
