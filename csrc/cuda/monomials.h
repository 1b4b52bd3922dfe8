#pragma once

#include "cuda/buffer.h"

namespace convbasis::cuda {

/// The symmetric monomials of degree at most g in d variables, as tables on the device. With a
/// variable that is 1 they are the products of exactly g of d + 1 variables, in order:
/// feature f is the product of the variables factor(0, f) <= ... <= factor(slots - 1, f), number d
/// being the 1.
struct MonomialTable {
  const std::int32_t* factors = nullptr;  ///< (slots, padded)
  const std::int32_t* degrees = nullptr;  ///< (padded)
  const double* multinomials = nullptr;   ///< (padded), 0 for those that only pad
  index_t slots = 1, padded = 0;
};

/// The tables with their memory. `padded` is a multiple of kFeatureMultiple.
class Monomials {
 public:
  static constexpr index_t kFeatureMultiple = 64;
  /// For at most 2^26 features. Made on the device: the host sends O(g (d + g)) numbers.
  Monomials(index_t variables, index_t degree, const Stream& stream);

  [[nodiscard]] const MonomialTable& table() const { return table_; }

 private:
  DeviceBuffer<std::int32_t> words_;
  DeviceBuffer<double> multinomials_;
  MonomialTable table_;
};

}  // namespace convbasis::cuda
