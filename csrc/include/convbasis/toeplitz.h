#pragma once

#include "convbasis/basis.h"

namespace convbasis {

/// y = A x, or A^T x when transpose is set, for the matrices of a basis; never dense.
///
/// x is (batch, heads, num_columns, channels) and y (batch, heads, n, channels), the other way
/// round when transposed. Blocked schedule: rows are cut into blocks, the part inside a block is
/// summed directly, the rest goes through FFTs of two blocks' length, summed in the frequency
/// domain. O(n c log L + k n c) a head with n / L blocks, memory O(k n + n c). Error relative to
/// the largest entries of a block: about eps * sqrt(log2 L). Throws InvalidArgument when shapes do
/// not fit.
template <class T>
void conv_matmul(const BasisView<T>& basis, View<const T, 4> x, View<T, 4> y,
                 bool transpose = false, const Exec& exec = {});

}  // namespace convbasis
