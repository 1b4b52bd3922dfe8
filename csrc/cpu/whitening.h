#pragma once

#include "convbasis/sparsify.h"
#include "cpu/dense.h"

namespace convbasis {

/// B (rank, n) with B G B^T = I, for G = X X^T.
[[nodiscard]] Dense whitening(const Dense& gram);

/// Fills in what of `result` is measured: how far the features are from what they stand for.
/// `factor` was on both. gram (n, n), features (n, m).
void measure(const Dense& features, const Dense& white, const Dense& gram, double factor,
             Sparsified& result, const Exec& exec);

}  // namespace convbasis
