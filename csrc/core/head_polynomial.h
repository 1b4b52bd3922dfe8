#pragma once

#include <span>
#include <string>

#include "convbasis/lowrank.h"
#include "convbasis/polynomial.h"
#include "core/shape.h"

namespace convbasis {

/// Rising numbers below `limit`.
inline void require_rising(const char* function, const char* what,
                           const std::vector<index_t>& numbers, index_t limit) {
  for (std::size_t i = 0; i < numbers.size(); ++i)
    require(numbers[i] >= (i == 0 ? 0 : numbers[i - 1] + 1) && numbers[i] < limit, function,
            std::string("polynomials hold ") + what + " " + std::to_string(numbers[i]) +
                "; expected rising numbers below " + std::to_string(limit));
}

/// One polynomial for each of `heads` heads, all of which fit n_q queries and n_kv keys.
inline void require_polynomials(const char* function, std::span<const HeadPolynomial> polynomials,
                                index_t heads, index_t n_q, index_t n_kv, index_t head_dim) {
  require(static_cast<index_t>(polynomials.size()) == heads, function,
          "polynomials has " + std::to_string(polynomials.size()) + " entries; expected one for " +
              "each of " + std::to_string(heads) + " heads");
  for (const HeadPolynomial& polynomial : polynomials) {
    require(!polynomial.coefficients.empty(), function,
            "polynomials holds one without coefficients; expected at least the constant");
    require(polynomial.centre.empty() || static_cast<index_t>(polynomial.centre.size()) == head_dim,
            function,
            "polynomials holds a centre of " + std::to_string(polynomial.centre.size()) +
                " numbers; expected none or head_dim = " + std::to_string(head_dim));
    require_rising(function, "row", polynomial.exact_rows, n_q);
    require_rising(function, "column", polynomial.exact_columns, n_kv);
  }
}

[[nodiscard]] inline index_t rank_of(const HeadPolynomial& polynomial, index_t head_dim) {
  return feature_count(head_dim, static_cast<index_t>(polynomial.coefficients.size()) - 1);
}

}  // namespace convbasis
