#include "cpu/features.h"

#include <limits>

namespace convbasis {

Monomials::Monomials(index_t variables, index_t degree) : variables_(variables), degree_(degree) {
  // Of the degree before: where the monomials in variables v and later start, and where all end.
  std::vector<index_t> starts(static_cast<std::size_t>(variables), 0);
  index_t end = 1;
  for (index_t p = 1; p <= degree; ++p) {
    lower_count_ = count_;
    top_runs_ = static_cast<std::size_t>(variables);
    std::vector<index_t> next(starts.size());
    for (std::size_t v = 0; v < starts.size(); ++v) {
      const index_t parents = end - starts[v];
      runs_.push_back({static_cast<index_t>(v), starts[v], count_, parents});
      next[v] = count_;
      count_ += parents;
    }
    starts = std::move(next);
    end = count_;
  }
}

std::vector<double> Monomials::weights(std::span<const double> coefficients) const {
  // The multinomial coefficient of x_v * m is p / (power of v in it) times that of m. The parent of
  // a monomial starts with the same variable exactly when the power of v in it is more than 1.
  const auto size = static_cast<std::size_t>(padded());
  std::vector<double> weights(size, 0.0);
  std::vector<index_t> degree(size, 0), variable(size, -1), power(size, 0);
  weights[0] = 1;
  for (const MonomialRun& run : runs_)
    for (index_t t = 0; t < run.count; ++t) {
      const auto at = static_cast<std::size_t>(run.first + t);
      const auto parent = static_cast<std::size_t>(run.parent + t);
      degree[at] = degree[parent] + 1;
      variable[at] = run.variable;
      power[at] = variable[parent] == run.variable ? power[parent] + 1 : 1;
      weights[at] =
          weights[parent] * static_cast<double>(degree[at]) / static_cast<double>(power[at]);
    }
  for (std::size_t f = 0; f < size; ++f)
    weights[f] *= coefficients[static_cast<std::size_t>(degree[f])];
  return weights;
}

ValueGroups::ValueGroups(index_t columns) : size(0), count(0) {
  index_t cheapest = std::numeric_limits<index_t>::max();
  for (const index_t candidate : kGroupSizes) {
    const index_t groups = ceil_div(columns, candidate);
    const index_t cost = groups * (candidate + 1);  // features are loaded for each group
    if (cost > cheapest) continue;
    cheapest = cost;
    size = candidate;
    count = groups;
  }
}

}  // namespace convbasis
