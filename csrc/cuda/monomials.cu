#include <algorithm>
#include <vector>

#include "convbasis/polynomial.h"
#include "cuda/monomials.h"

namespace convbasis::cuda {
namespace {

/// Writes the factors of each feature, by counting how many come before those that begin with a
/// variable.
struct ListFactors {
  const std::int32_t* counts;  // (slots, variables + 1): products of that many later factors
  index_t variables, slots, padded, count;
  std::int32_t *factors, *degrees;
  double* multinomials;

  CONVBASIS_DEVICE void operator()(index_t, index_t feature) const {
    auto left = static_cast<std::int32_t>(feature < count ? feature : 0);
    int variable = 0, degree = 0, power = 0;
    double multinomial = feature < count ? 1 : 0;
    for (int slot = 0; slot < slots; ++slot) {
      // counts tells how many ways there are to fill the other slots with `variable` and later.
      const std::int32_t* ways = counts + (slots - 1 - slot) * (variables + 1);
      for (; left >= ways[variable]; ++variable) {
        left -= ways[variable];
        power = 0;
      }
      if (variable < variables) {
        ++degree;
        ++power;
        multinomial *= static_cast<double>(degree) / power;
      }
      factors[slot * padded + feature] = variable;
    }
    degrees[feature] = degree;
    multinomials[feature] = multinomial;
  }
};

}  // namespace

Monomials::Monomials(index_t variables, index_t degree, const Stream& stream) {
  // A constant alone is the product of one factor, the 1.
  const index_t slots = std::max(degree, index_t{1}), count = feature_count(variables, degree);
  const index_t padded = (count + kFeatureMultiple - 1) / kFeatureMultiple * kFeatureMultiple;
  std::vector<std::int32_t> counts;
  constexpr index_t kMost = std::numeric_limits<std::int32_t>::max();
  for (index_t others = 0; others < slots; ++others)
    for (index_t v = 0; v <= variables; ++v) {
      const bool used = degree > 0 || v == variables;
      const index_t ways = used ? feature_count(variables - v, others) : 0;
      counts.push_back(static_cast<std::int32_t>(std::min(ways, kMost)));
    }
  const DeviceBuffer<std::int32_t> ways = upload<std::int32_t>(stream, counts);
  words_ = DeviceBuffer<std::int32_t>(stream, (slots + 1) * padded);
  multinomials_ = DeviceBuffer<double>(stream, padded);
  std::int32_t* degrees = words_.data() + slots * padded;
  table_ = {words_.data(), degrees, multinomials_.data(), slots, padded};
  launch(stream, 1, padded,
         ListFactors{ways.data(), variables, slots, padded, count, words_.data(), degrees,
                     multinomials_.data()});
}

}  // namespace convbasis::cuda
