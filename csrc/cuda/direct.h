#pragma once

#include "cuda/element.h"
#include "cuda/strips.h"

namespace convbasis::cuda {

/// y = the blocks of `diagonal` rows on the diagonal times x (or their transposes): every element
/// of y is written. The products of tiles that shared memory feeds; tensor cores multiply where x
/// has 16-bit elements, by weights that keep 16 bits.
template <class T>
void multiply_diagonal(const Strips<T>& strips, index_t diagonal, bool transpose, const Array<T>& x,
                       const Array<T>& y, const Stream& stream);

/// That of x with 16-bit elements.
void multiply_diagonal_halves(const Strips<float>& strips, index_t diagonal, bool transpose,
                              const Array<float>& x, const Array<float>& y, const Stream& stream);

}  // namespace convbasis::cuda
