#pragma once

#include <span>
#include <vector>

#include "core/buffer.h"
#include "cpu/simd/kernels.h"

namespace convbasis {

/// The symmetric monomials of degree at most g in d variables, C(d + g, g) of them: those of degree
/// p are x_v times those of degree p - 1 in the variables v and later, for each v. The polynomial
/// sum of c_p (q . k)^p is the sum over monomials of weight * monomial(q) * monomial(k).
class Monomials {
 public:
  Monomials(index_t variables, index_t degree);

  [[nodiscard]] index_t variables() const { return variables_; }
  [[nodiscard]] index_t degree() const { return degree_; }
  [[nodiscard]] index_t count() const { return count_; }
  /// A multiple of kFeatureBlock.
  [[nodiscard]] index_t padded() const { return round_up(count_, kFeatureBlock); }

  /// Those of degree below g come first.
  [[nodiscard]] index_t lower_count() const { return lower_count_; }
  [[nodiscard]] std::span<const MonomialRun> runs() const { return runs_; }
  [[nodiscard]] std::span<const MonomialRun> lower_runs() const {
    return runs().first(runs_.size() - top_runs_);
  }
  [[nodiscard]] std::span<const MonomialRun> top_runs() const { return runs().last(top_runs_); }

  /// c_p times the multinomial coefficient of every monomial, padded with zeros.
  [[nodiscard]] std::vector<double> weights(std::span<const double> coefficients) const;

 private:
  index_t variables_, degree_, count_ = 1, lower_count_ = 1;
  std::vector<MonomialRun> runs_;
  std::size_t top_runs_ = 0;
};

/// Value columns in groups for the low-rank kernels: `count` groups of `size`.
struct ValueGroups {
  explicit ValueGroups(index_t columns);
  index_t size, count;
  [[nodiscard]] index_t padded() const { return size * count; }
};

}  // namespace convbasis
