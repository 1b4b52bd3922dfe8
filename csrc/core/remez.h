#pragma once

#include <vector>

#include "convbasis/types.h"

namespace convbasis {

/// Coefficients by powers, constant first, of a polynomial whose relative error against exp on
/// [-radius, radius] is within one part in a thousand of the least, but for rounding (see
/// exp_polynomial).
[[nodiscard]] std::vector<double> least_error_polynomial(index_t degree, double radius);

/// A lower bound of that error, by one look at degree + 2 points (de la Vallee Poussin).
[[nodiscard]] double least_error_bound(index_t degree, double radius);

}  // namespace convbasis
