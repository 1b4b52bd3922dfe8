#pragma once

#include "bindings/ndarray.h"
#include "convbasis/lowrank.h"

namespace convbasis::bindings {

using Numbers = py::array_t<double, py::array::c_style>;
using Indices = py::array_t<index_t, py::array::c_style>;
/// coefficients, centre, exact rows, exact columns: one tuple a head.
using Polynomials = std::vector<std::tuple<Numbers, Numbers, Indices, Indices>>;

inline std::vector<HeadPolynomial> polynomials_of(const Polynomials& heads) {
  const auto list = []<class T>(const py::array_t<T, py::array::c_style>& array) {
    return std::vector<T>(array.data(), array.data() + array.size());
  };
  std::vector<HeadPolynomial> polynomials;
  for (const auto& [coefficients, centre, rows, columns] : heads)
    polynomials.push_back({list(coefficients), list(centre), list(rows), list(columns)});
  return polynomials;
}

}  // namespace convbasis::bindings
